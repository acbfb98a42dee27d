"""The proxies that are compared, by name."""

from __future__ import annotations

from benchmarks.peers.asyncio_httptools import AsyncioHttptools
from benchmarks.peers.base import Peer, Upstream
from benchmarks.peers.envoy import Envoy
from benchmarks.peers.fastproxy import Fastproxy
from benchmarks.peers.floor import Floor, Floor256, FloorSplice
from benchmarks.peers.haproxy import HAProxy, HAProxyMap, HAProxySplice
from benchmarks.peers.nginx import Nginx, NginxUnbuffered

__all__ = ["PEERS", "Peer", "Upstream"]

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        Fastproxy,
        Nginx,
        NginxUnbuffered,
        HAProxy,
        HAProxyMap,
        HAProxySplice,
        Envoy,
        AsyncioHttptools,
        Floor,
        Floor256,
        FloorSplice,
    )
}
