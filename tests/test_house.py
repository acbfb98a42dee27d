"""The house rules that a program can check (design, section 8).

Floors: a file imports only from its own floor or lower ones, and imports on one floor make no circle.

    0  errors settings tables oneline regex resources/  words: what documents and tables are
       rows bodies wire actions peers sync keys sockets link   the control protocol, both its ends
    1  plan slots explain check, the compiled leaves    tables -> plan; parse, route, pick, record, drain
    2  _core with core/*.pxi                                 the forwarding loop
    3  worker spawner agent/                                 processes
    4  cli flags report __main__ demo                        programs

``ctrl`` may import floor 0 of fastproxy only; fastproxy imports no ``ctrl``, ``benchmarks`` or tests.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import readme

ROOT = Path(__file__).resolve().parents[1]
CODE = ("fastproxy", "ctrl", "benchmarks", "tests")
CEILING = 600
FLOORS = {
    0: "errors settings tables oneline regex resources rows bodies wire actions peers sync keys sockets link",
    1: "plan slots explain check _http1 _plan _balance _journal _names _accesslog _telemetry",
    2: "_core",
    3: "worker spawner agent",
    4: "cli flags report __main__ demo",
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}
FORBIDDEN = {"backend", "handler", "manager", "util", "gate", "shut"}
WORKER_MODULES = {
    "errors",
    "settings",
    "worker",
    "_core",
    "_http1",
    "_plan",
    "_balance",
    "_journal",
}
READS_DOCUMENTS = {
    "pydantic",
    "yaml",
    "ruamel",
    "typer",
    "click",
    "rich",
    "fastproxy.resources",
}

_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_CIMPORT = re.compile(
    r"^\s*(?:from\s+([\w.]+)\s+(?:c?import)\s+(?:\(\s*)?([\w*, ]+)|(?:cimport|import)\s+([\w.]+))",
    re.MULTILINE,
)


def sources(*suffixes: str, under: tuple[str, ...] = CODE) -> list[Path]:
    found = [path for part in under for path in (ROOT / part).rglob("*") if path.suffix in suffixes]
    found += [ROOT / "setup.py"] if under == CODE and ".py" in suffixes else []
    return sorted(path for path in found if "build" not in path.relative_to(ROOT).parts)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def owner(path: Path) -> str:
    """The module of fastproxy that a file belongs to: ``agent`` for agent/x.py, ``_core`` for core/x.pxi,
    ``_http1`` for _http1_chunked.pxi."""
    first = path.relative_to(ROOT / "fastproxy").parts[0].split(".")[0]
    if path.suffix == ".pxi":
        return "_core" if first == "core" else "_" + first.split("_")[1]
    return first


def python_imports(path: Path) -> Iterator[str]:
    """Dotted names that a Python file imports anywhere in it, relative ones resolved."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(), path.name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def cython_imports(path: Path) -> Iterator[str]:
    text = re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL)
    for module, names, plain in _CIMPORT.findall(text):
        module = module or plain
        if module.startswith("."):
            module = "fastproxy" + ("" if module == "." else module)
        yield module
        yield from (f"{module}.{name.strip()}" for name in names.split(",") if name.strip())


def fastproxy_edges() -> Iterator[tuple[Path, str]]:
    """(file, module of fastproxy that it imports), its own package left out."""
    for path in sources(".py", ".pyx", ".pxd", ".pxi", ".pyi", under=("fastproxy",)):
        imports = cython_imports(path) if path.suffix in (".pyx", ".pxd", ".pxi") else python_imports(path)
        for imported in imports:
            parts = imported.split(".")
            if parts[0] == "fastproxy" and len(parts) > 1 and parts[1] in FLOOR and parts[1] != owner(path):
                yield path, parts[1]


def test_every_module_has_a_floor() -> None:
    owners = {owner(path) for path in sources(".py", ".pyx", ".pxd", ".pxi", under=("fastproxy",))}
    assert sorted(owners - set(FLOOR) - {"__init__"}) == [], "give it a floor here and in docs/tenets.md"


