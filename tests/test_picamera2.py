"""The picamera2 backend on the real picamera2 and libcamera's virtual cameras: run by scripts/test-picamera2."""


def test_nothing() -> None:
    import picamera2
