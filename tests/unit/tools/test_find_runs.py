"""Runs in folders: all of them, each once, whatever else is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.tools.find_runs import find_runs, named_runs
from tests.fixtures.logged_runs import write_run


def found_in(folder):
    errors = []
    paths = [path.relative_to(folder).as_posix() for path in find_runs(folder, errors.append)]
    assert errors == []
    return paths


def test_runs_are_found_at_any_depth_and_in_a_run(tmp_path):
    for name in ("b", "a/x/y/z", "a/x", "."):
        write_run(tmp_path / name, [1.0])
    assert found_in(tmp_path) == [".", "a/x", "a/x/y/z", "b"]


def test_a_run_of_which_one_file_is_left_is_found(tmp_path):
    for name, kept in (("a", "config.yaml"), ("b", "metrics.jsonl"), ("c", "summary.json")):
        for file in write_run(tmp_path / name, [1.0], test=[1.0]).iterdir():
            if file.name != kept:
                file.unlink()
    (tmp_path / "d/checkpoints").mkdir(parents=True)
    (tmp_path / "d/checkpoints/update_3.ckpt").touch()
    damaged = write_run(tmp_path / "e", [])
    (damaged / "config.yaml").write_text("{")
    (damaged / ".lock").touch()
    assert found_in(tmp_path) == ["a", "b", "c", "d", "e"]


def test_files_and_folders_of_other_programs_are_no_runs(tmp_path):
    write_run(tmp_path / "run", [1.0])
    write_run(tmp_path / ".hidden/run", [1.0])
    write_run(tmp_path / "run/checkpoints/copy", [1.0])
    for name, text in (("config.yaml", "lr: 1"), ("summary.json", '{"a": 1}'), ("metrics.jsonl", '{"loss": 1}\n')):
        (tmp_path / name.replace(".", "-")).mkdir()
        (tmp_path / name.replace(".", "-") / name).write_text(text)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/other.ckpt").touch()
    assert found_in(tmp_path) == ["run"]


def test_links_to_runs_elsewhere_are_followed_and_no_others(tmp_path):
    logs = tmp_path / "logs"
    write_run(logs / "run", [1.0])
    write_run(tmp_path / "elsewhere/run", [1.0])
    for name, target in (
        ("latest", "run"),
        ("other", "../elsewhere/run"),
        ("again", "../elsewhere/run"),
        ("around", "."),
        ("all", "../elsewhere"),
        ("root", "/"),
        ("gone", "nowhere"),
        ("self", "self"),
    ):
        (logs / name).symlink_to(target)
    assert found_in(logs) == ["run", "again"]
    (tmp_path / "link").symlink_to(logs)
    assert found_in(tmp_path / "link") == ["run", "again"]


def test_a_folder_that_cannot_be_read_is_told_and_the_rest_is_found(tmp_path, monkeypatch):
    for name in ("a", "b/x", "c"):
        write_run(tmp_path / name, [1.0])
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    errors = []
    assert [path.name for path in find_runs(tmp_path, errors.append)] == ["a", "c"]
    assert [Path(error.filename).name for error in errors] == ["b"]


def test_words_name_runs_folders_of_runs_and_patterns(tmp_path, monkeypatch):
    for name in ("suite/seed_1", "suite/seed_2", "a_1", "a_2", "odd[1]"):
        write_run(tmp_path / name, [1.0])
    (tmp_path / "a_file").touch()
    monkeypatch.chdir(tmp_path)

    def names(*words):
        return [str(run) for run in named_runs(words)]

    assert names("a_2", "a_1", "./a_2") == ["a_2", "a_1"]
    assert names("suite") == names("suite/seed_*") == names("su*") == ["suite/seed_1", "suite/seed_2"]
    assert names("a_*") == ["a_1", "a_2"]
    assert names("odd[1]") == ["odd[1]"]


@pytest.mark.parametrize("word", ["nothing", "empty", "*_3", "file", "e*", "nul\0"])
def test_a_word_without_a_run_is_refused_in_one_line(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", [1.0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^[^\n]*(expected)[^\n]*$") as caught:
        named_runs(["run", word])
    assert word.rstrip("\0") in str(caught.value)
