"""A version came from the control plane while the proxy drained after SIGTERM. Its listeners had been
closed; putting the version in force opened them again, those it had and those that were new. Nobody served
them any more, so whoever connected waited until the process ended.
"""

from __future__ import annotations

import signal
import socket
import threading

import pytest

from fastproxy.tables import Tables
from tests.support.client import Client
from tests.support.control import ControlPlane, routes
from tests.support.proxy import Proxy, free_port


def to_slow(port: int) -> Tables:
    tables = routes()
    tables["endpoints"]["s|80"] = [{"address": "127.0.0.1", "port": port, "weight": 1, "labels": {}}]
    tables["clusters"]["outbound|80||s"] = {
        "service": "s",
        "port": 80,
        "endpoints": "s|80",
        "labels": {},
        "lb": "RANDOM",
        "resolution": "STATIC",
    }
    destinations = [{"cluster": "outbound|80||s", "weight": 1}]
    tables["routes"]["mesh *"] = {
        "routes": [{"name": "s", "matches": [], "destinations": destinations}],  # type: ignore[typeddict-item]
        "source": ["s"],
    }
    return tables


def test_a_version_that_comes_while_draining_opens_nothing() -> None:
    answers: list[int] = []
    with ControlPlane() as control, socket.create_server(("127.0.0.1", 0)) as slow:
        tables = to_slow(slow.getsockname()[1])
        control.publish(tables)
        with Proxy(control=control.address, state="off", drain_timeout=8) as proxy:

            def ask() -> None:
                with Client(proxy.address) as client:
                    answers.append(client.request("GET", "/").status)

            asking = threading.Thread(target=ask)
            asking.start()
            upstream, _ = slow.accept()
            with upstream:
                upstream.recv(1000)
                proxy.process.send_signal(signal.SIGTERM)
                proxy.wait_said("draining")
                edge = free_port()
                tables["listeners"]["edge"] = {"address": "127.0.0.1", "port": edge, "protocol": "HTTP"}
                tables["routes"]["edge *"] = tables["routes"]["mesh *"]
                assert control.publish(tables) == 2
                proxy.wait_said("version 2 serves")
                for port in (edge, int(proxy.address.rpartition(":")[2])):
                    with pytest.raises(ConnectionRefusedError):
                        socket.create_connection(("127.0.0.1", port), 1)
                upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                asking.join(5)
            assert answers == [200]
