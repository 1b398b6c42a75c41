"""Hints for flags that no script has: those of other PPO programs by their names, and slips."""

from __future__ import annotations

from collections.abc import Collection

from fabric_ppo.config import SCRIPT_CONFIGS, Config, script_file
from fabric_ppo.config_names import nearest_name, other_name
from fabric_ppo.config_values import field_types
from fabric_ppo.process.errors import flag


def flag_hint(word: str, known: Collection[str]) -> str:
    """Return a hint for the error about a flag that a script does not have.

    Args:
        word: the flag, with hyphens, such as `--lr`.
        known: flags that the script has, those with `--no-` included.
    """
    if owners := [kind for kind in SCRIPT_CONFIGS.values() if word in map(flag, field_types(kind))]:
        hint = "; fabric run takes --accelerator=cuda" if word == "--cuda" else ""
        return f"it is one of {' and '.join(map(script_file, owners))}{hint}"
    if hint := _other_name(word):
        return hint
    nearest = nearest_name(word, known)
    return f"did you mean {nearest}?" if nearest else "see --help-all for the flags"


def _other_name(word: str) -> str:
    """Return what another program's flag is here; nothing for a word that is no such flag."""
    found, note = other_name(word.removeprefix("--").lower().replace("-", "_"), field_types(Config))
    return note if note else f"here it is {flag(found)}" if found else ""
