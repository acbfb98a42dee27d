"""``fastproxy run --control``: served, changed under load, without its control plane, and after a restart."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctrl import keys
from fastproxy.tables import Tables
from tests.support.client import Client
from tests.support.control import ControlPlane, routes
from tests.support.mesh import Serve, everything
from tests.support.origin import Origin
from tests.support.proxy import Proxy, free_port

WHOLE = 1 << 32


@pytest.fixture
def control() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def status_of(address: str, host: str = "a") -> int:
    with Client(address) as client:
        return client.request("GET", "/", [("Host", host)]).status


def until(what: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def told(proxy: Proxy) -> dict[str, Any]:
    """What /plan says of the control plane."""
    found: dict[str, Any] = json.loads(proxy.ask("/plan")[1])["control"]
    return found


def wait_served(proxy: Proxy, status: int) -> None:
    until(lambda: status_of(proxy.address) == status)


def wait_serving(proxy: Proxy, version: int) -> None:
    until(lambda: told(proxy)["serving"] == version)


def wait_kept(proxy: Proxy, version: int) -> None:
    until(lambda: told(proxy)["last_good"]["version"] == version)


def to_origin(port: int, host: str = "127.0.0.1") -> Tables:
    """Everything of the mesh goes to this one endpoint."""
    tables = routes()
    tables["endpoints"]["s|80"] = [{"address": host, "port": port, "weight": 1, "labels": {}}]
    tables["clusters"]["outbound|80||s"] = {
        "service": "s",
        "port": 80,
        "endpoints": "s|80",
        "labels": {},
        "lb": "LEAST_REQUEST",
        "resolution": "STATIC" if host[0].isdigit() else "DNS",
    }
    tables["routes"]["mesh *"] = {
        "routes": [
            {"name": "s", "matches": [], "destinations": [{"cluster": "outbound|80||s", "weight": 1}]}
        ],
        "source": ["s"],
    }
    return tables


# --- served and answered for ---


def test_a_listener_that_cannot_be_opened_is_told(control: ControlPlane, state: Path) -> None:
    """The version serves, and not all of it: the answer, the report and /plan say which listener and why."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        tables = routes(("a", 200))
        tables["listeners"][f"127.0.0.1:{port}"] = {"address": "127.0.0.1", "port": port, "protocol": "HTTP"}
        version = control.publish(tables)
        with Proxy(control=control.address, state=state, node="a") as proxy:
            wait_serving(proxy, version)

            def error() -> str:
                return str(control.proxies("error")[0]["error"]) if control.proxies("error") else ""

            until(lambda: f"listener 127.0.0.1:{port}" in error() and "in use" in error())
            taken.close()
            until(lambda: error() == "")
            assert status_of(f"127.0.0.1:{port}") == 404, "it is open now"


def test_a_worker_that_stands_still_is_told(control: ControlPlane, state: Path) -> None:
    control.publish(routes(("a", 200)))
    with Proxy(control=control.address, state=state, node="a", workers=2) as proxy:
        still = proxy.workers()[1]
        os.kill(still, signal.SIGSTOP)
        try:
            control.publish(routes(("a", 201)))
            until(lambda: "workers 1 have not taken it yet" in control.proxies("error")[0]["error"], 20)
        finally:
            os.kill(still, signal.SIGCONT)
        until(lambda: control.proxies("error")[0]["error"] == "")


