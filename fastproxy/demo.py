"""The demo: ``python -m fastproxy.demo`` runs a control plane, two proxies and three small services.

The services are threads of this process; all else are the real programs beside it. A configuration is
applied, then one route is changed live, while both proxies are asked all the time. After that everything
stays up to be tried. ``--once`` ends instead, and its exit code says whether all answers were right.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

SERVICES = ("android", "ios", "anyone")
CLIENTS = ("Android", "IOS", None)  # the Client field of the three questions
BEFORE = ("android", "ios", "anyone")  # who must answer them
AFTER = ("android", "anyone", "anyone")
READY_SECONDS = 20.0
STOP_SECONDS = 5.0

CONFIG = """\
# The demo's configuration. Change it, then: fastproxyctl apply -f this-file --wait
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
  http:
  - match: [{{headers: {{client: {{exact: Android}}}}}}]
    route: [{{destination: {{host: catalog, subset: android}}}}]
  - match: [{{headers: {{client: {{exact: IOS}}}}}}]
    route: [{{destination: {{host: catalog, subset: ios}}}}]
  - route: [{{destination: {{host: catalog, subset: anyone}}}}]
"""
CHANGE = ("subset: ios}", "subset: anyone}")  # the route that is changed live

_console = Console(highlight=False, soft_wrap=True)


class _Answer(BaseHTTPRequestHandler):
    """One request to a service: JSON with who answered and what it saw."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait for an ACK
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


def free_ports(wanted: int, count: int = 1) -> int:
    """``wanted`` when it and the next loopback ports, ``count`` in all, are free; else 0."""
    for port in range(wanted, wanted + count):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                return 0
    return wanted


def free_port(wanted: int) -> int:
    """The wanted loopback port, or any free one when it is taken."""
    if found := free_ports(wanted):
        return found
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def environment() -> dict[str, str]:
    """Ours, without the settings that somebody made for other proxies."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FASTPROXY_")}


class Failed(Exception):
    """The demo cannot go on; the text says why."""


@contextlib.contextmanager
def program(log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m …`` with its output in a file, in a process group of its own: Ctrl-C reaches it through us
    only."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(),
            process_group=0,
        )
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


class Demo:
    """Everything that runs, and where."""

    def __init__(self, folder: Path, ended: threading.Event) -> None:
        self.folder = folder
        self.ended = ended
        self.config = folder / "mesh.yaml"
        self.api = self.publish = ""
        self.proxies: dict[str, tuple[int, int]] = {}  # name -> port, port of the admin API
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def up(self, stack: contextlib.ExitStack) -> None:
        """Start all, until both proxies have found the control plane. Raises Failed."""
        ports = stack.enter_context(services())
        self.config.write_text(CONFIG.format(**ports))
        self._start(
            stack,
            "control",
            *("ctrl", "serve", "--store", f"sqlite:///{self.folder}/control.db"),
            *("--publish", f"tcp://127.0.0.1:{free_ports(9910, 3)}"),
            *("--api", f"127.0.0.1:{free_ports(9900)}"),
        )
        told = self._until(self._addresses, "the control plane did not start")
        self.api, self.publish = told
        for number, name in enumerate(("proxy-1", "proxy-2")):
            port, admin = free_port(9000 + number), free_port(9901 + number)
            self.proxies[name] = port, admin
            self._start(
                stack,
                name,
                *("fastproxy", "run", "--control", self.publish, "--node", name, "--workers", "1"),
                *("--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"),
                *("--state", str(self.folder / name)),
            )
        self._until(self._connected, "the proxies did not find the control plane")

    def _start(self, stack: contextlib.ExitStack, name: str, *words: str) -> None:
        self.running[name] = stack.enter_context(program(self.folder / f"{name}.log", *words))

    def _until(self, found: Callable[[], list[str]], otherwise: str) -> list[str]:
        deadline = time.monotonic() + READY_SECONDS
        while not (answer := found()):
            self.look()
            if time.monotonic() > deadline:
                raise Failed(otherwise)
            time.sleep(0.03)
        return answer

    def _addresses(self) -> list[str]:
        said = (self.folder / "control.log").read_text()
        words = re.search(r"API at (http://\S+), proxies at (tcp://\S+),", said)
        return list(words.groups()) if words else []

    def _connected(self) -> list[str]:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            port = int(self.api.rpartition(":")[2])
            status = json.loads(ask(port, "/v1/status")[1])
            names = [proxy["node"] for proxy in status["proxies"] if proxy["state"] != "LOST"]
            return names if len(names) == len(self.proxies) else []
        return []

    def look(self) -> None:
        """Raises Failed when a program ended by itself, with its last lines; KeyboardInterrupt when we were
        asked to end."""
        if self.ended.is_set():
            raise KeyboardInterrupt
        for name, process in self.running.items():
            if process.poll() is not None:
                said = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-8:]
                raise Failed("\n".join([f"{name} ended by itself with {process.returncode}", *said]))

    def control(self, *words: str, right: Sequence[int] = (0,)) -> None:
        """Run a command of ``fastproxyctl`` before the user's eyes."""
        shown = [str(self.config.name) if word == str(self.config) else word for word in words]
        shown = [f"'{word}'" if " " in word else word for word in shown]
        _console.print(Text(f"$ fastproxyctl {' '.join(shown)}", "bold"))
        sys.stdout.flush()
        command = [sys.executable, "-m", "ctrl", *words]
        done = subprocess.run(command, env={**environment(), "FASTPROXY_API": self.api}, check=False)
        self.look()
        if done.returncode not in right:
            raise Failed(f"fastproxyctl {words[0]} ended with {done.returncode}")
        _console.print()

    def answers(self) -> dict[str, list[str]]:
        """Who answers the three questions, through each proxy."""
        return {
            name: [service(port, client) for client in CLIENTS] for name, (port, _) in self.proxies.items()
        }

    def change(self) -> str:
        """Rewrite the file: what asked for the service ios gets the service anyone."""
        text = self.config.read_text()
        head, found, rest = text.rpartition(CHANGE[0])
        self.config.write_text(head + (CHANGE[1] if found else "") + rest)
        return text


