"""RE2's syntax -> a tree. What RE2 refuses (backreferences, lookaround) is refused; of what it has, Unicode
classes (``\\p``) and ``\\C`` are not read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from fastproxy.regex import chars
from fastproxy.regex.chars import Ranges

MAX_PATTERN = 4096  # characters
MAX_REPEAT = 1000  # as RE2
MAX_DEPTH = 100  # of groups


class RegexError(ValueError):
    """Why a pattern cannot be used."""


class Assertion(IntEnum):
    """Numbers as in ``_plan.pxd``."""

    TEXT_START = 1
    TEXT_END = 2
    LINE_START = 3
    LINE_END = 4
    WORD = 5
    NOT_WORD = 6


@dataclass(frozen=True, slots=True)
class Chars:
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Cat:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alt:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    node: Node
    least: int
    most: int | None
    greedy: bool


@dataclass(frozen=True, slots=True)
class Group:
    node: Node
    number: int


@dataclass(frozen=True, slots=True)
class At:
    what: Assertion


Node = Chars | Cat | Alt | Repeat | Group | At
EMPTY = Cat(())

_CLASSES = {"d": chars.DIGIT, "w": chars.WORD, "s": chars.SPACE}
_CONTROLS = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_ASSERTIONS = {
    "A": Assertion.TEXT_START,
    "z": Assertion.TEXT_END,
    "b": Assertion.WORD,
    "B": Assertion.NOT_WORD,
}


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.text = pattern
        self.at = 0
        self.groups = 0
        self.depth = 0
        self.names: set[str] = set()
        self.ignore_case = self.multi_line = self.dot_all = self.ungreedy = False

    def fail(self, why: str) -> RegexError:
        return RegexError(f"{why} at character {self.at + 1} of {self.text!r}")

    def take(self, text: str) -> bool:
        if self.text.startswith(text, self.at):
            self.at += len(text)
            return True
        return False

    def next(self, what: str) -> str:
        if self.at >= len(self.text):
            raise self.fail(f"unfinished {what}")
        self.at += 1
        return self.text[self.at - 1]

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def alternatives(self) -> Node:
        parts = [self.sequence()]
        while self.take("|"):
            parts.append(self.sequence())
        return parts[0] if len(parts) == 1 else Alt(tuple(parts))

    def sequence(self) -> Node:
        parts: list[Node] = []
        while self.peek() not in ("", "|", ")"):
            if self.take("\\Q"):
                end = self.text.find("\\E", self.at)
                quoted = self.text[self.at : end if end >= 0 else None]
                self.at += len(quoted) + (2 if end >= 0 else 0)
                parts += [self.one(ord(c)) for c in quoted]
                if parts and quoted:
                    parts[-1] = self.repeated(parts[-1])
                continue
            atom = self.atom()
            if atom is not None:
                parts.append(self.repeated(atom))
        return parts[0] if len(parts) == 1 else Cat(tuple(parts))

    def repeated(self, atom: Node) -> Node:
        bounds = self.bounds()
        if bounds is None:
            return atom
        greedy = not self.take("?")
        if self.peek() in ("*", "+", "?") or (self.peek() == "{" and self.bounds() is not None):
            raise self.fail("repetition of a repetition")
        return Repeat(atom, *bounds, greedy != self.ungreedy)

    def bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(sign):
                return bounds
        if self.peek() != "{":
            return None
        end = self.text.find("}", self.at)
        low, comma, high = self.text[self.at + 1 : max(end, self.at + 1)].partition(",")
        if not (low.isascii() and low.isdigit()) or (high and not (high.isascii() and high.isdigit())):
            return None  # no repetition: the brace stands for itself
        if max(len(low), len(high)) > 4 or int(low) > MAX_REPEAT or int(high or 0) > MAX_REPEAT:
            raise self.fail(f"repetition of more than {MAX_REPEAT}")
        self.at = end + 1
        most = int(high) if high else None if comma else int(low)
        if most is not None and most < int(low):
            raise self.fail("repetition bounds in the wrong order")
        return int(low), most

    def one(self, code: int) -> Node:
        if 0xD800 <= code <= 0xDFFF:
            raise self.fail("surrogate")
        return self.some(((code, code),))

    def some(self, ranges: Ranges) -> Node:
        return Chars(chars.fold(ranges) if self.ignore_case else ranges)

    def atom(self) -> Node | None:
        c = self.next("pattern")
        if c == "(":
            return self.group()
        if c == "[":
            return self.char_class()
        if c == ".":
            return Chars(((0, chars.LAST),) if self.dot_all else chars.negate(((10, 10),)))
        if c == "^":
            return At(Assertion.LINE_START if self.multi_line else Assertion.TEXT_START)
        if c == "$":
            return At(Assertion.LINE_END if self.multi_line else Assertion.TEXT_END)
        if c in "*+?":
            raise self.fail("nothing to repeat")
        if c != "\\":
            return self.one(ord(c))
        c = self.peek()
        if c and c in _ASSERTIONS:
            self.at += 1
            return At(_ASSERTIONS[c])
        found = self.escape()
        return self.one(found) if isinstance(found, int) else self.some(found)

    def escape(self) -> int | Ranges:
        """What follows a backslash, inside a class or out of it."""
        c = self.next("escape")
        if c.lower() in _CLASSES:
            ranges = _CLASSES[c.lower()]
            return ranges if c.islower() else chars.negate(ranges)
        if c in _CONTROLS:
            return _CONTROLS[c]
        if c == "x":
            return self.hexadecimal()
        if c in "01234567":
            digits = c
            while len(digits) < 3 and self.peek() and self.peek() in "01234567":
                digits += self.next("escape")
            if len(digits) > 1 or c == "0":
                return int(digits, 8)
        if c.isdigit() or c in "kg":
            raise self.fail("backreferences are not supported (RE2 has none)")
        if c in "pP":
            raise self.fail("Unicode classes (\\p) are not supported")
        if c.isascii() and not c.isalnum():
            return ord(c)
        raise self.fail(f"unknown escape \\{c}")

    def hexadecimal(self) -> int:
        if self.take("{"):
            end = self.text.find("}", self.at)
            digits = self.text[self.at : max(end, self.at)]
            self.at = end + 1
        else:
            digits = self.text[self.at : self.at + 2]
            self.at += 2
            if len(digits) != 2:
                raise self.fail("unfinished \\x")
        if not digits or len(digits) > 8 or set(digits) - set("0123456789abcdefABCDEF"):
            raise self.fail("malformed \\x")
        if int(digits, 16) > chars.LAST:
            raise self.fail("character out of range")
        return int(digits, 16)

    def group(self) -> Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.fail(f"more than {MAX_DEPTH} nested groups")
        flags = (self.ignore_case, self.multi_line, self.dot_all, self.ungreedy)
        number = 0
        if self.take("?P<") or (
            self.peek() == "?"
            and self.text[self.at + 1 : self.at + 3] not in ("<=", "<!")
            and self.take("?<")
        ):
            name = self.text[self.at : max(self.text.find(">", self.at), self.at)]
            if not (name.isascii() and name.replace("_", "a").isalnum()):
                raise self.fail("malformed group name")
            if name in self.names:
                raise self.fail(f"group {name} is there twice")
            self.names.add(name)
            self.at += len(name) + 1
            self.groups += 1
            number = self.groups
        elif self.take("?"):
            if self.flags():  # (?i): until the end of the group around it
                self.depth -= 1
                return None
        else:
            self.groups += 1
            number = self.groups
        node = self.alternatives()
        if not self.take(")"):
            raise self.fail("missing )")
        self.depth -= 1
        self.ignore_case, self.multi_line, self.dot_all, self.ungreedy = flags
        return Group(node, number) if number else node

    def flags(self) -> bool:
        """Flags after ``(?``; True when they stand alone, False when a group follows."""
        on = True
        seen = False
        while True:
            c = self.next("group")
            if c in "=!<#P(&|>":
                raise self.fail("lookaround and other extensions are not supported (RE2 has none)")
            if c == "i":
                self.ignore_case = on
            elif c == "m":
                self.multi_line = on
            elif c == "s":
                self.dot_all = on
            elif c == "U":
                self.ungreedy = on
            elif c == "-" and on:
                on = seen = False
                continue
            elif c in ":)" and (seen or (on and c == ":")):
                return c == ")"
            else:
                raise self.fail("unknown flag")
            seen = True

    def char_class(self) -> Node:
        negated = self.take("^")
        ranges: list[tuple[int, int]] = []
        first = True
        while first or self.peek() != "]":
            first = False
            if self.text.startswith("[:", self.at) and (end := self.text.find(":]", self.at + 2)) >= 0:
                name = self.text[self.at + 2 : end]
                positive = name.removeprefix("^")
                if positive not in chars.POSIX:
                    raise self.fail(f"unknown class [:{name}:]")
                found = chars.POSIX[positive]
                ranges += chars.negate(found) if name != positive else found
                self.at = end + 2
                continue
            low = self.class_char()
            if not isinstance(low, int):
                ranges += low
                continue
            high = low
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                end_char = self.class_char()
                if not isinstance(end_char, int) or end_char < low:
                    raise self.fail("malformed range in a class")
                high = end_char
            ranges.append((low, high))
        self.at += 1
        merged = chars.union(ranges)
        if self.ignore_case:
            merged = chars.fold(merged)
        return Chars(chars.negate(merged) if negated else merged)

    def class_char(self) -> int | Ranges:
        c = self.next("class")
        return self.escape() if c == "\\" else ord(c)


def parse(pattern: str) -> tuple[Node, int]:
    """The tree and the number of capturing groups. RegexError says what is wrong and where."""
    if len(pattern) > MAX_PATTERN:
        raise RegexError(f"pattern of {len(pattern)} characters; the limit is {MAX_PATTERN}")
    parser = _Parser(pattern)
    try:
        pattern.encode()
    except UnicodeEncodeError:
        raise RegexError("pattern is not UTF-8") from None
    tree = parser.alternatives()
    if parser.at < len(pattern):
        raise parser.fail("unmatched )")
    return tree, parser.groups


def literal(tree: Node) -> tuple[bytes, bool]:
    """The bytes that every whole match begins with, and whether they are all that it can be."""
    if isinstance(tree, Group):
        return literal(tree.node)
    if isinstance(tree, Chars):
        if len(tree.ranges) == 1 and tree.ranges[0][0] == tree.ranges[0][1]:
            return chr(tree.ranges[0][0]).encode(), True
        return b"", False
    if isinstance(tree, Cat):
        out = b""
        for number, part in enumerate(tree.parts):
            if part == At(Assertion.TEXT_START) and number == 0:
                continue
            if part == At(Assertion.TEXT_END) and number == len(tree.parts) - 1:
                continue
            start, whole = literal(part)
            out += start
            if not whole:
                return out, False
        return out, True
    if isinstance(tree, Repeat) and tree.least >= 1:
        start, whole = literal(tree.node)
        return start, whole and tree.most == 1
    return b"", False
