# cython: language_level=3
"""The forwarding loop: one knot of mutual recursion, in one unit, in the order in which it is best read."""

from fastproxy._balance cimport Gauges, LiveView, balance_held_back, balance_pick, breaker_admits, live_open
from fastproxy._http1 cimport (BAD_HEAD_SIZE, BAD_LINE, BAD_PATH, BAD_STATUS, BAD_TARGET_SIZE, BAD_UPGRADE,
                               CHUNKED_DONE, FORM_ABSOLUTE, FORM_ASTERISK, FRAMING_CHUNKED, FRAMING_CLOSE,
                               FRAMING_LENGTH, HEAD_CONNECTION_CLOSE, HEAD_CONNECTION_KEEP_ALIVE,
                               HEAD_CONNECTION_UPGRADE, HEAD_EXPECT_CONTINUE, HEAD_TE_TRAILERS, KNOWN_CONNECTION,
                               KNOWN_COUNT, KNOWN_DATE, KNOWN_EXPECT, KNOWN_FORWARDED, KNOWN_HOST, KNOWN_HTTP2_SETTINGS,
                               KNOWN_KEEP_ALIVE, KNOWN_NOMINATED, KNOWN_PROXY_CONNECTION, KNOWN_SERVER, KNOWN_TE,
                               KNOWN_TRAILER, KNOWN_TRANSFER_ENCODING, KNOWN_UPGRADE, KNOWN_USER_AGENT,
                               KNOWN_X_FORWARDED_FOR, KNOWN_X_FORWARDED_HOST, KNOWN_X_FORWARDED_PROTO,
                               KNOWN_X_REQUEST_ID, MAX_FIELDS, METHOD_CONNECT, METHOD_DELETE, METHOD_GET, METHOD_HEAD,
                               METHOD_OPTIONS, METHOD_PUT, METHOD_TRACE, Chunked, Field, Head, Limits, chunked_next,
                               chunked_pass, field_hash, name_equals, path_is_plain, path_normalise, scan_request,
                               scan_response)
from fastproxy._journal cimport (RECORD_EXCHANGE, TEXT_AUTHORITY, TEXT_METHOD, TEXT_PATH, TEXT_USER_AGENT, Record,
                                 Ring, ring_commit, ring_open, ring_reserve)
from fastproxy._plan cimport (NO_CLUSTER, ROUTE_DIRECT, ROUTE_REDIRECT, Cluster, Destination, Endpoint, HeaderOps,
                              Plan, Route, Routing, ops_remove, plan_cluster, plan_destination, plan_listener,
                              plan_match, plan_open, plan_redirect, plan_rewrite, text)

include "core/system.pxi"           # the kernel's words
include "core/types.pxi"            # Conn, Exchange, Chunk, Worker
include "core/memory.pxi"           # freelists, counted
include "core/timers.pxi"           # timing wheel
include "core/transport.pxi"        # seam: recv, send, park, close
include "core/request.pxi"          # seam: the head on its way upstream
include "core/response.pxi"         # the answer on its way downstream
include "core/splice.pxi"           # large answers, socket to socket
include "core/replies.pxi"          # what we answer ourselves
include "core/record.pxi"           # one record of the journal per exchange
include "core/exchange.pxi"         # one request and its response
include "core/upstream.pxi"         # connections and pools
include "core/downstream.pxi"       # accept, read, linger
include "core/tunnel.pxi"           # after 101
include "core/loop.pxi"             # rounds, swap, drain
include "core/control.pxi"          # the Python class
