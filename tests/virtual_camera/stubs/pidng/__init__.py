"""Stand-in for PiDNG, which has no wheel: only save_dng() uses it."""
