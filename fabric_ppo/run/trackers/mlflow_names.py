"""Names for MLflow: only some characters, no paths outside of a folder, not too long."""

from __future__ import annotations

import hashlib
import re

_LONGEST = 250
"""Characters of a name of a metric or a tag."""


def mlflow_name(text: str) -> str:
    """Return a valid name for a tag or a metric of MLflow: the same name if it is valid.

    Else it ends with digits that depend on the text alone. So two texts have two names, and a resumed
    run has the same ones again.

    >>> mlflow_name("Game/x position"), mlflow_name("Game/x[0]")
    ('Game/x position', 'Game/x_0_ 9afbad77')
    """
    # MLflow takes a name for a path, which must be the shortest to its place
    parts = [part for part in re.sub(r"[^/\w.\- :]", "_", text).split("/") if part not in ("", ".", "..")]
    name = re.sub(r"^\.\.", "__", "/".join(parts)) or "_"
    if name == text and len(name) <= _LONGEST:
        return name
    ending = f" {hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name[: _LONGEST - len(ending)] + ending
