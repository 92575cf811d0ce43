"""seal.py BUNDLE KEY VERSION PACKAGE: a signed package of a bundle directory."""

from __future__ import annotations

import platform
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from agent.release import seal

bundle, key, version, package = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
with tempfile.TemporaryFile() as payload:
    with tarfile.open(fileobj=payload, mode="w") as archive:
        for path in sorted(bundle.rglob("*")):
            archive.add(path, path.relative_to(bundle).as_posix(), recursive=False)
    payload.seek(0)
    with package.open("wb") as out:
        seal(out, payload, version, platform.machine(), key.read_bytes())
