"""make_seed.py OUT: provisions a fleet of two and lays the first node's card, bundle and all, into OUT/seed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

out = Path(sys.argv[1])
source = out / "source"
fleet = out / "fleet.toml"
# Its scene must be somewhere that the sandboxed agent may read.
fleet.write_text(
    """
[site]
id = "phuong-thuan-hoa"
name = "UBND phường Thuận Hóa"
timezone = "Asia/Ho_Chi_Minh"

[broker]
host = "127.0.0.1"

[installer]
ssh_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMEb7Ql4oo2vGxqAd8KXvXqzsBvQ7eM0wZ6D8Z0r3h3p test"]
release_key = "release.pub"

[settings.camera]
backend = "fake"
width = 320
height = 240
fps = 10

[settings.clips]
min_free_mb = 0

[[nodes]]
id = "cua-chinh"
name = "Cửa chính"
location = "Sảnh tầng 1"

[[nodes]]
id = "kho"
name = "Kho lưu trữ"

[[consumers]]
id = "dashboard"
""",
    encoding="utf-8",
)
command = [sys.executable, "-m", "agent", "provision", str(fleet), "--out", str(out / "fleet"), "--bundle"]
subprocess.run([*command, str(out / "payload/bundle")], check=True, cwd=source)
shutil.copytree(out / "fleet/nodes/cua-chinh/boot", out / "seed", dirs_exist_ok=True)
shutil.copytree(out / "fleet/broker", out / "payload/broker")
shutil.copy(out / "fleet/consumers/dashboard.password", out / "payload/dashboard.password")
shutil.copytree(
    out / "fleet/nodes/kho/boot/camera-agent", out / "payload/kho", ignore=shutil.ignore_patterns("bundle")
)
