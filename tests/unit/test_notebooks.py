"""The notebooks in `examples/` as they are stored: their code parses, their outputs name no machine, commands are ours.

`processes/test_notebooks.py` executes them.
"""

from __future__ import annotations

import ast
import base64
import itertools
import re
from pathlib import Path

import pytest

from fabric_ppo.tools import cli
from tests.fixtures.launching import ROOT
from tests.fixtures.notebooks import EXAMPLES, NOTEBOOKS, cleaned, code_of, commands, read
from tests.fixtures.pages import parsed

MOST_BYTES = 100_000
"""Of a picture, so that the repository stays small."""
PLACES = re.compile(r"(?<![\w~.])/(?:home|Users|root|tmp|var|usr|opt|work|mnt|private)/")
"""Beginnings of paths that only one machine has."""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def test_the_page_of_the_folder_lists_every_notebook():
    listed = re.findall(r"^\| \[([\w.]+)\]\(\1\) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [path.name for path in NOTEBOOKS]
    assert len(NOTEBOOKS) == 4


@each_notebook
def test_it_begins_with_a_title_and_every_cell_of_code_is_introduced(path):
    cells = read(path).cells
    assert cells[0].cell_type == "markdown"
    assert re.match(r"# \w.*\n\n\w", cells[0].source)
    titles = [
        line for cell in cells if cell.cell_type == "markdown" for line in re.findall(r"^# .*", cell.source, re.M)
    ]
    assert len(titles) == 1
    pairs = [
        (before, cell) for before, cell in itertools.pairwise(cells) if before.cell_type == cell.cell_type == "code"
    ]
    # a cell that writes a program may be followed by one that runs it
    assert [(before.id, cell.id) for before, cell in pairs if not before.source.startswith("%%writefile")] == []


@each_notebook
def test_its_code_is_python(path):
    for cell in code_cells(path):
        ast.parse(code_of(cell), cell.id, feature_version=(3, 10))


@each_notebook
def test_it_was_executed_from_top_to_bottom_without_an_error(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data", "execute_result"), cell.id
            assert output.get("name", "stdout") == "stdout", cell.id
    assert any(cell.outputs for cell in cells)


@each_notebook
def test_it_is_stored_as_make_notebooks_writes_it(path):
    notebook = read(path)
    assert cleaned(notebook, Path("/no/such/folder")) == notebook
    assert "\x1b" not in path.read_text()


@each_notebook
def test_it_names_no_folder_of_a_machine(path):
    for cell in read(path).cells:
        texts = [cell.source, *(output.get("text", "") for output in cell.get("outputs", []))]
        texts += [output.data["text/plain"] for output in cell.get("outputs", []) if "data" in output]
        for text in texts:
            assert PLACES.findall(text) == [], cell.id


@pytest.mark.parametrize("text", ["run /tmp/x", "'/home/me/x'", "cd /root/a && b", "=/work/x", "(/Users/me/x)"])
def test_folders_of_a_machine_are_seen(text):
    assert PLACES.search(text)
    assert not PLACES.search("~/home/x a/tmp/b ../opt/c https://example.org/usr/share")


@each_notebook
def test_its_pictures_are_small(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            picture = base64.b64decode(output.get("data", {}).get("image/png", ""))
            assert len(picture) < MOST_BYTES, cell.id


@each_notebook
def test_its_links_lead_somewhere(path):
    for cell in read(path).cells:
        for link in re.findall(r"\]\(([^)]+)\)", cell.source) if cell.cell_type == "markdown" else []:
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve()
            assert target.is_file(), link
            assert target.is_relative_to(ROOT), link
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert not anchor or anchor in slugs, link


COMMANDS = [words for path in NOTEBOOKS for words in commands(read(path))]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_its_commands_have_options_that_exist(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if words[:3] != ["python", "-m", "fabric_ppo"]:
        (program,) = words[1:]
        assert any(f"%%writefile {program}\n" in cell.source for path in NOTEBOOKS for cell in code_cells(path))
    elif words[3] == "train":
        got = parsed(words)
        assert got.name == words[4]
        assert got.config.run_dir
    else:
        with pytest.raises(SystemExit) as ended:
            cli.main([words[3], "--help"])
        assert ended.value.code == 0
        listed = re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, re.MULTILINE)
        assert {word for word in words if word.startswith("--")} <= set(listed)


def test_the_commands_are_found():
    assert {words[3] for words in COMMANDS if len(words) > 3} >= {
        "train",
        "evaluate",
        "sweep",
        "compare",
        "plot",
        "report",
    }
    assert sum(words[3:4] == ["train"] for words in COMMANDS) == 6
