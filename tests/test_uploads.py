"""clip.put: to a real S3-compatible server, to allowed hosts only, tried again; the secret URL is never shown."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broker import DEADLINE_S, Mosquitto, fake_broker, free_port, requires_mosquitto, until
from command_fixtures import Bench, Client

from agent.uploads import TRIES, Upload, allowed

HOSTS = ["https://s3.example.org", "http://127.0.0.1:9000"]


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.example.org/bucket/key?X-Amz-Signature=1",
        "https://S3.Example.Org:443/bucket/key",
        "http://127.0.0.1:9000/a",
    ],
)
def test_a_store_on_the_list_is_allowed(url: str) -> None:
    assert allowed(url, HOSTS) == ""


@pytest.mark.parametrize(
    "url",
    [
        "http://s3.example.org/a",
        "https://s3.example.org:8443/a",
        "https://s3.example.org.evil.example/a",
        "https://evil.example/s3.example.org",
        "https://s3.example.org@evil.example/a",
        "https://user:pw@s3.example.org/a",
        "file:///etc/passwd",
        "ftp://s3.example.org/a",
        "http://127.0.0.1:22/a",
        "http://[::1]:9000/a",
        "https://s3.example.org/a b",
        "https://s3.example.org/a\r\nX-Evil: 1",
        "https://s3.example.org:99999/a",
        "https://[broken/a",
        "//s3.example.org/a",
    ],
)
def test_anything_else_is_refused(url: str) -> None:
    assert allowed(url, HOSTS)


def test_without_a_list_nothing_is_allowed() -> None:
    assert "names nobody" in allowed("https://s3.example.org/a", [])


CONTENT = bytes(range(256)) * 1200


@pytest.fixture
def put(shared_broker: Mosquitto, tmp_path: Path) -> Iterator[Callable[[str, str], tuple[dict[str, Any], Bench]]]:
    """put(url, origin allowed): the answer to clip.put of a clip of 300 kB; back-off is not waited for."""
    opened: list[Any] = []

    def close() -> None:
        while opened:
            opened.pop(0).close()

    def ask(url: str, origin: str, content: bytes = CONTENT, **more: Any) -> tuple[dict[str, Any], Bench]:
        close()
        directory = tmp_path / f"node{len(list(tmp_path.iterdir()))}"
        bench = Bench(directory, shared_broker.port, commands={"upload_hosts": [origin]})
        bench.connect()
        client = Client(shared_broker.port, bench)
        opened.extend((client, bench))
        clip = bench.add_clip(1, content)
        request_id = client.request("clip.put", {"clip_id": clip.id, "url": url, **more})

        def answered() -> bool:
            # Only between two tries: how soon a store answers is the test machine's affair.
            if any(isinstance(job, Upload) and job._connection is None for _, job in bench.commands._jobs.values()):
                bench.clock.move(0.5)
            return bool(client.answers(request_id))

        bench.until(answered, "an answer to clip.put")
        return client.answers(request_id)[0], bench

    yield ask
    close()


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """moto's S3 server; its origin."""
    pytest.importorskip("moto.server", reason="moto is not installed (pip install 'moto[s3,server]')")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MOTO_S3_CUSTOM_ENDPOINTS": f"http://127.0.0.1:{port}"},
    )

    def answers() -> bool:
        assert process.poll() is None, "moto ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            threading.Event().wait(0.05)
            return False
        return True

    until(answers, "moto's server")
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(DEADLINE_S)


def s3(origin: str) -> Any:
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    config = pytest.importorskip("botocore.config").Config(
        signature_version="s3v4", s3={"addressing_style": "path"}, request_checksum_calculation="when_required"
    )
    return boto3.client(
        "s3",
        endpoint_url=origin,
        region_name="us-east-1",
        aws_access_key_id="camera",
        aws_secret_access_key="canary-secret",
        config=config,
    )


@requires_mosquitto
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_clip_arrives_whole_in_a_real_s3_store(put: Any, store: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = s3(store)
    client.create_bucket(Bucket="clips")
    url = client.generate_presigned_url(
        "put_object", Params={"Bucket": "clips", "Key": "ward-12/Cửa/a.mp4", "ContentType": "video/mp4"}
    )
    answer, bench = put(url, store, content_type="video/mp4")
    assert answer["ok"], answer
    stored = client.get_object(Bucket="clips", Key="ward-12/Cửa/a.mp4")
    assert stored["Body"].read() == CONTENT
    assert stored["ContentType"] == "video/mp4"
    assert answer["result"]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert answer["result"]["etag"] == hashlib.md5(CONTENT).hexdigest()
    signature = url.split("X-Amz-Signature=")[1][:64]
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("agent")]
    assert ours
    assert not [line for line in ours if signature in line]
    rows = bench.commands._reader.commands(10)
    assert not [row for row in rows if signature in repr(row)]


