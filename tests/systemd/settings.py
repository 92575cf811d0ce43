"""settings.py DIRECTORY: agent.toml and quick.toml of a small quick node with the broker on the same machine."""

from __future__ import annotations

import sys
from pathlib import Path

from program import QUICK_SCENE

directory = Path(sys.argv[1])
(directory / "quick.toml").write_text(QUICK_SCENE)
(directory / "agent.toml").write_text(
    """
[node]
id = "door"
site = "ward-12"
name = "Cửa chính"

[camera]
backend = "fake"
scene = "/etc/camera-agent/quick.toml"
width = 320
height = 240
fps = 10
silence_s = 3

[detection]
quiet_s = 0.5

[clips]
pre_roll_s = 1.0
post_roll_s = 0.5
min_free_mb = 0

[mqtt]
host = "127.0.0.1"

[commands]
package_hosts = ["http://127.0.0.1:8000"]

[health]
interval_s = 1.0
""",
    encoding="utf-8",
)