def test_what_is_published_serves_and_is_answered_for(control: ControlPlane) -> None:
    control.publish(routes(("*", 201)))
    with Proxy(control=control.address, state="off", node="n1", label="app=web") as proxy:
        assert status_of(proxy.address) == 201
        for number in range(2, 6):
            assert control.publish(routes(("*", 200 + number))) == number
            wait_served(proxy, 200 + number)
        assert status_of(proxy.address) == 205
        names = "node state version held us compile_us swap_us requests errors admin release started_ms"
        until(lambda: control.proxies("version", "state") == [{"version": 5, "state": "LIVE"}])
        (row,) = control.proxies(*names.split())
        assert (row["node"], row["held"], row["admin"], row["errors"]) == ("n1", 5, proxy.admin, 0)
        assert row["us"] > row["compile_us"] > 0 and row["started_ms"] > 1_600_000_000_000
        plan = told(proxy)
        assert (plan["state"], plan["epoch"], plan["version"], plan["serving"]) == ("LIVE", 1, 5, 5)
        assert plan["publishers"] == [{"address": control.address, "trouble": "", "epoch": 1, "version": 5}]
        assert (plan["snapshots"], plan["updates"], plan["gaps"], plan["rejected"]) == (1, 4, 0, 0)
        text = proxy.ask("/metrics")[1]
        assert 'fastproxy_control_state{state="LIVE"} 1\n' in text
        assert 'fastproxy_control_state{state="STALE"} 0\n' in text
        assert "fastproxy_control_version 5\n" in text and "fastproxy_control_updates_total 4\n" in text
        assert sum("serves: compiled in" in line for line in proxy.lines) == 5  # one line each


def test_requests_and_errors_are_reported(control: ControlPlane) -> None:
    control.publish(routes(("good", 200), ("bad", 503), ("worse", 500), ("odd", 404)))
    with Proxy(control=control.address, state="off") as proxy:
        for host, count in (("good", 3), ("bad", 2), ("worse", 1), ("odd", 1)):
            for _ in range(count):
                status_of(proxy.address, host)
        until(lambda: control.proxies("requests", "errors") == [{"requests": 7, "errors": 3}])


def test_changes_under_load_fail_no_request(control: ControlPlane) -> None:
    with Origin("one") as one, Origin("two") as two:
        control.publish(to_origin(one.port))
        with Proxy(control=control.address, state="off", workers=2) as proxy:
            proxy.pooled = True
            wrong: list[object] = []
            count = [0, 0, 0]
            ended = threading.Event()

            def ask(number: int) -> None:
                while not ended.is_set():
                    try:
                        with Client(proxy.address) as client:
                            for _ in range(20):
                                status = client.request("GET", "/").status
                                count[number] += 1
                                if status != 200:
                                    wrong.append(status)
                    except Exception as e:
                        wrong.append(e)

            threads = [threading.Thread(target=ask, args=(n,)) for n in range(3)]
            for thread in threads:
                thread.start()
            for number in range(30):
                version = control.publish(to_origin((one, two)[number % 2].port))
                wait_serving(proxy, version)
            ended.set()
            for thread in threads:
                thread.join()
        assert wrong == [] and min(count) > 0


def test_a_name_is_resolved_here(control: ControlPlane) -> None:
    with Origin("one") as origin:
        control.publish(to_origin(origin.port, "localhost"))
        with Proxy(control=control.address, state="off") as proxy:
            proxy.pooled = True
            assert status_of(proxy.address) == 200


def test_a_port_that_is_taken_is_opened_when_it_is_free(control: ControlPlane) -> None:
    tables = routes(("*", 201))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        tables["listeners"]["edge"] = {"address": "127.0.0.1", "port": port, "protocol": "HTTP"}
        tables["routes"]["edge *"] = tables["routes"]["mesh *"]
        control.publish(tables)
        with Proxy(control=control.address, state="off") as proxy:
            proxy.wait_said(f"127.0.0.1:{port} is in use")
            assert status_of(proxy.address) == 201
            taken.close()
            proxy.wait_said("listener edge is open now")
            assert status_of(f"127.0.0.1:{port}") == 201


def test_nobody_else_configures_it(control: ControlPlane) -> None:
    control.publish(routes(("*", 201)))
    with Proxy(control=control.address, state="off") as proxy:
        status, text = proxy.ask("/config", "POST", b"kind: VirtualService")
        assert status == 409 and "use fastproxyctl apply" in json.loads(text)["error"]
        proxy.process.send_signal(signal.SIGHUP)
        proxy.wait_said("nothing to read again: the control plane decides", control.address)
        assert status_of(proxy.address) == 201


# --- rejected ---


