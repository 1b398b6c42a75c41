"""Functions of a file of this package that a program has replaced while it runs."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import types
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
Definitions = dict[str, tuple[range, int]]
"""Name -> lines of a function's definition, and the number of its decorators."""


def replaced_functions(name: str) -> list[str]:
    """Return the functions and methods of a file that are not those that stand in it, such as `MLP.forward`.

    Names that it imports from elsewhere do not count, nor does a file that is not imported.

    Args:
        name: the file, in this package, such as `agents/mlp.py`.
    """
    module = sys.modules.get(f"{_PACKAGE.name}.{name.removesuffix('.py').replace('/', '.')}")
    if module is None:
        return []
    functions, classes = _definitions(_PACKAGE / name)
    replaced = [each for each, where in functions.items() if not _is_own(module, getattr(module, each, None), where)]
    for each, methods in classes.items():
        owner = getattr(module, each, None)
        if not isinstance(owner, type) or owner.__module__ != module.__name__:
            replaced.append(each)
            continue
        found = vars(owner)
        odd = [method for method, where in methods.items() if not _is_own(module, found.get(method), where)]
        # also methods that the class inherits in the file
        odd += [method for method in found.keys() - methods.keys() if _is_added(owner, found[method])]
        replaced += [f"{each}.{method}" for method in sorted(odd)]
    return replaced


@functools.cache
def _definitions(path: Path) -> tuple[Definitions, dict[str, Definitions]]:
    """Return the functions that a file defines, and the methods of each of its classes."""
    tree = ast.parse(path.read_text("utf-8"))
    classes = {each.name: _functions(each.body) for each in tree.body if isinstance(each, ast.ClassDef)}
    return _functions(tree.body), classes


def _functions(body: list[ast.stmt]) -> Definitions:
    found = {}
    for each in body:
        if isinstance(each, ast.FunctionDef):
            first = min([each.lineno, *(decorator.lineno for decorator in each.decorator_list)])
            found[each.name] = (range(first, (each.end_lineno or first) + 1), len(each.decorator_list))
    return found


def _is_own(module: types.ModuleType, found: Any, where: tuple[range, int]) -> bool:
    """Return True if an object is the function that a module defines on these lines."""
    lines, num_decorators = where
    # decorators of the file wrap it; further layers are not the file's
    for _ in range(num_decorators):
        found = _inside(found)
    code = getattr(found, "__code__", None)
    return code is not None and code.co_filename == module.__file__ and code.co_firstlineno in lines


def _inside(found: Any) -> Any:
    """Return the function in a property, a class method or a cached function."""
    names = ("fget", "__func__", "func", "__wrapped__")
    return next((inner for inner in (getattr(found, name, None) for name in names) if inner is not None), found)


def _is_added(owner: type, found: Any) -> bool:
    """Return True for a function that was put into a class from elsewhere."""
    # tuples with names and dataclasses have methods that were made for them
    is_generated = issubclass(owner, tuple) or dataclasses.is_dataclass(owner)
    return inspect.isfunction(found) and not is_generated