def test_imports_go_down() -> None:
    wrong = [
        f"{name_of(path)} (floor {FLOOR[owner(path)]}) imports {imported} (floor {FLOOR[imported]})"
        for path, imported in fastproxy_edges()
        if owner(path) != "__init__" and FLOOR[owner(path)] < FLOOR[imported]
    ]
    assert wrong == []


def test_imports_make_no_circle() -> None:
    below: dict[str, set[str]] = {}
    for path, imported in fastproxy_edges():
        below.setdefault(owner(path), set()).add(imported)
    while free := [name for name, imported in below.items() if not imported & set(below)]:
        for name in free:
            del below[name]
    assert below == {}, "these import each other"


def test_packages_keep_apart() -> None:
    wrong = []
    for path in sources(".py", under=("fastproxy", "ctrl")):
        part = path.relative_to(ROOT).parts[0]
        for imported in python_imports(path):
            first, _, rest = imported.partition(".")
            other = (
                first in {"fastproxy": ("ctrl", "benchmarks", "tests"), "ctrl": ("benchmarks", "tests")}[part]
            )
            high = part == "ctrl" and first == "fastproxy" and FLOOR.get(rest.split(".")[0], 0) > 0
            if other or high:
                wrong.append(f"{name_of(path)} imports {imported}")
    assert wrong == []


def test_no_file_is_over_the_ceiling() -> None:
    lengths = {
        name_of(path): len(path.read_text().splitlines()) for path in sources(".py", ".pyx", ".pxd", ".pxi")
    }
    assert {name: lines for name, lines in lengths.items() if lines > CEILING} == {}


def defined_names(path: Path) -> Iterator[str]:
    """Identifiers that a Python file gives. Uses are not looked at: other projects' names may be called."""
    for node in ast.walk(ast.parse(path.read_text(), path.name)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname


def native_names(path: Path) -> Iterator[str]:
    """Identifiers of a Cython or C file but constants, which are other people's (``SHUT_WR``)."""
    text = re.sub(
        r'"""(?:.|\n)*?"""|/\*(?:.|\n)*?\*/|//[^\n]*|#[^\n]*|"[^"\n]*"|\'[^\'\n]*\'', "", path.read_text()
    )
    yield from (word for word in re.findall(r"[A-Za-z_]\w*", text) if not word.isupper())


def test_forbidden_words_are_not_used() -> None:
    """Never: backend, handler, manager, util, gate, shut (design, section 1)."""

    def bad(identifier: str) -> bool:
        words = {word.lower() for word in _PARTS.findall(identifier)}
        return bool(words & (FORBIDDEN | {word + "s" for word in FORBIDDEN}))

    wrong = []
    for path in sources(".py", ".pyi", ".pyx", ".pxd", ".pxi", ".h"):
        names = defined_names(path) if path.suffix in (".py", ".pyi") else native_names(path)
        wrong += [f"{name_of(path)}: {name}" for name in {path.stem, *names} if bad(name)]
    assert sorted(wrong) == []


def compiled() -> list[Path]:
    return sorted((ROOT / "fastproxy").glob("*.pyx"))


def built(source: Path) -> ModuleType:
    module = importlib.import_module(f"fastproxy.{source.stem}")
    assert str(module.__file__).endswith(".so"), f"{source.stem} is not compiled: make build"
    return module


@pytest.mark.parametrize("source", compiled(), ids=lambda path: path.stem)
def test_stub_matches_compiled_module(source: Path) -> None:
    """Both ways, classes and their members included. Types are stubtest's part, in ``make lint``."""
    module = built(source)
    # _core is one unit that nobody calls; its .pyx is its table of contents
    assert source.with_suffix(".pxd").exists() or source.stem == "_core", "the .pxd is the map"
    tree = ast.parse(source.with_suffix(".pyi").read_text())

    def names(body: list[ast.stmt]) -> dict[str, ast.stmt]:
        found: dict[str, ast.stmt] = {}
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found[node.name] = node
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = node
            elif isinstance(node, ast.Assign):
                found.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
        return found

    stub = names(tree.body)
    # an alias of types is for readers of the stub only
    told = {
        name for name, node in stub.items() if not (isinstance(node, ast.Assign) and name not in dir(module))
    }
    assert sorted(name for name in told if not hasattr(module, name)) == []
    for name, node in stub.items():
        if isinstance(node, ast.ClassDef) and not any(
            getattr(b, "id", "") == "TypedDict" for b in node.bases
        ):
            cls = getattr(module, name)
            assert sorted(member for member in names(node.body) if not hasattr(cls, member)) == [], name
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }
    assert sorted(own - set(stub)) == [], "missing in the stub"