@requires_mosquitto
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_clip_in_parts_goes_on_where_it_stopped(put: Any, store: str) -> None:
    client = s3(store)
    client.create_bucket(Bucket="parts")
    place = {"Bucket": "parts", "Key": "a.mp4"}
    upload_id = client.create_multipart_upload(**place)["UploadId"]
    size = 5 * 2**20  # the least that S3 takes of a part that is not the last
    content = CONTENT * (size // len(CONTENT) + 1)
    parts = []
    # The second is sent first: the order is the store's business, a node needs to remember nothing.
    for number in (2, 1):
        offset = (number - 1) * size
        url = client.generate_presigned_url(
            "upload_part", Params={**place, "UploadId": upload_id, "PartNumber": number}
        )
        answer, _ = put(url, store, offset=offset, length=size, content=content)
        assert answer["ok"], answer
        sent = content[offset : offset + size]
        assert (answer["result"]["bytes"], answer["result"]["sha256"]) == (
            len(sent),
            hashlib.sha256(sent).hexdigest(),
        )
        assert answer["result"]["clip"]["sha256"] == hashlib.sha256(content).hexdigest()
        parts.append({"PartNumber": number, "ETag": answer["result"]["etag"]})
    parts.sort(key=lambda part: part["PartNumber"])
    client.complete_multipart_upload(**place, UploadId=upload_id, MultipartUpload={"Parts": parts})
    assert client.get_object(**place)["Body"].read() == content
    beyond, _ = put(url, store, offset=len(content), content=content)
    assert (beyond["error"]["code"], beyond["error"]["pointer"]) == ("invalid", "/args/offset")


@requires_mosquitto
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_store_that_refuses_is_named_with_its_own_word(put: Any, store: str) -> None:
    url = s3(store).generate_presigned_url("put_object", Params={"Bucket": "no-such-bucket", "Key": "a"})
    answer, _ = put(url, store)
    assert answer["error"]["code"] == "failed"
    assert "404 NoSuchBucket" in answer["error"]["detail"]


def served(*answers: bytes) -> tuple[list[bytes], Callable[[socket.socket, int], None]]:
    """A small HTTP server that reads a whole PUT and gives its answers in turn (b"": hangs up at once)."""
    bodies: list[bytes] = []

    def serve(connection: socket.socket, number: int) -> None:
        answer = answers[min(number, len(answers) - 1)]
        if not answer:
            return
        taken = b""
        while b"\r\n\r\n" not in taken:
            piece = connection.recv(65_536)
            if not piece:
                return
            taken += piece
        body = taken.split(b"\r\n\r\n", 1)[1]
        while len(body) < len(CONTENT):
            piece = connection.recv(65_536)
            if not piece:
                return
            body += piece
        bodies.append(body)
        connection.sendall(answer)

    return bodies, serve


OK = b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: "abc"\r\n\r\n'
SLOW_DOWN = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n"


@requires_mosquitto
def test_a_store_that_stumbles_is_tried_again_from_the_first_byte(put: Any) -> None:
    bodies, serve = served(b"", SLOW_DOWN, OK)
    with fake_broker(serve) as port:
        answer, _ = put(f"http://127.0.0.1:{port}/a", f"http://127.0.0.1:{port}")
    assert answer["ok"], answer
    assert bodies == [CONTENT, CONTENT]


@requires_mosquitto
def test_a_store_that_never_works_is_given_up(put: Any) -> None:
    bodies, serve = served(SLOW_DOWN)
    with fake_broker(serve) as port:
        answer, _ = put(f"http://127.0.0.1:{port}/a", f"http://127.0.0.1:{port}")
    assert answer["error"]["code"] == "failed"
    assert f"tried {TRIES} times" in answer["error"]["detail"]
    assert len(bodies) == TRIES


@requires_mosquitto
def test_a_redirect_is_not_followed(put: Any) -> None:
    called: list[int] = []
    with fake_broker(lambda connection, number: called.append(number)) as elsewhere:
        answer = f"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:{elsewhere}/b\r\nContent-Length: 0\r\n\r\n"
        bodies, serve = served(answer.encode())
        with fake_broker(serve) as port:
            answer_of_node, _ = put(f"http://127.0.0.1:{port}/a", f"http://127.0.0.1:{port}")
        assert answer_of_node["error"]["code"] == "forbidden"
        assert len(bodies) == 1
        assert called == []


@requires_mosquitto
def test_a_host_that_is_not_on_the_list_is_never_called(put: Any) -> None:
    called: list[int] = []
    with fake_broker(lambda connection, number: called.append(number)) as port:
        answer, _ = put(f"http://127.0.0.1:{port}/a", "http://127.0.0.1:9000")
        assert (answer["error"]["code"], answer["error"]["pointer"]) == ("forbidden", "/args/url")
        assert called == []
