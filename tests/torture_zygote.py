"""Starts `camera-agent run` again and again by forking a process that has loaded it all: a start costs 0.1 s, not 1.

torture_zygote.py CONFIG LOG, then on standard input: "run" (its pid is the answer) and "reap" (its exit status).
"""

from __future__ import annotations

import os
import sys

import av  # noqa: F401 - loaded here so that no child has to
import cv2  # noqa: F401

import agent.cli.run
import agent.vision  # noqa: F401
from agent.cli import main


def serve(config: str, log: str) -> None:
    pid = 0
    for line in sys.stdin:
        if line.strip() == "run":
            pid = os.fork()
            if pid == 0:
                descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                for standard in (1, 2):
                    os.dup2(descriptor, standard)
                os._exit(main(["run", "--config", config]))
            print(pid, flush=True)
        else:
            print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:3])
