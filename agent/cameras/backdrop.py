"""The places of the fake camera, drawn with OpenCV: what each point reflects and its colour. Touches memory only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.cameras.figures import Floats, linear, to_planes
from agent.cameras.planes import cv2_module
from agent.cameras.scene import Place
from agent.model import Plane

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Backdrop:
    """light: linear reflectance (h + 2 margin_y, w + 2 margin_x); u, v: chroma at half that size. The margins hold
    what comes into view when the camera is turned."""

    light: Floats
    u: Plane
    v: Plane
    margin_x: int
    margin_y: int


def draw(place: Place, width: int, height: int, margin_x: int, margin_y: int, seed: int) -> Backdrop:
    """A place for a picture of width x height, with textures from seed. Margins are even pixels."""
    brush = _Brush(width, height, margin_x, margin_y, seed)
    {"office": _office, "counter": _counter, "garden": _garden}[place](brush)
    planes = to_planes(brush.finished())
    return Backdrop(linear(planes.y), planes.u, planes.v, margin_x, margin_y)


class _Brush:
    """Draws BGR in shares of the picture; coordinates beyond 0..1 land in the margins."""

    def __init__(self, width: int, height: int, margin_x: int, margin_y: int, seed: int) -> None:
        self.cv2 = cv2_module()
        self.rng = np.random.default_rng((seed, 77))
        self._w, self._h, self._mx, self._my = width, height, margin_x, margin_y
        self.canvas = np.zeros((height + 2 * margin_y, width + 2 * margin_x, 3), dtype=np.uint8)
        self.left, self.right = -margin_x / width, 1 + margin_x / width
        self.top, self.bottom = -margin_y / height, 1 + margin_y / height

    def px(self, x: float, y: float) -> tuple[int, int]:
        return round(self._mx + x * self._w), round(self._my + y * self._h)

    def thick(self, share: float) -> int:
        return max(1, round(share * self._h))

    def rect(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, outline: float = 0) -> None:
        self.cv2.rectangle(
            self.canvas, self.px(x0, y0), self.px(x1, y1), colour, self.thick(outline) if outline else -1
        )

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, thick: float = 0.003) -> None:
        self.cv2.line(self.canvas, self.px(x0, y0), self.px(x1, y1), colour, self.thick(thick), self.cv2.LINE_AA)

    def blob(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        axes = (max(1, round(rx * self._w)), max(1, round(ry * self._h)))
        self.cv2.ellipse(self.canvas, self.px(x, y), axes, 0, 0, 360, colour, -1, self.cv2.LINE_AA)

    def poly(self, points: list[tuple[float, float]], colour: Colour) -> None:
        corners = np.array([self.px(*point) for point in points], dtype=np.int32)
        self.cv2.fillPoly(self.canvas, [corners], colour, self.cv2.LINE_AA)

    def fade(self, y0: float, y1: float, upper: Colour, lower: Colour) -> None:
        """Fill a band of the whole width with a gradient."""
        top, bottom = self.px(0, y0)[1], self.px(0, y1)[1]
        share = np.linspace(0, 1, max(1, bottom - top))[:, None, None]
        band = np.array(upper) * (1 - share) + np.array(lower) * share
        self.canvas[max(0, top) : bottom] = band[-(bottom - max(0, top)) :].astype(np.uint8)

    def pick(self, *colours: Colour) -> Colour:
        return colours[int(self.rng.integers(len(colours)))]

    def wood(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, lines: int = 14) -> None:
        self.rect(x0, y0, x1, y1, colour)
        for y in np.sort(self.rng.uniform(y0, y1, lines)):
            shade = self.rng.uniform(0.85, 1.08)
            self.line(x0, y, x1, y + self.rng.uniform(-0.004, 0.004), _shaded(colour, shade), 0.002)

    def finished(self) -> Plane:
        """The drawing with coarse and fine texture, softened like a lens does, darker towards the corners."""
        h, w = self.canvas.shape[:2]
        cv2 = self.cv2
        texture = np.ones((h, w), dtype=np.float32)
        for cells, depth in ((6, 0.10), (40, 0.05), (160, 0.05)):
            rows = max(2, cells * h // w)
            grain = self.rng.standard_normal((rows, cells)).astype(np.float32)
            texture += depth * cv2.resize(grain, (w, h), interpolation=cv2.INTER_CUBIC) / 2
        texture += 0.025 * self.rng.standard_normal((h, w)).astype(np.float32)
        yy = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
        xx = np.linspace(-1, 1, w, dtype=np.float32)[None, :]
        texture *= 1 - 0.13 * (xx * xx + yy * yy)
        picture = np.clip(self.canvas * texture[..., None], 0, 255).astype(np.uint8)
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), max(0.45, w / 1600)), dtype=np.uint8)


def _shaded(colour: Colour, by: float) -> Colour:
    b, g, r = (min(255, int(c * by)) for c in colour)
    return b, g, r


_SPINES = ((60, 60, 150), (140, 90, 40), (60, 120, 70), (50, 140, 170), (90, 90, 95), (170, 170, 160))


def _books(brush: _Brush, x0: float, x1: float, y0: float, y1: float) -> None:
    x = x0
    while x < x1 - 0.01:
        width = brush.rng.uniform(0.006, 0.016)
        colour = brush.pick(
            (60, 60, 150), (140, 90, 40), (60, 120, 70), (50, 140, 170), (90, 90, 95), (170, 170, 160)
        )
        top = y0 + brush.rng.uniform(0.0, 0.35) * (y1 - y0)
        brush.rect(x, top, x + width, y1, _shaded(colour, brush.rng.uniform(0.7, 1.2)))
        brush.line(x, top, x, y1, (40, 40, 40), 0.002)
        x += width


def _shelf(brush: _Brush, x0: float, y0: float, x1: float, y1: float, rows: int) -> None:
    brush.rect(x0, y0, x1, y1, (75, 95, 115))
    step = (y1 - y0) / rows
    for row in range(rows):
        top = y0 + row * step
        brush.rect(x0 + 0.006, top + 0.01, x1 - 0.006, top + step - 0.008, (50, 62, 75))
        _books(brush, x0 + 0.008, x1 - brush.rng.uniform(0.01, 0.06), top + 0.014, top + step - 0.008)
    brush.rect(x0, y0, x1, y1, (60, 78, 95), 0.004)


def _window(brush: _Brush, x0: float, y0: float, x1: float, y1: float) -> None:
    brush.rect(x0 - 0.01, y0 - 0.012, x1 + 0.01, y1 + 0.012, (205, 210, 212))
    brush.rect(x0, y0, x1, y1, (235, 225, 205))
    for i in range(5):
        x = x0 + (x1 - x0) * (0.1 + 0.2 * i)
        top = y0 + (y1 - y0) * brush.rng.uniform(0.35, 0.7)
        brush.rect(
            x - 0.012, top, min(x + 0.03, x1), y1, brush.pick((190, 185, 175), (165, 170, 172), (205, 195, 180))
        )
    for y in np.arange(y0, y0 + 0.55 * (y1 - y0), 0.018):
        brush.line(x0, y, x1, y, (180, 180, 178), 0.005)
    brush.line((x0 + x1) / 2, y0, (x0 + x1) / 2, y1, (215, 218, 220), 0.012)


def _plant(brush: _Brush, x: float, floor_y: float, size: float) -> None:
    for _ in range(70):
        angle = brush.rng.uniform(-1.2, 1.2)
        reach = size * brush.rng.uniform(0.35, 1.0)
        tip = (x + 0.55 * reach * np.sin(angle), floor_y - 0.35 * size - reach * np.cos(angle) * 0.9)
        colour = _shaded(brush.pick((45, 110, 60), (40, 90, 50), (60, 130, 85)), brush.rng.uniform(0.6, 1.15))
        brush.line(x, floor_y - 0.3 * size, tip[0], tip[1], _shaded(colour, 0.7), 0.003)
        brush.blob(tip[0], tip[1], 0.1 * size, 0.07 * size, colour)
    brush.poly(
        [
            (x - 0.16 * size, floor_y - 0.34 * size),
            (x + 0.16 * size, floor_y - 0.34 * size),
            (x + 0.11 * size, floor_y),
            (x - 0.11 * size, floor_y),
        ],
        (70, 95, 140),
    )


def _office(brush: _Brush) -> None:
    brush.fade(brush.top, 0.64, (190, 196, 198), (168, 174, 178))
    brush.fade(0.64, brush.bottom, (112, 108, 104), (132, 126, 120))
    for i in range(-8, 19):
        brush.line(0.5 + (i - 5) * 0.07, 0.64, 0.5 + (i - 5) * 0.26, 1.3, (103, 100, 97))
    for depth in (0.67, 0.715, 0.775, 0.85, 0.945, 1.07):
        brush.line(brush.left, depth, brush.right, depth, (103, 100, 97))
    brush.rect(brush.left, 0.625, brush.right, 0.642, (140, 146, 150))
    brush.wood(0.06, 0.16, 0.19, 0.64, (88, 122, 152))
    brush.rect(0.055, 0.15, 0.195, 0.64, (120, 140, 155), 0.01)
    brush.blob(0.176, 0.42, 0.006, 0.01, (60, 60, 62))
    _window(brush, 0.36, 0.08, 0.60, 0.38)
    _shelf(brush, 0.72, 0.14, 0.95, 0.46, 3)
    brush.rect(0.23, 0.2, 0.31, 0.36, (215, 215, 210))
    brush.rect(0.24, 0.215, 0.30, 0.3, (150, 110, 80))
    brush.blob(0.27, 0.262, 0.018, 0.03, (90, 170, 200))
    _plant(brush, 0.305, 0.68, 0.24)
    brush.poly([(0.60, 0.60), (0.97, 0.60), (1.04, 0.69), (0.63, 0.69)], (110, 150, 180))
    brush.rect(0.63, 0.69, 1.04, 0.71, (80, 115, 145))
    brush.rect(0.65, 0.71, 0.68, 0.93, (70, 100, 128))
    brush.rect(0.86, 0.71, 1.02, 0.93, (78, 110, 138))
    for y in (0.78, 0.85):
        brush.line(0.86, y, 1.02, y, (60, 85, 110), 0.004)
    brush.rect(0.74, 0.44, 0.87, 0.585, (38, 38, 40))
    brush.rect(0.747, 0.452, 0.863, 0.572, (125, 105, 80))
    brush.rect(0.757, 0.47, 0.82, 0.49, (190, 180, 170))
    brush.rect(0.757, 0.50, 0.85, 0.508, (165, 150, 130))
    brush.rect(0.795, 0.585, 0.815, 0.625, (45, 45, 48))
    brush.rect(0.72, 0.645, 0.84, 0.662, (60, 60, 64))
    brush.blob(0.885, 0.635, 0.011, 0.02, (190, 195, 200))
    brush.rect(0.64, 0.62, 0.70, 0.64, (205, 208, 210))
    brush.blob(0.53, 0.83, 0.045, 0.02, (48, 48, 52))
    brush.line(0.53, 0.72, 0.53, 0.84, (45, 45, 48), 0.016)
    brush.poly([(0.485, 0.69), (0.575, 0.69), (0.58, 0.73), (0.48, 0.73)], (52, 50, 55))
    brush.poly([(0.49, 0.5), (0.55, 0.5), (0.555, 0.68), (0.487, 0.68)], (58, 55, 62))
    _shelf(brush, 1.07, 0.1, 1.28, 0.66, 5)
    brush.wood(-0.3, 0.16, -0.15, 0.64, (90, 118, 145))
    brush.rect(-0.1, 0.3, 0.0, 0.45, (190, 150, 120))


def _counter(brush: _Brush) -> None:
    brush.fade(brush.top, 0.7, (196, 204, 200), (172, 182, 180))
    brush.fade(0.7, brush.bottom, (120, 122, 126), (140, 140, 142))
    _shelf(brush, 0.05, 0.08, 0.34, 0.5, 4)
    _shelf(brush, 0.72, 0.08, 0.97, 0.5, 4)
    brush.rect(0.40, 0.1, 0.66, 0.24, (175, 120, 60))
    for i in range(4):
        brush.rect(0.425 + 0.055 * i, 0.14, 0.46 + 0.055 * i, 0.2, (225, 228, 230))
    brush.rect(0.49, 0.4, 0.62, 0.66, (70, 62, 60))
    brush.rect(brush.left, 0.65, brush.right, 0.7, (150, 178, 196))
    brush.line(brush.left, 0.652, brush.right, 0.652, (190, 210, 222), 0.006)
    brush.wood(brush.left, 0.70, brush.right, brush.bottom, (92, 124, 150), 30)
    for x in np.arange(-0.35, 1.4, 0.18):
        brush.line(x, 0.7, x, brush.bottom, (66, 92, 116), 0.006)
    brush.rect(0.70, 0.52, 0.83, 0.645, (36, 36, 38))
    brush.rect(0.755, 0.64, 0.775, 0.67, (46, 46, 48))
    brush.rect(0.36, 0.63, 0.43, 0.66, (208, 210, 212))
    brush.blob(0.31, 0.635, 0.013, 0.03, (60, 70, 160))
    _plant(brush, 0.93, 0.66, 0.16)


def _leaves(brush: _Brush, x0: float, y0: float, x1: float, y1: float, count: int, size: float) -> None:
    for i in range(count):
        light = 0.45 + 0.75 * i / count
        x, y = brush.rng.normal((x0 + x1) / 2, (x1 - x0) / 4.6), brush.rng.normal((y0 + y1) / 2, (y1 - y0) / 4.6)
        if x0 <= x <= x1 and y0 <= y <= y1:
            colour = _shaded(brush.pick((48, 112, 70), (40, 96, 60), (60, 128, 96), (44, 104, 84)), light)
            brush.blob(x, y, size * brush.rng.uniform(0.5, 1.2), size * brush.rng.uniform(0.6, 1.5), colour)


def _garden(brush: _Brush) -> None:
    brush.fade(brush.top, 0.42, (225, 205, 175), (225, 222, 215))
    for _ in range(26):
        x, y = brush.rng.uniform(brush.left, brush.right), brush.rng.uniform(0.02, 0.25)
        brush.blob(x, y, brush.rng.uniform(0.03, 0.09), brush.rng.uniform(0.012, 0.035), (232, 230, 226))
    for x in np.arange(brush.left, brush.right, 0.02):
        brush.blob(x, 0.42, 0.04, brush.rng.uniform(0.05, 0.11), _shaded((75, 105, 85), brush.rng.uniform(0.75, 1.1)))
    brush.fade(0.45, brush.bottom, (62, 122, 92), (70, 140, 108))
    for _ in range(2600):
        x, y = brush.rng.uniform(brush.left, brush.right), brush.rng.uniform(0.46, brush.bottom)
        length = 0.004 + 0.03 * (y - 0.45)
        colour = _shaded((66, 134, 98), brush.rng.uniform(0.65, 1.25))
        brush.line(x, y, x + brush.rng.uniform(-0.004, 0.004), y - length, colour, 0.002)
    brush.poly([(0.46, 0.46), (0.53, 0.46), (0.92, brush.bottom), (0.22, brush.bottom)], (150, 162, 168))
    for y in (0.5, 0.55, 0.61, 0.68, 0.77, 0.88):
        half = 0.035 + 0.6 * (y - 0.46) * 0.58
        brush.line(0.5 - half, y, 0.52 + half, y, (128, 140, 146), 0.004)
    for x in np.arange(brush.left, brush.right, 0.035):
        brush.rect(x, 0.38, x + 0.022, 0.49, _shaded((120, 150, 175), brush.rng.uniform(0.85, 1.05)))
    brush.rect(brush.left, 0.405, brush.right, 0.418, (110, 138, 160))
    brush.rect(0.47, 0.36, 0.53, 0.49, (95, 105, 110))
    brush.rect(brush.left, 0.1, 0.14, 0.62, (150, 175, 198))
    for y in np.arange(0.12, 0.62, 0.025):
        brush.line(brush.left, y, 0.14, y, (128, 152, 176), 0.003)
    brush.poly([(brush.left, 0.0), (0.17, 0.09), (0.17, 0.12), (brush.left, 0.12)], (70, 75, 120))
    brush.rect(0.03, 0.2, 0.1, 0.36, (120, 110, 95))
    brush.rect(0.03, 0.2, 0.1, 0.36, (225, 228, 230), 0.008)
    brush.line(0.8, 0.62, 0.79, 0.3, (55, 72, 90), 0.035)
    _leaves(brush, 0.62, 0.06, 0.98, 0.48, 700, 0.013)
    _leaves(brush, 0.02, 0.44, 0.25, 0.64, 320, 0.010)
