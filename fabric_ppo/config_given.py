"""Values as a caller in Python gives them: NumPy's scalars as Python has them, and errors about types."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Sequence
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 200, 80


def python_scalar(value: Any) -> Any:
    """Return a scalar of NumPy, PyTorch or JAX, or one of a subclass, as a plain Python value.

    What is no such scalar is returned as it is.
    """
    kind = type(value)
    if kind in (int, float, bool, str) or value is None or isinstance(value, type):
        return value
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        return value.item()
    # of an Enum str() is the name of the member, and not its value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, float) else value


def python_sequence(value: Any) -> Any:
    """Return a list, tuple or array of one axis as a tuple of plain values; others as they are."""
    if getattr(value, "ndim", None) == 1 and callable(getattr(value, "tolist", None)):
        value = value.tolist()
    return tuple(map(python_scalar, value)) if isinstance(value, (list, tuple)) else value


def whole_number(value: Any) -> Any:
    """Return a float without a fraction, such as 1e6, as an int; others as they are."""
    return int(value) if type(value) is float and value.is_integer() else value


def format_given(value: Any) -> str:
    """Return a value of the wrong type for an error: its type too, where the value does not show it.

    >>> print(format_given(0.5), format_given("0.5"), format_given([1]))
    0.5 '0.5' (str) [1] (list)
    """
    if value is None or type(value) in (int, float, bool):
        return str(value)
    if isinstance(value, (type, FunctionType, BuiltinFunctionType, MethodType)):
        return f"{value.__qualname__} ({'class' if isinstance(value, type) else 'function'})"
    return f"{' '.join(_SHORT.repr(value).split())} ({type(value).__name__})"


def names_of(value: Any) -> str:
    """Return the `module:Name` of a class, function or object, or those of a list, with commas.

    Empty for what has no such name.
    """
    parts: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    names = [_name_of(each) for each in parts]
    return ",".join(names) if all(names) else ""


def _name_of(part: Any) -> str:
    """Return the `module:Name` of a class or function, or of an object's class; empty for none."""
    named: Any = part if isinstance(part, (type, FunctionType)) else type(part)
    is_nameless = "<" in named.__qualname__ or named.__module__ == "builtins"
    return "" if is_nameless else f"{named.__module__}:{named.__qualname__}"


def path_text(value: Any) -> Any:
    """Return a path as text; others as they are."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value
