"""Pages of the documentation site from notebooks, with the outputs that are stored in them."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_WRITES = re.compile(r"%%writefile (\S+)\n")


class Page(NamedTuple):
    """A notebook as Markdown, and the pictures that lie beside it, name -> content."""

    text: str
    pictures: dict[str, bytes]


def page(path: Path) -> Page:
    """Return the page of a notebook: prose as it is, code and what it printed in fences, pictures as links.

    Links are those of the notebook. The pictures' names begin with that of the notebook.

    Raises:
        ValueError: an output is an error.
    """
    pictures: dict[str, bytes] = {}
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(_code(source) if cell["cell_type"] == "code" else source)
        # a cell that writes a file prints only its name, which is the title of the block
        outputs = [] if _WRITES.match(source) else cell.get("outputs", [])
        for number, output in enumerate(outputs, start=1):
            if output["output_type"] == "error":
                raise ValueError(f"{path.name}: the output of {cell['id']} is an error")
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{cell['id']}-{number}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![Output of the code above]({name})")
            else:
                parts.append(fence(_STYLE.sub("", _text(output)), "text"))
    return Page("\n\n".join(part for part in parts if part) + "\n", pictures)


def _text(output: dict[str, Any]) -> str:
    return "".join(output.get("text") or output["data"]["text/plain"])


def _code(source: str) -> str:
    """Return the fence of a cell; of one that writes a file it has the file's content, and its name as the title."""
    found = _WRITES.match(source)
    if found is None:
        return fence(source, "python")
    return fence(source[found.end() :], f'{language(found[1])} title="{found[1]}"')


def language(path: str) -> str:
    """Return the language that a file's text is shown in."""
    return {".py": "python", ".yaml": "yaml"}.get(Path(path).suffix, "text")


def fence(text: str, head: str) -> str:
    """Return a fenced block, whose marks are longer than any in the text; empty for an empty text."""
    marks = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{marks}{head}\n{text.rstrip()}\n{marks}" if text.strip() else ""
