"""Real etcd members on loopback, each with a folder of its own; killed, paused and started again by pid."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from .programs import need
from .proxy import free_port


def _call(url: str, body: object | None = None, timeout: float = 1.0) -> dict[str, object]:
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, data=data, timeout=timeout) as response:
        answer = json.load(response)
    assert isinstance(answer, dict)
    return answer


class Member:
    """One etcd process. ``address``: HOST:PORT of its clients."""

    def __init__(self, name: str, folder: Path, flags: tuple[str, ...]) -> None:
        self.name, self.folder = name, folder
        self.client, self.peer = free_port(), free_port()
        self.address = f"127.0.0.1:{self.client}"
        self.peer_url = f"http://127.0.0.1:{self.peer}"
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, cluster: str) -> None:
        url = f"http://{self.address}"
        arguments = [need("etcd"), "--name", self.name, "--data-dir", str(self.folder / self.name)]
        arguments += ["--listen-client-urls", url, "--advertise-client-urls", url]
        arguments += ["--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url]
        arguments += ["--initial-cluster", cluster, "--initial-cluster-state", "new"]
        arguments += ["--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap"]
        environment = os.environ | {"ETCD_UNSUPPORTED_ARCH": platform.machine().replace("aarch64", "arm64")}
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*arguments, *self._flags], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_healthy(self, timeout: float = 20.0) -> None:
        """Until it answers and knows a leader."""
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(OSError):
                if _call(f"http://{self.address}/health").get("health") == "true":
                    return
            assert self._process and self._process.poll() is None, f"etcd {self.name} ended"
            assert time.monotonic() < deadline, f"etcd {self.name} is not healthy: see {self.folder}"
            time.sleep(0.05)

    def leads(self) -> bool:
        answer = _call(f"http://{self.address}/v3/maintenance/status", {})
        header = answer["header"]
        assert isinstance(header, dict)
        return answer.get("leader") == header["member_id"]

    def signal(self, number: int) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """As a power cut does."""
        if self._process:
            self._process.kill()
            self._process.wait(5)


class Cluster:
    def __init__(self, folder: Path, count: int, flags: tuple[str, ...]) -> None:
        folder.mkdir(exist_ok=True)
        self.members = [Member(f"m{number}", folder, flags) for number in range(count)]
        self._words = ",".join(f"{member.name}={member.peer_url}" for member in self.members)

    def start(self, *members: Member) -> None:
        """These members, or all; again as well. Waits until they are healthy."""
        for member in members or self.members:
            member.start(self._words)
        for member in members or self.members:
            member.wait_healthy()

    def stop(self) -> None:
        """Nothing is kept: without a majority an etcd takes its time to end by itself."""
        for member in self.members:
            member.kill()

    def url(self, prefix: str = "") -> str:
        return f"etcd://{','.join(member.address for member in self.members)}/{prefix}"

    def leader(self, timeout: float = 10.0) -> Member:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for member in self.members:
                with contextlib.suppress(OSError):
                    if member.leads():
                        return member
            time.sleep(0.05)
        raise AssertionError("etcd has no leader")


@contextlib.contextmanager
def cluster(folder: Path, members: int = 1, *flags: str) -> Iterator[Cluster]:
    """A cluster that runs and is healthy; the test is skipped when etcd is not installed."""
    need("etcd")
    made = Cluster(folder, members, flags)
    try:
        made.start()
        yield made
    finally:
        made.stop()
