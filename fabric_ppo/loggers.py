"""Where metrics go besides TensorBoard: `metrics.jsonl`, the same scalars, one line an update."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLines:
    """Appends one JSON object a line."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending."""
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(values) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def markdown_table(values: Mapping[str, Any]) -> str:
    """Hyperparameters as TensorBoard's text plugin shows them."""
    rows = "\n".join(f"|{name}|{value}|" for name, value in values.items())
    return f"|hyperparameter|value|\n|-|-|\n{rows}"
