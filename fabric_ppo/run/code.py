"""Code of a run: its files, and the files that have changed since a checkpoint."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from fabric_ppo.config import Config, script_file
from fabric_ppo.process.frames import is_installed
from fabric_ppo.process.signals import signals

_PACKAGE = Path(__file__).parents[1]
_NAMED = 3
"""Number of changed files that a line names."""


def code_of(config: Config) -> dict[str, str]:
    """Return the code files of a run, name -> digest.

    They are those of this package, the script, and the user's own environment, wrappers and encoder
    with all their imports. Names do not depend on the folder of a file. A copy of the script has the
    script's name.
    """
    files = {path.relative_to(_PACKAGE.parent).as_posix(): path for path in sorted(_PACKAGE.rglob("*.py"))}
    name = script_file(type(config))
    files |= {name: _running_script() or _PACKAGE.parent / name} | _files_of(own_modules(config))
    # what one does around a run changes nothing in it
    is_around = f"{_PACKAGE.name}/tools/"
    return {name: _digest(path) for name, path in files.items() if path.is_file() and not name.startswith(is_around)}


def _running_script() -> Path | None:
    """Return the script of this process, which may be a copy in a folder of the user's; None for no script."""
    main = sys.modules.get("__main__")
    is_script = signals.is_script and isinstance(getattr(main, "CONFIG", None), Config)
    return Path(main.__file__) if is_script and main is not None and main.__file__ else None


def changed_files(before: Mapping[str, str], current: Mapping[str, str]) -> str:
    """Return the names of changed, added and removed files, for a line; empty for none."""
    changed = sorted(name for name in before.keys() | current.keys() if before.get(name) != current.get(name))
    more = len(changed) - _NAMED
    return ", ".join(changed[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def own_modules(config: Config) -> set[str]:
    """Return the modules of environment, wrappers and encoder, including those of libraries."""
    import gymnasium

    named = [config.env_id, config.encoder, *(config.env_wrapper or "").split(",")]
    modules = {each.rpartition(":")[0] for each in named}
    spec = gymnasium.registry.get(config.env_id.rpartition(":")[2])
    entry = None if spec is None else spec.entry_point
    modules.add(entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", ""))
    return {module for module in modules if module}


def own_folders(config: Config) -> dict[str, str]:
    """Return the modules of environment, wrappers and encoder outside of libraries, and their folders.

    The folder is the one in which `import` looks; empty if there is no file, as in a notebook.
    """
    found = {}
    for name in sorted(own_modules(config)):
        file = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None)
        path = Path(file).absolute() if file else None
        if path is None or not is_installed(path):
            is_package = path is not None and path.name == "__init__.py"
            found[name] = "" if path is None else str(path.parents[1] if is_package else path.parent)
    return found


def _files_of(modules: set[str]) -> dict[str, Path]:
    """Return the files of modules and of all their imports, except libraries, by name."""
    found: dict[str, Path] = {}
    waiting, seen = list(modules), set[str]()
    while waiting:
        name = waiting.pop()
        path = Path(getattr(sys.modules.get(name), "__file__", None) or "")
        if name in seen or not path.is_file() or is_installed(path):
            continue
        seen.add(name)
        is_main = name == "__main__" or path.name == "__init__.py"
        found["/".join([*name.split(".")[:-1], path.name]) if not is_main else _name_of(name, path)] = path
        waiting += _imported_by(name, path)
    return found


def _name_of(module: str, path: Path) -> str:
    """Return the name of the file of a package, or of the program that Python was started with."""
    return path.name if module == "__main__" else f"{module.replace('.', '/')}/{path.name}"


def _imported_by(module: str, path: Path) -> Iterator[str]:
    """Yield the names of modules that a module's source imports, with the packages around them."""
    try:
        tree = ast.parse(path.read_bytes()) if path.suffix == ".py" else ast.Module([], [])
    except (OSError, ValueError, SyntaxError):
        return
    package = getattr(sys.modules.get(module), "__package__", None) or ""
    names = [module]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level and package:
                base = importlib.util.resolve_name("." * node.level + base, package)
            names += [base, *(f"{base}.{each.name}" for each in node.names)]
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


@functools.cache
def _digest(path: Path) -> str:
    """Return a digest of a file as it was at the first call, which is the code that runs."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
