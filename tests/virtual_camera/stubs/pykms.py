"""Stand-in: picamera2 imports pykms when it is loaded, but only its DRM preview uses it.

Never `pip install kms` in its place: that name on PyPI is an unrelated package.
"""


class _Any:
    def __getattr__(self, name: str) -> "_Any":
        return self


PixelFormat = _Any()
