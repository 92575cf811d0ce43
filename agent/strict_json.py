"""JSON from strangers: bounded, and refused where Python's own reader is too kind. Touches nothing.

Python takes NaN, 1e400, a key twice, halves of characters and any depth; here each is an error with a place.
"""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn

MAX_BYTES = 65_536
MAX_DEPTH = 8
MAX_INTEGER = 2**63 - 1
_MAX_DIGITS = 19
_LONG_NUMBER = re.compile(rb"[0-9]{19}|[eE][+]?[0-9]{3}")
_DEEPER = (str, dict, list)


class StrictJsonError(ValueError):
    """What is wrong with a payload. code: too-large or malformed; pointer: JSON pointer of the place, "" for all."""

    def __init__(self, code: str, words: str, pointer: str = "") -> None:
        super().__init__(words)
        self.code = code
        self.pointer = pointer


def parse(payload: bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> object:
    """payload as Python values; StrictJsonError where it is too large, not JSON, too deep or ambiguous.

    The size is looked at before anything is parsed. At 64 KiB it costs some 10 ms of CPU at the worst (21,000 empty
    lists; x86-64, Python 3.11).
    """
    if len(payload) > max_bytes:
        raise StrictJsonError("too-large", f"{len(payload)} bytes, at most {max_bytes} are read")
    # Numbers within bounds need no second look, which would cost more than the parsing.
    is_suspect = _LONG_NUMBER.search(payload) is not None
    try:
        value = json.loads(
            payload.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer if is_suspect else None,
            parse_float=_number if is_suspect else None,
        )
    except UnicodeDecodeError as error:
        raise StrictJsonError("malformed", f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise StrictJsonError("malformed", f"nested deeper than {max_depth}") from None
    except json.JSONDecodeError as error:
        raise StrictJsonError("malformed", f"not JSON at character {error.pos}: {error.msg.lower()}") from None
    _check(value, "", max_depth)
    return value


def pointer_of(path: tuple[int | str, ...]) -> str:
    """A JSON pointer (RFC 6901) from keys and indexes, as pydantic names a place."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise StrictJsonError("malformed", f"the key {twice[:40]!r} stands twice in one object")
    return found


def _constant(word: str) -> NoReturn:
    raise StrictJsonError("malformed", f"{word} is not JSON")


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > _MAX_DIGITS or not -MAX_INTEGER - 1 <= int(digits) <= MAX_INTEGER:
        raise StrictJsonError("malformed", f"the number {digits[:24]}... is beyond 64 bits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise StrictJsonError("malformed", f"the number {digits[:24]} is beyond a double")
    return value


def _check(value: object, pointer: str, depth_left: int) -> None:
    """Depth, and text that is no text: half a surrogate pair parses, but can be neither stored nor sent."""
    if isinstance(value, str):
        _check_text(value, pointer)
    elif isinstance(value, dict | list):
        if depth_left == 0:
            raise StrictJsonError("malformed", "nested too deeply", pointer)
        if isinstance(value, list):
            for index, each in enumerate(value):
                if isinstance(each, _DEEPER):
                    _check(each, f"{pointer}/{index}", depth_left - 1)
        else:
            for key, each in value.items():
                _check_text(key, pointer)
                if isinstance(each, _DEEPER):
                    _check(each, pointer + pointer_of((key,)), depth_left - 1)


def _check_text(text: str, pointer: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise StrictJsonError("malformed", "half a character (a lone surrogate)", pointer) from None
