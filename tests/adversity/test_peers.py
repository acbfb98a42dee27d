"""Real programs on both sides: curl and wrk in front, nginx and a Python application behind."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import head
from tests.support.origin import Origin, pattern
from tests.support.programs import need, nginx, running
from tests.support.proxy import Proxy, free_port


def curl(*arguments: str, data: bytes | None = None) -> bytes:
    """What curl prints; it must succeed."""
    done = subprocess.run(
        [need("curl"), "--silent", "--show-error", "--max-time", "20", "--noproxy", "*", *arguments],
        input=data,
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy in front of nginx with a few files."""
    root = tmp_path_factory.mktemp("www")
    (root / "big.bin").write_bytes(pattern(1 << 20))
    (root / "text.txt").write_bytes(b"all work and no play\n" * 500)
    root.chmod(0o755)
    with nginx(tmp_path_factory.mktemp("nginx"), root) as port, Proxy(to=f"127.0.0.1:{port}") as proxy:
        proxy.pooled = True
        yield proxy
        proxy.assert_counts_at_zero()


def test_file_of_nginx_by_curl(files: Proxy) -> None:
    """A 1 MiB file of nginx arrives byte by byte the same."""
    body = curl(f"http://{files.address}/big.bin")
    assert hashlib.sha256(body).digest() == hashlib.sha256(pattern(1 << 20)).digest()


def test_range_of_nginx(files: Proxy) -> None:
    """RFC 9110 §14: a range is the origin's business: 206 and its bytes pass."""
    assert curl("-r", "1000-1999", f"http://{files.address}/big.bin") == pattern(2000)[1000:]
    told = curl(
        "-s", "-o", "/dev/null", "-w", "%{http_code}", "-r", "9999999-", f"http://{files.address}/big.bin"
    )
    assert told == b"416"


def test_several_ranges_of_nginx(files: Proxy) -> None:
    """RFC 9110 §14.6: multipart/byteranges is only a body."""
    body = curl("-r", "0-9,100-109", f"http://{files.address}/big.bin")
    assert pattern(10) in body and pattern(110)[100:] in body


def test_gzip_of_nginx(files: Proxy) -> None:
    """Content codings are end to end: the coded bytes pass, chunked, as nginx made them."""
    plain = b"all work and no play\n" * 500
    assert curl("--compressed", f"http://{files.address}/text.txt") == plain
    coded = curl("-H", "Accept-Encoding: gzip", f"http://{files.address}/text.txt")
    assert len(coded) < len(plain) and gzip.decompress(coded) == plain


def test_conditional_request_of_nginx(files: Proxy) -> None:
    """RFC 9110 §13: 304 passes without a body, and the connection goes on."""
    with files.client() as client:
        etag = client.request(target="/text.txt").get("etag")
        assert etag
        assert client.request(target="/text.txt", headers=[("If-None-Match", etag)]).status == 304
        assert client.request("HEAD", "/big.bin").get("content-length") == str(1 << 20)
        assert client.request(target="/text.txt").status == 200


def test_pipeline_to_nginx(files: Proxy) -> None:
    """RFC 9112 §9.3.2 with an origin that nobody scripted."""
    with files.client() as client:
        client.send((head("GET", "/text.txt") + head("GET", "/none") + head("HEAD", "/big.bin")) * 5)
        for _ in range(5):
            assert len(client.response().body) == 10500
            assert client.response().status == 404
            assert client.response("HEAD").status == 200


