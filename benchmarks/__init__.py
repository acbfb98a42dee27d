"""``python -m benchmarks``: fastproxy beside its peers, in one run, on this machine."""