def ask(port: int, path: str, client: str | None = None) -> tuple[int, bytes]:
    """GET from 127.0.0.1: status and body. OSError or HTTPException when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"Client": client} if client else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def service(port: int, client: str | None) -> str:
    """The service that answers through that proxy, or what went wrong."""
    try:
        status, body = ask(port, "/items", client)
        return str(json.loads(body)["service"]) if status == 200 else str(status)
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as e:
        return type(e).__name__


@contextlib.contextmanager
def asking(ports: Sequence[int]) -> Iterator[dict[str, int]]:
    """Ask the second question through all of these all the time; yields answer -> how often."""
    seen: dict[str, int] = {}
    over = threading.Event()

    def ask_on() -> None:
        while not over.wait(0.002):
            for port in ports:
                answer = service(port, CLIENTS[1])
                seen[answer] = seen.get(answer, 0) + 1

    thread = threading.Thread(target=ask_on, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def show_answers(answers: dict[str, list[str]], wanted: Sequence[str]) -> None:
    """Proxy by question, what is not as wanted in red."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    table.add_column("")
    for client in CLIENTS:
        table.add_column(f"Client: {client}" if client else "no Client")
    for name, row in answers.items():
        cells = [Text(a, "green" if a == w else "bold red") for a, w in zip(row, wanted, strict=True)]
        table.add_row(name, *cells)
    _console.print(table)
    _console.print()


def tour(demo: Demo) -> int:
    """Apply, ask, change, ask again. The exit code: 0 when every answer was right."""
    say("One control plane, two proxies, and the services android, ios and anyone.")
    demo.control("apply", "-f", str(demo.config), "--wait")
    first = demo.answers()
    show_answers(first, BEFORE)
    demo.change()
    say("Now a route is changed, live: IOS goes to anyone. Requests go on meanwhile.")
    demo.control("diff", "-f", str(demo.config), right=(1,))
    with asking([port for port, _ in demo.proxies.values()]) as seen:
        demo.control("apply", "-f", str(demo.config), "--wait", "-m", "ios is being repaired")
    failed = sum(count for answer, count in seen.items() if answer not in SERVICES)
    counts = ", ".join(f"{count} by {answer}" for answer, count in seen.items())
    say(f"Meanwhile {sum(seen.values())} requests: {counts}; {failed or 'none'} failed.")
    second = demo.answers()
    show_answers(second, AFTER)
    right = all(row == list(BEFORE) for row in first.values()) and all(
        row == list(AFTER) for row in second.values()
    )
    if not right or failed:
        print("demo: some answers were wrong", file=sys.stderr)
        return 1
    return 0


def say(text: str) -> None:
    _console.print(Text(text))
    _console.print()


def describe(demo: Demo) -> None:
    """What to try, while everything runs."""
    ports = [port for port, _ in demo.proxies.values()]
    admins = [admin for _, admin in demo.proxies.values()]
    program = shown_program()
    if demo.api != "http://127.0.0.1:9900":
        program = f"FASTPROXY_API={demo.api} {program}"
    rows = [
        f"curl -H 'Client: IOS' http://127.0.0.1:{ports[0]}/items    # or {ports[1]}",
        f"{program} status",
        f"{program} edit vs/catalog --wait",
        f"{program} rollback 1 --wait",
        f"{program} breaker open catalog --for 1m",
        f"{program} history",
    ]
    _console.print("It all keeps running. Try:\n")
    for row in rows:
        _console.print(Text(f"  {row}", "cyan"))
    _console.print(
        f"\nconfiguration  {demo.config}"
        f"\nadmin          http://127.0.0.1:{admins[0]}/metrics   also /clusters /plan, and {admins[1]}"
        f"\nlogs           {demo.folder}/*.log\n"
    )
    _console.print("Ctrl-C ends it.")
    sys.stdout.flush()


def shown_program() -> str:
    """How ``fastproxyctl`` is called from here."""
    installed = Path(sys.executable).with_name("fastproxyctl")
    path, rest = (installed, "") if installed.exists() else (Path(sys.executable), " -m ctrl")
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return f"{path}{rest}" if " " not in str(path) else f"python{rest}" if rest else "fastproxyctl"


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
    """Everything up, the tour, and wait. Exit code: 0 ended as asked, 1 something failed."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    try:
        with (
            tempfile.TemporaryDirectory(prefix="fastproxy-demo-") as folder,
            contextlib.ExitStack() as stack,
        ):
            demo = Demo(Path(folder), ended)
            demo.up(stack)
            if (code := tour(demo)) or once:
                return code
            describe(demo)
            # in steps: a signal is noticed between two of them at the latest
            while not ended.wait(0.5):
                demo.look()
    except Failed as e:
        print(f"demo: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    print("demo: ended", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastproxy.demo",
        description="A control plane, two proxies and three services; a route is changed live.",
    )
    parser.add_argument("--once", action="store_true", help="end after the tour; 1 when an answer was wrong")
    once = parser.parse_args().once
    with _own_foreground():
        return run(once)


if __name__ == "__main__":
    sys.exit(main())
