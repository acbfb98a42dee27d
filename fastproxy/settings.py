"""Settings that cannot change while running: flags or ``FASTPROXY_*`` variables, never resources."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class Settings:
    """What ``fastproxy run`` was asked for. Times in seconds, sizes in bytes.

    Each field is the flag ``--<name with dashes>`` and the variable ``FASTPROXY_<NAME>``; a flag wins.
    """

    # where resources come from
    config: str = ""  # file or folder
    listen: str = ""  # address of the mesh listener, HOST:PORT or unix:///path
    to: list[str] = field(default_factory=list)  # endpoints of the one-line proxy
    control: list[str] = field(default_factory=list)  # publish addresses of the control plane
    control_key: str = ""  # file of our CURVE key; empty: no encryption, loopback only
    namespace: str = "default"  # of this proxy: exportTo is matched against it
    state: str = ""  # folder of the last good version; empty: XDG_STATE_HOME/fastproxy; or "off"
    # this proxy
    workers: int = 0  # 0: one per processor this process may use
    admin: str = "127.0.0.1:9901"  # HOST:PORT, unix:///path or "off"
    node: str = ""  # empty: host name
    label: dict[str, str] = field(default_factory=dict)  # matched by Gateway.selector
    access_log: str = "off"  # path, "-" for standard output, or "off"
    drain_timeout: float = 30.0
    # limits of a message and their answers
    max_head: int = 60 * 1024  # 431; Envoy's default
    max_fields: int = 100  # 431; Envoy's default
    max_target: int = 16 * 1024  # 414
    max_body: int = 0  # 413; 0: no limit
    max_connections: int = 0  # downstream, per worker; 0: what the descriptor limit allows
    max_pooled: int = 256  # idle upstream connections kept per endpoint and worker
    buffer: int = 64 * 1024  # of one direction of one connection
    # timeouts
    header_timeout: float = 60.0  # first byte of a head to its last: 408
    body_timeout: float = 60.0  # between two reads of a request body: 408
    idle_timeout: float = 300.0  # kept-alive downstream connection without a request: closed
    write_timeout: float = 60.0  # downstream takes nothing: closed
    half_close_timeout: float = 1.0  # downstream that sent FIN behind its request: then it counts as gone
    connect_timeout: float = 10.0  # upstream; a DestinationRule may say less
    upstream_idle_timeout: float = 60.0  # pooled connection
    upstream_read_timeout: float = 300.0  # between two reads of an answer: 504 before its head, else cut
    tunnel_idle_timeout: float = 3600.0
    # what is told and believed
    trusted_hops: int = 0  # proxies in front whose X-Forwarded-* is believed
    forwarded: bool = False  # RFC 7239 Forwarded besides X-Forwarded-*
    via: str = "fastproxy"  # pseudonym in Via; empty: none
    server: str = ""  # Server field of our own answers; empty: none
    slashes: str = "keep"  # %2F and %5C in a path: keep, reject, decode
    merge_slashes: bool = True
    raw_path: bool = False  # forward the path as it came, not the normalised one
    # memory
    journal: int = 4 * 1024 * 1024  # ring of one worker, a power of two
    max_clusters: int = 16384  # live slots
    max_endpoints: int = 65536  # live slots
    tick_events: int = 4096  # budget of one tick of the core
    tick_us: int = 20000

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the worker's ``setup`` command."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Settings:
        """The inverse of :meth:`to_json`; an unknown name is an error."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(f"unknown setting: {', '.join(unknown)}")
        return cls(**data)

    def worker_count(self) -> int:
        """Workers to run: as asked, else one per processor this process may use."""
        return self.workers or len(os.sched_getaffinity(0))
