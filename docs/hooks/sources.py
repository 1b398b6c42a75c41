"""Pages of the documentation site, from the files of the repository.

Links are those of the repository, and two kinds of paragraphs bring in code as it is when the site
is built (on GitHub they are links):

    Code: [`ppo_loss`](../fabric_ppo/ppo/loss.py "log_ratio to policy_loss")
    Diff: [`train_torch.py`](../train_torch.py) [`train_fabric.py`](../train_fabric.py)

The first is a function, or those of its lines that begin with the statement which assigns the first
name and end with the one which assigns the second. Without a function's name it is the whole file.
"""

from __future__ import annotations

import ast
import difflib
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

import notebooks

ROOT = Path(__file__).resolve().parents[2]
FRONT = "index.md"
"""Page that README.md becomes."""
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#+) (.*)$", re.MULTILINE)
_LINK = re.compile(r'(?P<before>(?:\[(?P<text>[^\[\]]*))?\]\(|src=")(?P<target>[^)"\s]+)')
_LIST = re.compile(r"^(?![-\s|]|\d+\. )(.+\n)(?=- |\d+\. )", re.MULTILINE)
"""Line of a paragraph before a list without a blank line between, which Python-Markdown needs."""
_CODE = re.compile(r'^Code: \[`([^`]+)`\]\(([^)\s]+)(?: "(\w+)(?: to (\w+))?")?\)$', re.MULTILINE)
_DIFF = re.compile(r"^Diff: \[`[^`]+`\]\(([^)]+)\) \[`[^`]+`\]\(([^)]+)\)$", re.MULTILINE)


def slug(title: str, separator: str = "-") -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", title.strip().lower()).replace(" ", separator)


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """Apply a change to a text between its fenced blocks."""
    blocks = _FENCE.findall(text)
    parts = [change(part) for part in _FENCE.split(text)]
    return "".join(part + block for part, block in zip(parts, [*blocks, ""], strict=True))


def page_name(path: str) -> str:
    """Return the site's name for a file of the repository; of code and of folders a page shows the contents."""
    if path == "README.md":
        return FRONT
    name = path.removeprefix("docs/")
    if name.endswith(".ipynb"):
        return name.removesuffix(".ipynb") + ".md"
    return name if Path(path).suffix in (".md", ".svg", ".gif", ".webp", ".png") else f"{name}.md"


class Site:
    """All files of the site: pages, name -> Markdown, files to copy, name -> path, and notebooks' pictures."""

    def __init__(self) -> None:
        """Read the repository."""
        self.texts: dict[str, str] = {}
        self.files: dict[str, Path] = {}
        self.pictures: dict[str, bytes] = {}
        self._add("README.md")
        for path in (*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*.ipynb"))):
            self._add(path.relative_to(ROOT).as_posix())

    def _add(self, path: str) -> None:
        """Add a file of the repository, and all that it links to."""
        name, where = page_name(path), ROOT / path
        if name in self.texts or name in self.files:
            return
        if name == path.removeprefix("docs/") and where.suffix != ".md":
            self.files[name] = where
            return
        self.texts[name] = ""  # so that two pages may link to each other
        if where.suffix == ".ipynb":
            text, pictures = notebooks.page(where)
            self.pictures |= {posixpath.join(posixpath.dirname(name), each): pictures[each] for each in pictures}
        else:
            text = _shown(path) if where.suffix != ".md" else where.read_text()
        self.texts[name] = self._linked(with_code(text, where.parent), path, name)

    def _linked(self, text: str, path: str, name: str) -> str:
        """Return a text with links as the site has them, and add what they lead to.

        Args:
            text: Markdown.
            path: its file in the repository.
            name: its page.
        """

        def link(found: re.Match[str]) -> str:
            if re.match(r"\w+:", found["target"]):
                return found[0]
            target, _, anchor = found["target"].partition("#")
            goal = posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) if target else path
            if goal in self.pictures:
                return found[0]
            assert (ROOT / goal).exists(), f"{path}: {found['target']} is not there"
            page = page_name(goal)
            self._add(goal)
            before = found["before"]
            if found["text"] == goal and page in self.texts:
                before = f"[{title_of(goal)}]("  # a page's title reads better than its file's name
            address = posixpath.relpath(page, posixpath.dirname(name) or ".") if page != name or not anchor else ""
            return before + address + (f"#{anchor}" if anchor else "")

        return outside_fences(text, lambda part: _LINK.sub(link, _LIST.sub(r"\1\n", part)))


