"""A contact sheet: pictures of events with a line each, as one HTML page or one PNG. Writes that file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import StorageError
from agent.model import Box, Thumbnail

COLUMNS = 4
WIDTH = 240
ORANGE = (20, 140, 240)
WORDS_WIDE = 108
"""So many letters of the PNG's headlines are in a row at most."""

STYLE = """body{font:15px/1.4 system-ui,sans-serif;margin:24px;background:#f6f5f3;color:#222}
h1{font-size:24px;margin:0 0 8px}h2{font-size:16px;margin:28px 0 8px}p,li{color:#666;margin:4px 0}
h1,h2,p,li,figcaption{overflow-wrap:anywhere}ol{padding-left:22px}
b.lost,b.new{padding:0 6px;border-radius:3px;color:#fff;background:#2a8a3e}b.lost{background:#c8352b}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:16px 0;background:#fff}
th,td{padding:4px 10px;text-align:right;border-bottom:1px solid #e4e2de;vertical-align:top}
th:first-child,td:first-child{text-align:left;min-width:110px}th{font-weight:600}
tr.best{background:#eaf4ec}a{color:inherit}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(240px,1fr));gap:12px}
figure{margin:0;background:#fff;border-top:4px solid #2a8a3e;padding:6px}
figure.lost{border-color:#c8352b}img{display:block;width:100%}
.shown{position:relative}.shown i{position:absolute;box-sizing:border-box;border:2px solid #f08c14}
.none{aspect-ratio:4/3;background:#ddd}figcaption{padding-top:4px;font-size:13px}
@media(max-width:600px){body{margin:14px}table{font-size:13px}th,td{padding:4px 6px}
.cards{grid-template-columns:1fr 1fr}}"""


@dataclass(frozen=True, slots=True)
class Card:
    """One event. picture: None where there is none; boxes: of what moved in it."""

    words: str
    picture: Thumbnail | None
    boxes: tuple[Box, ...]
    is_lost: bool


@dataclass(frozen=True, slots=True)
class Group:
    """What one choice of settings gave. counts: its events, how many were lost, how many are new."""

    settings: str
    counts: tuple[int, int, int]
    minutes: float
    cards: tuple[Card, ...]
    is_best: bool


def write_sheet(path: Path, groups: Sequence[Group], recordings: Sequence[str], words: tuple[str, str]) -> None:
    """groups: the first are the present settings. path: .png, else HTML, which names recordings; words: for lost
    and new. Raises StorageError."""
    try:
        if path.suffix == ".png":
            path.write_bytes(_png(groups, words))
        else:
            path.write_text(_page(groups, recordings, words), encoding="utf-8")
    except OSError as error:
        raise StorageError("write", path, error, hint="does its directory exist?") from error


def _headline(group: Group, words: tuple[str, str]) -> str:
    events, lost, new = group.counts
    best = " (best)" if group.is_best else ""
    return f"{group.settings}: {events} events; {lost} {words[0]}, {new} {words[1]}{best}"


def _page(groups: Sequence[Group], recordings: Sequence[str], words: tuple[str, str]) -> str:
    lost, new = words
    names = "".join(f"<li>{html.escape(name)}</li>" for name in recordings)
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Events that differ</title><style>{STYLE}</style><h1>Events that differ</h1>",
        f'<p><b class="lost">{lost}</b> <b class="new">{new}</b> Orange: what moved. 2@1:03.5: in the second '
        f"recording, after one minute and 3.5 seconds.</p><ol>{names}</ol>",
        f'<div class="wide"><table><tr><th>settings<th>events<th>{lost}<th>{new}<th>minutes',
    ]
    for number, group in enumerate(groups):
        name = html.escape(group.settings)
        name = f'<a href="#c{number}">{name}</a>' if group.cards else name
        mark, best = (' class="best"', " (best)") if group.is_best else ("", "")
        counts = "".join(f"<td>{count}" for count in group.counts)
        parts.append(f"<tr{mark}><td>{name}{best}{counts}<td>{group.minutes:.1f}")
    parts.append("</table></div>")
    if not any(group.cards for group in groups):
        parts.append("<p>No event differs.</p>")
    for number, group in enumerate(groups):
        if group.cards:
            parts.append(f'<h2 id="c{number}">{html.escape(_headline(group, words))}</h2><div class="cards">')
            parts += [_figure(card) for card in group.cards]
            parts.append("</div>")
    return "\n".join(parts) + "\n"


def _figure(card: Card) -> str:
    shown = '<div class="none"></div>'
    if card.picture is not None:
        sides = ("left", "top", "width", "height")
        styles = (
            ";".join(f"{side}:{100 * share:.1f}%" for side, share in zip(sides, box, strict=True))
            for box in card.boxes
        )
        boxes = "".join(f'<i style="{style}"></i>' for style in styles)
        encoded = base64.b64encode(card.picture.jpeg).decode()
        shown = f'<div class="shown"><img src="data:image/jpeg;base64,{encoded}" alt="">{boxes}</div>'
    mark = ' class="lost"' if card.is_lost else ""
    return f"<figure{mark}>{shown}<figcaption>{html.escape(card.words)}</figcaption></figure>"


def _png(groups: Sequence[Group], words: tuple[str, str]) -> bytes:
    import cv2

    rows: list[Any] = []
    for group in groups:
        head = _headline(group, words)
        for first in range(0, len(head), WORDS_WIDE):
            line = np.full((34, COLUMNS * (WIDTH + 10) + 10, 3), 246, np.uint8)
            text = head[first : first + WORDS_WIDE]
            cv2.putText(line, text, (10, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
            rows.append(line)
        for first in range(0, len(group.cards), COLUMNS):
            tiles = [_tile(card) for card in group.cards[first : first + COLUMNS]]
            height = max(len(tile) for tile in tiles)
            row = np.full((height + 10, line.shape[1], 3), 246, np.uint8)
            for i, tile in enumerate(tiles):
                left = 10 + i * (WIDTH + 10)
                row[: len(tile), left : left + WIDTH] = tile
            rows.append(row)
    ok, png = cv2.imencode(".png", np.vstack(rows))
    if not ok:
        raise RuntimeError("OpenCV could not encode the sheet")
    return bytes(png.tobytes())


def _tile(card: Card) -> Any:
    import cv2

    height = 180
    picture: Any = np.full((height, WIDTH, 3), 221, np.uint8)
    if card.picture is not None:
        full: Any = cv2.imdecode(np.frombuffer(card.picture.jpeg, np.uint8), cv2.IMREAD_COLOR)
        height = round(WIDTH * full.shape[0] / full.shape[1])
        picture = cv2.resize(full, (WIDTH, height), interpolation=cv2.INTER_AREA)
        for x, y, w, h in card.boxes:
            corner = (round((x + w) * WIDTH) - 1, round((y + h) * height) - 1)
            cv2.rectangle(picture, (round(x * WIDTH), round(y * height)), corner, ORANGE, 1)
    colour = (43, 53, 200) if card.is_lost else (62, 138, 42)
    bar = np.full((4, WIDTH, 3), colour, np.uint8)
    caption = np.full((22, WIDTH, 3), 255, np.uint8)
    cv2.putText(caption, card.words, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (30, 30, 30), 1, cv2.LINE_AA)
    return np.vstack([bar, picture, caption])
