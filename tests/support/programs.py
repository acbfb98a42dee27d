"""Other people's programs in tests: found, or skipped aloud."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .proxy import free_port

SYSTEM = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


def need(*names: str) -> str:
    """The path of the first of these programs that is installed; else the test is skipped, saying so."""
    for name in names:
        if path := shutil.which(name, path=SYSTEM):
            return path
    pytest.skip(f"not installed: {' or '.join(names)}")


def wait_port(port: int, process: subprocess.Popen[bytes], timeout: float = 10.0) -> None:
    """Until something accepts on that port."""
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"nothing listens on {port}"
        time.sleep(0.02)


@contextlib.contextmanager
def running(arguments: list[str], port: int, cwd: Path) -> Iterator[None]:
    """That program, from the moment it accepts on ``port``; ended by SIGTERM."""
    log = cwd / "program.log"
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            wait_port(port, process)
            yield
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


NGINX = """
daemon off; master_process off; worker_processes 1; pid nginx.pid; error_log error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; types {{ text/html html; text/css css; text/javascript js; image/png png; text/plain txt; }}
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  gzip on; gzip_min_length 100; gzip_types text/plain text/css; gzip_proxied any; gzip_http_version 1.0;
  server {{ listen 127.0.0.1:{port}; root {root}; keepalive_timeout {keepalive}; {more} }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, root: Path, keepalive: str = "60s", more: str = "") -> Iterator[int]:
    """nginx serving the files of ``root``; its port."""
    path = need("nginx")
    port = free_port()
    text = NGINX.format(port=port, root=root, keepalive=keepalive, more=more)
    (folder / "nginx.conf").write_text(text)
    arguments = [path, "-p", str(folder), "-e", str(folder / "error.log"), "-c", "nginx.conf"]
    with running(arguments, port, folder):
        yield port
