"""What may happen to a control plane, its store and its links (issue 3, Faults): traffic never fails."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctrl import keys
from tests.support.client import Client
from tests.support.etcd import Cluster
from tests.support.mesh import Serve, Traffic, everything
from tests.support.origin import Origin
from tests.support.programs import need
from tests.support.proxy import Proxy


def proxy_of(serve: Serve, folder: Path, name: str = "a", **flags: Any) -> Proxy:
    control = flags.pop("control", serve.publish)
    return Proxy(control=control, node=name, state=folder / "state", **flags)


def control_of(proxy: Proxy) -> dict[str, Any]:
    """What /plan tells of the control plane."""
    told = json.loads(proxy.ask("/plan")[1])["control"]
    assert isinstance(told, dict)
    return told


def wait(what: Callable[[], bool], why: Callable[[], object], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)


def wait_state(proxy: Proxy, state: str, timeout: float = 10.0) -> None:
    wait(lambda: control_of(proxy)["state"] == state, lambda: (control_of(proxy), proxy.stderr), timeout)


def word(proxy: Proxy) -> str:
    """Which version serves, by what it answers."""
    with Client(proxy.address) as client:
        return client.request(target="/version").body.decode()


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


def test_killed_and_started_again(tmp_path: Path, sqlite: str, origin: Origin) -> None:
    with Serve(sqlite) as serve:
        serve.apply(everything(origin.port, "one"))
        with proxy_of(serve, tmp_path) as proxy, Traffic(proxy.address):
            proxy.pooled = True
            serve.kill()
            wait_state(proxy, "STALE")
            assert word(proxy) == "one"
            serve.start()
            wait_state(proxy, "LIVE")
            serve.wait_serving(serve.apply(everything(origin.port, "two")), 1)
            assert word(proxy) == "two"
            assert control_of(proxy)["snapshots"] == 1, "what it held was still good"


def test_paused(tmp_path: Path, sqlite: str, origin: Origin) -> None:
    with Serve(sqlite) as serve:
        serve.apply(everything(origin.port, "one"))
        with proxy_of(serve, tmp_path) as proxy, Traffic(proxy.address):
            proxy.pooled = True
            serve.pause()
            wait_state(proxy, "STALE")
            serve.resume()
            wait_state(proxy, "LIVE")
            serve.wait_serving(serve.apply(everything(origin.port, "two")), 1)


def test_paused_for_longer_than_any_patience(tmp_path: Path, sqlite: str, origin: Origin) -> None:
    """Control plane and agent stand still for 18 s while messages wait for both. With ZMTP's own heartbeats
    libzmq 4.3.5 ended them by an assertion, and with the agent went the traffic."""
    with Serve(sqlite) as serve, Serve(f"{sqlite}2") as other:
        for plane in (serve, other):
            plane.apply(everything(origin.port, "one"))
        with proxy_of(serve, tmp_path, "a") as a, proxy_of(other, tmp_path, "b") as b:
            a.pooled = b.pooled = True
            with Traffic(a.address), Traffic(b.address):
                serve.pause()
                b.process.send_signal(signal.SIGSTOP)  # its agent; workers go on
                until = time.monotonic() + 18
                number = 0
                while time.monotonic() < until:
                    number += 1
                    other.apply(everything(origin.port, f"n{number}"))
                    time.sleep(0.2)
                serve.resume()
                b.process.send_signal(signal.SIGCONT)
                wait(lambda: word(b) == f"n{number}", lambda: (control_of(b), b.stderr), 20)
                wait_state(a, "LIVE", 20)
                wait_state(b, "LIVE", 20)
                serve.wait_serving(serve.apply(everything(origin.port, "two")), 1, 20)


def test_a_proxy_that_slept_through_many_versions(tmp_path: Path, sqlite: str, origin: Origin) -> None:
    with Serve(sqlite) as serve:
        serve.apply(everything(origin.port, "one"))
        with proxy_of(serve, tmp_path, "a") as slow, proxy_of(serve, tmp_path, "b") as quick:
            slow.pooled = quick.pooled = True
            with Traffic(slow.address), Traffic(quick.address):
                slow.process.send_signal(signal.SIGSTOP)  # its agent; workers go on
                try:
                    for number in range(40):
                        version = serve.apply(everything(origin.port, f"n{number}"))
                    serve.wait_serving(version, 1)
                    assert word(quick) == "n39"
                finally:
                    slow.process.send_signal(signal.SIGCONT)
                wait(lambda: word(slow) == "n39", lambda: (control_of(slow), slow.stderr))
                wait_state(slow, "LIVE")
            status, told = serve.ask("GET", "/v1/verify")
            assert (status, told["equal"]) == (200, True)


def test_an_older_store_is_refused_until_the_epoch_is_raised(
    tmp_path: Path, sqlite: str, origin: Origin
) -> None:
    backup = tmp_path / "backup.db"
    with Serve(sqlite) as serve:
        serve.apply(everything(origin.port, "one"))
        serve.stop()
        shutil.copy(tmp_path / "store.db", backup)
        serve.start()
        version = serve.apply(everything(origin.port, "two"))
        with proxy_of(serve, tmp_path) as proxy, Traffic(proxy.address):
            proxy.pooled = True
            serve.wait_serving(version, 1)
            serve.stop()
            for file in tmp_path.glob("store.db*"):
                file.unlink()
            shutil.copy(backup, tmp_path / "store.db")
            serve.start()
            wait_state(proxy, "STALE")
            wait(lambda: "is older" in proxy.stderr, lambda: proxy.stderr)
            wait(lambda: serve.proxies().get("a", {}).get("state") == "STALE", serve.proxies)
            for text in ("another two", "another three"):
                again = serve.apply(everything(origin.port, text))
                time.sleep(1)
                assert serve.ask("GET", f"/v1/progress?version={again}")[1]["serving"] == 0, (
                    "--wait would lie"
                )
                assert serve.ask("GET", "/v1/verify")[1]["equal"] is False
                if again == version:
                    assert word(proxy) == "two", "same number, other rows: refused as well"
                    break
            serve.stop()
            serve.start("--new-epoch")
            wait_state(proxy, "LIVE")
            wait(lambda: word(proxy) == "another two", lambda: control_of(proxy))


def test_full_disk_and_no_folder_for_the_last_good_version(
    tmp_path: Path, sqlite: str, origin: Origin
) -> None:
    with Serve(sqlite) as serve, small_disk(tmp_path / "disk") as disk:
        serve.apply(everything(origin.port, "one"))
        with (disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while ballast.write(bytes(4096)):  # as much as there is room for
                pass
        with proxy_of(serve, disk) as proxy, Traffic(proxy.address):
            proxy.pooled = True
            for number in range(3):
                serve.wait_serving(serve.apply(everything(origin.port, f"n{number}")), 1)
            wait(lambda: "No space left" in proxy.stderr, lambda: proxy.stderr)
            assert word(proxy) == "n2"
            (disk / "ballast").unlink()
            serve.wait_serving(serve.apply(everything(origin.port, "room again")), 1)
            wait(lambda: any((disk / "state").glob("*.last-good")), lambda: list((disk / "state").iterdir()))


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    with contextlib.suppress(OSError):
        (path / "state").mkdir()
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_clocks_that_jump(tmp_path: Path, sqlite: str, origin: Origin) -> None:
    """The control plane's clock is a day ahead, then a day behind: versions go on, orders end in time."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("libfaketime is not here (Debian: faketime)")
    clock = tmp_path / "clock"
    clock.write_text("+1d")
    environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with Serve(sqlite, environment=environment) as serve:
        serve.apply(everything(origin.port, "one"))
        with proxy_of(serve, tmp_path) as proxy, proxy.client() as client:
            proxy.pooled = True
            serve.ask("POST", "/v1/breakers", {"host": "origin", "state": "open", "for": "4s"})
            began = time.monotonic()
            wait(lambda: client.request().status == 503, lambda: proxy.ask("/breakers"))
            clock.write_text("-1d")
            serve.wait_serving(serve.apply(everything(origin.port, "two")), 1)
            assert word(proxy) == "two"
            wait(lambda: client.request().status == 200, lambda: proxy.ask("/breakers"))
            assert 2.0 < time.monotonic() - began < 7.0
            wait_state(proxy, "LIVE")


