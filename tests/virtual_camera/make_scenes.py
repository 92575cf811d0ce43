"""Writes the virtual cameras' pictures and their virtual.yaml; run once when the test root is made.

lobby: somebody crosses now and then; two-secrets: scenes that differ only well inside tests' privacy mask.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIZES = ((1920, 1080), (1280, 720), (640, 480), (640, 360), (320, 240), (320, 180), (160, 120))
FORMATS = "\n".join(f"  - {{width: {w}, height: {h}, frame_rates: [1, 60]}}" for w, h in SIZES)
WIDTH, HEIGHT = 1280, 720
# In 16-pixel blocks of the picture, 32 px inside MASK of tests/test_picamera2.py: a JPEG's own blocks do not mix.
SECRET = (544, 288, 735, 431)


def background() -> Image.Image:
    picture = Image.new("RGB", (WIDTH, HEIGHT), (96, 104, 112))
    pen = ImageDraw.Draw(picture)
    for i in range(0, WIDTH, 80):
        pen.rectangle((i, 0, i + 39, 199), fill=(110 + i // 40, 120, 100))
    pen.rectangle((0, 560, WIDTH, HEIGHT), fill=(70, 62, 58))
    return picture


def lobby(directory: Path) -> None:
    """Each picture stands for 4 frames. 96 pictures, 25.6 s at 15 fps: empty, then somebody crosses, then empty."""
    for number in range(96):
        picture = background()
        if 40 <= number < 64:
            x = -140 + 60 * (number - 40)
            ImageDraw.Draw(picture).rectangle((x, 220, x + 130, 640), fill=(225, 225, 215))
        picture.save(directory / f"{number}.jpg", quality=90)


def secret(directory: Path, shade: tuple[int, int, int]) -> None:
    for number in range(8):
        picture = background()
        pen = ImageDraw.Draw(picture)
        pen.rectangle((40 + 96 * number, 600, 100 + 96 * number, 680), fill=(240, 200, 40))
        left, top, right, bottom = SECRET
        pen.rectangle(SECRET, fill=shade)
        pen.ellipse((left + 8 * number, top, right, bottom), fill=(shade[2], shade[0], shade[1]))
        picture.save(directory / f"{number}.jpg", quality=90, subsampling=0)


def camera(name: str, model: str, source: str) -> str:
    return f'"{name}":\n  supported_formats:\n{FORMATS}\n  {source}\n  model: "{model}"\n'


def main() -> None:
    root = Path(sys.argv[1])
    text = "%YAML 1.1\n---\n"
    scenes = {
        "lobby": (lobby, "imx708"),
        "secret-a": (lambda d: secret(d, (250, 20, 20)), "imx219"),
        "secret-b": (lambda d: secret(d, (10, 30, 200)), "imx219"),
    }
    for name, (draw, model) in scenes.items():
        directory = root / "opt/scenes" / name
        directory.mkdir(parents=True, exist_ok=True)
        draw(directory)
        text += camera(name, model, f'frames: {{path: "/opt/scenes/{name}/"}}')
    text += camera("bars", "ov5647", 'test_pattern: "bars"')
    (root / "usr/share/libcamera/pipeline/virtual/virtual.yaml").write_text(text)


if __name__ == "__main__":
    main()
