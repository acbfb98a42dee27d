"""What a running proxy has mapped: a sidecar's memory is paid once per service (design, section 9)."""

from __future__ import annotations

from pathlib import Path

from tests.support.origin import Origin
from tests.support.proxy import Proxy

WORKER_LIBRARIES = {"_core", "_http1", "_plan", "_breaker", "_balance", "_journal"}
DOCUMENT_LIBRARIES = {"_yaml", "_pydantic_core"}


def descendants(pid: int) -> set[int]:
    """Every process below this one."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found |= {int(child)} | descendants(int(child))
    return found


def libraries(pid: int) -> set[tuple[str, str]]:
    """Python extensions mapped by a process: (package, module), those of the standard library left out."""
    found = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if ".so" in path.suffixes and "cpython-" in path.name and path.parent.name != "lib-dynload":
            found.add((path.parent.name, path.name.split(".")[0]))
    return found


def test_workers_map_uvloop_and_the_core_only(origin: Origin) -> None:
    with Proxy(to=origin.address, workers=2) as proxy:
        below = descendants(proxy.process.pid)
        mapped = {pid: libraries(pid) for pid in below}
    assert sum(("fastproxy", "_core") in found for found in mapped.values()) >= 2, mapped
    allowed = {("fastproxy", name) for name in WORKER_LIBRARIES} | {("uvloop", "loop")}
    assert {pid: found - allowed for pid, found in mapped.items() if found - allowed} == {}


def test_the_agent_of_a_one_line_proxy_reads_no_documents(origin: Origin) -> None:
    with Proxy(to=origin.address) as proxy:
        mapped = libraries(proxy.process.pid)
    assert ("uvloop", "loop") in mapped, "this test sees what is mapped"
    assert {name for _, name in mapped} & DOCUMENT_LIBRARIES == set()