# --- several control planes, one store ---


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Cluster]:
    need("etcd")
    cluster = Cluster(tmp_path / "etcd", 3, ())
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_two_control_planes_and_one_of_them_dies(tmp_path: Path, three: Cluster, origin: Origin) -> None:
    with Serve(three.url(), "--name", "p") as first, Serve(three.url(), "--name", "q") as second:
        first.apply(everything(origin.port, "one"))
        both = f"{first.publish},{second.publish}"
        with proxy_of(first, tmp_path, control=both) as proxy, Traffic(proxy.address):
            proxy.pooled = True
            for number in range(5):
                version = (first, second)[number % 2].apply(everything(origin.port, f"n{number}"))
                for plane in (first, second):
                    plane.wait_serving(version, 1)
            told = control_of(proxy)
            assert (told["updates"], told["snapshots"]) == (5, 1), "each version once, from whoever was first"
            heads = [plane.ask("GET", "/v1/head")[1] for plane in (first, second)]
            assert heads[0]["hash"] == heads[1]["hash"]
            first.kill()
            second.wait_serving(second.apply(everything(origin.port, "alone")), 1)
            assert word(proxy) == "alone"
            assert control_of(proxy)["state"] == "LIVE"


def test_a_member_of_the_store_dies_and_the_leader_moves(
    tmp_path: Path, three: Cluster, origin: Origin
) -> None:
    with Serve(three.url()) as serve:
        serve.apply(everything(origin.port, "one"))
        with proxy_of(serve, tmp_path) as proxy, Traffic(proxy.address):
            proxy.pooled = True
            leader = three.leader()
            leader.kill()
            deadline = time.monotonic() + 15
            while True:
                body = {"files": [{"name": "t.yaml", "text": everything(origin.port, "two")}]}
                status, answer = serve.ask("POST", "/v1/apply", body)
                if status == 200:
                    break
                assert status == 503, (status, answer)
                assert time.monotonic() < deadline, answer
            serve.wait_serving(answer["version"], 1)
            assert word(proxy) == "two"


