"""Host patterns, as VirtualServices, Gateways and DestinationRules write them: ``a.b``, ``*.b`` and ``*``."""

from __future__ import annotations


def covers(wide: str, host: str) -> bool:
    """Every name that ``host`` stands for is one that ``wide`` stands for."""
    if wide in ("*", host):
        return True
    return wide.startswith("*.") and host != "*" and host.removeprefix("*").endswith(wide[1:])


def covering(host: str) -> list[str]:
    """All patterns that cover ``host``, the narrowest first: ``a.b.c`` gives a.b.c, *.b.c, *.c, *."""
    if host == "*":
        return ["*"]
    parts = host.removeprefix("*.").split(".")
    return [host, *(f"*.{'.'.join(parts[i:])}" for i in range(1, len(parts))), "*"]
