"""Player and trainers as processes: the same bits from run to run, the overlap's lag, the launcher."""

from __future__ import annotations

import json

import pytest

from tests.fixtures.launching import command, run
from tests.fixtures.resuming import finish


def trained(run_dir, num_trainers, **flags):
    """Weights' bytes and logged lines of a run of four updates."""
    finish("decoupled", 1 + num_trainers, run_dir, 4, num_steps=24, num_envs=4, **flags)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return (run_dir / "policy.safetensors").read_bytes(), lines


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("share_data", [False, True])
def test_a_seed_gives_the_same_bits_from_run_to_run(tmp_path, overlap, share_data):
    policies = [trained(tmp_path / name, 2, overlap=overlap, share_data=share_data)[0] for name in "ab"]
    assert policies[0] == policies[1]


def test_overlapping_lags_one_policy_behind(tmp_path):
    ours, lines = trained(tmp_path / "o", 1, overlap=True)
    other, plain = trained(tmp_path / "a", 1)
    assert [line["Info/policy_lag"] for line in lines] == [0, 1, 1, 1]
    assert [line["Info/policy_lag"] for line in plain] == [0, 0, 0, 0]
    assert ours != other
    # the first rollout and update are the same: only what is collected meanwhile differs
    assert lines[0]["Loss/policy_loss"] == plain[0]["Loss/policy_loss"]
    for line in lines:
        assert 0 <= line["Time/player_idle"] <= 1
        assert 0 <= line["Time/trainer_idle"] <= 1


def test_the_script_runs_as_it_is_launched(tmp_path):
    """By `fabric run --devices=3` alone; tests of the pages' commands name the accelerator, too."""
    flags = ("--num-envs", "4", "--num-steps", "16", "--total-timesteps", "130", "--test-episodes", "1")
    args = command("fabric_decoupled", 3, *flags)
    args = [arg for arg in args if not arg.startswith(("--strategy", "--accelerator"))]
    done = run(args, tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "logs" / "fabric_decoupled_logs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["script"], summary["world_size"], summary["env_steps"]) == ("fabric_decoupled", 3, 128)
    assert list(folder.glob("events.out.tfevents.*"))
