"""Stand-in: only save_dng() uses it."""


class Picamera2Camera:
    """Nothing."""
