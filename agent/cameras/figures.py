"""People for the fake camera, drawn with OpenCV into small sprites. Touches memory only."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from agent.cameras.planes import Planes, cv2_module
from agent.model import Plane

GAIT_PHASES = 16
LIGHT_ONE = 16384
Floats = npt.NDArray[np.float32]

# Skin, hair, top, trousers, shoes as BGR.
_LOOKS: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((120, 150, 205), (30, 35, 45), (70, 60, 150), (60, 45, 35), (25, 25, 30)),
    ((95, 125, 180), (20, 22, 25), (190, 185, 175), (45, 40, 40), (40, 45, 60)),
    ((135, 165, 220), (60, 90, 130), (60, 95, 60), (110, 100, 90), (30, 30, 35)),
    ((110, 140, 195), (25, 28, 30), (165, 120, 60), (50, 50, 55), (20, 20, 25)),
    ((75, 105, 150), (15, 16, 18), (40, 150, 190), (70, 60, 90), (60, 60, 65)),
)


@dataclass(frozen=True, slots=True, eq=False)
class Sprite:
    """A figure to be laid over a picture.

    alpha: how much it hides, shadow: how much light it takes, both uint8 (h, w) of 255; light: what it reflects,
    linear, uint16 of LIGHT_ONE; u, v, alpha_c: uint8 at half size. h, w are even. foot_x, foot_y: the pixel of it
    that stands on the floor. x0, y0, x1, y1: the pixels it changes, shadow included.
    """

    alpha: Plane
    shadow: Plane
    light: npt.NDArray[np.uint16]
    u: Plane
    v: Plane
    alpha_c: Plane
    foot_x: int
    foot_y: int
    x0: int
    y0: int
    x1: int
    y1: int


def linear(y: Plane) -> Floats:
    """Reflectance 0..1 of full-range 8-bit brightness as drawn."""
    return np.power(y.astype(np.float32) / 255, 2.2).astype(np.float32)


def to_planes(bgr: Plane) -> Planes:
    """Full-range luma and chroma (4:2:0, half strength so as to look like a camera's) of a BGR drawing."""
    cv2 = cv2_module()
    wide = bgr.astype(np.float32)
    y = wide @ np.array([0.114, 0.587, 0.299], dtype=np.float32)
    u = 128 + 0.492 * 0.7 * (wide[..., 0] - y)
    v = 128 + 0.877 * 0.7 * (wide[..., 2] - y)
    half = (bgr.shape[1] // 2, bgr.shape[0] // 2)
    u, v = (cv2.resize(plane, half, interpolation=cv2.INTER_AREA) for plane in (u, v))
    return Planes(*(np.clip(plane, 0, 255).astype(np.uint8) for plane in (y, u, v)))


class _Pen:
    """Draws soft limbs into a colour canvas and its mask alike; coordinates in shares of the figure's height."""

    def __init__(self, height: int, columns: float) -> None:
        self._cv2 = cv2_module()
        self.scale = float(height)
        self.width = (math.ceil(columns * height) + 3) & ~1
        self.rows = (math.ceil(1.06 * height) + 3) & ~1
        self.middle = self.width / 2
        self.bgr = np.zeros((self.rows, self.width, 3), dtype=np.uint8)
        self.mask = np.zeros((self.rows, self.width), dtype=np.uint8)

    def _at(self, x: float, y: float) -> tuple[int, int]:
        return round((self.middle + x * self.scale) * 16), round(y * self.scale * 16)

    def limb(self, points: list[tuple[float, float]], thick: float, colour: tuple[int, int, int]) -> None:
        cv2 = self._cv2
        width = max(1, round(thick * self.scale))
        for a, b in itertools.pairwise(points):
            cv2.line(self.bgr, self._at(*a), self._at(*b), colour, width, cv2.LINE_AA, 4)
            cv2.line(self.mask, self._at(*a), self._at(*b), 255, width, cv2.LINE_AA, 4)

    def blob(self, x: float, y: float, rx: float, ry: float, colour: tuple[int, int, int], turn: float = 0) -> None:
        cv2 = self._cv2
        axes = (max(8, round(rx * self.scale * 16)), max(8, round(ry * self.scale * 16)))
        for canvas, ink in ((self.bgr, colour), (self.mask, 255)):
            cv2.ellipse(canvas, self._at(x, y), axes, turn, 0, 360, ink, -1, cv2.LINE_AA, 4)

    def shape(self, points: list[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        cv2 = self._cv2
        corners = np.array([self._at(*point) for point in points], dtype=np.int32)
        cv2.fillPoly(self.bgr, [corners], colour, cv2.LINE_AA, 4)
        cv2.fillPoly(self.mask, [corners], 255, cv2.LINE_AA, 4)

    def sprite(self, foot_y: float, cut_y: float | None, shadow: bool, seed: int) -> Sprite:
        """What was drawn, with cloth texture, light from above left and soft edges; cut_y hides what is below."""
        cv2 = self._cv2
        noise = np.random.default_rng(seed).standard_normal((self.rows, self.width)).astype(np.float32)
        cloth = cv2.GaussianBlur(noise, (0, 0), max(0.6, self.scale / 90))
        cloth /= max(float(np.abs(cloth).max()), 1e-6)
        across = np.linspace(1.12, 0.82, self.width, dtype=np.float32)[None, :]
        # OpenCV's anti-aliasing blends colours with the black canvas; divide that out before blurring the edge.
        coverage = np.maximum(self.mask.astype(np.float32) / 255, 1 / 64)
        bgr = np.clip(self.bgr / coverage[..., None], 0, 255).astype(np.uint8)
        planes = to_planes(bgr)
        light = linear(planes.y) * across * (1 + 0.35 * cloth)
        alpha = cv2.GaussianBlur(self.mask, (0, 0), max(0.5, self.scale / 260)).astype(np.float32) / 255
        alpha[self.mask == 0] *= 0.6
        if cut_y is not None:
            alpha[round(cut_y * self.scale) :] = 0
        alpha[alpha < 1 / 64] = 0
        dark = np.zeros_like(alpha)
        if shadow:
            centre = (round(self.middle + 0.03 * self.scale), round(foot_y * self.scale))
            cv2.ellipse(
                dark, centre, (round(0.17 * self.scale), max(1, round(0.03 * self.scale))), 0, 0, 360, 0.5, -1
            )
            dark = cv2.GaussianBlur(dark, (0, 0), max(0.6, self.scale * 0.012))
            dark[dark < 1 / 64] = 0
        ys, xs = np.nonzero((alpha > 0) | (dark > 0))
        # Kept small: a walk has dozens of these, and at 1080p each would have megabytes of empty margin.
        left, top = int(xs.min()) & ~1, int(ys.min()) & ~1
        right, bottom = (int(xs.max()) + 2) & ~1, (int(ys.max()) + 2) & ~1
        crop = np.s_[top:bottom, left:right]
        half = np.s_[top // 2 : bottom // 2, left // 2 : right // 2]
        alpha_c = cv2.resize(alpha, (self.width // 2, self.rows // 2), interpolation=cv2.INTER_AREA)
        return Sprite(
            alpha=_bytes(alpha[crop]),
            shadow=_bytes(dark[crop]),
            light=np.clip(light[crop] * LIGHT_ONE, 0, 65535).astype(np.uint16),
            u=planes.u[half].copy(),
            v=planes.v[half].copy(),
            alpha_c=_bytes(alpha_c[half]),
            foot_x=round(self.middle) - left,
            foot_y=round(foot_y * self.scale) - top,
            x0=int(xs.min()) - left,
            y0=int(ys.min()) - top,
            x1=int(xs.max()) + 1 - left,
            y1=int(ys.max()) + 1 - top,
        )


def _bytes(shares: Floats) -> Plane:
    return np.asarray(np.rint(shares * 255), np.uint8)


def walker(height: int, look: int, phase: int, direction: int) -> Sprite:
    """Somebody seen from the side in one of GAIT_PHASES phases of a step, or standing (direction 0)."""
    skin, hair, top, trousers, shoes = _LOOKS[look % len(_LOOKS)]
    swing = math.sin(2 * math.pi * phase / GAIT_PHASES) if direction else 0.12
    bob = 0.008 * abs(math.cos(2 * math.pi * phase / GAIT_PHASES)) if direction else 0.0
    way = direction or 1
    pen = _Pen(height, 0.62)
    hip, shoulder = (0.0, 0.52 - bob), (0.01 * way, 0.22 - bob)

    def leg(angle: float, colour: tuple[int, int, int]) -> None:
        knee_x = hip[0] + 0.24 * math.sin(angle)
        knee_y = hip[1] + 0.24 * math.cos(angle)
        bend = angle - 0.55 * max(0.0, -angle) * (1 if direction else 0)
        foot = (knee_x + 0.235 * math.sin(bend), min(knee_y + 0.235 * math.cos(bend), 0.985))
        points = [(x * way, y) for x, y in (hip, (knee_x, knee_y), foot)]
        pen.limb(points, 0.085, colour)
        pen.limb([(foot[0] * way, foot[1]), (foot[0] * way + 0.05 * way, foot[1] + 0.003)], 0.04, shoes)

    def arm(angle: float, colour: tuple[int, int, int]) -> None:
        elbow = (shoulder[0] * way + 0.16 * math.sin(angle), shoulder[1] + 0.03 + 0.16 * math.cos(angle))
        hand = (elbow[0] + 0.15 * math.sin(angle + 0.35), elbow[1] + 0.15 * math.cos(angle + 0.35))
        pen.limb([((shoulder[0] * way) * way, shoulder[1] + 0.03), (elbow[0] * way, elbow[1])], 0.058, colour)
        pen.limb([(elbow[0] * way, elbow[1]), (hand[0] * way, hand[1])], 0.05, colour)
        pen.blob(hand[0] * way, hand[1], 0.022, 0.026, skin)

    far = tuple(int(c * 0.7) for c in top)
    far_leg = tuple(int(c * 0.7) for c in trousers)
    arm(-0.55 * swing, (far[0], far[1], far[2]))
    leg(-0.48 * swing, (far_leg[0], far_leg[1], far_leg[2]))
    leg(0.48 * swing, trousers)
    pen.shape(
        [
            (-0.075, 0.2 - bob),
            (0.075, 0.2 - bob),
            (0.092, 0.3 - bob),
            (0.075, 0.54 - bob),
            (-0.075, 0.54 - bob),
            (-0.092, 0.3 - bob),
        ],
        top,
    )
    pen.blob(0.0, 0.21 - bob, 0.085, 0.04, top)
    pen.limb([(0.005 * way, 0.13 - bob), (0.0, 0.2 - bob)], 0.05, skin)
    pen.blob(0.012 * way, 0.085 - bob, 0.05, 0.064, skin)
    pen.blob(-0.008 * way, 0.062 - bob, 0.053, 0.052, hair)
    pen.blob(-0.03 * way, 0.09 - bob, 0.028, 0.045, hair)
    arm(0.55 * swing, top)
    return pen.sprite(0.985, None, True, look)


def sitter(height: int, look: int, nod: int, hand: int, lean: int) -> Sprite:
    """Somebody who sits behind a desk, seen from the front down to the desk's edge.

    height: of what is seen. nod, hand, lean: small whole steps (about a hundredth of the height each).
    """
    skin, hair, top, _, _ = _LOOKS[look % len(_LOOKS)]
    pen = _Pen(height, 1.1)
    x = 0.01 * lean
    dy = 0.01 * nod
    pen.shape(
        [(-0.27 + x / 2, 0.5), (-0.16 + x, 0.41), (0.16 + x, 0.41), (0.27 + x / 2, 0.5), (0.29, 1.05), (-0.29, 1.05)],
        top,
    )
    pen.limb([(x, 0.3 + dy), (x, 0.42)], 0.13, skin)
    pen.limb([(-0.26 + x / 2, 0.52), (-0.33, 0.8), (-0.16, 0.95)], 0.12, top)
    pen.limb([(0.26 + x / 2, 0.52), (0.34, 0.8), (0.17 + 0.01 * hand, 0.94)], 0.12, top)
    pen.blob(-0.13, 0.95, 0.055, 0.035, skin)
    pen.blob(0.14 + 0.01 * hand, 0.945, 0.055, 0.035, skin)
    pen.blob(x, 0.21 + dy, 0.125, 0.165, skin)
    pen.blob(x, 0.12 + dy, 0.135, 0.1, hair)
    pen.blob(x - 0.11, 0.18 + dy, 0.03, 0.09, hair)
    pen.blob(x + 0.11, 0.18 + dy, 0.03, 0.09, hair)
    dark = tuple(int(c * 0.45) for c in skin)
    for side in (-0.05, 0.05):
        pen.blob(x + side, 0.215 + dy * 1.3, 0.016, 0.01, (dark[0], dark[1], dark[2]))
    pen.blob(x, 0.305 + dy * 1.2, 0.035, 0.008, (dark[0], dark[1], dark[2]))
    return pen.sprite(1.0, 1.0, False, look)


def thing(height: int, look: str) -> Sprite:
    """A car seen from the side, a chair or a parcel."""
    grey, dark, glass, steel = (120, 118, 115), (28, 28, 30), (95, 85, 75), (150, 150, 155)
    if look == "car":
        pen, red = _Pen(height, 3.2), (45, 45, 150)
        pen.shape([(-1.45, 0.85), (-1.45, 0.5), (-0.9, 0.42), (1.3, 0.42), (1.45, 0.55), (1.45, 0.85)], red)
        pen.shape([(-0.85, 0.45), (-0.45, 0.08), (0.6, 0.05), (1.1, 0.45)], red)
        pen.shape([(-0.65, 0.42), (-0.38, 0.15), (0.05, 0.13), (0.05, 0.42)], glass)
        pen.shape([(0.15, 0.42), (0.15, 0.13), (0.55, 0.12), (0.88, 0.42)], glass)
        for x in (-0.85, 0.85):
            pen.blob(x, 0.8, 0.2, 0.2, dark)
            pen.blob(x, 0.8, 0.1, 0.1, steel)
    elif look == "chair":
        pen, wood = _Pen(height, 0.9), (60, 95, 140)
        for x0, x1 in ((-0.24, -0.28), (0.24, 0.28)):
            pen.limb([(x0, 0.55), (x1, 0.97)], 0.06, wood)
        pen.limb([(-0.24, 0.55), (-0.26, 0.05)], 0.06, wood)
        pen.limb([(-0.26, 0.55), (0.26, 0.55)], 0.09, (70, 110, 160))
        for y in (0.12, 0.28):
            pen.limb([(-0.26, y), (-0.1, y + 0.02)], 0.07, wood)
    else:
        pen = _Pen(height, 1.5)
        pen.shape([(-0.6, 0.12), (0.6, 0.12), (0.6, 0.97), (-0.6, 0.97)], (95, 140, 180))
        pen.limb([(0.0, 0.14), (0.0, 0.95)], 0.1, grey)
    return pen.sprite(0.985, None, True, 7)


@cache
def hand(width: int, height: int) -> tuple[Floats, Floats]:
    """A hand before the lens, far out of focus: where its edge lies in each row (h, 1), in pixels from its mean,
    and how unevenly light comes through it (h, w)."""
    cv2 = cv2_module()
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    edge = 0.05 * np.cos(2 * math.pi * 4 * rows + 0.6) - 0.12 * (rows - 0.45) ** 2
    grain = np.random.default_rng(5).standard_normal((4, 6)).astype(np.float32)
    glow = 1 + 0.2 * cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC)
    glow *= 1 + 0.5 * np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    return (edge * width).astype(np.float32), np.clip(glow, 0.1, 2).astype(np.float32)
