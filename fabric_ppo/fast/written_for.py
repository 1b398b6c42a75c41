"""The code that fast parts stand for, as it was when they were written."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import tokenize
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
_AGENT = ("agents/agent.py", "agents/distributions.py", "agents/mlp.py")
LOSS = ("ppo/loss.py", *_AGENT)
"""Files that `fused_loss.py` stands for."""
ACTING = ("rollouts/actor.py", *_AGENT)
"""Files that `array_actor.py` stands for."""
FINGERPRINTS = {
    "agents/agent.py": "aa985f634ae87fbc",
    "agents/distributions.py": "02ae182174db036b",
    "agents/mlp.py": "5996d46bc6eeefba",
    "ppo/loss.py": "f2e1cc184aa7d104",
    "rollouts/actor.py": "b3d7cf4348713504",
}
"""File -> `fingerprint` of the code that `fast/` has been compared with, line by line."""


@functools.cache
def edited(files: tuple[str, ...]) -> list[str]:
    """Return those of `files` whose code is not the code that `fast/` was written for.

    No comparison of numbers finds every edit: one may matter only in a later update, with another
    coefficient, or in a rare observation.
    """
    return [name for name in files if fingerprint((_PACKAGE / name).read_text("utf-8")) != FINGERPRINTS[name]]


def fingerprint(source: str) -> str:
    """Return a hash of a file's code.

    Left out are comments, docstrings and line breaks, and in the loss what is only logged: blocks
    without gradients, and the parts of `Losses` after the first.
    """
    spans = [_span(node) for node in ast.walk(ast.parse(source)) if _is_left_out(node)]
    names = {tokenize.INDENT: "{", tokenize.DEDENT: "}", tokenize.NEWLINE: ";"}
    words, was_left_out = [], False
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL):
            continue
        is_end = was_left_out and token.type == tokenize.NEWLINE
        was_left_out = any(begin <= token.start < end for begin, end in spans)
        if not (was_left_out or is_end):
            words.append(names.get(token.type, token.string))
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


def _is_left_out(node: ast.AST) -> bool:
    """Return True for a part of a file that its fingerprint leaves out."""
    if isinstance(node, ast.Expr):  # a docstring
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    if isinstance(node, ast.With):
        return ast.unparse(node.items[0]) == "torch.no_grad()"
    if isinstance(node, ast.ClassDef):
        return node.name == "Losses"
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "Losses"


def _span(node: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return where the part of a node that is left out begins and ends, in lines and columns."""
    end = (node.end_lineno, node.end_col_offset)
    if isinstance(node, ast.Call):  # its first argument stays
        return (node.args[0].end_lineno or 0, node.args[0].end_col_offset or 0), end
    return (node.lineno, node.col_offset), end
