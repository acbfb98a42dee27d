"""cython-lint over the compiled modules, with one thing that it cannot see: what an included fragment uses.

``python .ci/lint_cython.py FOLDER``: findings on standard output, exit code 1 if there are any.
"""

import re
import subprocess
import sys
from pathlib import Path

UNUSED = re.compile(r"^(.*?):\d+:\d+: '(\w+)' imported but unused$")


def used_in_fragments(source: Path, name: str) -> bool:
    """Whether a file that ``source`` includes has the name."""
    fragments = re.findall(r'^\s*include\s+"([^"]+)"', source.read_text(), re.MULTILINE)
    return any(re.search(rf"\b{name}\b", (source.parent / fragment).read_text()) for fragment in fragments)


def main(folder: str) -> int:
    program = Path(sys.executable).with_name("cython-lint")
    # it looks for pycodestyle beside itself by name only
    done = subprocess.run(
        [program, folder], env={"PATH": str(program.parent)}, capture_output=True, text=True, check=False
    )
    findings = []
    for line in done.stdout.splitlines():
        unused = UNUSED.match(line)
        if not (unused and used_in_fragments(Path(unused.group(1)), unused.group(2))):
            findings.append(line)
    print("\n".join([*findings, done.stderr]).strip())
    return 1 if findings or done.stderr else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
