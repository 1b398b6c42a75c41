"""The report of the run that has just finished, as `make train` makes it."""

from __future__ import annotations

import os

import pytest

from fabric_ppo.tools.report.after_training import finished_since, main
from tests.fixtures.run_folders import columns, write_run


@pytest.fixture
def marker(tmp_path):
    """A file that is older than all that comes later."""
    path = tmp_path / "marker"
    path.touch()
    os.utime(path, ns=(10**18, 10**18))
    return path


def finished(folder, seconds):
    """A run that finished so many seconds after the marker."""
    run = write_run(folder, columns(1))
    at = 10**18 + seconds * 10**9
    os.utime(run / "summary.json", ns=(at, at))
    return run


def test_it_is_the_one_that_finished_last(tmp_path, monkeypatch, marker):
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "logs/a_logs/1", -5)
    assert finished_since(marker, []) is None
    finished(tmp_path / "logs/a_logs/2", 5)
    newest = finished(tmp_path / "logs/a_logs/3", 9)
    finished(tmp_path / "logs/a_logs/4", 7)
    assert (tmp_path / finished_since(marker, ["--env-id", "X", "--seed=3"])) == newest


@pytest.mark.parametrize("flags", [["--run-dir", "mine/r"], ["--run_dir=mine/r"], ["--log-dir", "mine", "--cuda"]])
def test_the_flags_say_where(tmp_path, monkeypatch, marker, flags, capsys):
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "logs/other", 9)
    finished(tmp_path / "mine/r", 5)
    main([str(marker), *flags])
    assert capsys.readouterr().out == "report  mine/r/report.html\n"
    assert (tmp_path / "mine/r/report.html").is_file()


def test_a_report_that_cannot_be_written_costs_a_warning(tmp_path, marker, capsys):
    (finished(tmp_path / "r", 5) / "report.html").mkdir()
    main([str(marker), "--run-dir", str(tmp_path / "r")])
    assert capsys.readouterr().err.startswith("warning: no report: --out ")
