"""The demo: ``python -m fastproxy.demo`` runs the proxy in front of three small services.

The services are threads of this process; the proxy is a real ``fastproxy run`` beside it, on a configuration
file that a reader may edit while it runs. ``--once`` asks the three questions itself, checks them, ends.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SERVICES = ("android", "ios", "anyone")
CLIENTS = (("Android", "android"), ("IOS", "ios"), (None, "anyone"))  # Client field -> who must answer
READY_SECONDS = 15.0
STOP_SECONDS = 5.0

CONFIG = """\
# The demo's configuration. Save a change and the proxy takes it; a mistake is reported and changes nothing.
apiVersion: networking.istio.io/v1
kind: Gateway                       # opens a listener
metadata: {{name: edge}}
spec:
  servers:
  - {{port: {{number: {edge}, name: http, protocol: HTTP}}, bind: 127.0.0.1, hosts: ["*"]}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry                  # a cluster and its endpoints
metadata: {{name: catalog}}
spec:
  hosts: [catalog]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints:
  - {{address: 127.0.0.1, ports: {{http: {android}}}, labels: {{os: android}}}}
  - {{address: 127.0.0.1, ports: {{http: {ios}}}, labels: {{os: ios}}}}
  - {{address: 127.0.0.1, ports: {{http: {anyone}}}, labels: {{os: anyone}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule               # subsets and policy of a cluster
metadata: {{name: catalog}}
spec:
  host: catalog
  subsets:
  - {{name: android, labels: {{os: android}}}}
  - {{name: ios, labels: {{os: ios}}}}
  - {{name: anyone, labels: {{os: anyone}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService                # routes: the first match in order wins
metadata: {{name: catalog}}
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
  - match: [{{headers: {{client: {{exact: Android}}}}}}]
    route: [{{destination: {{host: catalog, subset: android}}}}]
  - match: [{{headers: {{client: {{exact: IOS}}}}}}]
    route: [{{destination: {{host: catalog, subset: ios}}}}]
  - route: [{{destination: {{host: catalog, subset: anyone}}}}]
"""


class _Answer(BaseHTTPRequestHandler):
    """One request to a service: JSON with who answered and what it saw."""

    protocol_version = "HTTP/1.1"
    name = ""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seen = {
            "service": self.name,
            "method": self.command,
            "path": self.path,
            "headers": dict(self.headers.items()),
        }
        body = json.dumps(seen, indent=2).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the access log is the proxy's business."""


@contextlib.contextmanager
def services() -> Iterator[dict[str, int]]:
    """The three services on free loopback ports: name -> port."""
    servers = {
        name: ThreadingHTTPServer(("127.0.0.1", 0), type(f"_{name}", (_Answer,), {"name": name}))
        for name in SERVICES
    }
    for server in servers.values():
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield {name: server.server_address[1] for name, server in servers.items()}
    finally:
        for server in servers.values():
            server.shutdown()
            server.server_close()


def free_port(wanted: int) -> int:
    """The wanted loopback port, or any free one when it is taken."""
    for port in (wanted, 0):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                return int(sock.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


@contextlib.contextmanager
def proxy(config: Path, admin: int) -> Iterator[subprocess.Popen[bytes]]:
    """``fastproxy run`` on the file, in a process group of its own: Ctrl-C reaches it through us only."""
    command = [sys.executable, "-m", "fastproxy", "run", "-c", str(config), "--admin", f"127.0.0.1:{admin}"]
    process = subprocess.Popen(command, process_group=0)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ask(port: int, path: str, client: str | None = None) -> tuple[int, bytes]:
    """GET from 127.0.0.1: status and body. OSError or HTTPException when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"Client": client} if client else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def wait_ready(process: subprocess.Popen[bytes], admin: int, ended: threading.Event) -> bool:
    """Wait until the admin API says that every worker serves; False if the proxy ended or took too long."""
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and not ended.is_set() and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if ask(admin, "/ready")[0] == 200:
                return True
        time.sleep(0.05)
    return False


def curl_line(edge: int, client: str | None) -> str:
    return "curl " + (f"-H 'Client: {client}' " if client else "") + f"http://127.0.0.1:{edge}/items"


def describe(config: Path, edge: int, admin: int) -> str:
    """What to try, printed once everything runs."""
    shown = sys.executable if " " not in sys.executable else "python"
    with contextlib.suppress(ValueError):
        shown = str(Path(shown).relative_to(Path.cwd()))
    explain = f"{shown} -m fastproxy explain -c {config} 'GET http://catalog/items' -H 'Client: IOS'"
    lines = [
        f"fastproxy listens on http://127.0.0.1:{edge} in front of three services. Try:",
        "",
        *(f"  {curl_line(edge, client)}" for client, _ in CLIENTS),
        "",
        f"configuration  {config}   edit it: it reloads",
        f"admin          http://127.0.0.1:{admin}/metrics   also /clusters /plan /ready",
        f"why a route    {explain}",
        "",
        "Ctrl-C ends it.",
    ]
    return "\n".join(lines)


def ask_all(edge: int) -> int:
    """The three curl lines, asked here. 0 when each was answered by the right service."""
    wrong = 0
    for client, expected in CLIENTS:
        status, body = ask(edge, "/items", client)
        print(f"$ {curl_line(edge, client)}\n{status} {body.decode('utf-8', 'replace').strip()}", flush=True)
        try:
            right = status == 200 and json.loads(body)["service"] == expected
        except (ValueError, KeyError, TypeError):
            right = False
        if not right:
            print(f"demo: expected an answer of the service {expected}", file=sys.stderr)
            wrong += 1
    return 1 if wrong else 0


@contextlib.contextmanager
def _own_foreground() -> Iterator[None]:
    """Be the terminal's foreground group: Ctrl-C ends the demo, and not the ``make`` that started it."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield
        return
    # TTOU: giving the terminal back comes from the background. TSTP: nobody would be there to continue us.
    numbers = (signal.SIGTTOU, signal.SIGTSTP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        group = os.getpgrp()
        if os.tcgetpgrp(terminal) != group or os.getpid() in (group, os.getsid(0)):
            yield
            return
        os.setpgid(0, 0)
        os.tcsetpgrp(terminal, os.getpid())
        try:
            yield
        finally:
            os.tcsetpgrp(terminal, group)
    finally:
        for number, action in zip(numbers, before, strict=True):
            signal.signal(number, action)
        os.close(terminal)


def run(once: bool) -> int:
    """Everything up, the lines printed, and wait. Exit code: 0 ended as asked, 1 something failed."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    edge, admin = free_port(9000), free_port(9901)
    with tempfile.TemporaryDirectory(prefix="fastproxy-demo-") as folder, services() as ports:
        config = Path(folder) / "mesh.yaml"
        config.write_text(CONFIG.format(edge=edge, **ports))
        with proxy(config, admin) as process:
            if not wait_ready(process, admin, ended):
                if ended.is_set():
                    return 0
                print("demo: the proxy did not become ready", file=sys.stderr)
                return 1
            if once:
                return ask_all(edge)
            print(describe(config, edge, admin), flush=True)
            # in steps: a signal is noticed between two of them at the latest
            while not ended.wait(0.5):
                if process.poll() is not None:
                    print(f"demo: the proxy ended by itself with {process.returncode}", file=sys.stderr)
                    return 1
    print("demo: ended", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastproxy.demo", description="The proxy before three services."
    )
    parser.add_argument(
        "--once", action="store_true", help="ask the three questions, print the answers and end"
    )
    once = parser.parse_args().once
    with _own_foreground():
        return run(once)


if __name__ == "__main__":
    sys.exit(main())
