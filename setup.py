"""Build of the compiled modules.

No flag is needed. Variants, for developers, are environment switches:

FASTPROXY_DEBUG=1      asserts and resource checks on, no optimisation
FASTPROXY_SANITIZE=1   AddressSanitizer and UndefinedBehaviorSanitizer (implies DEBUG)
FASTPROXY_PORTABLE=1   the portable twin of every intrinsic
FASTPROXY_PROFILE=1    keep frame pointers and symbols for perf and callgrind
FASTPROXY_ONLY=a,b     build only these modules (``_http1,_plan``); ``none`` for no one
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup


def on(name: str) -> bool:
    return os.environ.get(f"FASTPROXY_{name}", "") not in ("", "0")


MODULES = sorted(path.stem for path in Path("fastproxy").glob("_*.pyx"))
only = [m for m in os.environ.get("FASTPROXY_ONLY", "").split(",") if m]

cflags = ["-O2", "-fno-strict-aliasing", "-fno-plt", "-Wall", "-Wno-unused-function", "-Wno-sign-compare"]
ldflags: list[str] = []
macros: list[tuple[str, str | None]] = [("CYTHON_CLINE_IN_TRACEBACK", "0")]
if on("SANITIZE"):
    sanitizers = [
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
        "-fno-omit-frame-pointer",
    ]
    cflags = ["-O1", "-g", "-fno-strict-aliasing", *sanitizers]
    ldflags = list(sanitizers)
if on("DEBUG") or on("SANITIZE"):
    macros.append(("FASTPROXY_DEBUG", "1"))
else:
    macros.append(("CYTHON_WITHOUT_ASSERTIONS", "1"))
if on("PORTABLE"):
    macros.append(("FASTPROXY_PORTABLE", "1"))
if on("PROFILE"):
    cflags += ["-g", "-fno-omit-frame-pointer"]

extensions = [
    Extension(
        f"fastproxy.{name}",
        [f"fastproxy/{name}.pyx"],
        include_dirs=["fastproxy"],
        extra_compile_args=cflags,
        extra_link_args=ldflags,
        define_macros=macros,
    )
    for name in MODULES
    if not only or name in only
]

if __name__ == "__main__":  # Cython starts processes that import this file
    setup(
        ext_modules=cythonize(
            extensions,
            nthreads=2 if len(extensions) > 1 else 0,
            language_level=3,
            annotate=on("ANNOTATE"),
            compiler_directives={
                "boundscheck": False,
                "wraparound": False,
                "cdivision": True,
                "initializedcheck": False,
                "embedsignature": True,
                "legacy_implicit_noexcept": False,
            },
        ),
    )