def faulty(kind: str) -> Tables:
    tables = routes(("*", 209))
    if kind == "shape":
        tables["routes"]["mesh *"]["routes"][0]["direct"]["status"] = 999
    elif kind == "plan":
        tables["routes"]["nowhere *"] = tables["routes"]["mesh *"]
    else:
        tables = to_origin(1)
        tables["endpoints"]["s|80"] *= 2
        tables["endpoints"]["s|80"][1] = {**tables["endpoints"]["s|80"][0], "port": 2}
    return tables


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("shape", "tables.routes[mesh *].routes[0].direct.status: 999 is not between 200 and 599"),
        ("plan", "on listener nowhere, which does not exist"),
        ("slots", "raise --max-endpoints"),
    ],
)
def test_a_version_that_cannot_serve_is_rejected_and_the_old_one_goes_on(
    control: ControlPlane, kind: str, reason: str, state: Path
) -> None:
    control.publish(routes(("*", 201)))
    with Proxy(control=control.address, state=state, max_endpoints=1) as proxy:
        wait_kept(proxy, 1)
        control.publish(faulty(kind))
        until(lambda: told(proxy)["state"] == "REJECTED")
        until(lambda: control.proxies("version", "held", "state") != [])
        until(lambda: reason in control.proxies("rejected_why")[0]["rejected_why"])
        plan = told(proxy)
        assert (plan["version"], plan["serving"], plan["rejected"]) == (2, 1, 1)
        assert reason in plan["error"]
        assert status_of(proxy.address) == 201
        proxy.wait_said("version 2 is rejected", reason, "version 1 goes on")
        assert "fastproxy_control_rejected_total 1\n" in proxy.ask("/metrics")[1]
        control.publish(routes(("*", 203)))  # what was wrong is gone with what came after it
        wait_served(proxy, 203)
        until(lambda: told(proxy)["state"] == "LIVE")
        assert told(proxy)["error"] == ""
        wait_kept(proxy, 3)


def test_what_serves_is_kept_though_a_version_that_cannot_serve_comes_right_behind_it(
    control: ControlPlane, state: Path
) -> None:
    """It was to be written a second after the one before, and by then its rows were gone."""
    control.publish(routes(("*", 201)))
    with Proxy(control=control.address, state=state, node="n") as proxy:
        wait_kept(proxy, 1)
        control.publish(routes(("*", 202)))
        wait_serving(proxy, 2)
        control.publish(faulty("plan"))
        until(lambda: told(proxy)["state"] == "REJECTED")
        wait_kept(proxy, 2)
        control.kill()
    with Proxy(control=control.address, state=state, node="n") as proxy:
        assert status_of(proxy.address) == 202


# --- candidates ---


def test_a_candidate_is_prepared_served_and_settled_or_dropped(control: ControlPlane, state: Path) -> None:
    control.publish(routes(("*", 201)))
    with Proxy(control=control.address, state=state) as proxy:
        wait_kept(proxy, 1)
        assert control.propose(routes(("*", 202))) == 2
        until(lambda: control.proxies("prepared", "version") == [{"prepared": 2, "version": 1}])
        assert status_of(proxy.address) == 201 and told(proxy)["candidate"] == 2
        control.tell("step", WHOLE)
        wait_served(proxy, 202)
        until(lambda: control.proxies("version") == [{"version": 2}])
        control.tell("drop")
        wait_served(proxy, 201)
        assert control.propose(routes(("*", 203))) == 3
        until(lambda: control.proxies("prepared") == [{"prepared": 3}])
        control.tell("settle")  # without a step: all at once
        wait_served(proxy, 203)
        until(lambda: told(proxy)["version"] == 3)
        wait_kept(proxy, 3)
        assert told(proxy)["rejected"] == 0


def test_a_candidate_that_cannot_serve_is_rejected_while_it_is_prepared(control: ControlPlane) -> None:
    control.publish(routes(("*", 201)))
    with Proxy(control=control.address, state="off") as proxy:
        control.propose(faulty("plan"))
        until(lambda: control.proxies("rejected", "version") == [{"rejected": 2, "version": 1}])
        control.tell("drop")
        control.publish(routes(("*", 203)))
        wait_served(proxy, 203)
        assert told(proxy)["state"] == "LIVE"


