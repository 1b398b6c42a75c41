"""A run's folder from Python, whatever state the run is in."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.result import RunResult, load_run
from tests.fixtures.configs import TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose third update alone has an evaluation."""
    folder = tmp_path_factory.mktemp("result") / "run"
    return train(Config(**TINY, eval_every=3, eval_episodes=1, checkpoint_every=1, run_dir=folder), verbose=False)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_result_is_what_the_files_say(run):
    assert run.run_dir == Path(run)
    assert run.is_finished
    assert run.summary == json.loads((run / "summary.json").read_text())
    written = lines(run)
    assert set(run.metrics) == {name for line in written for name in line}
    for name, column in run.metrics.items():
        assert column.shape == (3,)
        np.testing.assert_array_equal(column, [line.get(name, math.nan) for line in written])
    assert run.metrics["update"].tolist() == [1, 2, 3]
    assert run.metrics["update"].dtype == run.metrics["step"].dtype == np.int64
    assert np.isnan(run.metrics["Eval/return_mean"]).tolist() == [True, True, False]


def test_the_metrics_are_a_table(run):
    pandas = pytest.importorskip("pandas")
    assert pandas.DataFrame(run.metrics).shape == (3, len(run.metrics))


def test_the_metrics_are_a_table_of_polars(run):
    polars = pytest.importorskip("polars")
    assert polars.DataFrame(run.metrics).shape == (3, len(run.metrics))


def test_a_folder_gives_the_same_again(run):
    again = load_run(str(run))
    assert again.summary == run.summary
    assert again.run_dir == run.run_dir
    obs = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(again.agent.value(obs), run.agent.value(obs))
    assert again.agent is again.agent
    assert repr(again) == repr(run)
    test = run.summary["test"]
    expected = f"CartPole-v1, 192 steps, return {test['return_mean']:.1f} in 2 test episodes"
    assert repr(run) == f"RunResult({str(run)!r}: {expected})"


def test_a_run_that_has_not_finished(run, tmp_path, capsys):
    """As a kill in the middle of a write leaves it."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/update_2.ckpt").write_bytes((run / "checkpoints/update_2.ckpt").read_bytes())
    whole = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(whole[:2]) + whole[2][:40])
    stopped = load_run(tmp_path)
    assert (stopped.is_finished, stopped.summary) == (False, {})
    assert stopped.metrics["update"].tolist() == [1, 2]
    assert "Eval/return_mean" not in stopped.metrics
    assert stopped.agent.act(np.ones(4, np.float32)) in (0, 1)
    assert capsys.readouterr().err.count("\n") == 1
    assert repr(stopped) == f"RunResult({str(tmp_path)!r}: not finished, 2 updates logged)"


@pytest.mark.parametrize("summary", ["", "[]", "{}", "7", '{"updates": 3, "test": {}}', '{"updates": 1, "test": null}'])
def test_a_folder_in_any_state_has_a_repr(tmp_path, summary):
    (tmp_path / "summary.json").write_text(summary)
    (tmp_path / "policy.safetensors").write_bytes(b"")
    run = load_run(tmp_path)
    assert repr(run).startswith("RunResult(")
    assert run.metrics == {}


def test_a_folder_without_a_run_is_refused(tmp_path):
    (tmp_path / "config.txt").touch()
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "config.txt"):
        with pytest.raises(ConfigError, match=rf"^{folder}: holds no run; the folder of a run is expected$"):
            load_run(folder)
    assert "missing" in repr(RunResult(tmp_path / "missing"))


def test_of_a_damaged_file_is_read_what_can_be(tmp_path):
    """Text, lists and numbers without bounds where a metric is expected; counts that are none."""
    lines = [
        '{"step": 8, "update": 1, "a": 1.5, "b": "x"}',
        '{"step": 16, "update": 2, "a": [1], "b": 1%s}' % ("0" * 400),
    ]
    lines += [
        '{"step": 24, "update": 3, "a": NaN, "b": -Infinity}',
        '{"update": 4, "a": 9}',
        '{"step": 40, "update": 5}',
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    metrics = load_run(tmp_path).metrics
    assert metrics["step"].tolist() == [8, 16, 24]
    np.testing.assert_array_equal(metrics["a"], [1.5, np.nan, np.nan])
    np.testing.assert_array_equal(metrics["b"], [np.nan, np.nan, -np.inf])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("learn", "; train(Config(run_dir=RUN_DIR, resume=True)) goes on with it, and train(Config(init_from="),
        ("save", "; its files lie in run_dir already"),
        ("predict", "; its agent has that, as in run.agent.act(obs)"),
        ("evaluate", "; evaluate(run) plays test episodes"),
        ("history", "; metrics has what was logged"),
        ("sumary", "; did you mean summary?"),
        ("nonsense", ""),
        ("_repr_html_", ""),
    ],
)
def test_what_a_run_does_not_have_is_answered_with_what_does_it(name, hint, tmp_path):
    with pytest.raises(AttributeError) as caught:
        getattr(RunResult(tmp_path), name)
    text = f"'RunResult' object has no attribute {name!r}"
    assert str(caught.value).startswith(text + hint)
    assert hint or str(caught.value) == text
    assert not hasattr(RunResult(tmp_path), name)
