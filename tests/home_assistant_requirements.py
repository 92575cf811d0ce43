"""Prints what the components of Home Assistant that a trial loads need; run by scripts/test-home-assistant."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

WANTED = "frontend mqtt http api onboarding auth config websocket_api image camera event button switch number update"
ALSO = "sensor binary_sensor history logbook recorder file_upload hardware image_upload my search system_health"
BEHIND = "network analytics backup diagnostics lovelace logger usage_prediction labs brands conversation person"


def main() -> None:
    found = importlib.util.find_spec("homeassistant")
    assert found is not None
    assert found.submodule_search_locations
    components = Path(found.submodule_search_locations[0]) / "components"
    todo, seen, needed = f"{WANTED} {ALSO} {BEHIND}".split(), set[str](), set[str]()
    while todo:
        name = todo.pop()
        manifest = components / name / "manifest.json"
        if name not in seen and manifest.exists():
            about = json.loads(manifest.read_text())
            needed.update(about.get("requirements", ()))
            todo += about.get("dependencies", ())
        seen.add(name)
    print("\n".join(sorted(needed)))


if __name__ == "__main__":
    main()
