"""What holds for all tests, and what many of them start with: a broker, a dashboard, a node without a camera."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broker import Mosquitto, Subscriber
from command_fixtures import Bench, Client
from hypothesis import HealthCheck, settings

# Deadlines and the health check of hypothesis judge by time, which a noisy machine does not give evenly.
# Each run tries the same examples, so that a change is judged by what it does; --hypothesis-profile explore others.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("camera-agent", settings.get_profile("explore"), derandomize=True)
settings.load_profile("camera-agent")

# A shell starts what runs in its background with SIGINT ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """As the program does at its start: else each stop of a Pi's camera, which collects what holds a buffer, looks
    through all modules of all tests, 0.3 s each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker of the test's own."""
    mosquitto = Mosquitto(tmp_path / "broker").start()
    yield mosquitto
    mosquitto.stop()


@pytest.fixture(scope="module")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """One broker for all tests of a module."""
    mosquitto = Mosquitto(tmp_path_factory.mktemp("broker")).start()
    yield mosquitto
    mosquitto.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Start brokers with options; all end with the test."""
    brokers: list[Mosquitto] = []

    def begin(**options: Any) -> Mosquitto:
        brokers.append(Mosquitto(tmp_path / f"broker{len(brokers)}", **options))
        return brokers[-1].start()

    yield begin
    for each in brokers:
        each.kill()


@pytest.fixture
def dashboard(broker: Mosquitto) -> Iterator[Subscriber]:
    """Hears everything at the test's own broker."""
    subscriber = Subscriber(broker.port)
    yield subscriber
    subscriber.close()


@pytest.fixture
def bench_settings() -> dict[str, Any]:
    """Sections of the bench's settings; a module that needs some overrides this."""
    return {}


@pytest.fixture
def bench(shared_broker: Mosquitto, tmp_path: Path, bench_settings: dict[str, Any]) -> Iterator[Bench]:
    """The rooms that answer commands, connected."""
    made = Bench(tmp_path, shared_broker.port, **bench_settings)
    made.connect()
    yield made
    made.close()


@pytest.fixture
def client(shared_broker: Mosquitto, bench: Bench) -> Iterator[Client]:
    """Who sends the bench commands."""
    made = Client(shared_broker.port, bench)
    yield made
    made.close()
