"""The rules of one virtual host and the index over them.

A rule is one match block; the first in order that holds is the answer. The index makes its cost independent
of their number, as packet classifiers do: each *dimension* of a request gives the set of rules that it does
not rule out, and the sets are intersected from the low end. Dimension 0 is the path. The others hold the
rule's *attributes* (method, authority, each header, query parameter and cookie it names), the one with most
different values first, so that any number of names needs few dimensions. What no set can say (regular
expressions beyond their literal beginning, withoutHeaders, scheme, port, a fifth attribute) is *residual*:
looked at on the rules that are left.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import NamedTuple

from fastproxy import _http1, _plan
from fastproxy.plan.patterns import Patterns
from fastproxy.plan.trie import ByDim, Rules, Sets, Trie
from fastproxy.plan.writer import NONE, PlanError, Writer
from fastproxy.tables import Match, Route, StringMatch

PATH, METHOD, SCHEME, AUTHORITY, PORT, HEADER, QUERY, COOKIE = range(8)  # Subject
EXACT, PREFIX, REGEX, PRESENT = range(4)  # PredicateKind
FOLD, NOT = 1, 2  # PredicateFlag
ATTRIBUTES = frozenset((METHOD, AUTHORITY, HEADER, QUERY, COOKIE))
HAS_HEADERS, HAS_QUERY, HAS_COOKIES = 1, 2, 4  # HostFlag
DIMS = 5  # PLAN_DIMS
ATTRS = 256  # PLAN_ATTRS
MAX_RULES = 1 << 20

Key = tuple[int, bytes]  # subject and name of an attribute


class Predicate(NamedTuple):
    """One thing that a rule asks for. ``literal``: what a value has to begin with when it is a regex.
    ``key``: of the attribute that can rule it out."""

    subject: int
    kind: int
    flags: int
    name: bytes
    value: bytes
    number: int
    literal: bytes
    key: Key | None


class Index(NamedTuple):
    """What a Host row says of its rules, in the order of its fields."""

    bloom: int
    rules: int
    rule_count: int
    path: int
    fold: int
    attrs: int
    attr_count: int
    names: int
    names_mask: int
    flags: int
    method: int
    authority: int
    dims: int
    wild: tuple[int, ...]


def _predicate(patterns: Patterns, subject: int, name: str, match: StringMatch, flags: int = 0) -> Predicate:
    if len(match) != 1:
        raise PlanError(f"match needs exactly one of exact, prefix, regex, present: {match!r}")
    ((kind, value),) = match.items()
    asked = name.encode()
    key = (subject, asked) if subject in ATTRIBUTES and not flags & NOT else None
    if kind == "present":
        return Predicate(subject, PRESENT, flags, asked, b"", 0, b"", key)
    if not isinstance(value, str):
        raise PlanError(f"value of a match is no text: {match!r}")
    raw = value.encode()
    if kind == "regex":
        pattern = patterns.dfa(value)
        if pattern.whole:
            return Predicate(subject, EXACT, flags & ~FOLD, asked, pattern.literal, 0, b"", key)
        return Predicate(subject, REGEX, flags & ~FOLD, asked, raw, pattern.number, pattern.literal, key)
    if flags & FOLD:
        raw = raw.lower()
    if kind == "exact":
        return Predicate(subject, EXACT, flags, asked, raw, 0, b"", key)
    if kind == "prefix":
        return Predicate(subject, PREFIX, flags, asked, raw, 0, b"", key)
    raise PlanError(f"unknown kind of match: {kind}")


def _predicates(patterns: Patterns, match: Match) -> list[Predicate]:
    out: list[Predicate] = []
    if "path" in match:
        out.append(_predicate(patterns, PATH, "", match["path"], FOLD if match.get("ignore_case") else 0))
    if "method" in match:
        out.append(_predicate(patterns, METHOD, "", match["method"]))
    if "scheme" in match:
        out.append(_predicate(patterns, SCHEME, "", match["scheme"]))
    if "authority" in match:
        out.append(_predicate(patterns, AUTHORITY, "", match["authority"]))
    if "port" in match:
        out.append(Predicate(PORT, EXACT, 0, b"", str(match["port"]).encode(), match["port"], b"", None))
    for name, value in match.get("headers", {}).items():
        out.append(_predicate(patterns, HEADER, name.lower(), value))
    for name, value in match.get("query", {}).items():
        out.append(_predicate(patterns, QUERY, name, value))
    for name, value in match.get("cookies", {}).items():
        out.append(_predicate(patterns, COOKIE, name, value))
    for name, value in match.get("without_headers", {}).items():
        out.append(_predicate(patterns, HEADER, name.lower(), value, NOT))
    return out


def _hash(key: Key) -> int:
    subject, name = key
    return _http1.field_hash(name) if subject == HEADER else _plan.name_hash(name, fold=False)


class _Attribute:
    def __init__(self) -> None:
        self.trie = Trie()
        self.present: ByDim = defaultdict(list)


class HostIndex:
    """Collects the rules of one virtual host, then writes them with their index."""

    def __init__(self, out: Writer, sets: Sets, patterns: Patterns) -> None:
        self._out = out
        self._rows = out.rows["rule"]
        self._predicates = out.rows["predicate"]
        self._sets = sets
        self._patterns = patterns

    def write(self, routes: list[Route]) -> Index:
        """Rows of rules, predicates, attributes, tries and sets for these routes."""
        rules: list[tuple[int, list[Predicate]]] = []
        for number, route in enumerate(routes):
            for match in route["matches"] or [Match()]:
                rules.append((number, _predicates(self._patterns, match)))
        if len(rules) > MAX_RULES:
            raise PlanError(f"{len(rules)} matches for one host; the limit is {MAX_RULES}")
        order = self._attributes(rules)
        by_path = any(p.subject == PATH for _, predicates in rules for p in predicates)
        ranked = [self._ranked(predicates, order) for _, predicates in rules]
        width = min(DIMS, by_path + max(map(len, ranked), default=0))
        path, fold = Trie(), Trie()
        attributes: dict[Key, _Attribute] = defaultdict(_Attribute)
        wild: list[Rules] = [[] for _ in range(width)]
        first = len(self._rows)
        for rule, (route_number, predicates) in enumerate(rules):
            used: set[int] = set()
            dims = {key: dim for dim, key in enumerate(ranked[rule], by_path) if dim < width}
            indexed: list[Predicate] = []
            residual: list[Predicate] = []
            for p in predicates:
                if p.subject == PATH:
                    dim = 0
                    trie = fold if p.flags & FOLD else path
                elif p.key in dims:
                    dim = dims[p.key]
                    trie = attributes[p.key].trie
                else:
                    residual.append(p)
                    continue
                used.add(dim)
                (residual if p.kind == REGEX else indexed).append(p)
                if p.kind == EXACT:
                    trie.exact(p.value, dim, rule)
                elif p.kind == PREFIX or p.literal or p.subject == PATH:
                    trie.prefix(p.value if p.kind == PREFIX else p.literal, dim, rule)
                elif p.key:
                    attributes[p.key].present[dim].append(rule)
            for dim in range(width):
                if dim not in used:
                    wild[dim].append(rule)
            self._rule(route_number, indexed, residual)
        return self._index(first, len(rules), path, fold, attributes, wild)

    def _attributes(self, rules: list[tuple[int, list[Predicate]]]) -> dict[Key, int]:
        """Attributes that the index looks at, in order: most different values first."""
        values: dict[Key, set[tuple[int, bytes]]] = defaultdict(set)
        uses: Counter[Key] = Counter()
        for _, predicates in rules:
            for p in predicates:
                if p.key:
                    values[p.key].add((p.kind, p.value))
                    uses[p.key] += 1
        ranked = sorted(values, key=lambda key: (-len(values[key]), -uses[key], key))
        # a method or authority needs no place in the table of names, but counts all the same
        return {key: rank for rank, key in enumerate(ranked[:ATTRS])}

    @staticmethod
    def _ranked(predicates: list[Predicate], order: dict[Key, int]) -> list[Key]:
        return sorted({p.key for p in predicates if p.key in order}, key=order.__getitem__)

    def _rule(self, route: int, indexed: list[Predicate], residual: list[Predicate]) -> None:
        out = self._out
        at = len(self._predicates)
        # Without a path match Istio gives Envoy the prefix "/".
        covered = 1
        for p in (*indexed, *residual):
            if p.subject == PATH:
                covered = len(p.value) if p.kind == PREFIX else NONE
            hashed = _hash((p.subject, p.name)) if p.name else 0
            self._predicates.append(
                (p.subject, p.kind, p.flags, hashed, *out.texts[p.name], *out.texts[p.value], p.number)
            )
        self._rows.append((route, at, len(indexed) + len(residual), len(indexed), covered))

    def _index(
        self,
        first: int,
        count: int,
        path: Trie,
        fold: Trie,
        attributes: dict[Key, _Attribute],
        wild: list[Rules],
    ) -> Index:
        out, sets = self._out, self._sets
        keys = sorted(attributes)
        named = [key for key in keys if key[0] in (HEADER, QUERY, COOKIE)]
        size = 1
        while size < 2 * len(named) + 1:
            size *= 2
        slots = [0] * size
        bloom = flags = 0
        rows: list[tuple[int, ...]] = []
        for number, key in enumerate(keys):
            attribute = attributes[key]
            root = attribute.trie.write(out, sets)
            hashed = _hash(key) if key[1] else 0
            rows.append((key[0], hashed, *out.texts[key[1]], root, *sets.refs(attribute.present)))
            if key in named:
                at = hashed
                while slots[at & size - 1]:
                    at += 1
                slots[at & size - 1] = number + 1
                flags |= {HEADER: HAS_HEADERS, QUERY: HAS_QUERY, COOKIE: HAS_COOKIES}[key[0]]
            if key[0] == HEADER:
                bloom |= 1 << (hashed & 63)
        attrs = len(out.rows["attr"])
        out.rows["attr"] += rows
        return Index(
            bloom,
            first,
            count,
            path.write(out, sets),
            fold.write(out, sets),
            attrs,
            len(keys),
            out.numbers(slots),
            size - 1,
            flags,
            keys.index((METHOD, b"")) if (METHOD, b"") in attributes else NONE,
            keys.index((AUTHORITY, b"")) if (AUTHORITY, b"") in attributes else NONE,
            len(wild),
            tuple(sets.add(rules) if rules else NONE for rules in wild) + (NONE,) * (DIMS - len(wild)),
        )
