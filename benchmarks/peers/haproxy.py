"""HAProxy: one thread, server connections shared and kept, nothing logged."""

from __future__ import annotations

import shutil

from benchmarks.load import Failed
from benchmarks.peers.base import Peer, output_of
from benchmarks.scenarios import prefix, tenant

CONFIG = """
global
  nbthread 1                      # one thread of work, as every peer
  maxconn 9000                    # two descriptors each; more than any row has
  tune.maxaccept 500              # take many waiting connections in one go
{global_more}defaults
  mode http
  timeout connect 5s
  timeout client 300s             # idle connections stay for the whole row
  timeout server 300s
  timeout http-keep-alive 300s
  option http-keep-alive
  http-reuse always               # any request may take any pooled server connection
{defaults_more}frontend in
  bind 127.0.0.1:{port} backlog 4096
{rules}
backend origin
  server origin {server} pool-max-conn -1 pool-purge-delay 300s   # keep every idle server connection
"""


class HAProxy(Peer):
    """One thread, default buffers. Rules are ``use_backend`` lines with two ACLs each, tried in order: the
    first that matches."""

    name = "haproxy"
    global_more = ""
    defaults_more = ""

    @classmethod
    def program(cls) -> str:
        return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin") or ""

    @classmethod
    def version(cls) -> str:
        said = output_of([cls.program(), "-v"]) if cls.program() else ""
        if not said:
            raise Failed("haproxy is not installed (Debian: apt-get install haproxy)")
        return said.split()[2]

    def rules(self) -> str:
        if not self.setup.rules:
            return "  default_backend origin"
        return "\n".join(
            f"  use_backend origin if {{ path_beg {prefix(i)} }} {{ req.hdr(x-tenant) -m str {tenant(i)} }}"
            for i in range(1, self.setup.rules + 1)
        )

    def command(self) -> list[str]:
        server = f"unix@{self.upstream.path}" if self.setup.unix else f"127.0.0.1:{self.upstream.port}"
        file = self.folder / "haproxy.cfg"
        text = CONFIG.format(
            port=self.port,
            rules=self.rules(),
            server=server,
            global_more=self.global_more,
            defaults_more=self.defaults_more,
        )
        file.write_text(text)
        return [self.program(), "-db", "-f", str(file)]


class HAProxyMap(HAProxy):
    """The same rules as one map, found in a tree: header and path joined to one key. It says the same only
    because every rule asks for the same header and no key begins another; it cannot keep an order."""

    name = "haproxy-map"

    def rules(self) -> str:
        if not self.setup.rules:
            return super().rules()
        file = self.folder / "rules.map"
        rules = range(1, self.setup.rules + 1)
        file.write_text("".join(f"{tenant(i)}{prefix(i)} origin\n" for i in rules))
        return (
            "  http-request set-var(txn.path) path\n"
            f"  use_backend %[req.hdr(x-tenant),concat(,txn.path),map_beg({file})]"
        )


class HAProxySplice(HAProxy):
    """Bodies stay in the kernel both ways. Off by default in HAProxy, and only for plain TCP."""

    name = "haproxy-splice"
    global_more = """\
  maxpipes 256                    # two descriptors each; one pipe for each body on its way
  tune.pipesize 1048576           # a large body in few steps
"""
    defaults_more = """\
  option splice-request
  option splice-response
"""
