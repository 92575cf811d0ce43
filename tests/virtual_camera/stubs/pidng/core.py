"""Stand-in: only save_dng() uses it."""


class PICAM2DNG:
    """Nothing."""
