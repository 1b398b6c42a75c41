"""Pages that are made from the code: every flag, and the Python API.

`python docs/hooks/reference.py` writes the tables of docs/flags.md anew; `make flags` calls it.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import fabric_ppo
from fabric_ppo.config import FLAG_GROUPS, MAY_DIFFER, SCRIPT_CONFIGS, Config, ProcessFlags, script_file
from fabric_ppo.config_names import same_names
from fabric_ppo.config_values import choices_of, field_types
from fabric_ppo.process.errors import flag
from fabric_ppo.tools.help import field_docs

FLAGS_PAGE = Path(__file__).resolve().parents[1] / "flags.md"
FLAGS_MARK = "<!-- The tables below are made by `make flags`. -->\n\n"
_WIDEST = 80
"""Columns of a signature in one line."""
_SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Example")
_SECTION = re.compile(rf"^({'|'.join(_SECTIONS)}):\n", re.MULTILINE)


def flags() -> str:
    """Return all flags of the three scripts in Markdown: a table for each group of `--help-all`."""
    kinds = {name: kind for config in SCRIPT_CONFIGS.values() for name, kind in field_types(config).items()}
    docs = {name: text for config in SCRIPT_CONFIGS.values() for name, text in field_docs(config).items()}
    alone = [name for name in kinds if name not in field_types(Config)]
    parts = []
    for group in FLAG_GROUPS:
        names = [each.name for each in fields(group)] + (alone if group is ProcessFlags else [])
        rows = [_flag(name, kinds[name], docs[name]) for name in names]
        title = (group.__doc__ or "").rstrip(".")
        parts.append("\n".join([f"## {title}\n", "| flag | default | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _flag(name: str, kind: Any, text: str) -> str:
    """Return the row of a flag: its name, default, text, choices, scripts, and other names."""
    having = [config for config in SCRIPT_CONFIGS.values() if name in field_types(config)]
    default = next(each.default for each in fields(having[0]) if each.name == name)
    meaning = [_escaped(text)]
    if choices := choices_of(kind):
        meaning.append("One of " + ", ".join(f"`{each}`" for each in choices) + ".")
    if len(having) < len(SCRIPT_CONFIGS):
        meaning.append("Only " + ", ".join(f"`{script_file(each)}`" for each in having) + ".")
    if name in MAY_DIFFER:
        meaning.append("A resumed run may have another.")
    if others := [other for other, ours in same_names().items() if ours == name]:
        meaning.append(f"<br>*Elsewhere:* {', '.join(f'`{each}`' for each in others)}")
    return f"| `{flag(name)}` | {_shown_default(default)} | {' '.join(meaning)} |"


def _shown_default(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _escaped(text: str) -> str:
    """Return plain text as Markdown: flags as code, nothing read as markup."""
    text = re.sub(r"([\\*_<>\[\]{}#|$])", r"\\\1", text) if "`" not in text else text
    return re.sub(r"(?<![\w`-])--[a-z][\w-]*", lambda found: f"`{found[0]}`", text)


def api() -> str:
    """Return the public names of the package in Markdown, functions first."""
    names = [name for name in fabric_ppo.__all__ if not name.startswith("_")]
    values = {name: getattr(fabric_ppo, name) for name in names}
    functions = [name for name in names if inspect.isfunction(values[name])]
    errors = [name for name in names if inspect.isclass(values[name]) and issubclass(values[name], Exception)]
    classes = [name for name in names if name not in functions + errors]
    titled = {"Functions": functions, "Classes": classes, "Errors": errors}
    return "\n".join(
        f"## {title}\n\n" + "\n".join(_entry(name, values[name]) for name in group) for title, group in titled.items()
    )


def _entry(name: str, value: Any) -> str:
    """Return the entry of a function or class, with the class's own public methods."""
    if inspect.isfunction(value):
        return _documented(name, value, 3)
    if issubclass(value, Exception):
        return f"### `{name}`\n\n{_sections(value)}"
    if is_dataclass(value) and issubclass(value, Config):
        return f"### `{name}`\n\n{_sections(value)}\nIts fields are the [flags](flags.md), with underscores.\n"
    parts = [_documented(name, value, 3)]
    for each, member in vars(value).items():
        if each.startswith("_") or not inspect.getdoc(member):
            continue
        if isinstance(member, property) or hasattr(member, "func"):  # a cached property, too
            parts.append(f"#### `{name}.{each}`\n\n{_sections(member)}")
        elif callable(member):
            parts.append(_documented(f"{name}.{each}", member, 4))
    return "\n".join(parts)


def _documented(name: str, value: Any, level: int) -> str:
    """Return heading, signature and docstring."""
    shown = f"{name.rpartition('.')[2]}{_signature(value)}"
    return f"{'#' * level} `{name}`\n\n```python\n{shown}\n```\n\n{_sections(value)}"


def _signature(value: Any) -> str:
    """Return a signature without `self`, a long one with a line for each parameter."""
    signature = inspect.signature(value)
    params = [each for each in signature.parameters.values() if each.name != "self"]
    # annotations are text in these modules, which would be printed in quotes
    params = [each.replace(annotation=_plain(each.annotation)) for each in params]
    returns = _plain(signature.return_annotation)
    line = str(signature.replace(parameters=params, return_annotation=returns))
    if len(line) <= _WIDEST:
        return line
    words = [str(each) for each in params]
    kinds = [each.kind for each in params]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        words.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    return "(\n" + "".join(f"    {word},\n" for word in words) + f") -> {returns}"


def _plain(annotation: Any) -> Any:
    return _Name(annotation) if isinstance(annotation, str) else annotation


class _Name(str):
    """Text that is printed without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _sections(value: Any) -> str:
    """Return a docstring in Markdown: text, then `Args:` and the like under their titles."""
    text, *rest = _SECTION.split(inspect.getdoc(value) or "")
    out = [_escaped(text.strip())]
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        body = inspect.cleandoc("\n" + body)
        out.append(f"**{title}**")
        out.append(f"```pycon\n{body}\n```" if title == "Example" else _items(body))
    return "\n\n".join(out) + "\n"


def _items(body: str) -> str:
    """Return `name: text` lines of a section, which go on where they are indented, as a list."""
    items = re.split(r"\n(?! )", body)
    if not all(re.match(r"[\w`, *.]+: ", each) for each in items):
        return _escaped(body)
    rows = []
    for each in items:
        names, _, text = each.partition(": ")
        rows.append(f"- `{names}`: {_escaped(' '.join(text.split()))}")
    return "\n".join(rows)


def flags_page() -> str:
    """Return docs/flags.md with the tables of today's flags."""
    before, mark, _ = FLAGS_PAGE.read_text().partition(FLAGS_MARK)
    return before + mark + flags()


if __name__ == "__main__":
    FLAGS_PAGE.write_text(flags_page())
