"""The storage stage: events, packets and acknowledgements become rows and clips. The only writer of the disk.

One step: newest event states into the outbox, then acknowledgements, then packets, then housekeeping. Expected
trouble never raises out of step(): recording or the ledger pauses, status.trouble says why, and each is tried
again every few seconds until the disk is well.
"""

from __future__ import annotations

import logging
from typing import Protocol

from agent.clock import Clock, Now, read
from agent.disk import DirectoryRefusedError, Disk, OpenFile
from agent.errands import ErrandDesk, Errands
from agent.errors import StorageError
from agent.handoffs import AckBox, Doorbell, EventBoard, PacketRing
from agent.ledger import Ledger, Revision
from agent.ledger_file import CLIPS_NAME, LOCK_NAME, LedgerError
from agent.ledger_reader import ClipRow, ClipTotals
from agent.model import NS_PER_S, Ack, EndReason, Event, Phase
from agent.recorder import Recorder
from agent.recovery import Recovery, open_ledger
from agent.retime import retime
from agent.ring import choose, delete_clips
from agent.settings import Settings
from agent.status import StorageStatus

MB = 1_000_000
RETRY_S = 5.0
"""After trouble the disk is tried again this often: a remount or freed space is noticed well within 30 s."""
ACK_BATCH_S = 1.0
"""Acknowledgements share one commit per second; a power cut in between costs a duplicate, never a loss."""
ACK_BATCH_ROWS = 200
PACKETS_PER_STEP = 256
HOUSEKEEPING_S = 5.0
TIDY_S = 60.0
"""So often delivered rows expire, and the ledger is written even if nothing happens: proof that the disk works."""
DELETIONS_PER_STEP = 16

_log = logging.getLogger(__name__)


class Bell(Protocol):
    def ring(self) -> None: ...


