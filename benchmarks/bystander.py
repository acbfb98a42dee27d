"""A program that only burns CPU: ``python -m benchmarks.bystander CORE SHARE``, until it is told to end.

The control of the row in which plans are swapped. fastproxy's agent compiles them on the core of load and
origin, at idle priority; this one is as busy there and has nothing to do with the proxy, so what it does to
the latencies is the machine's share.
"""

from __future__ import annotations

import os
import sys
import time


def burn(share: float) -> None:
    """Busy for that share of each second, in one go, as a compile is."""
    while True:
        began = time.monotonic()
        while time.monotonic() - began < share:
            sum(len(str(i)) for i in range(2000))
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[1])})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    burn(float(sys.argv[2]))
