"""``python -m fastproxy.resources``: requests on standard input, answers on standard output, all msgpack.

The agent runs this to load, so that it never holds pydantic or PyYAML in its memory. Requests are answered in
order until standard input ends.

Request, a map; a missing key is its default::

    path      str                      file or folder; "" for none
    texts     [[name, bytes], …]       documents handed over (POST /config); name is their "file"
    namespace str                      of this proxy, for exportTo; missing: "default"; None: no filter
    labels    {str: str}               of this proxy, for Gateway.selector; {}: takes every Gateway
    listen    str                      address of the mesh listener; "" for none
    to        [str, …]                 endpoints for every mesh host that no document claims
    previous  [row, …]                 ``documents`` of the last answer: last good versions

Answer, a map::

    tables     Tables                  of the good documents and the last good versions of the bad ones
    problems   [problem, …]            in order of file and line; line 0: the file as a whole
    warnings   [problem, …]            what is no error and yet surely not meant; nothing is left out for it
    documents  [row, …]                what the tables were made of; keep them, hand them back as ``previous``
    error      str                     only when ``listen`` or ``to`` is wrong: no other key then

    problem = {file, line, field, message, kind, namespace, name}
    row = [kind, namespace, name, file, line, text]

Exit status 0 at the end of input; anything else is a crash, told on standard error.
``problems`` empty means that every document that was read is in the tables.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

import msgpack

from fastproxy.resources.advice import advise
from fastproxy.resources.compile import settle
from fastproxy.resources.documents import Row
from fastproxy.resources.load import load_both, merge_last_good

MAX_REQUEST = 256 * 1024 * 1024


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request, both as in the module's text."""
    previous = [Row(*row) for row in request.get("previous", [])]
    namespace = request.get("namespace", "default")
    texts = [(name, data) for name, data in request.get("texts", [])]
    merged = merge_last_good(load_both(request.get("path", ""), texts), previous)
    try:
        tables, documents, problems = settle(
            merged.documents,
            previous,
            labels=request.get("labels", {}),
            namespace=namespace,
            listen=request.get("listen", ""),
            to=request.get("to", []),
        )
    except ValueError as error:
        return {"error": str(error)}
    return {
        "tables": tables,
        "problems": [p.to_dict() for p in sorted(merged.problems + problems, key=lambda p: (p.file, p.line))],
        "warnings": [p.to_dict() for p in advise(documents, tables, namespace)],
        "documents": [list(d.row) for d in documents],
    }


def main() -> int:
    requests = msgpack.Unpacker(max_buffer_size=MAX_REQUEST)
    gc.disable()  # a large reading would spend half of its time walking what is not garbage
    while data := os.read(sys.stdin.fileno(), 1 << 20):
        requests.feed(data)
        for request in requests:
            sys.stdout.buffer.write(msgpack.packb(answer(request)))
            sys.stdout.buffer.flush()
            gc.collect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