def test_a_candidate_outlives_changes_of_what_serves(control: ControlPlane) -> None:
    """Slots of what serves stay its own while a plan that lacks it is made, held and dropped."""
    with Origin("one") as one, Origin("two") as two:
        control.publish(to_origin(one.port))
        with Proxy(control=control.address, state="off", max_endpoints=3) as proxy:
            proxy.pooled = True
            for _ in range(4):
                control.propose(to_origin(two.port))
                until(lambda: told(proxy)["candidate"])
                with Client(proxy.address) as client:
                    assert json.loads(client.request().body)["name"] == "one"
                control.tell("drop")
                until(lambda: not told(proxy)["candidate"])
            control.publish(to_origin(two.port))
            until(lambda: told(proxy)["serving"] == told(proxy)["version"] == 6)
            with Client(proxy.address) as client:
                assert json.loads(client.request().body)["name"] == "two"


# --- without the control plane ---


def test_traffic_goes_on_and_a_restart_serves_the_last_good_version(state: Path) -> None:
    with ControlPlane(epoch=5) as control:
        control.publish(routes(("*", 201)))
        control.publish(routes(("*", 202)))
        with Proxy(control=control.address, state=state, node="n") as proxy:
            wait_kept(proxy, 2)
            control.kill()
            proxy.wait_said(control.address, "version 2 goes on")
            until(lambda: told(proxy)["state"] == "STALE")
            assert status_of(proxy.address) == 202
    (file,) = state.iterdir()
    assert (file.stat().st_mode & 0o777, state.stat().st_mode & 0o777) == (0o600, 0o700)
    with Proxy(control=control.address, state=state, node="n") as proxy:
        proxy.wait_said("starting with the last good version, 2")
        assert status_of(proxy.address) == 202
        plan = told(proxy)
        assert (plan["state"], plan["epoch"], plan["version"], plan["serving"]) == ("SYNCING", 5, 2, 2)
        with ControlPlane(epoch=4, port=control.port) as older:  # restored from an old backup
            older.publish(routes(("*", 209)))
            proxy.wait_said("is older: epoch 4 version 1", "refused")
            assert status_of(proxy.address) == 202
        with ControlPlane(epoch=6, port=control.port) as newer:
            newer.publish(routes(("*", 203)))
            wait_served(proxy, 203)
            until(lambda: told(proxy)["state"] == "LIVE")
            assert told(proxy)["epoch"] == 6
            wait_kept(proxy, 1)


def test_a_publisher_that_stands_still_is_stale_and_then_live_again(control: ControlPlane) -> None:
    control.publish(routes(("*", 201)))
    with Proxy(control=control.address, state="off") as proxy:
        until(lambda: told(proxy)["state"] == "LIVE")
        control.pause()
        until(lambda: told(proxy)["state"] == "STALE")
        assert status_of(proxy.address) == 201
        assert proxy.ask("/ready")[0] == 200
        control.resume()
        until(lambda: told(proxy)["state"] == "LIVE")
        control.publish(routes(("*", 202)))
        wait_served(proxy, 202)


def test_a_last_good_version_that_is_damaged_is_set_aside(state: Path) -> None:
    with ControlPlane() as control:
        control.publish(routes(("*", 201)))
        with Proxy(control=control.address, state=state, node="n") as proxy:
            wait_kept(proxy, 1)
    (file,) = state.iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with Proxy(control=control.address, state=state, node="n", ready=False) as proxy:
        proxy.wait_said("error: the last good version is of no use: its checksum is wrong", timeout=10)
        proxy.wait_said("waiting for a configuration")
        assert [path.name for path in state.iterdir()] == [file.name + ".bad"]
        with ControlPlane(port=control.port) as again:
            again.publish(routes(("*", 202)))
            proxy.wait_ready()
            assert status_of(proxy.address) == 202
            wait_kept(proxy, 1)


