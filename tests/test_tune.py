"""`camera-agent tune`: what it tries, counts, draws and writes."""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from agent.cli import main
from agent.cli.tune import Choice, Found, Row, Trial, best_of, caution
from agent.settings import load_settings

FPS = 10
CONFIG = """# the shop in the old town
[node]
id = "cam-1"

[detection]
# more than 60 sees the tree
sensitivity = 50  # tried on Monday
quiet_s = 3

[[zones]]
id = "tree"  # the plane tree
kind = "ignore"
polygon = [[0, 0], [0.3, 0], [0.3, 1], [0, 1]]
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 s; somebody crosses at 4 s, and again at 8 s, 1.7 s after he left; a faint one at 15 s."""
    path = tmp_path_factory.mktemp("tune") / "crossings.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.options = {"crf": "12"}
        for i in range(20 * FPS):
            picture = np.full((360, 320), 128, np.uint8)
            picture[:240] = 140
            for first, dark in ((40, 50), (80, 50), (150, 130)):
                if first <= i < first + 23:
                    left = -40 + 16 * (i - first + 1)
                    picture[60:240, max(left, 0) : max(left + 40, 0)] = dark
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def truth(recording: Path, tmp_path: Path) -> Path:
    path = tmp_path / "manifest.json"
    events = [[40, 62], [80, 102], [150, 172]]
    path.write_text(json.dumps({"clips": [{"file": recording.name, "fps": FPS, "events": events}]}))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(CONFIG)
    return path


def tune(capsys: pytest.CaptureFixture[str], *args: object) -> list[str]:
    assert main(["tune", *(str(arg) for arg in args)]) == 0
    return capsys.readouterr().out.splitlines()