def title_of(path: str) -> str:
    """Return the title of a file's page, or the path of a file without one."""
    where = ROOT / path
    if where.suffix not in (".md", ".ipynb"):
        return path
    found = _HEADING.search(where.read_text() if where.suffix == ".md" else notebooks.page(where).text)
    return found[2] if found else path


def _shown(path: str) -> str:
    """Return a page that shows a file, or all files of a folder."""
    where = ROOT / path
    files = sorted(each for each in where.iterdir() if each.is_file()) if where.is_dir() else [where]
    blocks = [
        f"## {each.name}\n\n" * where.is_dir() + notebooks.fence(each.read_text(), notebooks.language(each.name))
        for each in files
    ]
    return f"# `{path}`\n\n" + "\n\n".join(blocks) + "\n"


def with_code(text: str, folder: Path) -> str:
    """Return a page with the code of its paragraphs `Code:` and `Diff:`; their paths are relative to `folder`."""

    def code(found: re.Match[str]) -> str:
        path = folder / found[2]
        first, shown = 1, path.read_text()
        if not found[1].endswith(".py"):
            first, shown = snippet(shown, found[1], found[3] or "", found[4] or found[3] or "")
        caption = f"{path.resolve().relative_to(ROOT).as_posix()}: {found[1]}" if first > 1 else found[1]
        return f'```python title="{caption}" linenums="{first}"\n{shown.rstrip()}\n```'

    def diff(found: re.Match[str]) -> str:
        old, new = (folder / name for name in found.groups())
        lines = [each.read_text().splitlines() for each in (old, new)]
        shown = "\n".join(difflib.unified_diff(*lines, old.name, new.name, lineterm=""))
        return f'```diff title="diff {old.name} {new.name}"\n{shown}\n```'

    return _DIFF.sub(diff, _CODE.sub(code, text))


def snippet(source: str, function: str, first: str = "", last: str = "") -> tuple[int, str]:
    """Return lines of a function, and the number of the first one in its file.

    Args:
        source: text of the file.
        function: its name, or `Class.method`.
        first, last: names; the lines are those from the first statement that assigns the one, with
            the comment above it, to the last that assigns the other; `return` stands for the
            statement that returns. Empty: the whole function.

    Raises:
        ValueError: there is no such function, or no such assignment in it.
    """
    node: ast.AST = ast.parse(source)
    for name in function.split("."):
        found = [each for each in ast.walk(node) if each is not node and getattr(each, "name", None) == name]
        if not found:
            raise ValueError(f"no {function} in the file")
        node = found[0]
    assert isinstance(node, (ast.FunctionDef, ast.ClassDef))
    lines = source.splitlines()
    start, stop = min([node.lineno, *(each.lineno for each in node.decorator_list)]), node.end_lineno
    if first:
        start = min(_assignments(node, first, function), key=lambda each: each.lineno).lineno
        stop = max(_assignments(node, last, function), key=lambda each: each.lineno).end_lineno
        while lines[start - 2].lstrip().startswith("#"):
            start -= 1
    shown = lines[start - 1 : stop]
    indent = min(len(line) - len(line.lstrip()) for line in shown if line.strip())
    return start, "\n".join(line[indent:] for line in shown)


def _assignments(function: ast.AST, name: str, where: str) -> list[ast.stmt]:
    """Return the statements of a function that assign a name, also as one of several or by `+=`."""
    found: list[ast.stmt] = []
    for node in ast.walk(function):
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, (ast.AnnAssign, ast.AugAssign)) else targets
        found_names = [each for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
        names = {each.id for each in found_names if isinstance(each.ctx, ast.Store)}
        if isinstance(node, ast.stmt) and (name in names or (name == "return" and isinstance(node, ast.Return))):
            found.append(node)
    if not found:
        raise ValueError(f"{where} assigns no {name}")
    return found
