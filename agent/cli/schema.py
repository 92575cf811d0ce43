"""`camera-agent schema`: prints the payloads' JSON Schemas or the AsyncAPI document. Touches standard output."""

from __future__ import annotations

import argparse

from agent.schema import as_text, asyncapi, json_schemas

HELP = "print the JSON Schemas of the MQTT payloads, or the AsyncAPI 3 document"


def configure(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "topic",
        nargs="?",
        metavar="TOPIC",
        choices=sorted(json_schemas()),
        help="only the payload of this topic, such as event, cmd/snapshot, config/desired",
    )
    what.add_argument("--asyncapi", action="store_true", help="the whole contract as one AsyncAPI 3 document (JSON)")


def run(args: argparse.Namespace) -> int:
    if args.asyncapi:
        print(as_text(asyncapi()), end="")
        return 0
    schemas = json_schemas()
    print(as_text(schemas[args.topic] if args.topic else schemas), end="")
    return 0
