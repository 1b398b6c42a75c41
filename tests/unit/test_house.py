"""The house: a room imports only from rooms below it, the maps of it are true, and its rules are kept."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import sys
from pathlib import Path

import pytest

from fabric_ppo.fast.written_for import FINGERPRINTS
from tests.fixtures.launching import ROOT

PACKAGE = ROOT / "fabric_ppo"
SCRIPTS = ("train_torch", "train_fabric", "train_fabric_decoupled")
ROOMS = (
    *("entry", "scripts", "tools", "architectures", "run", "fast", "ppo", "rollouts", "agents", "envs"),
    *("config", "seeding", "process"),
)
"""From top to bottom; `entry` are the package itself, `api` and `__main__`."""
MOST_LINES = {"function": 60, "class": 250}


def path_of(module: str) -> Path:
    """The file of a module of the package or of a script."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def modules() -> list[str]:
    """All modules of the package, packages included, and the scripts."""
    relative = [path.relative_to(ROOT).with_suffix("") for path in sorted(PACKAGE.rglob("*.py"))]
    return [".".join(path.parts).removesuffix(".__init__") for path in relative] + list(SCRIPTS)


MODULES = modules()


def imported_names(node: ast.AST) -> set[str]:
    """First part of each module's name that a node of a tree imports."""
    names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
    names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
    return {name.split(".")[0] for name in names}


@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text())


def room_of(module: str) -> str:
    if module in SCRIPTS:
        return "scripts"
    part = module.split(".")[1] if "." in module else ""
    if part.startswith("config"):
        return "config"
    return "entry" if part in ("", "api", "__main__") else part


def imports_of(module: str, tree: ast.Module | None = None) -> set[str]:
    """Modules of this repository that one imports: also where only types need them, and inside functions."""
    found = set()
    for node in ast.walk(tree or tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            whole = {f"{node.module}.{name.name}" for name in node.names}
            submodules = whole & set(MODULES)
            found |= submodules
            if whole - submodules:
                found.add(str(node.module))
    return {name for name in found if name.split(".")[0] in ("fabric_ppo", *SCRIPTS, "tests", "benchmarks")}


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_from_rooms_below_it(module):
    own = ROOMS.index(room_of(module))
    for imported in imports_of(module):
        assert imported in MODULES, f"{module} imports {imported}"
        its = room_of(imported)
        assert ROOMS.index(its) >= own, f"{module} imports {imported}, of a room above it"
        assert room_of(module) != "scripts" or its != "scripts", f"{module} imports {imported}: scripts stand alone"


def test_the_check_of_imports_sees_them_all():
    """At the top of a module, for types only, in a function, of a submodule and of a name in one."""
    text = """
import fabric_ppo.run.run
from typing import TYPE_CHECKING
from fabric_ppo.envs import atari
from fabric_ppo.tools import locate, plot
if TYPE_CHECKING:
    from fabric_ppo.ppo.loss import ppo_loss
def function():
    from fabric_ppo.config import Config
    import train_torch
"""
    expected = {"run.run", "envs.atari", "tools.locate", "tools.plot", "ppo.loss", "config"}
    assert imports_of("x", ast.parse(text)) == {f"fabric_ppo.{name}" for name in expected} | {"train_torch"}
    assert len(MODULES) > 80
    assert {room_of(module) for module in MODULES} == set(ROOMS)


def test_no_modules_import_each_other():
    graph = {module: imports_of(module) - {module} for module in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the modules
    assert set(order) == set(MODULES)


def test_config_imports_its_values_and_errors_only():
    """And nothing but the standard library besides, so that building a Config loads nothing."""
    of_config = {module for module in MODULES if room_of(module) == "config"}
    for module in of_config:
        assert imports_of(module) <= of_config | {"fabric_ppo.process.errors"}, module
        every = {name for node in ast.walk(tree_of(module)) for name in imported_names(node)}
        assert every - {"fabric_ppo"} <= sys.stdlib_module_names | {"__future__"}, module
    assert imports_of("fabric_ppo.process.errors") == set()


@pytest.mark.parametrize("room", ["ppo", "agents", "rollouts"])
def test_what_is_read_knows_nothing_of_what_is_fast(room):
    for module in MODULES:
        if room_of(module) == room:
            assert not {each for each in imports_of(module) if room_of(each) == "fast"}, module
            # names in text, such as `importlib.import_module` takes
            called = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call)]
            words = [arg.value for node in called for arg in node.args if isinstance(arg, ast.Constant)]
            assert not [word for word in words if isinstance(word, str) and "fabric_ppo.fast" in word], module