def test_the_store_cannot_be_reached(tmp_path: Path, three: Cluster, origin: Origin) -> None:
    with Serve(three.url()) as serve:
        serve.apply(everything(origin.port, "one"))
        with proxy_of(serve, tmp_path) as proxy, Traffic(proxy.address):
            proxy.pooled = True
            for member in three.members:
                member.kill()
            status, answer = serve.ask(
                "POST", "/v1/apply", {"files": [{"name": "t.yaml", "text": everything(origin.port, "two")}]}
            )
            assert status == 503, answer
            assert "etcd" in answer["error"], answer
            status, answer = serve.ask("GET", "/v1/resources")
            assert (status, len(answer["resources"])) == (200, 2), "reads go on"
            with proxy_of(serve, tmp_path, "late") as late:
                assert word(late) == "one", "who starts now is served as well"
            three.start()
            deadline = time.monotonic() + 20
            while serve.ask("POST", "/v1/apply", {"files": [
                {"name": "t.yaml", "text": everything(origin.port, "two")}]})[0] != 200:  # fmt: skip
                assert time.monotonic() < deadline
                time.sleep(0.2)
            wait(lambda: word(proxy) == "two", lambda: control_of(proxy))


def test_the_owner_of_a_rollout_dies(tmp_path: Path, sqlite: str, origin: Origin) -> None:
    """Half of the proxies serve the candidate; who starts next makes it void, and all are where they were."""
    with Serve(sqlite) as serve:
        serve.apply(everything(origin.port, "old"))
        with proxy_of(serve, tmp_path, "a") as a, proxy_of(serve, tmp_path, "b") as b:
            a.pooled = b.pooled = True
            with Traffic(a.address), Traffic(b.address):
                wait(lambda: len(serve.proxies()) == 2, serve.proxies)
                serve.apply(everything(origin.port, "new"), stages=["1", "100%"], bake="60s")
                wait(lambda: {word(a), word(b)} == {"old", "new"}, lambda: (word(a), word(b)))
                serve.kill()
                serve.start()
                wait(lambda: {word(a), word(b)} == {"old"}, lambda: serve.ask("GET", "/v1/rollout"), 30)
                serve.wait_serving(serve.apply(everything(origin.port, "newer")), 2)
                assert {word(a), word(b)} == {"newer"}


