"""Pages of `--help`: one layout for the scripts' flags and for all commands."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fabric_ppo.config import FLAG_GROUPS, Config, ProcessFlags, script_file
from fabric_ppo.config_values import choices_of, field_types, takes_float, takes_int
from fabric_ppo.process.errors import flag

HELP, HELP_ALL = ("-h", "--help"), "--help-all"
"""Flags that print a page: the one that fits most needs, and the one with all flags."""
ABOUT = {
    "torch": "PPO on raw PyTorch: each rank has environments and a copy of the agent.",
    "fabric": "PPO on Lightning Fabric: the same training, without the boilerplate.",
    "fabric_decoupled": "PPO with a player, which has the environments, and trainers, which optimise.",
}
"""Descriptions of the scripts, by `Config.script`."""
MOST_USED = (
    *("env_id", "num_envs", "config", "total_timesteps", "seed", "num_steps", "per_rank_batch_size"),
    *("update_epochs", "learning_rate", "anneal_lr", "gamma", "gae_lambda", "clip_coef", "ent_coef"),
    *("normalize_observations", "normalize_rewards", "hidden_sizes", "recurrent", "env_backend", "cuda"),
    *("overlap", "run_dir", "resume", "checkpoint_every", "eval_every", "stop_at_return", "capture_video"),
)
"""Flags on the short page."""
_METAVARS = {
    **{"env_id": "ID", "env_kwargs": "JSON", "optimizer_kwargs": "JSON", "config": "FILE"},
    **{"obs_keys": "KEYS", "critic_keys": "KEYS"},
    **{"run_dir": "DIR", "log_dir": "DIR", "init_from": "PATH"},
}
"""Stand-ins for the values of flags that take text; of others it is NAME."""
_COLUMN, _WIDEST = 30, 100
"""Column at which descriptions begin, and the greatest width of a page."""
_SENTENCE_END = re.compile(r"(?<=[^.\s]\.)\s+(?=[A-Z]|--|\d+:)")


@dataclass(frozen=True)
class Entry:
    """Row of a page: a flag, an argument or a command as it is written, and what it does."""

    names: str
    text: str


@dataclass(frozen=True)
class Section:
    """Titled rows of a page."""

    title: str
    entries: Sequence[Entry]


def page(usage: str, about: str, sections: Sequence[Section], footer: str = "") -> str:
    """Return a page of help, as wide as the terminal is, but no wider than 100 columns."""
    width = min(max(shutil.get_terminal_size().columns, 2 * _COLUMN), _WIDEST)
    blocks = [_wrap(f"usage: {usage}", width, hanging=11), _wrap(about, width)]
    for section in sections:
        rows = [line for entry in section.entries for line in _rows(entry, width)]
        blocks.append("\n".join([f"{section.title}:", *rows]))
    return "\n\n".join([*blocks, *([_wrap(footer, width)] if footer else [])])


def _rows(entry: Entry, width: int) -> Iterator[str]:
    """Yield the lines of an entry: its names, and its text beside them where there is room."""
    lines = _wrap(entry.text, width - _COLUMN).splitlines() or [""]
    first = f"  {entry.names}"
    if len(first) <= _COLUMN - 2:
        yield f"{first:<{_COLUMN}}{lines[0]}".rstrip()
        lines = lines[1:]
    else:
        yield first
    for line in lines:
        yield " " * _COLUMN + line


def _wrap(text: str, width: int, hanging: int = 0) -> str:
    """Return a text in lines of at most `width`; flags and paths are not cut at their hyphens."""
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    # a no-break space keeps `(default: 3)` in one piece
    text = text.replace("(default: ", "(default:\N{NO-BREAK SPACE}")
    return textwrap.fill(text, width, subsequent_indent=" " * hanging, **options).replace("\N{NO-BREAK SPACE}", " ")


def script_page(config: Config, prog: str, everything: bool, more: Sequence[Section] = ()) -> str:
    """Return the page of a script.

    Args:
        config: flags whose values are shown as the defaults.
        prog: command that the usage begins with.
        everything: True for all flags and all of their descriptions, False for those of
            `MOST_USED`, with the first sentence of each.
        more: sections of the launcher, shown first.
    """
    sections = [*more, *_flag_sections(config, everything)]
    own = [Entry(", ".join(HELP), "Show the flags that most runs need."), Entry(HELP_ALL, "Show all flags.")]
    about = ABOUT[config.script]
    if not everything:
        about += f" These are the flags that most runs need; {HELP_ALL} shows all {len(dataclasses.fields(config))}."
    footer = "A flag without a value is a switch; with --no- before its name it is off. "
    footer += "Whole numbers may be written as 1e6, 500k or 1M."
    return page(f"{prog} [FLAGS]", about, [*sections, Section("Help", own)], footer)


def _flag_sections(config: Config, everything: bool) -> Iterator[Section]:
    """Yield the groups of flags, but for those of which nothing is shown."""
    kind = type(config)
    texts = field_docs(kind)
    own = [field.name for field in dataclasses.fields(kind) if field.name not in field_types(Config)]
    for group in FLAG_GROUPS:
        names = [field.name for field in dataclasses.fields(group)]
        # the flags that one script alone has are about devices
        names += own if group is ProcessFlags else []
        shown = [name for name in names if everything or name in MOST_USED]
        entries = [_flag_entry(config, name, texts[name], everything) for name in shown]
        if entries:
            yield Section((group.__doc__ or "").rstrip("."), entries)


def _flag_entry(config: Config, name: str, text: str, everything: bool) -> Entry:
    """Return the row of a flag, with the default at the end of its text."""
    kind, value = field_types(type(config))[name], getattr(config, name)
    text = text if everything else _SENTENCE_END.split(text)[0]
    if value is not None:
        text += f" (default: {_format_default(value)})"
    if kind is bool:
        return Entry(flag(name) + (f", {flag('no_' + name)}" if value else ""), text)
    return Entry(f"{flag(name)} {_metavar(name, kind)}", text)


def _format_default(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metavar(name: str, kind: Any) -> str:
    """Return the stand-in for a flag's value: its choices, N and X for numbers, a word for text."""
    if choices := choices_of(kind):
        return "{" + ",".join(choices) + "}"
    if kind == tuple[int, ...]:
        return "N [N ...]"
    if takes_int(kind):
        return "N"
    return "X" if takes_float(kind) else _METAVARS.get(name, "NAME")


def field_docs(config_type: type) -> dict[str, str]:
    """Return field name -> the string below it in its class, in one line; nothing without source."""
    found: dict[str, str] = {}
    for owner in reversed([each for each in config_type.__mro__ if "__dataclass_fields__" in vars(each)]):
        try:
            (tree,) = ast.parse(inspect.getsource(owner)).body
        except OSError:
            continue
        assert isinstance(tree, ast.ClassDef)
        for field, below in itertools.pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                assert isinstance(below.value, ast.Constant)
                found[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return {field.name: found.get(field.name, "") for field in dataclasses.fields(config_type)}


def default_usage(config_type: type[Config]) -> str:
    """Return the command that starts a script, for the usage on its page."""
    return f"python {script_file(config_type)}"
