"""Methods of the user's callbacks and trackers that nothing calls, such as misspelt ones."""

from __future__ import annotations

from difflib import get_close_matches

from fabric_ppo.process.console import print_from_rank_zero

_LIKENESS = 0.8


def uncalled_methods(part: object, kind: type) -> dict[str, str]:
    """Return the methods of a part whose names are similar to those of called methods, but not equal.

    Args:
        part: a callback or a tracker.
        kind: class whose methods are called.

    Returns:
        Name -> the method that was probably meant; empty for none.
    """
    called = [name for name, each in vars(kind).items() if not name.startswith("_") and callable(each)]
    event = "on_" if all(name.startswith("on_") for name in called) else None
    own = [name for name in dir(type(part)) if not name.startswith("_") and not hasattr(kind, name)]
    found = {}
    for name in own:
        close = get_close_matches(name.lower(), called, 1, _LIKENESS)
        if callable(getattr(type(part), name)) and (close or (event and name.startswith(event))):
            found[name] = close[0] if close else ""
    return found


def print_uncalled_methods(part: object, kind: type, name: str) -> None:
    """Print a line for each method of `uncalled_methods`; `name` is the part's."""
    for method, meant in uncalled_methods(part, kind).items():
        hint = f"; did you mean {meant}?" if meant else ""
        print_from_rank_zero(f"warning: {name}: {method} is none of the methods that are called{hint}")
