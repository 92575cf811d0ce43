"""`python -m agent.cli.embedded_broker PORT`: amqtt on loopback until SIGTERM, for a demo without mosquitto."""

from __future__ import annotations

import asyncio
import signal
import sys


async def serve(port: int) -> None:
    """MQTT 3.1.1 for anybody on this machine; nothing is kept."""
    from amqtt.broker import Broker  # an extra: only a demo without mosquitto needs it

    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await broker.start()
    await stopped.wait()
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
