"""Patterns: what they match, compared with Python's engine; what is refused and why; what they may cost."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastproxy.regex import RegexError, check_regex, check_rewrite, compile_dfa, compile_program
from fastproxy.regex.automaton import MAX_STATES, Dfa
from fastproxy.regex.chars import LAST, fold, negate, union, utf8
from tests.support.plans import EDGE, request, route, tables, view


def accepts(dfa: Dfa, value: bytes) -> bool:
    state = dfa.start
    for byte in value:
        state = dfa.next[state * dfa.classes + dfa.byte_class[byte]]
    return dfa.accept[state] == 1


def matches(pattern: str, value: str) -> bool:
    return accepts(compile_dfa(pattern), value.encode())


ATOMS = st.sampled_from(
    [
        "a",
        "b",
        ".",
        "é",
        "日",
        "[ab]",
        "[^a]",
        "[é-ü]",
        "[^é]",
        r"\w",
        r"\W",
        r"\d",
        r"\D",
        r"\s",
        r"\n",
        r"\.",
        "-",
        "{",
    ]
)
POINTS = st.sampled_from([r"\b", r"\B", "^", r"\A"])
REPEATS = st.sampled_from(["", "", "*", "+", "?", "*?", "{2}", "{0,2}", "{1,}", "{2,3}?"])
TEXTS = st.lists(st.text(st.sampled_from("abAéüÉ日1 \n_.-{"), max_size=6), min_size=1, max_size=12)


def patterns() -> st.SearchStrategy[str]:
    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.builds(lambda a, r: f"(?:{a}){r}", inner, REPEATS),
            st.builds(lambda a, b: a + b, inner, inner),
            st.builds(lambda a, b: f"({a}|{b})", inner, inner),
            st.builds(lambda p, a: p + a, POINTS, inner),
            st.builds(lambda a, p: a + p, inner, POINTS),
            st.builds(lambda f, a: f"(?{f}:{a})", st.sampled_from(["i", "s", "m", "is"]), inner),
        )

    return st.recursive(ATOMS, grow, max_leaves=8)


@settings(max_examples=600, deadline=None)
@given(patterns(), TEXTS)
def test_matches_what_python_matches(pattern: str, texts: list[str]) -> None:
    """The common subset. Classes are ASCII in RE2; (?a) in Python also keeps case folding to ASCII, so
    non-ASCII letters are left to other tests when case is ignored."""
    dfa = compile_dfa(pattern)
    python = re.compile(f"(?a:{pattern})")
    for text in texts:
        if not text.isascii() and "(?i" in pattern:
            continue
        if not text and r"\B" in pattern:
            continue  # Python before 3.14 has no \B in an empty text; RE2 has
        want = python.fullmatch(text) is not None
        assert accepts(dfa, text.encode()) is want, (pattern, text)
        if want:
            assert text.encode().startswith(dfa.literal)
        if dfa.whole:
            assert want is (text.encode() == dfa.literal)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("", ["", ], ["a"]),
        ("a|", ["a", ""], ["b"]),
        ("^a$", ["a"], ["a\n", "b"]),  # "$" is the end, not before a last line break
        ("(?m)^a$\n^b$", ["a\nb"], ["a", "a\nb\n"]),
        ("(?s).", ["\n"], [""]),
        (".", ["a", "日", "\U0010ffff"], ["\n", "", "ab"]),
        ("[^a]", ["\n", "é"], ["a"]),
        ("[]a]+", ["]a"], [""]),
        ("[a-]+", ["a-"], ["b"]),
        ("[a\\-z]+", ["a-z"], ["b"]),
        ("[[:alpha:]_]+", ["aZ_"], ["1"]),
        ("[[:^alpha:]]", ["1"], ["a"]),
        (r"[\d\s]+", ["1 2"], ["a"]),
        (r"[^\d]", ["a"], ["1"]),
        (r"\s", ["\t", " "], ["\v"]),  # RE2's \s is without \v
        (r"\Qa.b*\E+", ["a.b*", "a.b**"], ["a.b", "axb*"]),
        (r"\Qa.b", ["a.b"], ["axb"]),
        (r"\x41\x{42}\103\0", ["ABC\0"], ["ABC"]),
        (r"\a\f\t\n\r\v", ["\a\f\t\n\r\v"], [""]),
        (r"\/\_\@", ["/_@"], [""]),
        ("(?P<year>[0-9]{4})-(?<m>[0-9]{2})", ["2024-01"], ["2024-1"]),
        ("(?i)straße", ["STRAßE", "straẞe", "ſtraße"], ["strasse"]),
        ("(?i)[k-l]+", ["kKL\u212a"], ["m"]),  # the Kelvin sign is a k
        ("(?i)ΣΑΣ", ["σας", "ΣΑΣ"], ["σα"]),
        ("(?i:a)b", ["Ab"], ["AB"]),
        ("a(?i)b", ["aB"], ["AB"]),
        ("(a(?i)b)c", ["aBc"], ["aBC"]),
        ("(?i)a(?-i)b", ["Ab"], ["AB"]),
        (r"\B", [""], ["a"]),
        ("a{,2}", ["a{,2}"], ["a", "aa"]),
        ("a{2", ["a{2"], ["aa"]),
        ("x{0}", [""], ["x"]),
        ("(?U)a*", ["aaa", ""], ["b"]),
        (r"\bab\b c\B", [], ["ab c"]),
        (r"a\b", ["a"], ["ab"]),
        (r"\z", [""], ["a"]),
        ("[^\\x00-\\x{10FFFF}]", [], ["", "a"]),
    ],
)  # fmt: skip
def test_re2_syntax(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [text for text in yes if not matches(pattern, text)] == []
    assert [text for text in no if matches(pattern, text)] == []


def test_bytes_that_are_no_utf8_match_nothing() -> None:
    """As in RE2: a dot is one character, and these are none."""
    for raw in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"):
        assert not accepts(compile_dfa("(?s).*"), raw)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(", "missing )"),
        ("a)", "unmatched )"),
        ("[a", "unfinished class"),
        ("[z-a]", "malformed range"),
        (r"[a-\d]", "malformed range"),
        ("[[:word2:]]", "unknown class"),
        ("*a", "nothing to repeat"),
        ("a|*", "nothing to repeat"),
        ("a**", "repetition of a repetition"),
        ("a{2}{3}", "repetition of a repetition"),
        ("a{1001}", "more than 1000"),
        ("a{3,2}", "wrong order"),
        ("(?=a)", "lookaround"),
        ("(?!a)", "lookaround"),
        ("(?<=a)b", "lookaround"),
        ("(?<!a)b", "lookaround"),
        ("(?>a)", "extensions"),
        ("(?#a)", "extensions"),
        ("(?P=n)", "extensions"),
        ("(?q)", "unknown flag"),
        ("(?", "unfinished group"),
        ("(?i", "unfinished group"),
        (r"(a)\1", "backreferences"),
        (r"\k<a>", "backreferences"),
        (r"\pL", "Unicode classes"),
        (r"\q", r"unknown escape \q"),
        (r"\é", "unknown escape"),
        ("a\\", "unfinished escape"),
        (r"\x4", "unfinished"),
        (r"\x{}", "malformed"),
        (r"\x{110000}", "out of range"),
        (r"\x{D800}", "surrogate"),
        ("(?P<n>a)(?P<n>b)", "twice"),
        ("(?P<1-2>a)", "malformed group name"),
        ("(" * 101 + ")" * 101, "nested groups"),
        ("a" * 4097, "4097 characters"),
        ("\ud800", "not UTF-8"),
        ("((a{100}){100}){100}", "instructions"),
        (".*a.{13}", "too complex|states"),
        ("(.{200}){5}", "too complex|states|instructions"),
    ],
)
def test_refused(pattern: str, why: str) -> None:
    """With a reason, and soon: bounded in states, instructions and work."""
    started = time.process_time()
    reason = check_regex(pattern)
    assert reason is not None and any(part in reason for part in why.split("|")), reason
    assert time.process_time() - started < 5


def test_accepted_is_none() -> None:
    assert check_regex("/api/v[0-9]+/.*") is None


@settings(max_examples=300, deadline=None)
@given(st.text("ab()[]{}*+?|\\^$.-:=!<>PiQE0129,é", max_size=14))
def test_any_text_compiles_or_is_refused(pattern: str) -> None:
    """Never another exception; and what RE2 and Python both read, both read alike."""
    if check_regex(pattern) is not None:
        with pytest.raises(RegexError):
            compile_dfa(pattern)
        return
    dfa = compile_dfa(pattern)
    assert 0 < dfa.states <= MAX_STATES and len(dfa.next) == dfa.states * dfa.classes
    assert max(dfa.next) < dfa.states and max(dfa.byte_class) < dfa.classes
    assert not any(dfa.next[: dfa.classes]) and not dfa.accept[0]  # dead stays dead


@pytest.mark.parametrize(
    ("pattern", "literal", "whole"),
    [
        ("/api/v1", b"/api/v1", True),
        ("^/api$", b"/api", True),
        (r"/api\.v1", b"/api.v1", True),
        ("/api/.*", b"/api/", False),
        ("/a(b)(c|d)", b"/ab", False),
        ("/a+", b"/a", False),
        ("/a*", b"/", False),
        ("/a{2}", b"/a", False),
        ("(?i)/api", b"/", False),
        ("a|b", b"", False),
        ("", b"", True),
        ("é", "é".encode(), True),
        (r"\ba", b"", False),
        ("a$b", b"a", False),
    ],
)
def test_literal_beginning(pattern: str, literal: bytes, whole: bool) -> None:
    dfa = compile_dfa(pattern)
    assert (dfa.literal, dfa.whole) == (literal, whole)


def test_the_plan_runs_the_same_automaton() -> None:
    """Native and Python reading of the table, byte by byte, and over fields that are joined."""
    pattern = r"(a|b[0-9]{2},?)+é?"
    plan = view(tables({"*": [route({"headers": {"x": {"regex": pattern}}}), route()]}))
    for text in ("a", "b12", "b1", "ab12,b34", "ab12é", "", "é", "a\tb12"):
        found = plan.match(EDGE, request("/", ("x", text)))
        assert found is not None and (found.rule == 0) is matches(pattern, text)
    found = plan.match(EDGE, request("/", ("x", "ab12"), ("x", "b34")))
    assert found is not None and found.rule == 0


@pytest.mark.parametrize(
    ("pattern", "rewrite", "why"),
    [
        ("(a)", r"\1\0", None),
        ("(a)", r"\2", "has 1 groups"),
        ("a", "\\", "backslash"),
        ("a", r"\n", "backslash"),
        ("a", r"\\", None),
        ("a", "b c", "space"),
        ("a", "b\x00", "control"),
        ("(", "", "missing"),
        ("(a)" * 10, "", "10 groups"),
        ("a{600}", "", "512 instructions"),
        ("(?=a)", "", "lookaround"),
    ],
)
def test_rewrites(pattern: str, rewrite: str, why: str | None) -> None:
    reason = check_rewrite(pattern, rewrite)
    assert (reason is None) if why is None else (reason is not None and why in reason)
    if why is not None:
        with pytest.raises(RegexError):
            compile_program(pattern, rewrite)


RANGES = st.lists(st.tuples(st.integers(0, LAST), st.integers(0, 5000)), max_size=4).map(
    lambda pairs: union((low, min(LAST, low + more)) for low, more in pairs)
)


@given(RANGES)
def test_utf8_of_ranges(ranges: tuple[tuple[int, int], ...]) -> None:
    """The byte sequences cover the characters' encodings at every edge, and nothing beside them."""
    sequences = list(utf8(ranges))

    def covered(raw: bytes) -> bool:
        return any(
            len(s) == len(raw) and all(low <= b <= high for (low, high), b in zip(s, raw, strict=True))
            for s in sequences
        )

    probes = {edge + delta for pair in ranges for edge in pair for delta in (-1, 0, 1)}
    probes |= {0, 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000, LAST}
    for code in probes:
        if 0 <= code <= LAST and not 0xD800 <= code <= 0xDFFF:
            inside = any(low <= code <= high for low, high in ranges)
            assert covered(chr(code).encode()) is inside
    assert negate(negate(ranges)) == ranges


def test_fold_is_symmetric() -> None:
    for code in (ord("a"), ord("ß"), ord("Σ"), 0x212A, ord("1")):
        for low, high in fold(((code, code),)):
            assert all(any(a <= code <= b for a, b in fold(((c, c),))) for c in range(low, high + 1))
