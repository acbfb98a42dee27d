"""nginx: one worker, keep-alive both ways, nothing logged."""

from __future__ import annotations

import os
import shutil

from benchmarks.load import Failed
from benchmarks.peers.base import Peer, output_of
from benchmarks.scenarios import prefix, tenant

CONFIG = """
{user}
daemon off;
worker_processes 1;               # one thread of work, as every peer
pid {folder}/pid;
error_log {folder}/error crit;
worker_rlimit_nofile {files};
events {{
  use epoll;
  worker_connections {conns};
  multi_accept on;                # take all waiting connections in one go
  accept_mutex off;               # nobody to share them with
}}
http {{
  access_log off;
  default_type text/plain;
  keepalive_timeout 300s;         # idle connections stay for the whole row
  keepalive_requests 1000000000;  # the default closes after 1,000 requests
  client_max_body_size 0;         # uploads of any size
  proxy_request_buffering off;    # stream uploads instead of writing them to a file first
  client_body_buffer_size 64k;    # step of an upload
  proxy_http_version 1.1;         # 1.0, the default, has no keep-alive
  proxy_set_header Connection ""; # else "close" is sent to the upstream
  proxy_buffer_size {head};       # the head of an answer, or unbuffered the size of a step
  {buffers}
  proxy_max_temp_file_size 0;     # never spill an answer to disk
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream origin {{
    server {server};
    keepalive 256;                # pooled connections: more than any row has
    keepalive_requests 1000000000;
    keepalive_timeout 300s;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
{locations}
  }}
}}
"""


BUFFERED = """\
proxy_buffers 8 32k;            # the best of 8x8k to 8x128k here: large steps that stay in the cache
  proxy_busy_buffers_size 64k;    # written while they are read"""
UNBUFFERED = """\
proxy_buffering off;            # pass on what was read before reading more
  proxy_buffers 8 256k;           # (only checked against the size below)
  proxy_busy_buffers_size 512k;"""


class Nginx(Peer):
    """One worker, buffers of 32 KiB. Rules are one prefix location each (found in a tree, longest first, not
    in order) with an ``if`` on the header inside; that says the same only because no two share a prefix."""

    name = "nginx"
    buffers = BUFFERED
    head_buffer = "4k"  # heads are small; more costs cache

    @classmethod
    def program(cls) -> str:
        return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin") or ""

    @classmethod
    def version(cls) -> str:
        said = output_of([cls.program(), "-v"]) if cls.program() else ""
        if not said:
            raise Failed("nginx is not installed (Debian: apt-get install nginx)")
        return said.rpartition("/")[2]

    def command(self) -> list[str]:
        locations = "location / { proxy_pass http://origin; }"
        if self.setup.rules:
            locations = "\n".join(
                f'location ^~ {prefix(i)} {{ if ($http_x_tenant != "{tenant(i)}") {{ return 404; }} '
                "proxy_pass http://origin; }"
                for i in range(1, self.setup.rules + 1)
            )
        files = 20000
        text = CONFIG.format(
            user="user root;" if os.geteuid() == 0 else "",  # its folder is ours
            folder=self.folder,
            files=files,
            conns=files // 2,
            port=self.port,
            server=f"unix:{self.upstream.path}" if self.setup.unix else f"127.0.0.1:{self.upstream.port}",
            locations=locations,
            buffers=self.buffers,
            head=self.head_buffer,
        )
        file = self.folder / "nginx.conf"
        file.write_text(text)
        return [self.program(), "-p", str(self.folder), "-c", str(file), "-e", str(self.folder / "error")]


class NginxUnbuffered(Nginx):
    """For large answers: steps of 256 KiB, no buffering. Small answers take a buffer of that size too."""

    name = "nginx-unbuffered"
    buffers = UNBUFFERED
    head_buffer = "256k"
