"""`camera-agent rollout`: a new version over a site in stages, from the centre; stops when too many go back."""

from __future__ import annotations

import argparse
import base64
import json
import secrets
import time
from pathlib import Path

from pydantic import ValidationError

from agent.cli import count, number
from agent.cli.watch import add_broker, broker_of, watch
from agent.errors import ConfigError
from agent.release import version_of
from agent.requests import Request
from agent.rollout import Plan, Rollout, Sign, plain
from agent.topics import VERSION

HELP = "install a new version on a site's nodes, a few first; stop when they go back to the old one"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", metavar="VERSION", help="such as 1.4.0")
    parser.add_argument("url", metavar="URL", help="its package, on a host of the nodes' commands.package_hosts")
    add_broker(parser)
    parser.add_argument(
        "--stages", default="5,25,100", metavar="LIST", help="percent of the nodes, one after the other; 5,25,100"
    )
    parser.add_argument(
        "--max-failed",
        type=number(0, 100),
        default=0,
        metavar="N",
        help="go on although N %% of a stage failed; default 0",
    )
    parser.add_argument(
        "--at-once", type=count(1), default=20, metavar="N", help="nodes under way together, default 20"
    )
    parser.add_argument(
        "--patience", type=number(1), default=1800, metavar="S", help="seconds for each node, default 1800"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="operator's Ed25519 key in PEM: sign the commands")
    parser.add_argument("--client", default="rollout", help="who asks, as the answers' topic names it")


def run(args: argparse.Namespace) -> int:
    version_of(args.version)
    check_words(args.url, args.client)
    settings = broker_of(args, "site")
    plan = Plan(
        args.version,
        args.url,
        stages_of(args.stages),
        max_failed_percent=args.max_failed,
        at_once=args.at_once,
        patience_s=args.patience,
    )
    sign = plain if args.key is None else signer(args.key)
    rollout = Rollout(
        plan, settings.root, args.client, secrets.token_hex(4), sign, lambda line: print(line, flush=True)
    )
    filters = [f"{settings.root}/v{VERSION}/{args.site}/{rest}" for rest in rollout.filters]
    watch(settings, filters, rollout, is_over=lambda: rollout.over is not None)
    return 0 if rollout.over else 1


def check_words(url: str, client: str) -> None:
    """What every node would refuse is refused here, before anybody is asked. Raises ConfigError."""
    if not url.startswith(("https://", "http://")):
        raise ConfigError("read", "URL", f"{url!r}", hint="such as https://packages.example.org/NAME.package")
    try:
        Request(id="check", client=client, args={})
    except ValidationError as error:
        words = error.errors(include_url=False)[0]["msg"]
        raise ConfigError("read", "--client", f"{client!r}: {words}", hint="such as rollout") from None


def stages_of(text: str) -> list[float]:
    """ "5,25,100" -> [5, 25, 100]. Raises ConfigError."""
    try:
        stages = [float(word) for word in text.split(",")]
    except ValueError:
        stages = []
    if not stages or stages != sorted(set(stages)) or not 0 < stages[0] <= stages[-1] <= 100:
        raise ConfigError("read", "--stages", f"{text!r}", hint="growing percentages with commas: 5,25,100")
    return stages


def signer(path: Path) -> Sign:
    """Commands signed with the operator's key in path; their counter is the time, so that it grows over runs."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError("read", path, error, hint="an Ed25519 private key in PEM, without password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError("read", path, "not an Ed25519 key", hint="an Ed25519 private key in PEM")
    private = key
    last = 0

    def sign(node: tuple[str, str], verb: str, command: dict[str, object]) -> bytes:
        nonlocal last
        last = max(last + 1, time.time_ns() // 1_000_000)
        text = json.dumps({**command, "verb": verb, "node": "/".join(node), "counter": last})
        signature = base64.b64encode(private.sign(text.encode())).decode()
        return json.dumps({"command": text, "signature": signature}).encode()

    return sign
