"""The code that fast parts stand for, as it was when they were written."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fabric_ppo.fast.replaced import replaced_functions

_PACKAGE = Path(__file__).parents[1]
_AGENT = ("agents/agent.py", "agents/distributions.py", "agents/encoders.py", "agents/mlp.py", "agents/normalize.py")
LOSS = ("ppo/loss.py", *_AGENT)
"""Files that `compiled_loss.py` stands for."""
ACTING = ("rollouts/actor.py", *_AGENT)
"""Files that `compiled_actor.py` stands for."""
FINGERPRINTS = {
    "agents/agent.py": "3632bf2ee5296761",
    "agents/distributions.py": "33cfa156e7d2bb32",
    "agents/encoders.py": "694f33dba4e93e2e",
    "agents/mlp.py": "6d9d3e505f9c174c",
    "agents/normalize.py": "09841e20fb21a8fb",
    "ppo/loss.py": "86b81dda1f508a67",
    "rollouts/actor.py": "372909a0a584a1b7",
}
"""File -> `fingerprint` of the code that `fast/` has been compared with, line by line."""


def edited(files: tuple[str, ...]) -> list[str]:
    """Return those of `files` whose code is not the code that `fast/` was written for.

    No comparison of numbers finds every edit: one may matter only in a later update, with another
    coefficient, or in a rare observation.
    """
    return [name for name in files if _fingerprint_of(name) != FINGERPRINTS[name]]


def replaced(files: tuple[str, ...]) -> list[str]:
    """Return what a program has replaced in `files` while it runs, as in `ppo/loss.py (ppo_loss)`."""
    # a file that is edited after its import has other lines than those by which functions are found
    by_file = {name: replaced_functions(name) for name in files if name not in edited((name,))}
    return [f"{name} ({', '.join(functions)})" for name, functions in by_file.items() if functions]


@functools.cache
def _fingerprint_of(name: str) -> str:
    return fingerprint((_PACKAGE / name).read_text("utf-8"))


def fingerprint(source: str) -> str:
    """Return a hash of a file's code.

    Left out are comments, docstrings and line breaks, and in the loss what is only logged: the parts
    of `Losses` after the first, and blocks without gradients that compute nothing else.
    """
    tree = ast.parse(source)
    spans = [_span(node) for node in ast.walk(tree) if _is_left_out(node)]
    spans += [_span(block) for function in ast.walk(tree) for block in _logging_blocks(function, spans)]
    left_out = bytearray(source.count("\n") + 2)  # 1 for lines on which something is left out
    for (first, _), (last, _) in spans:
        left_out[first : last + 1] = b"\1" * (last + 1 - first)
    names = {tokenize.INDENT: "{", tokenize.DEDENT: "}", tokenize.NEWLINE: ";"}
    words, was_left_out = [], False
    for token in _tokens(source):
        if token.type in (tokenize.COMMENT, tokenize.NL):
            continue
        is_end = was_left_out and token.type == tokenize.NEWLINE
        was_left_out = left_out[token.start[0]] == 1 and any(begin <= token.start < end for begin, end in spans)
        if not (was_left_out or is_end):
            words.append(names.get(token.type, token.string))
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


def _tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    """Yield the tokens of a file, of which an f-string is one: since Python 3.12 its parts are."""
    begins, ends = (getattr(tokenize, f"FSTRING_{name}", None) for name in ("START", "END"))
    lines, depth, first = source.splitlines(keepends=True), 0, (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == begins:
            first = token.start if depth == 0 else first
            depth += 1
        elif token.type == ends:
            depth -= 1
            if depth == 0:
                rows = lines[first[0] - 1 : token.end[0]]
                rows[-1] = rows[-1][: token.end[1]]
                rows[0] = rows[0][first[1] :]
                yield token._replace(type=tokenize.STRING, string="".join(rows), start=first)
        elif depth == 0:
            yield token


def _is_left_out(node: ast.AST) -> bool:
    """Return True for a part of a file that its fingerprint leaves out."""
    if isinstance(node, ast.Expr):  # a docstring
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    if isinstance(node, ast.ClassDef):
        return node.name == "Losses"
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Losses"


def _logging_blocks(function: ast.AST, spans: list[Any]) -> list[ast.With]:
    """Return the blocks without gradients of a function that only give names to numbers to be logged."""
    if not isinstance(function, ast.FunctionDef):
        return []
    blocks = [node for node in function.body if isinstance(node, ast.With)]
    blocks = [block for block in blocks if ast.unparse(block.items[0]) == "torch.no_grad()"]
    if not blocks:
        return []
    inside = {id(node) for block in blocks for node in ast.walk(block)}
    # names that the rest of the function reads: a block that gives one of these takes part in the loss
    read = {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and id(node) not in inside
        if not any(begin <= (node.lineno, node.col_offset) < end for begin, end in spans)
    }
    return [block for block in blocks if all(_is_logging(statement, read) for statement in block.body)]


def _is_logging(statement: ast.stmt, read: set[str]) -> bool:
    """Return True for an assignment to a name that is not in `read`, of something that changes no tensor in place."""
    if not (isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets)):
        return False
    names = {target.id for target in statement.targets if isinstance(target, ast.Name)}
    calls = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]
    in_place = [call for call in calls if isinstance(call, ast.Attribute) and call.attr.endswith("_")]
    return not names & read and not in_place


def _span(node: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return where the part of a node that is left out begins and ends, in lines and columns."""
    end = (node.end_lineno, node.end_col_offset)
    if isinstance(node, ast.Call):  # its first argument stays
        return (node.args[0].end_lineno or 0, node.args[0].end_col_offset or 0), end
    return (node.lineno, node.col_offset), end