def loaded_by(statement: str) -> set[str]:
    """Modules that a fresh interpreter has after the statement and did not have before it."""
    program = f"import sys; before = set(sys.modules)\n{statement}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_worker_imports_uvloop_and_the_core_only() -> None:
    """A sidecar's memory is paid once per service (design, section 9)."""
    allowed = {f"fastproxy.{name}" for name in WORKER_MODULES} | {"fastproxy"}
    strange = {
        name
        for name in loaded_by("import fastproxy.worker")
        if name not in allowed
        and name.split(".")[0] not in sys.stdlib_module_names | {"uvloop", "cython_runtime"}
        and not name.startswith("_cython_")
    }
    assert sorted(strange) == []


def test_the_agent_reads_documents_lazily() -> None:
    """Schema, YAML and terminal parts are not imported by an agent that reads no document."""
    heavy = {
        name
        for name in loaded_by("import fastproxy.agent.supervisor")
        if name.split(".")[0] in READS_DOCUMENTS or ".".join(name.split(".")[:2]) in READS_DOCUMENTS
    }
    assert sorted(heavy) == []


@pytest.mark.parametrize("block", readme.BLOCKS)
def test_readme_tables_are_true(block: str) -> None:
    text = (ROOT / "README.md").read_text()
    assert readme.found(text, block) == readme.BLOCKS[block](), (
        f"the block {block} of README.md is out of date: python -m tests.support.readme"
    )


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])


def test_links_of_documents_lead_somewhere() -> None:
    broken = []
    for path in documents():
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            if "://" not in target and not (path.parent / target).exists():
                broken.append(f"{name_of(path)}: {target}")
    assert broken == []


def tracked() -> list[Path]:
    """Files under version control; without git (a release archive) the sources and documents."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=60
        )
        names = os.fsdecode(listed.stdout).split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    return [*sources(".py", ".pyx", ".pxd", ".pxi", ".h"), *documents(), ROOT / "Makefile"]


def test_no_place_of_one_machine_is_named() -> None:
    """Paths and hosts of the machine it was written on; each pattern is split, not to find itself."""
    place = re.compile(
        r"(?<![\w.])(/wo" r"rk/|/ro" r"ot/|/ho" r"me/\w|bash_" r"jobs|py" r"pi\.org|deb\.deb" r"ian\.)"
    )
    wrong = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" in data:
            continue
        wrong += [
            f"{name_of(path)}: {found.group()}" for found in place.finditer(data.decode("utf-8", "replace"))
        ]
    assert wrong == []


def test_nothing_is_left_for_later() -> None:
    mark = re.compile(
        r"\b(TO" r"DO|FIX" r"ME|XX" r"X|NotImplemented" r"Error)\b|assert Tr" r"ue$|mark\.sk" r"ip\(",
        re.MULTILINE,
    )
    wrong = []
    for path in sources(".py", ".pyx", ".pxd", ".pxi", ".h"):
        wrong += [f"{name_of(path)}: {found.group()}" for found in mark.finditer(path.read_text())]
    assert wrong == []
