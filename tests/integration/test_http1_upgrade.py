"""Upgrade, WebSocket tunnels and CONNECT (RFC 9110 §7.8, RFC 6455, design section 4)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
from websockets.sync.client import connect
from websockets.sync.server import Server, ServerConnection, serve

from tests.support.client import Client, head
from tests.support.origin import digest, pattern
from tests.support.proxy import Proxy
from tests.support.upstream import Connection, Upstream

UPGRADE = [("Upgrade", "echo"), ("Connection", "Upgrade")]
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n"


def echo_tunnel(conn: Connection) -> None:
    """Switch, then send back what comes; its end ends ours."""
    request = conn.head()
    assert request.get("upgrade") == "echo"
    assert "upgrade" in request.tokens("connection")
    conn.send(SWITCHED)
    conn.sock.sendall(bytes(conn.reader.buffer))
    while data := conn.sock.recv(65536):
        conn.sock.sendall(data)
    conn.half_close()


def test_tunnel(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §7.8: after 101 the bytes of both sides pass as they are."""
    upstream.script(echo_tunnel)
    response = client.request(headers=UPGRADE)
    assert response.status == 101
    assert response.get("upgrade") == "echo"
    assert "upgrade" in response.tokens("connection")
    for data in (b"\x00\xffGET / HTTP/1.1\r\n\r\n", b"x", pattern(300_000)):
        sender = threading.Thread(target=client.send, args=(data,))
        sender.start()
        assert client.reader.take(len(data)) == data
        sender.join()
    client.half_close()
    client.assert_closed()


def test_data_right_behind_the_request(client: Client, upstream: Upstream) -> None:
    """Bytes that the client sends before it has seen the 101 are the tunnel's, and are kept."""
    upstream.script(echo_tunnel)
    client.send(head("GET", "/", UPGRADE) + b"early")
    assert client.response().status == 101
    assert client.reader.take(5) == b"early"


def test_data_right_behind_the_101(client: Client, upstream: Upstream) -> None:
    """Bytes in the same packet as the 101 are the tunnel's."""

    def script(conn: Connection) -> None:
        conn.head()
        conn.send(SWITCHED + b"first bytes")
        conn.close()

    upstream.script(script)
    assert client.request(headers=UPGRADE).status == 101
    assert client.reader.rest() == b"first bytes"


def test_half_close_of_the_client(client: Client, upstream: Upstream) -> None:
    """A client that is done sending still receives: each direction ends by itself."""

    def script(conn: Connection) -> None:
        conn.head()
        conn.send(SWITCHED)
        sent = conn.reader.rest()
        conn.send(b"you said " + sent)
        conn.close()

    upstream.script(script)
    assert client.request(headers=UPGRADE).status == 101
    client.send(b"bye")
    client.half_close()
    assert client.reader.rest() == b"you said bye"


def test_half_close_of_the_upstream(client: Client, upstream: Upstream) -> None:
    """The same from the other side."""
    got = threading.Event()

    def script(conn: Connection) -> None:
        conn.head()
        conn.send(SWITCHED + b"done")
        conn.half_close()
        assert conn.reader.rest() == b"still sending"
        got.set()

    upstream.script(script)
    assert client.request(headers=UPGRADE).status == 101
    assert client.reader.rest() == b"done"
    client.send(b"still sending")
    client.half_close()
    assert got.wait(3)


def test_reset_in_a_tunnel(proxy: Proxy, client: Client, upstream: Upstream) -> None:
    """A reset of one side ends the other side; nothing stays behind."""
    upstream.script(echo_tunnel)
    assert client.request(headers=UPGRADE).status == 101
    client.reset()
    proxy.wait_gauge("exchanges", 0)
    proxy.wait_gauge("upstream_connections", 0)


def test_upgrade_declined(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §7.8: a server may ignore Upgrade; the answer and both connections are ordinary."""
    for _ in range(2):
        response = client.request(headers=UPGRADE)
        assert (response.status, response.body) == (200, b"ok")
    assert client.request().status == 200


def test_upgrade_of_http10_is_ignored(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §7.8: Upgrade in an HTTP/1.0 request is ignored, so it is not passed on."""
    client.send(head("GET", "/", UPGRADE, minor=0))
    assert client.response().status == 200
    assert upstream.requests[0].get("upgrade") is None


def test_upgrade_without_connection_is_not_passed_on(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §7.8: Upgrade counts only when Connection names it; else it is dropped as hop-by-hop."""
    assert client.request(headers=[("Upgrade", "echo")]).status == 200
    assert upstream.requests[0].get("upgrade") is None


def test_101_that_was_not_asked_for(client: Client, upstream: Upstream) -> None:
    """RFC 9110 §15.2.2: 101 without a request for it is an upstream error: 502, never a tunnel."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(SWITCHED + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    upstream.script(script)
    response = client.request()
    assert response.status == 502
    assert response.get("x-fastproxy-flags") == "UPE"


def test_connect_is_refused(client: Client, upstream: Upstream) -> None:
    """Design section 4: CONNECT is refused unless configured: 501, closed, nothing sent upstream."""
    client.send(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
    response = client.response()
    assert response.status == 501
    client.assert_closed()
    assert upstream.connections == []


@pytest.fixture(scope="module")
def websocket() -> Iterator[Proxy]:
    """A proxy in front of a WebSocket server of the websockets library that echoes."""

    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        assert isinstance(server, Server)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with Proxy(to=f"127.0.0.1:{server.socket.getsockname()[1]}") as proxy:
            yield proxy
        server.shutdown()
        thread.join(10)


def test_websocket(websocket: Proxy) -> None:
    """RFC 6455: a WebSocket library on both ends sees nothing of the proxy between them."""
    websocket.touched = True
    with connect(f"ws://{websocket.address}/chat", max_size=None) as socket:
        for size in (0, 1, 125, 126, 65535, 65536, 1 << 20):
            data = pattern(size)
            socket.send(data)
            got = socket.recv(timeout=10)
            assert isinstance(got, bytes)
            assert digest(got) == digest(data)
        socket.send("grüß dich")
        assert socket.recv(timeout=10) == "grüß dich"
        socket.ping().wait(5)


def test_many_websockets(websocket: Proxy) -> None:
    """Tunnels side by side do not mix their bytes, and all of them are released."""
    websocket.touched = True
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(f"ws://{websocket.address}/{n}")) for n in range(20)]
        assert websocket.gauges()["exchanges"] == 20
        for number, socket in enumerate(sockets):
            socket.send(f"I am {number}")
        for number, socket in enumerate(sockets):
            assert socket.recv(timeout=10) == f"I am {number}"
    websocket.wait_gauge("exchanges", 0)
    websocket.wait_gauge("upstream_connections", 0)


def test_idle_tunnel_is_closed(upstream: Upstream) -> None:
    """A tunnel in which nothing moves for --tunnel-idle-timeout is closed."""
    upstream.script(echo_tunnel)
    with Proxy(to=upstream.address, tunnel_idle_timeout=0.4) as proxy, proxy.client() as client:
        assert client.request(headers=UPGRADE).status == 101
        client.send(b"x")
        assert client.reader.take(1) == b"x"
        client.assert_cut()
        proxy.assert_counts_at_zero()
