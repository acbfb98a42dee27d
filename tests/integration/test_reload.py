"""Live change: SIGHUP, file change and POST /config; what is faulty changes nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from fastproxy.oneline import one_line
from tests.support.client import Client
from tests.support.proxy import ROOT, Proxy, free_port

DIRECT = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec:
  hosts: ["{host}"]
  http:
  - directResponse: {{status: {status}}}
"""
GATEWAY = """\
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  servers:
  - {{port: {{number: {port}, name: http, protocol: HTTP}}, bind: 127.0.0.1, hosts: ["*"]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: edge}}
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
  - directResponse: {{status: 210}}
"""


def direct(status: int, name: str = "one", host: str = "*") -> str:
    return DIRECT.format(name=name, host=host, status=status)


def status_of(address: str, host: str = "test") -> int:
    with Client(address) as client:
        return client.request("GET", "/", [("Host", host)]).status


def until(what: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def plan_of(proxy: Proxy) -> dict[str, Any]:
    status, text = proxy.ask("/plan")
    assert status == 200
    answer: dict[str, Any] = json.loads(text)
    return answer


def replace(path: Path, text: str) -> None:
    """As an editor or a deployment does it: written beside, then renamed over."""
    beside = path.with_name(".new")
    beside.write_text(text)
    os.replace(beside, path)


def test_a_file_that_changes_is_read_again() -> None:
    with Proxy(config=direct(201)) as proxy:
        assert status_of(proxy.address) == 201
        assert plan_of(proxy)["version"] == 1
        replace(proxy.config, direct(202))
        until(lambda: status_of(proxy.address) == 202)
        assert plan_of(proxy)["version"] == 2
        proxy.config.write_text(direct(203))  # in place
        until(lambda: status_of(proxy.address) == 203)
        assert plan_of(proxy)["version"] == 3


def test_sighup_reads_again_and_what_is_equal_is_no_new_version() -> None:
    with Proxy(config=direct(201)) as proxy:
        proxy.config.write_text(direct(201) + "# only a comment\n")
        proxy.process.send_signal(signal.SIGHUP)
        time.sleep(1.0)
        before = plan_of(proxy)
        assert before["version"] == 1
        replace(proxy.config, direct(202))
        proxy.process.send_signal(signal.SIGHUP)
        until(lambda: status_of(proxy.address) == 202)
        assert plan_of(proxy)["epoch"] == before["epoch"]


def test_a_faulty_document_is_quarantined_alone() -> None:
    good = direct(201, "one", "one") + "---\n" + direct(202, "two", "two")
    with Proxy(config=good) as proxy:
        faulty = direct(205, "one", "one") + "---\n" + direct(206, "two", "two").replace("hosts", "hostz")
        replace(proxy.config, faulty)
        until(lambda: status_of(proxy.address, "one") == 205)
        assert status_of(proxy.address, "two") == 202  # its last good version
        (problem,) = [p for p in plan_of(proxy)["problems"] if "hostz" in p["field"]]
        assert (problem["line"], problem["field"], problem["name"]) == (13, "spec.hostz", "two")
        until(lambda: "spec.hostz" in proxy.stderr)
        (line,) = [text for text in proxy.lines if "spec.hostz" in text]
        assert line.startswith("fastproxy: error: ")
        assert f"{proxy.config}:13" in line and "did you mean hosts" in line
        replace(proxy.config, direct(207, "one", "one") + "---\n" + direct(208, "two", "two"))
        until(lambda: status_of(proxy.address, "two") == 208)
        assert plan_of(proxy)["problems"] == []


@pytest.mark.parametrize("text", ["{not yaml", "\0", "a: [1, 2", "kind: VirtualService\n"], ids=repr)
def test_a_faulty_file_changes_nothing(text: str) -> None:
    with Proxy(config=direct(201)) as proxy:
        replace(proxy.config, text)
        until(lambda: any("error" in line and str(proxy.config) in line for line in proxy.lines))
        assert status_of(proxy.address) == 201
        assert plan_of(proxy)["version"] == 1
        os.unlink(proxy.config)
        time.sleep(0.6)
        assert status_of(proxy.address) == 201
        replace(proxy.config, direct(202))
        until(lambda: status_of(proxy.address) == 202)


@pytest.mark.parametrize("text", ["", "# all of it\n---\n# is commented out\n", " \n\n"], ids=repr)
def test_no_document_at_all_changes_nothing(text: str) -> None:
    """A disk that is full, a ``>`` typed, a template that failed: not a wish to close every port."""
    with Proxy(config=direct(201)) as proxy:
        proxy.config.write_text(text)
        proxy.wait_said("error: no document", str(proxy.config), "the last good version")
        assert status_of(proxy.address) == 201
        plan = plan_of(proxy)
        assert (plan["version"], [p["message"][:11] for p in plan["problems"]]) == (1, ["no document"])
        status, answer = proxy.ask("/config", "POST", text.encode())
        assert (status, json.loads(answer)["problems"][0]["file"]) == (400, "POST /config")
        assert status_of(proxy.address) == 201
        proxy.config.write_text(direct(202))
        until(lambda: status_of(proxy.address) == 202)


def test_a_file_cut_to_nothing_changes_nothing_of_what_was_posted() -> None:
    with Proxy(config=direct(201)) as proxy:
        assert proxy.ask("/config", "POST", direct(202).encode())[0] == 200
        proxy.config.write_text("")
        proxy.wait_said("error: no document", str(proxy.config), "version 2 goes on")
        assert status_of(proxy.address) == 202


def test_without_a_listener_it_is_not_ready_and_says_what_closed() -> None:
    with Proxy(to="127.0.0.1:1") as proxy:
        tables = one_line(proxy.address, ["127.0.0.1:2"])
        tables["listeners"] = {}
        assert post(proxy, msgpack.packb(tables), "application/x-msgpack")[0] == 200
        proxy.wait_said("warning: listener mesh is closed")
        status, answer = proxy.ask("/ready")
        assert (status, json.loads(answer)) == (503, {"ready": False, "reason": "no listener is open"})


@contextlib.contextmanager
def folder_proxy(folder: Path) -> Iterator[str]:
    """A proxy on a folder of files; its address."""
    port = free_port()
    words = ["--listen", f"127.0.0.1:{port}", "-c", str(folder), "--workers", "1", "--admin", "off"]
    process = subprocess.Popen([sys.executable, "-m", "fastproxy", "run", *words], cwd=ROOT)
    try:
        until(lambda: accepts(port))
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(10) == 0


def accepts(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_a_mounted_config_map_is_followed_through_its_links(tmp_path: Path) -> None:
    """Kubernetes: files are links through ``..data``, and one rename of that link changes all of them."""
    (tmp_path / "..1").mkdir()
    (tmp_path / "..1" / "a.yaml").write_text(direct(201))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    with folder_proxy(tmp_path) as address:
        until(lambda: status_of(address) == 201)
        (tmp_path / "..2").mkdir()
        (tmp_path / "..2" / "a.yaml").write_text(direct(202))
        (tmp_path / "..tmp").symlink_to("..2")
        os.replace(tmp_path / "..tmp", tmp_path / "..data")
        until(lambda: status_of(address) == 202)
        (tmp_path / "b.yaml").write_text(direct(210, "two", "two"))
        until(lambda: status_of(address, "two") == 210)


def test_listeners_open_and_close_with_the_configuration() -> None:
    port = free_port()
    with Proxy(config=direct(201)) as proxy:
        replace(proxy.config, direct(201) + GATEWAY.format(port=port))
        until(lambda: len(plan_of(proxy)["listeners"]) == 2)
        assert status_of(f"127.0.0.1:{port}") == 210
        replace(proxy.config, direct(202))
        until(lambda: status_of(proxy.address) == 202)
        with pytest.raises(ConnectionRefusedError):
            Client(f"127.0.0.1:{port}")


def test_a_port_in_use_is_said_and_the_others_work() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    with taken, Proxy(config=direct(201) + GATEWAY.format(port=port)) as proxy:
        assert status_of(proxy.address) == 201
        assert f"127.0.0.1:{port} is in use by another program; stop it" in proxy.stderr
        (broken,) = [each for each in plan_of(proxy)["listeners"] if not each["open"]]
        assert "in use" in broken["error"]
        taken.close()
        until(lambda: f"listener 127.0.0.1:{port} is open now" in proxy.stderr)
        assert status_of(f"127.0.0.1:{port}") == 210


def test_posted_documents_replace_all() -> None:
    with Proxy(config=direct(201)) as proxy:
        status, text = proxy.ask("/config", "POST", direct(202).encode())
        assert (status, json.loads(text)) == (200, {"version": 2, "changed": True})
        assert status_of(proxy.address) == 202
        faulty = direct(203) + "---\n" + direct(210, "two").replace("metadata:", "metadada: {}\nmetadata:")
        status, text = proxy.ask("/config", "POST", faulty.encode())
        answer = json.loads(text)
        assert status == 400
        assert (answer["problems"][0]["line"], answer["problems"][0]["field"]) == (11, "metadada")
        assert status_of(proxy.address) == 202
        assert plan_of(proxy)["version"] == 2
        assert plan_of(proxy)["source"] == "POST /config"


def test_a_post_is_said_on_standard_error_taken_or_refused() -> None:
    with Proxy(config=direct(201)) as proxy:
        assert proxy.ask("/config", "POST", direct(202).encode())[0] == 200
        proxy.wait_said("info: version 2 serves", "(POST /config)")
        assert proxy.ask("/config", "POST", direct(202).encode())[0] == 200
        proxy.wait_said("info: nothing has changed, version 2 goes on (POST /config)")
        status, text = proxy.ask("/config", "POST", direct(203).replace("hosts", "hostz").encode())
        assert (status, json.loads(text)["error"]) == (400, "1 problem")
        proxy.wait_said("error: refused, 1 problem: POST /config:5: spec.hostz", "version 2 goes on")
        assert post(proxy, msgpack.packb({}), "application/x-msgpack")[0] == 400
        proxy.wait_said("error: refused, tables: ", "is missing (POST /config); version 2 goes on")


def test_every_sighup_is_answered() -> None:
    with Proxy(config=direct(201)) as proxy:
        proxy.process.send_signal(signal.SIGHUP)
        proxy.wait_said("info: nothing has changed, version 1 goes on", str(proxy.config))
        replace(proxy.config, direct(202).replace("hosts", "hostz"))
        proxy.wait_said("spec.hostz")
        for times in (2, 3):
            proxy.process.send_signal(signal.SIGHUP)
            until(lambda wanted=times: sum("spec.hostz" in line for line in proxy.lines) == wanted)


def test_a_destination_that_is_not_there_is_warned_of_once() -> None:
    astray = direct(201).replace("directResponse: {status: 201}", "route: [{destination: {host: nowhere}}]")
    with Proxy(config=astray) as proxy:
        proxy.wait_said("warning: no ServiceEntry has the host nowhere; requests", f"{proxy.config}:7")
        assert status_of(proxy.address) == 503
        replace(proxy.config, astray + "---\n" + direct(202, "two", "two"))
        until(lambda: status_of(proxy.address, "two") == 202)
        assert proxy.stderr.count("no ServiceEntry") == 1


def post(proxy: Proxy, body: bytes, kind: str) -> tuple[int, dict[str, Any]]:
    with Client(proxy.admin) as client:
        response = client.request("POST", "/config", [("Content-Type", kind)], body)
        return response.status, json.loads(response.body)


def test_posted_tables_are_checked_and_replace_all() -> None:
    with Proxy(to="127.0.0.1:1") as proxy:
        tables = one_line(proxy.address, ["127.0.0.1:2"])
        tables["routes"]["mesh *"]["routes"] = [
            {"name": "teapot", "matches": [], "direct": {"status": 418, "body": b"short"}}
        ]
        kind = "application/x-msgpack"
        assert post(proxy, msgpack.packb(tables), kind) == (200, {"version": 2, "changed": True})
        assert status_of(proxy.address) == 418
        wrong = {**tables, "listeners": {"mesh": {"address": 7, "port": 1, "protocol": "HTTP"}}}
        status, answer = post(proxy, msgpack.packb(wrong), kind)
        assert status == 400 and answer["error"].startswith("tables.listeners[mesh].address: 7 is not")
        assert post(proxy, b"\xc1\xff", kind)[0] == 400
        assert status_of(proxy.address) == 418


def test_a_web_page_cannot_post() -> None:
    with Proxy(to="127.0.0.1:1") as proxy, Client(proxy.admin) as client:
        client.send(b"POST /drain HTTP/1.1\r\nHost: a\r\nOrigin: http://evil\r\nContent-Length: 0\r\n\r\n")
        assert client.response().status == 403
        assert proxy.ask("/ready")[0] == 200


def run(*words: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("FASTPROXY_")}
    command = [sys.executable, "-m", "fastproxy", "run", "--admin", "off", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, env=env, check=False)


def test_a_start_without_a_good_document_is_exit_2(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(direct(201).replace("spec", "spek"))
    done = run("-c", str(file))
    assert done.returncode == 2
    assert f"{file}:4" in done.stderr and "no good document" in done.stderr
    file.write_text("# nothing yet\n")
    done = run("-c", str(file))
    assert done.returncode == 2 and "error: no document" in done.stderr


def test_what_cannot_be_read_is_said_once_and_for_what_it_is(tmp_path: Path) -> None:
    """No "this document", no "last good version" where neither is."""
    (tmp_path / "empty").mkdir()
    do = "name a file of resources, or a folder of them"
    for path, what in (
        (tmp_path / "nowhere", "No such file or directory"),
        (tmp_path / "empty", "no .yaml, .yml, .json file in this folder"),
    ):
        done = run("-c", str(path))
        assert (done.returncode, done.stderr) == (2, f"fastproxy: error: {what} ({path}); {do}\n")
    file = tmp_path / "c.yaml"
    file.write_text("{not yaml")
    done = run("-c", str(file))
    first, second = done.stderr.splitlines()
    assert done.returncode == 2 and first.endswith(f"({file}:1); this document is left out")
    assert second.endswith("correct the above; fastproxy check shows it again")


def test_what_serves_instead_is_said() -> None:
    with Proxy(config=direct(201)) as proxy:
        text = direct(201) + "---\n" + direct(202, "two", "two").replace("hosts", "hostz")
        replace(proxy.config, text)
        proxy.wait_said("spec.hostz", "; this document is left out")
        replace(proxy.config, direct(201).replace("hosts", "hostx"))
        proxy.wait_said("spec.hostx", "; its last good version goes on")
        os.unlink(proxy.config)
        proxy.wait_said("No such file or directory", "; the last good versions of what it held go on")


def test_a_start_with_some_faulty_documents_serves_the_good_ones() -> None:
    faulty = direct(202, "two", "two").replace("metadata:", "metadada: {}\nmetadata:")
    with Proxy(config=direct(201, "one", "one") + "---\n" + faulty) as p:
        assert status_of(p.address, "one") == 201
        assert status_of(p.address, "two") == 404
        assert "metadada" in p.stderr


def test_a_start_with_no_listener_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--listen", f"127.0.0.1:{port}", "--to", "127.0.0.1:1")
    assert done.returncode == 1
    assert f"127.0.0.1:{port} is in use by another program" in done.stderr
    assert "Traceback" not in done.stderr


def descriptors(proxy: Proxy) -> list[str]:
    """What the agent and its spawner hold open, by kind."""
    spawner = Path(f"/proc/{proxy.workers()[0]}/stat").read_text().rpartition(")")[2].split()[1]
    found = []
    for pid in (str(proxy.process.pid), spawner):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(f"{pid} {os.readlink(fd).split(':')[0]}")
    return sorted(found)


def children(proxy: Proxy) -> int:
    return len(Path(f"/proc/{proxy.process.pid}/task/{proxy.process.pid}/children").read_text().split())


def test_reloads_and_deaths_leave_no_descriptor_and_no_process() -> None:
    port = free_port()
    with Proxy(config=direct(201), workers=2) as proxy:
        until(lambda: children(proxy) == 1)  # the reader of resources has ended
        before = descriptors(proxy)
        for number in range(8):
            replace(proxy.config, direct(210 + number) + GATEWAY.format(port=port) * (number % 2))
            until(lambda wanted=210 + number: status_of(proxy.address) == wanted)
        replace(proxy.config, "{")
        for _ in range(3):
            worker = proxy.workers()[0]
            os.kill(worker, signal.SIGKILL)
            until(lambda gone=worker: len(proxy.workers()) == 2 and gone not in proxy.workers())
            until(lambda: all(w["serving"] for w in plan_of(proxy)["workers"]))
        replace(proxy.config, direct(201))
        until(lambda: status_of(proxy.address) == 201)
        until(lambda: children(proxy) == 1)
        until(lambda: descriptors(proxy) == before, 5)