def test_with_nothing_to_serve_it_waits_and_says_so(state: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with Proxy(control=address, state=state, ready=False) as proxy:
        proxy.wait_said("waiting for a configuration", address, timeout=10)
        status, text = proxy.ask("/ready")
        assert (status, json.loads(text)["reason"]) == (503, "no configuration yet")
        assert proxy.ask("/live")[0] == 200
        assert told(proxy)["state"] == "SYNCING"
        proxy.wait_said(address, "cannot be reached", "nothing serves yet")
        with pytest.raises(ConnectionRefusedError):
            Client(proxy.address)
    assert not state.exists()


def test_a_folder_that_cannot_be_written_is_said_once_and_serving_goes_on(
    control: ControlPlane, state: Path
) -> None:
    state.write_text("a file where a folder belongs")
    control.publish(routes(("*", 201)))
    with Proxy(control=control.address, state=state) as proxy:
        proxy.wait_said("warning: the last good version cannot be written")
        control.publish(routes(("*", 202)))
        wait_served(proxy, 202)
        state.unlink()
        proxy.wait_said("the last good version is written again: 2", timeout=10)
        assert proxy.stderr.count("cannot be written") == 1


# --- with keys, and with all of the control plane ---


def test_with_a_key_that_is_allowed_it_serves_and_without_it_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    keys.init(folder)
    key = keys.add_node(folder, "node-a").rename(tmp_path / "node-a.key")  # it is on the proxy's machine
    store = f"sqlite:///{tmp_path}/store.db"
    with Serve(store, "--keys", str(folder)) as serve, Origin("one") as origin:
        serve.apply(everything(origin.port, "one"))
        with Proxy(control=serve.publish, control_key=key, state="off") as proxy:
            assert status_of(proxy.address) == 200
            assert "node-a" in serve.proxies()
            proxy.pooled = True
        keys.revoke(folder, "node-a")
        with Proxy(control=serve.publish, control_key=key, state="off", ready=False) as proxy:
            proxy.wait_said(serve.publish, "not on the allow list", "nothing serves yet", timeout=10)
            assert json.loads(proxy.ask("/ready")[1])["reason"] == "no configuration yet"
        with Proxy(control=serve.publish, state="off", node="b", ready=False) as proxy:
            proxy.wait_said(serve.publish, "CURVE", timeout=10)


def test_an_order_from_the_control_plane_is_obeyed_and_reported(tmp_path: Path) -> None:
    with Serve(f"sqlite:///{tmp_path}/store.db") as serve, Origin("one") as origin:
        serve.apply(everything(origin.port, "one"))
        with Proxy(control=serve.publish, state="off", node="a") as proxy:
            proxy.pooled = True
            assert status_of(proxy.address) == 200
            plan = json.loads(proxy.ask("/plan")[1])["version"]
            order = {"host": "origin", "state": "open", "for": "10m", "reason": "drill"}
            status, answer = serve.ask("POST", "/v1/breakers", order)
            assert status == 200, answer
            wait_served(proxy, 503)
            rows = {row["breaker"]: row for row in json.loads(proxy.ask("/breakers")[1])["breakers"]}
            assert rows["outbound|80||origin"]["order"] == "open"
            assert json.loads(proxy.ask("/plan")[1])["version"] == plan, "it needs no new plan"
            until(lambda: [c["ordered"] for c in serve.ask("GET", "/v1/breakers")[1]["clusters"]] == [1])
            (given,) = serve.ask("GET", "/v1/breakers")[1]["orders"]
            assert serve.ask("DELETE", f"/v1/breakers/{given['name']}")[0] == 200
            wait_served(proxy, 200)


# --- memory ---


def test_only_who_needs_zeromq_loads_it(control: ControlPlane) -> None:
    control.publish(routes(("*", 201)))

    def loaded(proxy: Proxy) -> set[str]:
        maps = Path(f"/proc/{proxy.process.pid}/maps").read_text()
        return {name for name in ("/zmq/", "/zstandard/", "libzmq") if name in maps}

    with Proxy(to="127.0.0.1:1") as proxy:
        assert loaded(proxy) == set()
    with Proxy(control=control.address, state="off") as proxy:
        assert "/zmq/" in loaded(proxy)
        children = Path(f"/proc/{proxy.workers()[0]}/maps").read_text()
        assert "/zmq/" not in children
