import json
import time

from fabric_ppo.config import TorchConfig
from fabric_ppo.process import profile
from tests.runs import run_ranks


def test_spans_count_for_themselves_alone():
    @profile.timed("loss")
    def inner():
        time.sleep(0.02)

    @profile.timed("backward")
    def outer():
        time.sleep(0.01)
        inner()
        inner()

    spans = profile.start()
    try:
        outer()
    finally:
        profile._current.clear()
    totals = dict(zip([*profile.PARTS, "other"], spans.totals(), strict=True))
    assert totals["loss"] >= 0.04
    assert 0.01 <= totals["backward"] < 0.04
    assert sum(totals.values()) >= 0.05


def test_without_a_profile_a_timed_function_is_itself():
    assert profile.timed("loss")(lambda x: x + 1)(1) == 2
    assert not profile._current


def test_the_table_has_each_ranks_share():
    totals = [[0.0] * len(profile.PARTS) + [1.0], [0.0] * len(profile.PARTS) + [1.0]]
    totals[0][0], totals[1][0] = 3.0, 1.0
    header, first, second = profile.table(totals, "rank").splitlines()
    assert header.split() == ["where", "the", "time", "went", "rank", "0", "rank", "1"]
    assert first.split() == ["environment", "3.00", "s", "75", "%", "1.00", "s", "50", "%"]
    assert second.split() == ["other", "1.00", "s", "25", "%", "1.00", "s", "50", "%"]


def test_a_run_leaves_a_trace_for_each_rank(tmp_path):
    config = TorchConfig(
        profile=True, num_steps=8, total_timesteps=64, update_epochs=1, test_episodes=1, run_dir=str(tmp_path / "run")
    )
    assert run_ranks("torch", [config] * 2) == ["", ""]
    for rank in range(2):
        events = json.loads((tmp_path / f"run/trace_rank_{rank}.json").read_text())["traceEvents"]
        spans = [event for event in events if event["ph"] == "X"]
        assert sum(event["name"] == "environment" for event in spans) == 2 * 8
        assert {"policy", "values", "batch", "loss", "backward", "optimizer", "report"} <= {e["name"] for e in spans}
        assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in spans)
