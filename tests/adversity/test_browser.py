"""Chromium loads a page with assets and a WebSocket through the proxy, and the page itself says so."""

from __future__ import annotations

import re
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from websockets.sync.server import ServerConnection, serve

from tests.support.programs import need, nginx
from tests.support.proxy import Proxy, free_port
from tests.support.upstream import OK, Connection, Upstream

PAGE = """<!doctype html><html><head><title>page</title>
<link rel="stylesheet" href="/style.css"><script src="/script.js" defer></script></head>
<body><p id="styled">text</p><img id="image" src="/image.png"><img src="/hold">
<pre id="out">waiting</pre></body></html>
"""
STYLE = "#styled { color: rgb(1, 2, 3); }"
SCRIPT = """
const said = {};
function tell(key, value) {
  said[key] = value;
  if (['style', 'image', 'fetch', 'post', 'socket'].every(k => k in said))
  {
    document.getElementById('out').textContent =
      'RESULT ' + Object.keys(said).sort().map(k => k + '=' + said[k]).join(' ') + ' END';
    fetch('/done');
  }
}
addEventListener('DOMContentLoaded', async () => {
  tell('style', getComputedStyle(document.getElementById('styled')).color.replaceAll(' ', ''));
  await document.getElementById('image').decode();
  tell('image', document.getElementById('image').naturalWidth);
  const texts = await Promise.all([...Array(20).keys()].map(n => fetch('/big.txt?' + n).then(r => r.text())));
  tell('fetch', texts.filter(t => t.length === 200000).length);
  const posted = await fetch('/style.css', {method: 'POST', body: 'x'.repeat(100000)});
  tell('post', posted.status);
  const socket = new WebSocket('ws://' + location.host + '/chat');
  const got = [];
  socket.onopen = () => { for (let n = 0; n < 10; n++) socket.send('message ' + n); };
  socket.onmessage = e => {
    got.push(e.data);
    if (got.length === 10) { tell('socket', got.length); socket.close(); }
  };
  socket.onerror = () => tell('socket', 'error');
});
"""
ROUTES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: site}}
spec:
  hosts: ["*"]
  http:
  - match: [{{uri: {{exact: /chat}}}}]
    route: [{{destination: {{host: chat}}}}]
  - match: [{{uri: {{exact: /hold}}}}, {{uri: {{exact: /done}}}}]
    route: [{{destination: {{host: hold}}}}]
  - route: [{{destination: {{host: files}}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: hold}}
spec:
  hosts: [hold]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {hold}}}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: chat}}
spec:
  hosts: [chat]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {chat}}}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: files}}
spec:
  hosts: [files]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {files}}}}}]
"""
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--timeout=30000",
    "--dump-dom",
]


def png(width: int, height: int) -> bytes:
    """A grey picture of that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + bytes([n % 256]) * width for n in range(height))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@contextmanager
def chat() -> Iterator[int]:
    """A WebSocket server that echoes; its port."""

    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    port = free_port()
    with serve(echo, "127.0.0.1", port) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield port
        server.shutdown()
        thread.join(10)


@contextmanager
def hold() -> Iterator[int]:
    """The picture /hold, which is not there before the page has asked for /done: so long the page loads, and
    Chromium waits with its dump. Its port."""
    done = threading.Event()

    def script(conn: Connection) -> None:
        while True:
            if conn.request().target == "/done":
                done.set()
            elif not done.wait(20):
                return
            conn.send(OK)

    with Upstream() as upstream:
        upstream.script(script)
        yield int(upstream.address.rpartition(":")[2])


def test_chromium(tmp_path: Path) -> None:
    """Issue, "Tests": style, script, picture, 20 fetches at once, a POST and a WebSocket."""
    browser = need("chromium", "chromium-browser", "google-chrome")
    root = tmp_path / "www"
    root.mkdir()
    (root / "index.html").write_text(PAGE)
    (root / "style.css").write_text(STYLE)
    (root / "script.js").write_text(SCRIPT)
    (root / "image.png").write_bytes(png(37, 21))
    (root / "big.txt").write_text("b" * 200_000)
    (tmp_path / "n").mkdir()
    more = "client_max_body_size 1m; location = /style.css { error_page 405 =200 $uri; }"
    with (
        nginx(tmp_path / "n", root, more=more) as files,
        chat() as socket,
        hold() as picture,
        Proxy(config=ROUTES.format(chat=socket, files=files, hold=picture)) as proxy,
    ):
        folder = tmp_path / "profile"
        arguments = [browser, *FLAGS, f"--user-data-dir={folder}", f"http://{proxy.address}/index.html"]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
        found = re.search(r"RESULT (.*) END", done.stdout)
        assert found, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{proxy.stderr}"
        assert found[1] == "fetch=20 image=37 post=200 socket=10 style=rgb(1,2,3)"
        assert proxy.gauges()["invariant_failures"] == 0
        proxy.pooled = True
        proxy.assert_counts_at_zero()