MUTATORS = {
    *("append", "add", "update", "pop", "popitem", "popleft", "clear", "setdefault"),
    *("extend", "insert", "remove", "discard", "appendleft"),
}


def changes_of_module_state(tree: ast.Module) -> list[str]:
    """Where a function changes what a module holds: its names, its containers, or attributes of its classes."""
    names = {name.id for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign)) for name in stored(node)}
    classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)} | {"cls"}
    found = [f"line {node.lineno}: global" for node in ast.walk(tree) if isinstance(node, ast.Global)]
    for function in [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Lambda))]:
        own = {arg.arg for arg in ast.walk(function.args) if isinstance(arg, ast.arg)} | {
            node.id for node in ast.walk(function) if is_stored(node)
        }
        for node in ast.walk(function):
            target = None
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
                target = node.value
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
                target = node.func.value
            if isinstance(target, ast.Name) and target.id in names - own:
                found.append(f"line {node.lineno}: {target.id}")
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
                holder = node.value
                if isinstance(holder, ast.Name) and holder.id in classes:
                    found.append(f"line {node.lineno}: {holder.id}.{node.attr}")
    return found


def is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def stored(node: ast.AST) -> list[ast.Name]:
    return [each for each in ast.walk(node) if isinstance(each, ast.Name) and is_stored(each)]


@pytest.mark.parametrize("module", MODULES)
def test_no_module_has_a_state_that_changes(module):
    tree = tree_of(module)
    assert changes_of_module_state(tree) == []
    assert "object.__setattr__" not in ast.unparse(tree), "what is frozen stays as it was built"
    assert "utils" not in module.split(".")[-1]


@pytest.mark.parametrize(
    "text",
    [
        "A = {}\ndef f():\n    A['x'] = 1",
        "A: list = []\ndef f():\n    A.append(1)",
        "A = []\nclass B:\n    def f(self):\n        A.clear()",
        "A = {}\ndef f():\n    del A['x']",
        "A = 1\ndef f():\n    global A\n    A = 2",
        "class B:\n    x = 1\ndef f():\n    B.x = 2",
        "class B:\n    @classmethod\n    def f(cls):\n        cls.x = 2",
    ],
)
def test_the_check_of_state_sees_it(text):
    assert len(changes_of_module_state(ast.parse(text))) == 1


def files() -> set[str]:
    """Files of the package, relative to it, but for those that only make a folder a package."""
    paths = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    return {path for path in paths if not path.endswith("__init__.py")}


def block_after(page: Path, title: str) -> str:
    """The first fenced block below a title."""
    _, found, rest = page.read_text().partition(f"\n{title}\n")
    assert found, f"{page.name} has no {title}"
    block = re.search(r"^```text\n(.*?)^```$", rest, re.MULTILINE | re.DOTALL)
    assert block is not None
    return block[1]


def test_the_map_names_every_file_in_its_room():
    """docs/architecture.md: the rooms from top to bottom, under each its files, each with what it is."""
    rooms: dict[str, list[str]] = {}
    for line in block_after(ROOT / "docs/architecture.md", "## The map").splitlines():
        name, _, words = line.strip().partition(" ")
        assert words.strip(), line
        if line.startswith(" "):
            rooms[list(rooms)[-1]].append(name)
        else:
            rooms[name.strip("/")] = []
    assert list(rooms) == ["fabric_ppo", *ROOMS[1:]]
    listed = [name for names in rooms.values() for name in names]
    assert len(listed) == len(set(listed))
    assert set(listed) == files()
    for room, names in rooms.items():
        for name in names:
            module = "fabric_ppo." + name.removesuffix(".py").replace("/", ".")
            assert room_of(module) == room.replace("fabric_ppo", "entry")


def test_the_readmes_map_names_the_rooms():
    block = block_after(ROOT / "README.md", "## Where things are")
    words = re.findall(r"(?<!\S)([\w]+(?:\.py|/))", block)
    named = {word.rstrip("/").removesuffix(".py") for word in words}
    rooms = set(ROOMS) - {"entry", "scripts"} | {"fabric_ppo", "api", "__main__", *SCRIPTS}
    assert named == rooms
    assert len(words) == len(set(words))
    order = [room for line in block.splitlines() for room in ROOMS if re.match(rf"  {room}(/|\.py)", line)]
    assert order == [room for room in ROOMS if room in order]
    for word in words:
        assert (ROOT / word).exists() or (PACKAGE / word).exists(), word


