"""Runs of every earlier version are opened, played, compared and gone on with by this one.

What is expected was recorded by the version that wrote them (`tests/fixtures/old_runs.py`).
"""

from __future__ import annotations

import json
import math
import shutil

import pytest

from fabric_ppo import evaluate, load_run
from fabric_ppo.config import SCRIPT_CONFIGS
from fabric_ppo.run.resolve import resolve
from fabric_ppo.tools import cli
from fabric_ppo.tools.flags import flags_of_run
from tests.fixtures.launching import run_ranks
from tests.fixtures.old_runs import BEGUN, LONGER, RUNS, STEP_LIMIT, VERSIONS, acted, as_observations

KEPT = [(version, name) for version in VERSIONS for name in RUNS]


@pytest.fixture(params=KEPT, ids=lambda kept: f"{kept[0].name}-{kept[1]}")
def kept(request, tmp_path):
    """`(name, folder, what is expected of it)` of a run, copied."""
    version, name = request.param
    shutil.copytree(version / name, tmp_path / name)
    return name, tmp_path / name, json.loads((version / f"{name}.json").read_text())


def test_some_versions_are_kept():
    assert (VERSIONS[0].name, [path.name for path in sorted(VERSIONS[0].iterdir()) if path.is_dir()]) == (
        "version_0_1_0",
        sorted(RUNS),
    )
    files = [path for version in VERSIONS for path in version.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 320_000 * len(VERSIONS)


def close(numbers):
    """To rounding, on whatever processor."""
    return pytest.approx(numbers, rel=1e-4, abs=1e-5)


def test_its_agent_acts_as_it_did(kept):
    name, folder, expected = kept
    found = acted(folder, as_observations(expected["observations"], folder))
    assert found["values"] == close(expected["values"])
    if name == "normalized":
        assert [each for (each,) in found["actions"]] == close([each for (each,) in expected["actions"]])
    else:
        assert found["actions"] == expected["actions"]


def test_its_agent_plays_as_it_did(kept):
    _, folder, expected = kept
    played = evaluate(folder, episodes=2, seed=7, step_limit=STEP_LIMIT, own_code=True)
    assert list(played.returns) == close(expected["returns"])


def test_the_run_is_read(kept):
    name, folder, _ = kept
    run = load_run(folder)
    script, ranks, flags = RUNS[name]
    assert run.is_finished
    assert (run.summary["updates"], run.summary["world_size"]) == (BEGUN, ranks)
    assert {each: run.flags[each] for each in flags} == flags | (
        {"env_kwargs": {"sutton_barto_reward": True}} if name == "decoupled" else {}
    )
    assert run.metrics["update"].tolist() == [*range(1, BEGUN + 1)]
    assert all(math.isfinite(each) for each in run.metrics["Loss/value_loss"])
    assert run.summary["script"] == SCRIPT_CONFIGS[script].script


def test_a_run_goes_on_as_it_would_have(kept):
    """With more timesteps, to the agent that its own version would have had."""
    name, folder, expected = kept
    script, ranks, _ = RUNS[name]
    if not list((folder / "checkpoints").glob("*")):
        assert name == "images"
        pytest.skip("its checkpoints are too large to be kept")
    before = (folder / "metrics.jsonl").read_text()
    kind = SCRIPT_CONFIGS[script]
    flags = flags_of_run(str(folder), kind) | {"run_dir": str(folder), "resume": True}
    flags["total_timesteps"] *= LONGER // BEGUN
    assert run_ranks(script, [resolve(kind(**flags), ranks, ranks)] * ranks) == [""] * ranks
    run = load_run(folder)
    assert (run.summary["updates"], run.summary["resumes"]) == (LONGER, 1)
    assert (folder / "metrics.jsonl").read_text().startswith(before)
    values = acted(folder, as_observations(expected["observations"], folder))["values"]
    assert values == pytest.approx(expected["values_of_longer"], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("form", "ending"), [("onnx", ".onnx"), ("torchscript", ".pt")])
def test_its_agent_is_exported(kept, form, ending, capsys, tmp_path):
    """The export is compared with the agent before it is written."""
    _, folder, _ = kept
    status = cli.main(["export", str(folder), "--own-code", "--to", form, "--out", str(tmp_path / f"agent{ending}")])
    assert status == 0, capsys.readouterr().err
    assert (tmp_path / f"agent{ending}").is_file()


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_the_commands_take_them_all(version, capsys, tmp_path):
    folders = [str(version / name) for name in RUNS]
    assert cli.main(["runs", str(version), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["id"]: row["state"] for row in rows} == dict.fromkeys(RUNS, "done")
    assert cli.main(["compare", *folders, "--json"]) == 0
    compared = capsys.readouterr().out
    assert all(name in compared for name in RUNS)
    assert cli.main(["report", *folders, "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in RUNS)
    assert cli.main(["plot", *folders, "--out", str(tmp_path / "curves.svg")]) == 0
