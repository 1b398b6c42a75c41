"""The code that an agent is built of and acts with: a policy file has its digests."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
_FILES = ("agent", "bounds_scale", "distributions", "encoders", "memory", "mlp", "normalize")


def agent_code() -> dict[str, str]:
    """Return the files that decide what an agent computes, name -> digest."""
    paths = [_PACKAGE / "agents" / f"{name}.py" for name in _FILES]
    return {path.relative_to(_PACKAGE.parent).as_posix(): digest(path) for path in paths}


@functools.cache
def digest(path: Path) -> str:
    """Return a digest of a file as it was at the first call, which is the code that runs."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def other_code(metadata: Mapping[str, Any]) -> str:
    """Return a sentence on the files that differ from those that a policy was trained with; empty for none.

    Args:
        metadata: of a policy file, or the values of a checkpoint. Files of older versions have no
            digests, and count as equal.
    """
    try:
        before = json.loads(metadata["code"]) if "code" in metadata else metadata["surroundings"]["code"]
        changed = [name for name, current in agent_code().items() if before.get(name, current) != current]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return ""
    if not changed:
        return ""
    return f"trained with other code ({', '.join(changed)}): with the code that is here it may act otherwise"