def defined_in(path: Path) -> set[str]:
    """Functions, classes and methods of a file, the latter also with their class, and names at its top."""
    tree, found = ast.parse(path.read_text()), set()
    for node in tree.body:
        found |= {each.id for each in stored(node)}
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            own = [each for each in node.body if isinstance(each, (ast.FunctionDef, ast.AnnAssign))]
            names = {each.name if isinstance(each, ast.FunctionDef) else ast.unparse(each.target) for each in own}
            found |= names | {f"{node.name}.{name}" for name in names}
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_what_a_page_says_to_be_in_a_file_is_there(page):
    """As in "`ppo/loss.py` (`minibatch_loss`)", "`gae` in `ppo/advantages.py`", and in tables of file and function."""
    text = (ROOT / page).read_text()
    name, path = r"`([A-Za-z_][\w.]*)`", r"`((?:fabric_ppo/)?(?:\w+/)+\w+\.py)`"
    pairs = [(file, found) for file, found in re.findall(rf"{path}(?: \(|: | \| ){name}", text)]
    pairs += [(file, found) for found, file in re.findall(rf"{name} in {path}", text)]
    assert pairs
    for file, found in pairs:
        if not found.endswith(".py") and not found.startswith("train_"):
            where = PACKAGE / file.removeprefix("fabric_ppo/")
            assert found in defined_in(where), f"{page}: {found} in {file}"


def test_the_map_counts_the_lines_of_the_script_to_begin_with():
    (count,) = re.findall(r"`train_torch.py`: (\d+) lines", (ROOT / "docs/architecture.md").read_text())
    assert int(count) == len((ROOT / "train_torch.py").read_text().splitlines())


def test_the_map_names_the_files_after_whose_edit_plain_code_runs():
    """Those that `fast/written_for.py` knows; "`a.py` or `b.py` of `agents/`" is two of them."""
    (said,) = re.findall(r"after an edit of (.*?), but for comments", (ROOT / "docs/architecture.md").read_text())
    names, room = re.findall(r"`([\w/]+\.py)`", said), re.search(r" of `(\w+/)`$", said)
    assert room
    assert {name if "/" in name else room[1] + name for name in names} == set(FINGERPRINTS)


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_the_tests_that_a_page_names_exist(page):
    for name in re.findall(r"`(tests/[\w./]*)`", (ROOT / page).read_text()):
        assert (ROOT / name).exists(), name


def docstrings(tree: ast.Module):
    """Docstrings of everything, also the strings below fields and constants."""
    for node in ast.walk(tree):
        for below in (getattr(node, "body", None), getattr(node, "orelse", None)):
            for each in below if isinstance(below, list) else []:
                if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant):
                    yield each.value.value


@pytest.mark.parametrize("module", MODULES)
def test_no_docstring_begins_with_a_question(module):
    for text in docstrings(tree_of(module)):
        assert not re.match(r"\s*(What|Whether)\b", str(text)), text


@pytest.mark.parametrize("module", MODULES)
def test_functions_and_classes_are_short(module):
    for node in ast.walk(tree_of(module)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MOST_LINES[kind], f"{node.name} has {lines} lines"


def test_the_packages_that_are_installed_are_those_of_the_tree():
    text = (ROOT / "pyproject.toml").read_text()
    (block,) = re.findall(r"^packages = \[\n(.*?)^\]$", text, re.MULTILINE | re.DOTALL)
    listed = re.findall(r'^    "([\w.]+)",', block, re.MULTILINE)
    assert len(listed) == block.count("\n")
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert len(listed) == len(set(listed))
    assert set(listed) == folders | {"fabric_ppo.configs"}
    assert {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("*.py")} == folders
    assert 'package-dir = { "fabric_ppo.configs" = "configs" }' in text
    (modules_line,) = re.findall(r"^py-modules = \[(.*)\]$", text, re.MULTILINE)
    assert sorted(re.findall(r'"(\w+)"', modules_line)) == sorted(SCRIPTS)
