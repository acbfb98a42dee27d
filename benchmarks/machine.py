"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.process import ROOT, Cores


def commit() -> str:
    """The commit, with ``+changes`` when the tree differs from it; ``unknown`` outside a checkout."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def describe(where: Cores) -> dict[str, Any]:
    """Processor, cores, kernel, memory, and where the proxy and its load ran."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            model = line.split(":", 1)[1].strip()
            break
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory": total,
        "system": platform.machine(),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "proxy_core": where.proxy,
        "load_core": where.load,
    }
