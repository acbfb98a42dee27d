"""How to start another Python process of ours."""

from __future__ import annotations

import os
import sys


def command(module: str, *args: str) -> list[str]:
    """The words that run ``module`` with this interpreter.

    ``-P`` keeps the working folder off the import path, so that a stray ``json.py`` there is never run, unless
    fastproxy itself was started from that folder (a checkout).
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    checkout = not sys.flags.safe_path and bool(sys.path) and os.path.realpath(sys.path[0] or ".") == os.path.realpath(root)
    options = [] if checkout else ["-P"]
    options += [f"-W{option}" for option in sys.warnoptions]
    return [sys.executable or "python3", *options, "-m", module, *args]
