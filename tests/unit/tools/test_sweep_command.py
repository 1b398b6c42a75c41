"""`sweep`: its flags, each refused in one line before anything is written."""

from __future__ import annotations

import sys

import pytest

from fabric_ppo.tools import cli
from tests.fixtures.sweeps import TINY

pytestmark = pytest.mark.usefixtures("no_launcher")

REFUSED = {
    "": "sweep: SPACE, a YAML file of flags, or --resume DIR is expected",
    "space.yaml more": "more: one SPACE is expected, and no more",
    "nothing.yaml": "sweep nothing.yaml: cannot be read (No such file or directory)",
    "space.yaml --trials 0": "--trials 0: a whole number from 1 up is expected",
    "space.yaml --seeds 0": "--seeds 0: a whole number from 1 up is expected",
    "space.yaml --jobs 0": "--jobs 0: a whole number from 1 up is expected",
    "space.yaml --jobs x": "--jobs x: a whole number is expected",
    "space.yaml --lost-after 0": "--lost-after 0: a number above 0 is expected",
    "space.yaml --pruner best": "--pruner invalid choice: 'best'",
    "space.yaml --study a/b": "--study a/b: letters, digits and . + - _ are expected",
    "space.yaml --storage here": "--storage here: sqlite:///FILE",
    "space.yaml --n-seeds 3": "--n-seeds: unknown flag; here it is --seeds",
    "--resume nowhere": "--resume nowhere: holds no sweep",
    "--resume nowhere --seeds 4": "--resume nowhere: --seeds is that of the sweep; besides, --trials",
    "space.yaml --resume nowhere": "--resume nowhere: SPACE is that of the sweep",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_work_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, words):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(TINY)
    assert cli.main(["sweep", *words.split()]) == 2
    said, errors = capsys.readouterr()
    assert said == ""
    assert errors.startswith(f"error: {REFUSED[words]}")
    assert errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert cli.main(["sweep", "space.yaml"]) == 2
    assert capsys.readouterr().err == "error: sweep: needs optuna: pip install optuna\n"
