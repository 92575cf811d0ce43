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

STYLE = """body{font:15px/1.4 system-ui,sans-serif;margin:24px;background:#f6f5f3;color:#222}
h2{font-size:16px;margin:28px 0 8px}p{color:#666}
figure{display:inline-block;margin:0 12px 12px 0;background:#fff;border-top:4px solid #2a8a3e;padding:6px}
figure.lost{border-color:#c8352b}img,.none{display:block;width:240px}
.shown{position:relative}.shown i{position:absolute;border:1px solid #f08c14}
.none{height:180px;background:#ddd}figcaption{padding-top:4px;font-size:13px}"""


@dataclass(frozen=True, slots=True)
class Card:
    """One event. picture: None where there is none; boxes: of what moved in it."""

    words: str
    picture: Thumbnail | None
    boxes: tuple[Box, ...]
    is_lost: bool


def write_sheet(path: Path, groups: Sequence[tuple[str, Sequence[Card]]], recordings: Sequence[str]) -> None:
    """groups: a headline each and its cards. path: .png, else HTML, which names recordings. Raises StorageError."""
    try:
        if path.suffix == ".png":
            path.write_bytes(_png(groups))
        else:
            path.write_text(_page(groups, recordings), encoding="utf-8")
    except OSError as error:
        raise StorageError("write", path, error, hint="does its directory exist?") from error


def _page(groups: Sequence[tuple[str, Sequence[Card]]], recordings: Sequence[str]) -> str:
    parts = [f"<!doctype html><meta charset=utf-8><title>Events that differ</title><style>{STYLE}</style>"]
    names = ", ".join(f"{i}: {html.escape(name)}" for i, name in enumerate(recordings, 1))
    parts.append(
        "<h1>Events that differ</h1><p>Red: lost or missed. Green: new or false. Orange: what moved. "
        f"Number@time, length: recording, when, how long.</p><p>Recordings: {names}</p>"
    )
    for head, cards in groups:
        parts.append(f"<h2>{html.escape(head)}</h2>" + ("" if cards else "<p>no difference</p>"))
        for card in cards:
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
            parts.append(f"<figure{mark}>{shown}<figcaption>{html.escape(card.words)}</figcaption></figure>")
    return "\n".join(parts)


def _png(groups: Sequence[tuple[str, Sequence[Card]]]) -> bytes:
    import cv2

    rows: list[Any] = []
    for head, cards in groups:
        line = np.full((34, COLUMNS * (WIDTH + 10) + 10, 3), 246, np.uint8)
        cv2.putText(line, head, (10, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
        rows.append(line)
        for first in range(0, len(cards), COLUMNS):
            tiles = [_tile(card) for card in cards[first : first + COLUMNS]]
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
