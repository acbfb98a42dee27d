"""Every error the proxy itself makes: one table, one row each.

kind -> status, response flag, whose fault, retryable, breaker counts it, what the client reads.
The flags are Envoy's (%RESPONSE_FLAGS%). ``Kind`` numbers are those of the enums in the compiled modules.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """Why an exchange did not end well. 1 to 31 are the parser's (``Bad`` in ``_http1.pxd``)."""

    NONE = 0
    METHOD = 1
    TARGET = 2
    VERSION = 3
    LINE = 4
    FIELD_NAME = 5
    FIELD_VALUE = 6
    FOLD = 7
    FRAMING = 8
    LENGTH = 9
    CODING = 10
    CODING_UNKNOWN = 11
    HOST = 12
    CHUNK = 13
    TRAILER = 14
    HEAD_SIZE = 15
    FIELD_COUNT = 16
    TARGET_SIZE = 17
    VERSION_MAJOR = 18
    STATUS = 19
    NOMINATED = 20
    PATH = 21
    LENGTH_REQUIRED = 22
    UPGRADE = 23
    # the proxy's own, about the downstream
    HEADER_TIMEOUT = 32
    BODY_TIMEOUT = 33
    BODY_SIZE = 34
    CONNECT_METHOD = 35
    DOWNSTREAM_CLOSED = 36
    DOWNSTREAM_TIMEOUT = 37
    LOOP = 38
    EXPECTATION = 39
    MAX_FORWARDS = 40
    # routing
    NO_ROUTE = 48
    NO_CLUSTER = 49
    NO_HEALTHY = 50
    NOT_READY = 51
    BREAKER_OPEN = 52
    # upstream
    CONNECT_FAILED = 64
    CONNECT_TIMEOUT = 65
    UPSTREAM_RESET = 66
    UPSTREAM_CLOSED = 67
    UPSTREAM_TIMEOUT = 68
    UPSTREAM_PROTOCOL = 69
    UPSTREAM_TRUNCATED = 70
    UPSTREAM_IDLE = 71
    # ourselves
    OVERLOAD = 80
    INTERNAL = 81
    DRAINING = 82


class Row(NamedTuple):
    """What one kind of error means.

    status: of the answer, 0 where none can be sent any more. flag: Envoy's response flag.
    fault: ``downstream``, ``upstream``, ``config`` or ``proxy``.
    retryable: nothing reached an application, another endpoint may be asked.
    counted: a circuit breaker counts it against the upstream. message: the body the client reads.
    """

    status: int
    flag: str
    fault: str
    retryable: bool
    counted: bool
    message: str


def _bad(status: int, message: str) -> Row:
    return Row(status, "DPE", "downstream", False, False, message)


TABLE: dict[Kind, Row] = {
    Kind.NONE: Row(0, "-", "-", False, False, ""),
    Kind.METHOD: _bad(400, "malformed method"),
    Kind.TARGET: _bad(400, "malformed request target"),
    Kind.VERSION: _bad(400, "malformed HTTP version"),
    Kind.LINE: _bad(400, "malformed line end"),
    Kind.FIELD_NAME: _bad(400, "malformed field name"),
    Kind.FIELD_VALUE: _bad(400, "control character in a field value"),
    Kind.FOLD: _bad(400, "folded field line"),
    Kind.FRAMING: _bad(400, "both Content-Length and Transfer-Encoding"),
    Kind.LENGTH: _bad(400, "malformed or repeated Content-Length"),
    Kind.CODING: _bad(400, "malformed Transfer-Encoding"),
    Kind.CODING_UNKNOWN: _bad(501, "transfer coding not supported"),
    Kind.HOST: _bad(400, "missing, malformed or repeated Host"),
    Kind.CHUNK: _bad(400, "malformed chunk"),
    Kind.TRAILER: _bad(400, "malformed or forbidden trailer field"),
    Kind.HEAD_SIZE: _bad(431, "request head too large"),
    Kind.FIELD_COUNT: _bad(431, "too many header fields"),
    Kind.TARGET_SIZE: _bad(414, "request target too long"),
    Kind.VERSION_MAJOR: _bad(505, "HTTP version not supported"),
    Kind.STATUS: _bad(400, "malformed status line"),
    Kind.NOMINATED: _bad(400, "Connection names a field that frames or routes the message"),
    Kind.PATH: _bad(400, "path leaves its root or has a refused escape"),
    Kind.LENGTH_REQUIRED: _bad(411, "Content-Length required"),
    Kind.UPGRADE: _bad(400, "malformed upgrade"),
    Kind.HEADER_TIMEOUT: Row(408, "SI", "downstream", False, False, "request head not received in time"),
    Kind.BODY_TIMEOUT: Row(408, "SI", "downstream", False, False, "request body not received in time"),
    Kind.BODY_SIZE: Row(413, "DPE", "downstream", False, False, "request body too large"),
    Kind.CONNECT_METHOD: Row(501, "DPE", "downstream", False, False, "CONNECT is not enabled here"),
    Kind.DOWNSTREAM_CLOSED: Row(0, "DC", "downstream", False, False, ""),
    Kind.DOWNSTREAM_TIMEOUT: Row(0, "SI", "downstream", False, False, ""),
    Kind.LOOP: Row(508, "DPE", "config", False, False, "request loop"),
    Kind.EXPECTATION: Row(417, "DPE", "downstream", False, False, "expectation not supported"),
    Kind.MAX_FORWARDS: Row(
        501, "DPE", "downstream", False, False, "Max-Forwards is 0 and the proxy answers no such request"
    ),
    Kind.NO_ROUTE: Row(404, "NR", "config", False, False, "no route matches"),
    Kind.NO_CLUSTER: Row(503, "NC", "config", False, False, "no such cluster or subset"),
    Kind.NO_HEALTHY: Row(503, "UH", "upstream", False, False, "no healthy upstream"),
    Kind.NOT_READY: Row(503, "NR", "proxy", False, False, "no configuration yet"),
    Kind.BREAKER_OPEN: Row(503, "UO", "upstream", False, False, "circuit breaker is open"),
    Kind.CONNECT_FAILED: Row(503, "UF", "upstream", True, True, "upstream connect failed"),
    Kind.CONNECT_TIMEOUT: Row(503, "UF", "upstream", True, True, "upstream connect timed out"),
    Kind.UPSTREAM_RESET: Row(
        503, "UR", "upstream", False, True, "upstream reset the connection before answering"
    ),
    Kind.UPSTREAM_CLOSED: Row(
        503, "UC", "upstream", False, True, "upstream closed the connection before answering"
    ),
    Kind.UPSTREAM_TIMEOUT: Row(504, "UT", "upstream", False, True, "upstream did not answer in time"),
    Kind.UPSTREAM_PROTOCOL: Row(502, "UPE", "upstream", False, True, "malformed answer from upstream"),
    Kind.UPSTREAM_TRUNCATED: Row(0, "UC", "upstream", False, True, ""),
    Kind.UPSTREAM_IDLE: Row(0, "UT", "upstream", False, True, ""),
    Kind.OVERLOAD: Row(503, "OM", "proxy", False, False, "proxy is at its limit"),
    Kind.INTERNAL: Row(500, "LR", "proxy", False, False, "proxy error"),
    Kind.DRAINING: Row(503, "LR", "proxy", True, False, "proxy is draining"),
}


def core_rows() -> list[tuple[int, int, bytes, bytes]]:
    """The table as the core takes it at start: (kind, status, flag, message)."""
    return [(int(k), r.status, r.flag.encode(), r.message.encode()) for k, r in TABLE.items()]