def test_it_counts_what_settings_gain_and_lose_against_the_present_ones(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tune(capsys, recording, "--try", "sensitivity=0", "--try", "quiet_s=0.5,12")
    assert lines[0].split()[:5] == ["settings", "events", "instead", "of", "lost"]
    rows = [line.split()[-6:] if "@" in line else line.split()[-5:] for line in lines[1:]]
    assert len(rows) == 3
    present = int(rows[0][0])
    assert all(int(row[1]) == present for row in rows)
    assert lines[1].startswith("as it is")
    assert "sensitivity=0, quiet_s=0.5" in lines[2]


def test_against_the_truth_the_best_is_chosen_and_written_and_comments_stay(
    recording: Path, truth: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tune(
        capsys, recording, "--config", config, "--truth", truth, "--try", "sensitivity=0,70", "--write", config
    )
    assert any(line.startswith("best: ") for line in lines)
    assert any(line.startswith("caution: 3 events in 0 minutes") for line in lines)
    written = config.read_text()
    for comment in (
        "# the shop in the old town",
        "# more than 60 sees the tree",
        "# tried on Monday",
        "# the plane tree",
    ):
        assert comment in written
    chosen = next(line for line in lines if line.startswith("best: ")).removeprefix("best: ")
    sensitivity = load_settings(config, environ={}).detection.sensitivity
    assert chosen == ("as it is" if sensitivity == 50 else f"sensitivity={sensitivity}")
    assert sensitivity != 0  # it misses some


def row(choice: Choice, events: int, missed: int = 0, false: int = 0) -> Row:
    trial = Trial(choice, load_settings(None, environ={}))
    trial.found = [Found(0, 10.0 * i, 10.0 * i + 1) for i in range(events)]
    some = [Found(0, 0.0, 1.0)]
    return Row(trial, some * missed, some * false)


def sensitivity(value: float) -> Choice:
    return Choice((("sensitivity", value),))


def test_the_best_misses_least_then_is_least_often_wrong() -> None:
    rows = [row(Choice(), 10, 1, 0), row(sensitivity(65), 12, 0, 2), row(sensitivity(80), 12, 0, 1)]
    assert best_of(rows, 10).trial.choice == sensitivity(80)


def test_among_settings_that_find_all_the_blindest_is_not_chosen_for_its_count_of_events() -> None:
    rows = [row(Choice(), 4), row(sensitivity(0), 3), row(sensitivity(80), 4)]
    assert best_of(rows, 3) is rows[0]
    rows = [row(Choice(), 4, false=1), row(sensitivity(0), 3), row(sensitivity(35), 4), row(sensitivity(20), 3)]
    assert best_of(rows, 3).trial.choice == sensitivity(35)  # the nearest to the default


def test_settings_that_tear_visits_into_many_pieces_are_not_the_best() -> None:
    rows = [row(Choice(), 96), row(Choice((("quiet_s", 10),)), 14), row(Choice((("quiet_s", 20),)), 3)]
    assert best_of(rows, 14) is rows[1]


def test_few_events_are_called_few_and_what_they_prove_is_told() -> None:
    assert "10 events in 4 minutes" in caution(10, 240)
    assert "26 %" in caution(10, 240)  # 0.74 to the tenth power is 0.05
    assert "nothing is to be found" in caution(0, 240)
    assert caution(30, 240) == ""


def test_the_one_setting_asked_for_is_written_without_a_truth(
    recording: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune(capsys, recording, "--config", config, "--try", "quiet_s=7.5", "--try", "zones=tree", "--write", config)
    settings = load_settings(config, environ={})
    assert settings.detection.quiet_s == 7.5
    assert settings.zones == []
    assert "# more than 60 sees the tree" in config.read_text()


def test_a_comment_above_the_next_section_stays_there(
    recording: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text('[detection]\nquiet_s = 2.0\n\n# cửa sổ\n[log]\nlevel = "info"\n', encoding="utf-8")
    tune(capsys, recording, "--config", config, "--try", "confirm_frames=5", "--write", config)
    written = config.read_text(encoding="utf-8")
    assert written == '[detection]\nquiet_s = 2.0\nconfirm_frames = 5\n\n# cửa sổ\n[log]\nlevel = "info"\n'


def test_what_was_missed_is_shown_by_a_picture_of_its_middle(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    manifest = tmp_path / "m.json"
    clip = {"file": recording.name, "fps": FPS, "events": [[2, 6]]}  # before anything can be found
    manifest.write_text(json.dumps({"clips": [clip]}), encoding="utf-8")
    sheet = tmp_path / "sheet.html"
    tune(capsys, recording, "--truth", manifest, "--try", "sensitivity=40", "--sheet", sheet)
    lost = re.findall(r'<figure class="lost">.*?base64,([^"]+)".*?<figcaption>([^<]*)<', sheet.read_text(), re.DOTALL)
    assert len(lost) == 2
    for encoded, words in lost:
        assert words == "missed: 1@0:00.2, 0.4 s"
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_GRAYSCALE)
        assert picture is not None


def test_without_a_truth_it_does_not_guess_which_of_several_is_right(
    recording: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(recording), "--try", "quiet_s=3,9", "--write", str(config)]) == 78
    assert "--truth" in capsys.readouterr().err
    assert config.read_text() == CONFIG


def test_the_sheet_names_recordings_of_any_name_and_fits_a_telephone(
    recording: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = tmp_path / "Phòng <một cửa> Huế.mp4"
    named.write_bytes(recording.read_bytes())
    manifest = json.loads(truth.read_text())
    manifest["clips"][0]["file"] = named.name
    truth.write_text(json.dumps(manifest), encoding="utf-8")
    sheet = tmp_path / "sheet.html"
    tune(capsys, named, "--truth", truth, "--try", "sensitivity=0", "--sheet", sheet)
    page = sheet.read_text(encoding="utf-8")
    assert "<li>Phòng &lt;một cửa&gt; Huế.mp4</li>" in page
    assert 'name="viewport"' in page
    assert re.search(r'<tr class="best"><td>[^<]* \(best\)<td>', page)
    linked = re.findall(r'href="#(c\d+)"', page)
    assert linked
    assert all(f'id="{name}"' in page for name in linked)


@pytest.mark.parametrize("option", ["--sheet", "--write"])
def test_what_cannot_be_written_is_said_before_the_recordings_are_watched(
    option: str, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "absent" / "sheet.html"
    assert main(["tune", str(recording), "--try", "sensitivity=40", option, str(path)]) == 1
    said = capsys.readouterr()
    assert str(path) in said.err
    assert said.out == ""


def test_tune_refuses_streams_without_telling_their_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "rtsp://user:secret@127.0.0.1/x"]) == 78
    error = capsys.readouterr().err
    assert "not a recording" in error
    assert "secret" not in error


@pytest.mark.parametrize("suffix", ["html", "png"])
def test_a_sheet_shows_the_events_that_differ(
    suffix: str, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    sheet = tmp_path / f"sheet.{suffix}"
    tune(capsys, recording, "--try", "sensitivity=0", "--sheet", sheet)
    if suffix == "html":
        page = sheet.read_text()
        assert page.count("<figure") == page.count("<figcaption>") > 0
        assert "data:image/jpeg;base64," in page
    else:
        picture = cv2.imread(str(sheet))
        assert picture is not None
        assert picture.shape[1] == 1010


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("sensitivity=101", "sensitivity"),
        ("speed=3", "speed"),
        ("quiet_s=long", "quiet_s"),
        ("zones=door", "door"),
    ],
)
def test_what_cannot_be_tried_is_named(
    words: str, named: str, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(recording), "--try", words]) == 78
    error = capsys.readouterr().err
    assert named in error
    assert len(error.splitlines()) == 1


def test_a_vietnamese_name_is_found_in_the_manifest_however_its_accents_are_written(
    recording: Path, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = tmp_path / unicodedata.normalize("NFD", "Phường Thuận Hòa.mp4")
    named.write_bytes(recording.read_bytes())
    manifest = json.loads(truth.read_text())
    manifest["clips"][0]["file"] = unicodedata.normalize("NFC", named.name)
    assert manifest["clips"][0]["file"] != named.name
    truth.write_text(json.dumps(manifest), encoding="utf-8")
    lines = tune(capsys, named, "--truth", truth, "--try", "sensitivity=60")
    assert any(line.startswith("best: ") for line in lines)


def test_a_manifest_that_does_not_know_the_recording_is_refused(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.json").write_text('{"clips": []}')
    assert main(["tune", str(recording), "--truth", str(tmp_path / "m.json")]) == 78
    assert recording.name in capsys.readouterr().err
