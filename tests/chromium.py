"""A headless Chromium, driven over a pair of pipes by the DevTools protocol. Ended by its pid."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

DEADLINE_S = 30.0


class Chromium:
    """One window with one page."""

    def __init__(self, binary: str, directory: Path, url: str, width: int = 1200, height: int = 1100) -> None:
        told, self._tell = os.pipe()
        self._heard, say = os.pipe()
        command = [binary, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={directory / 'profile'}"]
        command += [f"--window-size={width},{height}", "--no-first-run", "--disable-gpu", "--hide-scrollbars"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
        # Chromium's sandbox does not start as root; the page is our own and talks to loopback only.
        command += ["--no-sandbox"] if os.geteuid() == 0 else []
        with (directory / "chromium.log").open("wb") as log:
            # It reads commands from descriptor 3 and answers on 4.
            self._process = subprocess.Popen(
                ["bash", "-c", f'exec "$@" 3<&{told} 4>&{say}', "bash", *command, url],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(told, say),
            )
        os.close(told)
        os.close(say)
        self._buffer = b""
        self._count = 0
        self._session = ""
        self._log = directory / "chromium.log"
        page = self._page()
        self._session = self._ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]

    def _page(self) -> str:
        end_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < end_s:
            for target in self._ask("Target.getTargets")["targetInfos"]:
                if target["type"] == "page":
                    return str(target["targetId"])
            time.sleep(0.05)
        raise SystemExit(f"Chromium opened no page: {self._words()}")

    def _words(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        body: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            body["sessionId"] = self._session
        os.write(self._tell, json.dumps(body).encode() + b"\0")
        end_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < end_s:
            message, found, rest = self._buffer.partition(b"\0")
            if not found:
                if select.select([self._heard], [], [], 0.5)[0]:
                    data = os.read(self._heard, 1 << 20)
                    if not data:
                        raise SystemExit(f"Chromium ended: {self._words()}")
                    self._buffer += data
                continue
            self._buffer = rest
            answer = json.loads(message)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise SystemExit(f"Chromium: {method}: {answer['error']}")
                return dict(answer["result"])
        raise SystemExit(f"Chromium did not answer {method}: {self._words()}")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        found = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise SystemExit(f"the page: {found['exceptionDetails'].get('exception', found['exceptionDetails'])}")
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._tell)
        os.close(self._heard)
