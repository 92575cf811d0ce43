"""RabbitMQ's form of the access list, and the same matrix as tests/test_access.py against it.

    tests/cluster_access.py definitions > FILE      for `rabbitmqctl import_definitions FILE`
    tests/cluster_access.py try PORT                20 nodes x 6 topics x 19 others, at a broker that has them

A topic's slashes are dots in RabbitMQ, and `+` is `*`. Each user has an expression of its own, in full: `{username}`
would put the slash of `site/node` where a dot has to be.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from typing import Any

from broker import Subscriber, until
from pydantic import SecretStr
from test_access import FEEDS, NODES, Client, topic_of

from agent.access import readable, writable
from agent.clock import SystemClock
from agent.connection import Connection, PubAck
from agent.settings import MqttSettings

EXCHANGE, VHOST = "amq.topic", "/"
OWN_QUEUES = "^mqtt-(subscription|will)-.*"


def expression(filters: list[str]) -> str:
    """Matches the routing keys of these topic filters, and of subscriptions with these very filters."""
    words = {"+": r"[^.]+", "#": r".*"}
    keys = [r"\.".join(words.get(level) or re.escape(level) for level in each.split("/")) for each in filters]
    return f"^({'|'.join(keys)})$"


def permissions(user: str, site: str, node: str) -> list[dict[str, Any]]:
    """What rabbitmqctl would be told of one node: resources, then topics."""
    base = f"edgecam/v1/{site}/{node}"
    write = [f"{base}/{topic}" for topic in writable()] + [f"homeassistant/device/{site}_{node}/config"]
    read = [f"{base}/{topic}" for topic in readable()] + ["homeassistant/status"]
    about = {"user": user, "vhost": VHOST}
    resources = {
        "configure": OWN_QUEUES,
        "write": f"{OWN_QUEUES}|^amq\\.topic$",
        "read": f"{OWN_QUEUES}|^amq\\.topic$",
    }
    return [
        {**about, **resources},
        {**about, "exchange": EXCHANGE, "write": expression(write), "read": expression(read)},
    ]


def definitions() -> dict[str, Any]:
    made: dict[str, Any] = {"vhosts": [{"name": VHOST}], "users": [], "permissions": [], "topic_permissions": []}
    for site, node in NODES:
        user = f"{site}/{node}"
        made["users"].append({"name": user, "password": "word", "tags": []})
        resources, topics = permissions(user, site, node)
        made["permissions"].append(resources)
        made["topic_permissions"].append(topics)
    made["users"].append({"name": "desk", "password": "word", "tags": []})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    made["permissions"].append({"user": "desk", "vhost": VHOST, **everything})
    return made


def refused(port: int, user: str, topic: str) -> str:
    """Say something on topic; how the broker ended the connection, "" where it took the message.

    RabbitMQ answers a message that it denies with the end of the connection, not with a PUBACK.
    """
    settings = MqttSettings(host="127.0.0.1", port=port, username=user, password=SecretStr("word"))
    connection = Connection(settings, user, SystemClock())
    try:
        until(lambda: connection.ready or not connection.step(0.02), f"{user} is let in")
        connection.publish(topic, b"from an access test")
        acks: list[PubAck] = []

        def is_over() -> bool:
            connection.step(0.02)
            acks.extend(connection.take_acks())
            return bool(acks) or connection.failure is not None

        until(is_over, "an answer")
        if acks:
            return "" if acks[0].code < 0x80 else f"PUBACK {acks[0].code}"
        return f"DISCONNECT {connection.closed_by}" if connection.closed_by is not None else "closed"
    finally:
        connection.close(politely=False)


def listens(port: int, user: str, *filters: str) -> str:
    """Subscribe; what the broker says against it, or "" where a message of its own is taken after that."""
    settings = MqttSettings(host="127.0.0.1", port=port, username=user, password=SecretStr("word"))
    connection = Connection(settings, user, SystemClock())
    try:
        until(lambda: connection.ready or not connection.step(0.02), f"{user} is let in")
        connection.subscribe(*filters)
        connection.publish(f"edgecam/v1/{user}/motion", b"from an access test")

        def is_over() -> bool:
            connection.step(0.02)
            return connection.failure is not None or bool(connection.take_acks())

        until(is_over, "an answer")
        denied = [f"{topic}: {words}" for topic, words in connection.take_denied()]
        return "; ".join(denied) or ("closed" if connection.failure is not None else "")
    finally:
        connection.close(politely=False)


def trial(port: int) -> int:
    listener = Subscriber(port, user=("desk", "word"), checked=False)
    answers: Counter[str] = Counter()
    for site, name in NODES:
        user, base = f"{site}/{name}", f"edgecam/v1/{site}/{name}"
        client = Client(port, user)
        own = client.publish(*(topic_of((site, name), feed) for feed in FEEDS))
        assert all(code < 0x80 for code in own), f"{user} may not say what it should: {own}"
        client.close()
        heard = listens(port, user, f"{base}/cmd/+", f"{base}/config/desired", f"{base}/echo", "homeassistant/status")
        assert not heard, f"{user} may not hear what it should: {heard}"
        for each in ("#", "edgecam/#", "edgecam/v1/ward-1/+/event", f"edgecam/v1/{site}/other/cmd/+"):
            assert listens(port, user, each), f"{user} may hear {each}"
        foreign = [topic_of(other, feed) for other in NODES if other != (site, name) for feed in FEEDS]
        foreign += [f"{base}/cmd/restart", f"{base}/config/desired", "homeassistant/status", "anything"]
        answers += Counter(refused(port, user, topic) for topic in foreign)

    expected = len(NODES) * (len(FEEDS) + 1)  # with the word after a subscription

    def all_came() -> bool:
        listener.wait_a_moment()
        return len(listener.messages) >= expected

    until(all_came, "what was allowed")
    came, accepted = len(listener.messages), answers.pop("", 0)
    print(
        f"{len(NODES)} nodes x {len(FEEDS)} topics: {came} own messages came; {answers.total() + accepted} foreign"
        f" ones: {accepted} accepted, refused by {dict(answers)}",
        flush=True,
    )
    listener.close()
    return int(accepted > 0 or came != expected)


if __name__ == "__main__":
    if sys.argv[1:] == ["definitions"]:
        print(json.dumps(definitions(), indent=1))
    else:
        sys.exit(trial(int(sys.argv[2])))
