"""Pages of the documentation site from notebooks: prose, code, what is printed, and pictures, in their order."""

from __future__ import annotations

import base64
import json
import re

import pytest

from tests.fixtures.notebooks import NOTEBOOKS, read
from tests.fixtures.site_hooks import notebooks


def cell(kind, source, *outputs):
    """A cell as Jupyter stores it: texts are lists of lines."""
    made = {"cell_type": kind, "id": "a-cell", "metadata": {}, "source": source.splitlines(keepends=True)}
    return made | ({"outputs": list(outputs), "execution_count": 1} if kind == "code" else {})


def printed(text):
    return {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}


def result(**data):
    names = {"text": "text/plain", "picture": "image/png"}
    shown = {names[kind]: value for kind, value in data.items()}
    return {"output_type": "execute_result", "metadata": {}, "execution_count": 1, "data": shown}


@pytest.fixture
def page(tmp_path):
    """The page of a notebook of some cells."""

    def make(*cells):
        path = tmp_path / "first.ipynb"
        path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
        return notebooks.page(path)

    return make


def test_cells_become_prose_and_fences_in_their_order(page):
    made = page(
        cell("markdown", "# Title\n\nSee [it](other.ipynb)."),
        cell("code", "x = 1\nx", printed("one\ntwo\n"), result(text=["1"])),
        cell("code", "pass"),
        cell("markdown", "The end."),
    )
    expected = (
        "# Title\n\nSee [it](other.ipynb).\n\n```python\nx = 1\nx\n```\n\n```text\none\ntwo\n```\n\n```text\n1\n```\n\n"
        "```python\npass\n```\n\nThe end.\n"
    )
    assert made == (expected, {})


def test_a_picture_is_a_file_beside_the_page_and_replaces_its_text(page):
    content = b"\x89PNG picture"
    coded = base64.b64encode(content).decode() + "\n"
    made = page(cell("code", "draw()", printed("drawn"), result(picture=coded, text="<Figure>")))
    assert made.pictures == {"first-a-cell-2.png": content}
    assert made.text.endswith("```text\ndrawn\n```\n\n![Output of the code above](first-a-cell-2.png)\n")
    assert "Figure" not in made.text


def test_a_cell_that_writes_a_file_is_shown_as_the_file(page):
    made = page(cell("code", "%%writefile space.yaml\nseed: 1\n", printed("Writing space.yaml\n")))
    assert made.text == '```yaml title="space.yaml"\nseed: 1\n```\n'
    assert page(cell("code", "%%writefile my.py\nx = 1\n")).text == '```python title="my.py"\nx = 1\n```\n'


def test_styles_of_a_terminal_are_left_out(page):
    assert page(cell("code", "x", printed("\x1b[1;32mbold\x1b[0m"))).text.endswith("```text\nbold\n```\n")


def test_a_fence_in_an_output_does_not_end_its_fence(page):
    assert page(cell("code", "x", printed("````\nx\n````"))).text.endswith("`````text\n````\nx\n````\n`````\n")


def test_an_error_is_not_published(page):
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    with pytest.raises(ValueError, match="a-cell"):
        page(cell("code", "x", error))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_our_notebooks_is_lost(path):
    text, pictures = notebooks.page(path)
    cells = read(path).cells
    assert text.startswith("# ")
    for each in cells:
        source = re.sub(r"^%%writefile .*\n", "", each.source)
        assert source.strip() in text, each.id
    drawn = [output for each in cells for output in each.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(pictures) == len(drawn) > 0
    assert all(content.startswith(b"\x89PNG") and f"({name})" in text for name, content in pictures.items())