def test_curl_uploads(tmp_path: Path) -> None:
    """curl's uploads with a length, chunked, and with Expect: 100-continue, arrive whole."""
    data = pattern(3_000_000)
    want = {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (tmp_path / "data").write_bytes(data)
    with Origin() as origin, Proxy(to=origin.address) as proxy:
        url = f"http://{proxy.address}/hash"
        source = f"@{tmp_path / 'data'}"
        assert json.loads(curl("-H", "Expect:", "--data-binary", source, url)) == want
        assert json.loads(curl("-H", "Expect: 100-continue", "--data-binary", source, url)) == want
        chunked = ["-H", "Transfer-Encoding: chunked", "-H", "Expect:", "-X", "POST", "-T", "-"]
        assert json.loads(curl(*chunked, url, data=data)) == want
        assert origin.malformed == []


def test_idle_timeout_of_nginx(tmp_path: Path) -> None:
    """nginx closes each connection after 20 requests or 50 ms of silence: not one 503 in 600 requests."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "a.txt").write_text("ok")
    (tmp_path / "n").mkdir()
    statuses: list[int] = []

    def run(proxy: Proxy, number: int) -> None:
        with proxy.client() as client:
            for turn in range(150):
                method, body = ("POST", b"data") if turn % 3 == 0 else ("GET", None)
                statuses.append(client.request(method, "/a.txt", body=body).status)
                if turn % 10 == 0:
                    threading.Event().wait(0.049 + number / 2000)

    more = "keepalive_requests 20; error_page 405 =200 $uri;"
    with (
        nginx(tmp_path / "n", tmp_path / "www", keepalive="50ms", more=more) as port,
        Proxy(to=f"127.0.0.1:{port}") as proxy,
    ):
        threads = [threading.Thread(target=run, args=(proxy, n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert statuses == [200] * 600


def test_wrk_sees_no_error(files: Proxy) -> None:
    """wrk, a second of 32 connections as fast as it goes: no socket error, no other status than 200."""
    done = subprocess.run(
        [need("wrk"), "-t1", "-c32", "-d1s", f"http://{files.address}/text.txt"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "Requests/sec" in done.stdout, done.stdout + done.stderr
    assert "Socket errors" not in done.stdout, done.stdout
    assert "Non-2xx" not in done.stdout, done.stdout


APPLICATION = """
import asyncio, hashlib
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

async def drops(request):
    async def parts():
        for n in range(20):
            yield f"part {n}\\n"
            await asyncio.sleep(0.01)
    return StreamingResponse(parts(), media_type="text/plain")

async def upload(request):
    seen = hashlib.sha256()
    size = 0
    async for part in request.stream():
        seen.update(part)
        size += len(part)
    return JSONResponse({"length": size, "sha256": seen.hexdigest()})

async def who(request):
    return JSONResponse({"client": request.headers.get("x-forwarded-for"), "url": str(request.url)})

async def echo(socket):
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text.upper())

app = Starlette(routes=[Route("/drops", drops), Route("/upload", upload, methods=["POST"]),
                        Route("/who", who), WebSocketRoute("/ws", echo)])
"""


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy in front of a Starlette application on uvicorn."""
    folder = tmp_path_factory.mktemp("application")
    (folder / "application.py").write_text(APPLICATION)
    port = free_port()
    arguments = [sys.executable, "-m", "uvicorn", "--port", str(port), "--no-access-log", "application:app"]
    with running(arguments, port, folder), Proxy(to=f"127.0.0.1:{port}") as proxy:
        proxy.pooled = True
        yield proxy
        proxy.assert_counts_at_zero()


def test_streaming_application(application: Proxy) -> None:
    """A streamed answer of a Python application comes part by part, not at its end."""
    with application.client() as client:
        client.send(head("GET", "/drops"))
        assert client.reader.response_head().get("transfer-encoding") == "chunked"
        first = client.reader.take(12)
        assert b"part 0" in first
        assert b"part 19" not in client.reader.buffer
        while not client.reader.buffer.endswith(b"\r\n0\r\n\r\n"):
            client.reader.buffer += client.sock.recv(65536)
    assert curl(f"http://{application.address}/drops").count(b"part") == 20


def test_upload_to_application(application: Proxy) -> None:
    """A chunked and a counted upload to a Python application, and an address it can trust."""
    data = pattern(1_000_000)
    with application.client() as client:
        for _ in range(2):
            told = json.loads(client.request("POST", "/upload", body=data).body)
            assert told == {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        told = json.loads(client.request(target="/who?x=1", headers=[("Host", "shop.example")]).body)
        assert told == {"client": "127.0.0.1", "url": "http://shop.example/who?x=1"}
