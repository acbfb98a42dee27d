"""Host patterns: the quick answers agree with the plain meaning, a set of names."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from fastproxy.resources import load_texts
from fastproxy.resources.hosts import covering, covers
from fastproxy.resources.listeners import openings

LABELS = "ab"
NAMES = [".".join(p) for n in (1, 2, 3, 4) for p in product(LABELS, repeat=n)]
PATTERNS = ["*", *NAMES, *(f"*.{n}" for n in NAMES if n.count(".") < 3)]
POOL = st.sampled_from([p for p in PATTERNS if p.count(".") < 3])


def meant(pattern: str) -> set[str]:
    """The names of the small world that a pattern stands for; ``*.b`` is not b itself."""
    if pattern.startswith("*"):
        return {n for n in NAMES if n.endswith(pattern[1:])}
    return {pattern}


@given(POOL, POOL)
def test_covers(wide: str, host: str) -> None:
    assert covers(wide, host) == (meant(host) <= meant(wide))


@given(POOL)
def test_covering(host: str) -> None:
    assert set(covering(host)) == {p for p in PATTERNS if covers(p, host)}
    assert [len(meant(p)) for p in covering(host)] == sorted(len(meant(p)) for p in covering(host))


@given(st.lists(POOL, min_size=1, max_size=4, unique=True), POOL)
def test_what_answers_has_a_name_in_common(server: list[str], host: str) -> None:
    hosts = ", ".join(f'"{h}"' for h in server)
    text = (
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\n"
        f"spec: {{servers: [{{port: {{number: 1, protocol: HTTP}}, hosts: [{hosts}]}}]}}\n"
    )
    (opening,) = openings(load_texts([("f", text.encode())]).documents, {}).values()
    got = [e.host for e in opening.answering(host)]
    assert sorted(got) == sorted(h for h in server if meant(h) & meant(host))