class Storage:
    """Owned by the storage thread once open() returned. status is replaced whole, for anyone to read.

    open() may be called in another thread before. link_bell is rung when rows were added to the outbox.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        ring: PacketRing,
        board: EventBoard,
        acks: AckBox,
        doorbell: Doorbell,
        link_bell: Bell,
        disk: Disk | None = None,
        errands: ErrandDesk | None = None,
    ) -> None:
        self._settings = self._wanted = settings
        self._clock = clock
        self._ring = ring
        self._board = board
        self._acks = acks
        self._doorbell = doorbell
        self._link_bell = link_bell
        self._disk = disk if disk is not None else Disk()
        self._disk.clock = clock.boot_ns
        self._directory = settings.clips.directory
        self._clips = self._directory / CLIPS_NAME
        self._ledger = Ledger(self._disk, self._directory, node=settings.node.id)
        self._recorder = Recorder(self._disk, self._clips, settings.clips, silence_s=settings.camera.silence_s)
        self._recovery = Recovery(self._disk, self._directory, self._ledger)
        self._errands = Errands(self._disk, self._directory, self._ledger, errands) if errands is not None else None
        self._lock: OpenFile | None = None
        self._is_ready = False  # the ledger is open and what an earlier run left was put in order
        self._was_ready = False
        self._ledger_trouble = ""
        self._clip_trouble = ""
        self._retry_ns = 0
        self._tries = 0
        self._unlisted: list[ClipRow] = []
        self._answers: list[Ack] = []
        self._marked_ns = 0
        self._house_ns: int | None = None
        self._busy = False
        self._free_mb: int | None = None
        self._units_seen = 0
        self._durable_ns = 0
        self._tidied_ns = 0
        self._untold = 0
        self._has_unsure_times = True  # an earlier process of this boot may have left some
        self._has_news = True
        self._totals = ClipTotals(0, 0, None)
        self._oldest_owed_ns: int | None = None
        self.beat_ns = clock.boot_ns()
        self.status = StorageStatus()

    # -- life -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Lock the directory, open the ledger, put in order what the last run left.

        Raises StorageError where starting again will not help: a second agent, another node's directory, no
        permission, no such place. Other trouble (full, read-only, failing) is in status.trouble and retried.
        """
        now = read(self._clock)
        try:
            self._make_ready(now)
        except DirectoryRefusedError:
            self._unlock()
            raise
        except StorageError as error:
            self._failed(error, now)
        self._show(now)

    def _make_ready(self, now: Now) -> None:
        bare = self._disk.missing_mount(self._directory, self._settings.clips.mount_point)
        if bare is not None:
            raise LedgerError(
                "use",
                self._directory,
                f"nothing is mounted at {bare}",
                hint="mount the data disk; nothing is written beneath its mount point",
            )
        if not self._was_ready:
            self._disk.make_directory(self._clips)
        # Anew each time: a disk that was pulled and put back is another file system with another lock file.
        self._unlock()
        self._lock = self._disk.lock(self._directory / LOCK_NAME)
        open_ledger(
            self._disk, self._directory, self._ledger, now, known=self._ledger.uuid if self._was_ready else ""
        )
        if not self._was_ready:
            ended = self._ledger.end_open_events(EndReason.POWER_LOSS, now)
            if ended:
                _log.info("%d events of the last run ended: power_loss", ended)
        self._is_ready = self._was_ready = True
        self._wrote(now)
        self._put_clips_in_order(now)
        # One clip at once (what a power cut leaves); the rest of a rebuild goes on between other work.
        self._recovery.step(now)

    def adopt(self, settings: Settings) -> None:
        """Go by other bounds and times from the next step on. Any thread."""
        self._wanted = settings

    def _put_clips_in_order(self, now: Now) -> None:
        self._recovery.begin(now, running=self._recorder.part_name, believed=self._recorder.abandoned)
        self._recorder.abandoned.clear()

    def close(self) -> None:
        """Write down what came last, end the clip, let go of everything. Safe after errors and twice."""
        now = read(self._clock)
        if self._lock is not None:
            self._store_events(now)
            if self._settings.clips.enabled and not self._clip_trouble and self._was_ready:
                try:
                    self._recorder.finish(self._ring, now)
                except StorageError as error:
                    self._recording_failed(error, now)
            self._recorder.abandon(now)
            self._list_clips(now)
            self._mark(now, at_once=True)
            self._show(now)
        self._ledger.close()
        self._is_ready = False
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._disk.close(self._lock)
            self._lock = None

    def step(self, wait_s: float) -> None:
        """One bounded piece of work; waits up to wait_s when there is none."""
        if not self._busy:
            self._doorbell.wait(wait_s)
        self._busy = False
        now = read(self._clock)
        if (self._ledger_trouble or self._clip_trouble) and now.t_ns >= self._retry_ns:
            self._try_again(now)
        if self._wanted is not self._settings:
            self._settings = self._wanted
            self._recorder.adopt(self._settings.clips)
        self._store_events(now)
        self._mark(now)
        self._run_errands(now)
        self._record(now)
        self._list_clips(now)
        self._keep_house(now)
        self._show(now)
        self.beat_ns = self._clock.boot_ns()

    # -- trouble --------------------------------------------------------------------------------------------

    def _failed(self, error: StorageError, now: Now) -> None:
        if isinstance(error, LedgerError) or not self._was_ready:
            self._ledger_failed(error, now)
        else:
            self._recorder.abandon(now)
            self._recording_failed(error, now)

    def _ledger_failed(self, error: StorageError, now: Now) -> None:
        """Nothing can be stored: keep what can be kept in memory (bounded by the board) and try again later."""
        if not self._ledger_trouble:
            _log.error("storage: %s", error)
        self._ledger_trouble = str(error)
        self._is_ready = False
        self._try_later(now)

    def _recording_failed(self, error: StorageError | str, now: Now) -> None:
        if not self._clip_trouble:
            _log.error("recording paused: %s", error)
        if isinstance(error, StorageError):
            # Each try is another file: the words stay the same while the trouble does.
            error = StorageError(error.operation, self._directory, error.cause, hint=error.hint)
        self._clip_trouble = str(error)
        self._try_later(now)

    def _try_later(self, now: Now) -> None:
        """Set the time of the next try; trouble that comes meanwhile does not put it off."""
        if self._retry_ns <= now.t_ns:
            self._retry_ns = now.t_ns + round(RETRY_S * NS_PER_S)

    def _try_again(self, now: Now) -> None:
        try:
            if not self._is_ready:
                self._tries += 1
                if self._ledger.is_open and self._tries % 2:
                    # The same connection first: it knows which commits failed, a new one would find their
                    # remains in the WAL. A new one every other time, for a disk that was mounted again.
                    self._ledger.prove(now)
                    self._is_ready = True
                else:
                    self._make_ready(now)
                _log.info("storage: the ledger works again")
                self._ledger_trouble = ""
            if self._clip_trouble:
                self._put_clips_in_order(now)
                self._check_space(now)
                if not self._lacks_space():
                    _log.info("recording goes on")
                    self._clip_trouble = ""
        except StorageError as error:
            self._failed(error, now)
        if self._ledger_trouble or self._clip_trouble:
            self._try_later(now)

    # -- the work -------------------------------------------------------------------------------------------

    def _store_events(self, now: Now) -> None:
        """First of all, and in one commit: what happened must reach the outbox before slow disk work."""
        events = self._board.take()
        if not events:
            return
        records = self._settings.clips.enabled and not self._clip_trouble
        for event in events:
            if self._settings.clips.enabled:
                self._recorder.consider(event, now)
        if not self._is_ready:
            self._board.give_back(events)
            return
        revisions = [
            Revision(event, self._recorder.clip_of(event.id) if records else None, self._happened_ns(event, now))
            for event in events
        ]
        try:
            self._ledger.store_events(revisions, now)
            self._wrote(now)
            bounds = self._settings.outbox
            evicted = self._ledger.bound_outbox(bounds.max_rows, bounds.max_mb * MB, now)
            if evicted:
                _log.warning("outbox full: %d messages evicted, named by a loss record", evicted)
        except StorageError as error:
            # A state that was stored before the error comes twice: the ledger knows its revision.
            self._board.give_back(events)
            self._ledger_failed(error, now)
            return
        self._link_bell.ring()

    def _happened_ns(self, event: Event, now: Now) -> int:
        """When this revision came to be; for an end that is when the quiet time was over."""
        if event.phase is Phase.END and event.end is not None:
            return min(now.t_ns, event.end.t_ns + round(self._settings.detection.quiet_s * NS_PER_S))
        return event.last.t_ns

    def _mark(self, now: Now, *, at_once: bool = False) -> None:
        self._answers += self._acks.take()
        if not self._answers or not self._is_ready:
            return
        waited_ns = now.t_ns - self._marked_ns
        if not at_once and waited_ns < ACK_BATCH_S * NS_PER_S and len(self._answers) < ACK_BATCH_ROWS:
            return
        try:
            for answer in self._answers:
                if answer.poison and self._ledger.quarantine(answer.seq, answer.reason, now):
                    _log.warning("message %d quarantined: %s", answer.seq, answer.reason)
                    self._link_bell.ring()
            if self._ledger.mark([answer for answer in self._answers if not answer.poison], now):
                self._wrote(now)
            self._answers.clear()
            self._marked_ns = now.t_ns
        except StorageError as error:
            self._ledger_failed(error, now)

    def _run_errands(self, now: Now) -> None:
        """What commands asked for; each is answered at once, also when nothing can be done for it."""
        if self._errands is None:
            return
        try:
            waits = self._ledger_trouble or "the ledger is not open yet"
            if self._errands.step(now, unavailable="" if self._is_ready else waits):
                self._wrote(now)
        except StorageError as error:
            self._ledger_failed(error, now)

    def _record(self, now: Now) -> None:
        if not self._settings.clips.enabled or self._clip_trouble or not self._was_ready:
            return
        try:
            self._busy |= self._recorder.step(self._ring, now, PACKETS_PER_STEP)
        except StorageError as error:
            self._failed(error, now)
        if self._recorder.units != self._units_seen:
            self._units_seen = self._recorder.units
            self._wrote(now)

    def _list_clips(self, now: Now) -> None:
        """Rows for the clips that became final; while an index is rebuilt they wait, so that n stays the order."""
        self._unlisted += self._recorder.closed
        self._recorder.closed.clear()
        if not self._unlisted or not self._is_ready or self._recovery.left:
            return
        try:
            while self._unlisted:
                clip = self._unlisted[0]
                self._ledger.store_clip(clip, now)
                gap = ", with a gap" if "gap" in clip.flags else ""
                _log.info(
                    "clip %s closed: %d frames, %.1f s, %.1f MB%s",
                    clip.id,
                    clip.frames,
                    clip.duration_s,
                    clip.bytes / MB,
                    gap,
                )
                del self._unlisted[0]
                self._house_ns = None  # the ring has grown: look at its bounds in this step
            self._wrote(now)
            self._link_bell.ring()
        except StorageError as error:
            self._ledger_failed(error, now)

    def _wrote(self, now: Now) -> None:
        self._durable_ns = now.t_ns
        self._has_news = True

    # -- housekeeping ---------------------------------------------------------------------------------------

    def _keep_house(self, now: Now) -> None:
        """Now and then: the rest of a rebuild, the ring's bounds, the outbox's bounds, a sign of life."""
        is_due = self._house_ns is None or now.t_ns - self._house_ns >= HOUSEKEEPING_S * NS_PER_S
        if not self._is_ready or not (is_due or self._recovery.left):
            return
        self._house_ns = now.t_ns
        self._has_news = True
        try:
            if self._recovery.left:
                self._busy |= self._recovery.step(now)
                return  # no deletion before all clips are known: the oldest may not be listed yet
            self._put_times_right(now)
            self._check_space(now)
            if self._settings.clips.enabled and not self._clip_trouble and self._lacks_space():
                self._recorder.close_early(now)
                self._list_clips(now)
                self._recording_failed(self._lack_in_words(), now)
            if now.t_ns - self._tidied_ns >= TIDY_S * NS_PER_S:
                self._tidied_ns = now.t_ns
                bounds = self._settings.outbox
                self._ledger.tidy(replay_s=bounds.replay_days * 86400, replay_bytes=bounds.replay_mb * MB, now=now)
                self._keep_room()
                self._wrote(now)
        except StorageError as error:
            self._failed(error, now)

    def _put_times_right(self, now: Now) -> None:
        """Once the clock is synchronised, what was written before gets its true wall time."""
        if not now.clock_synced:
            self._has_unsure_times = True
        elif self._has_unsure_times:
            corrected = retime(self._ledger, now)
            self._has_unsure_times = corrected > 0
            if corrected:
                self._wrote(now)
                self._link_bell.ring()
                self._busy, self._house_ns = True, None
                _log.info("the clock is synchronised: %d wall times put right", corrected)

    def _keep_room(self) -> None:
        """Room for events inside the ledger's file, for when others have filled the disk."""
        wanted = self._settings.outbox.reserve_mb * MB
        if wanted and self._disk.free_bytes(self._directory) > 3 * wanted:
            self._ledger.keep_room(wanted)

    def _check_space(self, now: Now) -> None:
        """Delete the oldest clips while the ring is over its budget, its age, or the disk short of space."""
        limits = self._settings.clips
        self._free_mb = self._disk.free_bytes(self._directory) // MB
        over_bytes = max(
            self._ledger.clip_totals().bytes + self._recorder.part_bytes - limits.budget_mb * MB,
            (limits.min_free_mb - self._free_mb) * MB,
        )
        old_ns = round(limits.max_age_days * 86400 * NS_PER_S)
        running_ns = self._ledger.running_ns(now)

        def is_old(clip: ClipRow) -> bool:
            # Both clocks must agree: the wall clock may have jumped, the running time misses hours without power.
            return now.wall_ns - clip.start_wall_ns > old_ns and running_ns - clip.running_ns > old_ns

        chosen = choose(self._ledger, over_bytes, is_old, DELETIONS_PER_STEP)
        if not chosen:
            return
        reason = "deleted for space" if over_bytes > 0 else "deleted for its age"
        untold = delete_clips(self._disk, self._clips, self._ledger, chosen, now, reason)
        self._free_mb = self._disk.free_bytes(self._directory) // MB
        _log.info("ring: %d clips deleted, the newest of them %s", len(chosen), chosen[-1].id)
        if untold:
            self._untold += untold
            _log.warning("ring: %d of them were deleted before the broker was told of them", untold)
            self._link_bell.ring()
        if len(chosen) == DELETIONS_PER_STEP:
            self._busy = True
            self._house_ns = None

    def _lacks_space(self) -> bool:
        return self._free_mb is not None and self._free_mb < self._settings.clips.min_free_mb

    def _lack_in_words(self) -> str:
        wanted = self._settings.clips.min_free_mb
        return (
            f"{self._directory}: {self._free_mb} MB free, clips.min_free_mb is {wanted};"
            " nothing of the ring is left to delete (free some space: others fill this disk)"
        )

    # -- what health sees -----------------------------------------------------------------------------------

    def _show(self, now: Now) -> None:
        recording_trouble = f"recording paused: {self._clip_trouble}" if self._clip_trouble else ""
        trouble = "; ".join(filter(None, (self._ledger_trouble, recording_trouble)))
        is_recording = self._recorder.is_recording
        old = self.status
        if not self._has_news and (trouble, is_recording) == (old.trouble, old.recording):
            return
        self._has_news = False
        totals, oldest_ns = self._totals, self._oldest_owed_ns
        if self._is_ready:
            try:
                totals, oldest_ns = self._ledger.clip_totals(), self._ledger.oldest_owed_wall_ns()
            except StorageError as error:
                self._ledger_failed(error, now)
        self._totals, self._oldest_owed_ns = totals, oldest_ns
        self.status = StorageStatus(
            recording=is_recording,
            last_durable_ns=self._durable_ns if self._was_ready else None,
            clips=totals.clips,
            clip_bytes=totals.bytes,
            oldest_clip_wall_ns=totals.oldest_wall_ns,
            clip_gaps=self._recorder.gaps,
            free_mb=self._free_mb,
            outbox_rows=self._ledger.load.rows,
            outbox_bytes=self._ledger.load.bytes,
            outbox_oldest_wall_ns=oldest_ns,
            outbox_evicted=self._ledger.evicted,
            epoch=self._ledger.epoch,
            head_seq=self._ledger.head_seq,
            events_lost=self._board.lost,
            clips_untold=self._untold,
            slowest_sync_ms=self._disk.slowest_sync_ns / 1e6,
            sync_stalls=self._disk.sync_stalls,
            trouble=trouble,
        )
