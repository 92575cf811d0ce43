"""What the machine has run out of, in plain words, told from an exception. Touches nothing."""

from __future__ import annotations

import errno

_FILES = "too many open files: raise LimitNOFILE of the unit, or `ulimit -n`"
_MEMORY = "no memory left: raise MemoryMax of the unit, or lower camera.width and camera.height"
_THREADS = "no more threads: raise TasksMax of the unit, or `ulimit -u`"

_BY_ERRNO = {errno.EMFILE: _FILES, errno.ENFILE: _FILES, errno.ENOMEM: _MEMORY}
# What the loader of libraries and Python's threading say has no errno.
_BY_WORDS = {
    "failed to map segment": _MEMORY,
    "annot allocate memory": _MEMORY,
    "Too many open files": _FILES,
    "can't start new thread": _THREADS,
}


def shortage(error: BaseException) -> str:
    """What is short and what to raise; empty for an error that is about something else (a bug)."""
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        return _BY_ERRNO[error.errno]
    if isinstance(error, (ImportError, RuntimeError, OSError)):
        return next((told for words, told in _BY_WORDS.items() if words in str(error)), "")
    return ""
