"""How to start another Python process of ours."""

from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def command(module: str, *args: str) -> list[str]:
    """The words that run ``module`` with this interpreter.

    ``-P`` keeps the working folder off the import path, so that a stray ``json.py`` there is never run.
    """
    options = ["-P", *(f"-W{option}" for option in sys.warnoptions)]
    return [sys.executable or "python3", *options, "-m", module, *args]


def environment() -> dict[str, str]:
    """Our environment; in a checkout that is not installed, ``-P`` must not lose this package."""
    env = dict(os.environ)
    if os.path.basename(ROOT) not in ("site-packages", "dist-packages"):
        paths = [p for p in env.get("PYTHONPATH", "").split(os.pathsep) if p and p != ROOT]
        env["PYTHONPATH"] = os.pathsep.join([ROOT, *paths])
    return env
