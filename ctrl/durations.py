"""Times as people write and read them: ``1h30m``, ``500ms``; ``6 ms``, ``3m``."""

from __future__ import annotations

import time


def milliseconds(text: str) -> int:
    """``10m``, ``1.5s``, ``1h30m`` in milliseconds: the same words as in resources. Raises ValueError with a
    sentence."""
    # here: a program that reads no duration does not pay for the schema's parts
    from pydantic import TypeAdapter, ValidationError

    from fastproxy.resources.fields import Milliseconds

    try:
        return int(TypeAdapter(Milliseconds).validate_python(text))
    except ValidationError as e:
        raise ValueError(e.errors(include_url=False)[0]["msg"]) from None


def spell(us: int) -> str:
    """A measured time, from microseconds: ``850 µs``, ``6.0 ms``, ``1.3 s``."""
    if us < 1000:
        return f"{us} µs"
    if us < 10_000:
        return f"{us / 1000:.1f} ms"
    if us < 1_000_000:
        return f"{us / 1000:.0f} ms"
    return f"{us / 1e6:.1f} s"


def age(since_ms: int, now_ms: int | None = None) -> str:
    """How long ago that was, in one or two units: ``4s``, ``12m``, ``3h10m``, ``5d``."""
    if not since_ms:
        return "–"
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    seconds = max(now - since_ms, 0) // 1000
    if seconds < 120:
        return f"{seconds}s"
    minutes, hours = seconds // 60, seconds // 3600
    if minutes < 120:
        return f"{minutes}m"
    if hours < 10:
        return f"{hours}h{minutes % 60:02}m"
    return f"{hours}h" if hours < 48 else f"{hours // 24}d"


def clock(at_ms: int) -> str:
    """A moment in local time: ``2026-01-31 12:30:05``."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000)) if at_ms else "–"
