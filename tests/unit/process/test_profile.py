"""Spans of time: each counts for itself alone; the table of all ranks."""

import contextvars
import json
import threading
from types import SimpleNamespace

from fabric_ppo.process import profile
from fabric_ppo.process.group import ALONE


def test_spans_count_for_themselves_alone(monkeypatch):
    """By a clock that goes on only where something is done."""
    now = [0.0]
    monkeypatch.setattr(profile, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    @profile.timed("loss")
    def inner():
        now[0] += 2.0

    @profile.timed("backward")
    def outer():
        now[0] += 1.0
        inner()
        now[0] += 0.5
        inner()

    def profiled():
        spans = profile.Profile.start()
        outer()
        now[0] += 8.0
        return dict(zip([*profile.PARTS, "other"], spans.totals(), strict=True))

    totals = contextvars.copy_context().run(profiled)
    spent = {name: seconds for name, seconds in totals.items() if seconds}
    assert spent == {"loss": 4.0, "backward": 1.5, "other": 8.0}


def test_without_a_profile_a_timed_function_is_itself():
    assert profile.timed("loss")(lambda x: x + 1)(1) == 2
    assert profile._current.get() is None


def test_the_table_has_each_ranks_share():
    totals = [[0.0] * len(profile.PARTS) + [1.0], [0.0] * len(profile.PARTS) + [1.0]]
    totals[0][0], totals[1][0] = 3.0, 1.0
    header, first, second = profile.format_table(totals, "rank").splitlines()
    assert header.split() == ["where", "the", "time", "went", "rank", "0", "rank", "1"]
    assert first.split() == ["environment", "3.00", "s", "75", "%", "1.00", "s", "50", "%"]
    assert second.split() == ["other", "1.00", "s", "25", "%", "1.00", "s", "50", "%"]


@profile.timed("optimizer")
def optimized():
    return 5


def test_a_profile_that_is_finished_counts_no_more(tmp_path, capsys):
    """It prints its table, and its trace holds the spans up to there."""

    def profiled():
        spans = profile.Profile.start()
        assert optimized() == 5
        spans.finish(ALONE, tmp_path / "run", "player")
        optimized()
        assert profile._current.get() is None

    contextvars.copy_context().run(profiled)
    assert capsys.readouterr().out.splitlines()[0].split() == ["where", "the", "time", "went", "player", "0"]
    named, *spans = json.loads((tmp_path / "run/trace_rank_0.json").read_text())["traceEvents"]
    assert named["args"] == {"name": "rank 0"}
    assert [span["name"] for span in spans] == ["optimizer"]


def test_other_threads_have_no_part_in_it():
    """Their spans overlap with those of the thread that runs the loop."""

    def profiled():
        spans = profile.Profile.start()
        thread = threading.Thread(target=optimized)
        thread.start()
        thread.join()
        return spans.totals()[profile.PARTS.index("optimizer")]

    assert contextvars.copy_context().run(profiled) == 0.0
