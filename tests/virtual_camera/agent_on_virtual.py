"""`python -m agent_on_virtual run --config FILE`: the agent, unchanged, on virtual cameras. SIGUSR1 stalls them."""

from __future__ import annotations

import signal
import sys

import virtcam

from agent.cli import main


def run() -> int:
    pacer = virtcam.install()

    def stall(*_: object) -> None:
        pacer.stalled = True

    signal.signal(signal.SIGUSR1, stall)
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