# --- links ---


class Cable:
    """Two network namespaces with a cable between them: the control plane is at 10.77.0.1 in one of them,
    proxies and their services are in the other. :meth:`cut` takes the cable out."""

    def __init__(self) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("network namespaces need root and ip (Debian: iproute2)")
        self.plane, self.proxies = f"fp{os.getpid()}p", f"fp{os.getpid()}x"
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        for space in (self.plane, self.proxies):
            made = self._ip("netns", "add", space)
            if made.returncode:
                pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")
        words = f"link add eth0 netns {self.plane} type veth peer name eth0 netns {self.proxies}"
        assert self._ip(*words.split()).returncode == 0
        for space, address in ((self.plane, "10.77.0.1/24"), (self.proxies, "10.77.0.2/24")):
            for words in ("link set lo up", f"addr add {address} dev eth0", "link set eth0 up"):
                assert self._ip("-n", space, *words.split()).returncode == 0

    def _ip(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ip", *words], capture_output=True, text=True)

    def cut(self) -> None:
        assert self._ip("-n", self.plane, "link", "set", "eth0", "down").returncode == 0

    def mend(self) -> None:
        assert self._ip("-n", self.plane, "link", "set", "eth0", "up").returncode == 0

    @contextlib.contextmanager
    def at(self, space: str) -> Iterator[None]:
        """This thread, and what it starts, is in that namespace."""
        fd = os.open(f"/run/netns/{space}", os.O_RDONLY)
        try:
            _setns(fd)
            yield
        finally:
            os.close(fd)
            _setns(self._home)

    def close(self) -> None:
        os.close(self._home)
        for space in (self.plane, self.proxies):
            self._ip("netns", "del", space)


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, 0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def cable() -> Iterator[Cable]:
    made = Cable()
    try:
        yield made
    finally:
        made.close()


def test_a_link_is_cut_and_mended(tmp_path: Path, sqlite: str, cable: Cable) -> None:
    """What was changed meanwhile is there as soon as the cable is; in between the proxy says STALE."""
    keys.init(tmp_path / "keys")
    key = keys.add_node(tmp_path / "keys", "a")
    with contextlib.ExitStack() as stack:
        with cable.at(cable.plane):
            serve = stack.enter_context(Serve(sqlite, "--keys", str(tmp_path / "keys"), host="10.77.0.1"))
        with cable.at(cable.proxies):
            origin = stack.enter_context(Origin())
        with cable.at(cable.plane):
            serve.apply(everything(origin.port, "one"))
        with cable.at(cable.proxies):
            proxy = stack.enter_context(proxy_of(serve, tmp_path, control_key=key))
            proxy.pooled = True
            stack.enter_context(Traffic(proxy.address))
            assert word(proxy) == "one"
        cable.cut()
        with cable.at(cable.plane):
            version = serve.apply(everything(origin.port, "two"))
        with cable.at(cable.proxies):
            wait_state(proxy, "STALE")
            assert word(proxy) == "one"
        cable.mend()
        with cable.at(cable.proxies):
            wait(lambda: word(proxy) == "two", lambda: (control_of(proxy), proxy.stderr), 30)
            wait_state(proxy, "LIVE")
            assert control_of(proxy)["snapshots"] == 1, "one step from what it held"
        with cable.at(cable.plane):
            serve.wait_serving(version, 1)
        with cable.at(cable.proxies):
            stack.pop_all().close()
