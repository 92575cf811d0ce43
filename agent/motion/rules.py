"""The numbers of the motion detector. Touches nothing."""

from __future__ import annotations

from dataclasses import dataclass

ANALYSIS_WIDTH = 160
TILE = 8
"""Pixels of the analysis picture: light is measured per tile; a person of 7 % of the picture's height fills one."""
CELL = 4
"""Changed pixels are counted in tiles that overlap by half, so that nothing falls between two of them."""
BLACK = 8
"""Light multiplies from here: video black is 16, and noise lies some levels below it."""
PER_PIXEL = 255 / 64
"""Counts of changed pixels per tile are bytes, 255 for all 64 of a tile."""
CLIPPED = 228 - BLACK
"""Above this the sensor clips, and more light no longer makes more signal."""
AT_FIRST = 40
"""Updates of the background that leave nothing out: what was learned in a second and a half is rough."""
FORGET_GAP_S = 5.0
"""After so long without a frame the scene is learned anew."""


@dataclass(frozen=True, slots=True)
class Rules:
    """None of them is a setting; docs/MOTION.md says what each part is worth and how they were found.

    learn_s: plain means at first. learn_restless_s: at most, where tiles do not come to rest by then.
    fast_s: memory of the background; absorb_every: under a thing that moves only every so many-th update counts.
    relight_s: how fast it follows a change of light. noise_s, history_s: memory of pixels' noise and tiles' counts;
    the noise is learned on every noise_every-th update, counts on every counts_every-th.
    look_back_s: a thing moves if the picture differs from that of so long ago.
    pair_s: rain and snow leave a pixel again within this. soon_s: within this who walks still overlaps himself.
    update_s, light_update_s: the background follows so often; rest_update_s: while no more than usual moves.
    trust_s: what was no shadow is not asked again for so long.
    idle_s: while nothing stirs, up to two frames nearer than this to the last one looked at are passed over.
    stir_s: while something does, one frame is.
    active_s: once active, frames nearer than this to the last one looked at are taken to show the same.
    hold_s, hold_longest_s: nothing new becomes active for so long after a change of light.
    floor: levels, and spread: multiples of a pixel's mean deviation, that count as the same.
    envelope: pixels of the neighbourhood that a pixel may look like. even: light within 1 +- this is the same.
    median: tiles (3 or 5) to a side that vote on the light. doubt: levels, for light twice of the usual.
    need: changed pixels of the 64 in a tile. calm, calm_solid, calm_once: multiples of a tile's usual count (root
    mean square) for pixels that changed twice running, that are part of something 3 wide, and all.
    moves: of need, must differ from before.
    trace: pixels too many; a thing of fewer must show for twice as long.
    """

    learn_s: float = 1.2
    learn_restless_s: float = 4.0
    fast_s: float = 3.0
    absorb_every: int = 4
    noise_every: int = 3
    counts_every: int = 2
    relight_s: float = 1.0
    noise_s: float = 8.0
    history_s: float = 8.0
    look_back_s: float = 0.35
    pair_s: float = 0.045
    soon_s: float = 0.12
    update_s: float = 0.24
    rest_update_s: float = 0.48
    light_update_s: float = 0.95
    active_s: float = 0.25
    idle_s: float = 0.11
    stir_s: float = 0.05
    hold_s: float = 0.5
    hold_longest_s: float = 2.0
    floor: float = 3.0
    spread: float = 3.0
    envelope: int = 3
    even: float = 0.01
    median: int = 3
    doubt: float = 30.0
    need: float = 6.0
    calm: float = 2.0
    calm_solid: float = 3.0
    calm_once: float = 5.0
    moves: float = 0.5
    trace: float = 4.0
    trust_s: float = 0.9
