"""The door for callbacks, tried with some that the package does not know."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.run import evaluation
from tests.fixtures.launching import COLLECTORS, printed_in_fork
from tests.fixtures.parts import MODULE, notes, outcome, trained, write_parts
from tests.fixtures.resuming import assert_same_run, checkpoints, die, finish, metrics, on_call, summary, train

__all__ = ["write_parts"]


NOTES = """
import numpy as np


def seen_of(run):
    obs = np.full((3, *run.policy.spec.observation.shape), 0.1, np.float32)
    values = run.policy.value(obs).tolist()
    return [dict(run.config), str(run.run_dir), run.update, run.env_steps, run.num_updates, values]


class Notes(Callback):
    def on_start(self, run):
        note("start", seen_of(run))

    def on_update(self, run, metrics):
        note("update", seen_of(run), dict(metrics))
        metrics.clear()  # what others see stays what it was

    def on_evaluation(self, run, result):
        note("evaluation", seen_of(run), dict(result))

    def on_checkpoint(self, run, path):
        note("checkpoint", seen_of(run), str(path), path.is_file())

    def on_end(self, run, summary):
        note("end", seen_of(run), dict(summary))


class Silent(Callback):
    \"\"\"Each method is left as it is.\"\"\"


class After(Callback):
    def on_update(self, run, metrics):
        note("after", dict(metrics))
"""
OWN = f"{MODULE}:Silent,{MODULE}:Notes,{MODULE}:After"
PER_UPDATE = 32
"""Transitions of an update, of `resuming.TINY`."""


def of_kind(seen, kind):
    return [each for each in seen if each[0] == kind]


def logged(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{tag: value for tag, value in line.items() if tag not in ("step", "update")} for line in lines]


def test_a_callback_sees_every_update_every_evaluation_and_the_end(tmp_path, write_parts):
    write_parts(NOTES)
    run_dir = tmp_path / "run"
    flags = {"eval_every": 2, "eval_episodes": 3}
    assert trained(run_dir, updates=4, callback=OWN, **flags) == ""
    noted = notes()
    seen = [each for each in noted if each[0] not in ("after", "checkpoint")]
    kinds = ["start", "update", "evaluation", "update", "update", "evaluation", "update", "end"]
    assert [each[0] for each in seen] == kinds
    assert [each[1][2] for each in seen] == [0, 1, 2, 2, 3, 4, 4, 4]
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["callback"] == OWN
    for _, (its_config, its_dir, update, env_steps, num_updates, _), *_ in seen:
        assert (its_config, its_dir, num_updates) == (config, str(run_dir), 4)
        assert env_steps == update * PER_UPDATE
    assert [each[2] for each in of_kind(seen, "update")] == logged(run_dir)
    assert [each[1] for each in of_kind(noted, "after")] == logged(run_dir)
    evaluations = of_kind(seen, "evaluation")
    assert [each[2]["return_mean"] for each in evaluations] == [
        line["Eval/return_mean"] for line in logged(run_dir) if "Eval/return_mean" in line
    ]
    for _, _, result in evaluations:
        assert (result["episodes"], len(result["returns"])) == (3, 3)
        assert result["return_mean"] == pytest.approx(np.mean(result["returns"]))
    assert seen[-1][2] == summary(run_dir)


def test_the_policy_of_a_callback_is_the_agent_as_it_is(tmp_path, write_parts):
    """It differs from update to update, and is in the end the one that is saved."""
    write_parts(NOTES)
    run_dir = tmp_path / "run"
    assert trained(run_dir, callback=OWN) == ""
    values = [each[1][5] for each in notes() if each[0] not in ("after", "checkpoint")]
    assert len({str(each) for each in values}) == 4, "before the first update, and after each of three"
    final = load_agent(run_dir)
    assert values[-1] == final.value(np.full((3, 4), 0.1, np.float32)).tolist()


def test_looking_on_changes_nothing(tmp_path, write_parts):
    write_parts(NOTES)
    alone, run_dir = tmp_path / "alone", tmp_path / "run"
    assert (trained(alone), trained(run_dir, callback=OWN)) == ("", "")
    assert_same_run(run_dir, alone, resumes=0)


STOPS = """
class Stops(Callback):
    def on_update(self, run, metrics):
        note(run.update)
        return {on_update}

    def on_evaluation(self, run, result):
        return {on_evaluation}

    def on_end(self, run, summary):
        note("end", summary["updates"])
"""
ASKS = [("run.update == 2", "None"), ("None", "run.update == 2")]


def assert_ended_after_the_third_update(run_dir, ranks_with_envs=1):
    done = summary(run_dir)
    assert (done["updates"], done["env_steps"]) == (3, 3 * PER_UPDATE * ranks_with_envs)
    assert done["ended_by"] == "callback"
    assert done["test"]["episodes"] == 1
    assert len(metrics(run_dir)) == 3
    assert checkpoints(run_dir)[0] == 3
    assert (run_dir / "policy.safetensors").is_file()
    assert notes() == [[1], [2], [3], ["end", 3]]


@pytest.mark.parametrize(("on_update", "on_evaluation"), ASKS)
def test_true_ends_the_run_after_the_following_update(tmp_path, write_parts, on_update, on_evaluation):
    """Status 0, with its test and everything else that a run ends with."""
    write_parts(STOPS.format(on_update=on_update, on_evaluation=on_evaluation))
    run_dir = tmp_path / "run"
    flags = {"callback": f"{MODULE}:Stops", "eval_every": 2, "eval_episodes": 1}
    assert trained(run_dir, updates=6, **flags) == ""
    assert_ended_after_the_third_update(run_dir)


@pytest.mark.parametrize("script", ["torch", "decoupled"])
def test_all_ranks_end_alike(tmp_path, write_parts, script):
    """A callback runs on rank 0 only."""
    write_parts(STOPS.format(on_update="run.update == 2", on_evaluation="None"))
    run_dir = tmp_path / "run"
    assert train(script, 2, run_dir, callback=f"{MODULE}:Stops") == ["", ""]
    assert_ended_after_the_third_update(run_dir, 1 if script == "decoupled" else 2)


def test_a_run_that_a_callback_ended_says_so_and_is_over(tmp_path, write_parts):
    """Resuming tests it again; with other callbacks, or a greater length, it goes on."""
    write_parts(STOPS.format(on_update="run.update == 2", on_evaluation="None"))
    run_dir, own = tmp_path / "run", f"{MODULE}:Stops"
    ended, out, _ = printed_in_fork(outcome, run_dir, 6, {"callback": own})
    assert ended == ""
    assert "\nended   by a callback, after 3 updates\n" in out
    ended, _, err = printed_in_fork(outcome, run_dir, 6, {"callback": own, "resume": True})
    assert ended == ""
    assert "a callback has ended this run" in err
    assert (summary(run_dir)["updates"], summary(run_dir)["ended_by"]) == (3, "callback")
    assert trained(run_dir, updates=7, callback=own, resume=True) == ""
    assert (summary(run_dir)["updates"], summary(run_dir)["ended_by"]) == (7, "total_timesteps")


def test_other_callbacks_go_on_with_a_run_that_a_callback_ended(tmp_path, write_parts):
    write_parts(STOPS.format(on_update="run.update == 2", on_evaluation="None"))
    alone, run_dir = tmp_path / "alone", tmp_path / "run"
    assert trained(alone, updates=6) == ""
    assert trained(run_dir, updates=6, callback=f"{MODULE}:Stops") == ""
    assert trained(run_dir, updates=6, resume=True) == ""
    assert_same_run(run_dir, alone, resumes=1)


@pytest.mark.parametrize("script", ["torch", "decoupled"])
@pytest.mark.parametrize("killed_in", [3, 4])
def test_a_run_that_is_killed_ends_where_its_callback_ended_it(tmp_path, write_parts, monkeypatch, script, killed_in):
    """H4: asked to stop after update 2, killed in the next rollout, or with everything but its test done."""
    write_parts(STOPS.format(on_update="run.update == 2", on_evaluation="None"))
    flags = {"callback": f"{MODULE}:Stops", "checkpoint_every": 1}
    alone, run_dir = finish(script, 2, tmp_path / "alone", **flags), tmp_path / "run"
    place, name = (COLLECTORS[script], "collect") if killed_in == 3 else (evaluation, "evaluate")
    with monkeypatch.context() as patch:
        patch.setattr(place, name, on_call(3 if killed_in == 3 else 1, 0, die, getattr(place, name)))
        assert train(script, 2, run_dir, **flags)[0] == "exit code 9"
    assert checkpoints(run_dir)[0] == killed_in - 1
    finish(script, 2, run_dir, resume=True, **flags)
    assert_same_run(run_dir, alone, resumes=1)


@pytest.mark.parametrize("answer", ["False", "np.False_", "None"])
def test_nothing_but_true_ends_a_run(tmp_path, write_parts, answer):
    write_parts("import numpy as np\n" + STOPS.format(on_update=answer, on_evaluation=answer))
    run_dir = tmp_path / "run"
    assert trained(run_dir, callback=f"{MODULE}:Stops", eval_every=1, eval_episodes=1) == ""
    assert summary(run_dir)["updates"] == 3


@pytest.mark.parametrize("answer", ["np.bool_(run.update == 1)", "torch.tensor(run.update == 1)"])
def test_a_bool_of_numpy_or_pytorch_is_one(tmp_path, write_parts, answer):
    write_parts("import numpy as np\nimport torch\n" + STOPS.format(on_update=answer, on_evaluation="None"))
    run_dir = tmp_path / "run"
    assert trained(run_dir, updates=5, callback=f"{MODULE}:Stops") == ""
    assert summary(run_dir)["updates"] == 2


@pytest.mark.parametrize("answer", ['"no"', '""', "0", "1", "[]", "run", "metrics"])
def test_an_answer_that_is_no_bool_is_refused_in_one_line(tmp_path, write_parts, answer):
    write_parts(STOPS.format(on_update=answer, on_evaluation="None"))
    ended = trained(tmp_path / "run", callback=f"{MODULE}:Stops")
    assert ended.startswith(f"ConfigError: the callback {MODULE}:Stops: on_update returned ")
    assert ended.endswith("; True to stop, False or None is expected")
    assert "\n" not in ended


ANSWERS = """
class Answers(Callback):
    def {method}(self, run, *given):
        return True

    def on_updates(self, run, metrics):
        pass

    def on_goal(self):
        pass

    def helper(self):
        pass
"""


@pytest.mark.parametrize("method", ["on_start", "on_checkpoint", "on_end"])
def test_an_answer_that_nobody_asks_for_is_one_line(tmp_path, write_parts, method):
    """Once, and the run goes on; so is a method that nothing calls."""
    write_parts(ANSWERS.format(method=method))
    run_dir = tmp_path / "run"
    flags = {"callback": f"{MODULE}:Answers", "checkpoint_every": 1, "quiet": True}
    ended, _, err = printed_in_fork(outcome, run_dir, 3, flags)
    assert (ended, summary(run_dir)["updates"]) == ("", 3)
    name = f"{MODULE}:Answers"
    assert [line for line in err.splitlines() if name in line] == [
        f"warning: --callback {name}: on_goal is none of the methods that are called",
        f"warning: --callback {name}: on_updates is none of the methods that are called; did you mean on_update?",
        f"warning: the callback {name}: what {method} returns is ignored; on_update and on_evaluation can ask to stop",
    ]


RAISES = """
class Raises(Callback):
    def {method}(self, run, *given):
        if run.update == {update} and not Path("healed").exists():
            raise LookupError("told to raise")
"""


@pytest.mark.parametrize(
    ("method", "update", "saved"), [("on_update", 3, 3), ("on_evaluation", 4, 4), ("on_end", 6, 6), ("on_start", 0, 0)]
)
def test_a_callback_that_raises_ends_the_run_which_can_be_resumed(tmp_path, write_parts, method, update, saved):
    """With its own error, and a checkpoint of that update: it resumes to the bits of a run left alone."""
    write_parts(RAISES.format(method=method, update=update))
    flags = {"eval_every": 2, "eval_episodes": 1}
    alone, run_dir = tmp_path / "alone", tmp_path / "run"
    assert trained(alone, updates=6, **flags) == ""
    flags |= {"callback": f"{MODULE}:Raises"}
    ended, _, printed = printed_in_fork(outcome, run_dir, 6, flags)
    assert ended == "LookupError: told to raise"
    assert ("the run has failed" in printed) == (method != "on_end")
    assert checkpoints(run_dir)[:1] == ([saved] if saved else [])
    (tmp_path / "here/healed").touch()
    finish("torch", 1, run_dir, resume=True, **flags)
    assert_same_run(run_dir, alone, resumes=1 if saved else 0)


WRONG = """
class NoCallback:
    pass


class Raises(Callback):
    def __init__(self):
        raise ValueError("no\\nkey")
"""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (f"{MODULE}:NoCallback", "a subclass of fabric_ppo.run.callbacks.Callback is expected"),
        (f"{MODULE}:Raises", "it raised ValueError: no\\nkey"),
        (f"{MODULE}:Missing", "cannot be imported "),
        ("no_such_module:Callback", "cannot be imported "),
        ("json_lines", "none or module:Class is expected"),
    ],
)
def test_what_is_no_callback_is_refused_in_one_line_before_anything_is_written(tmp_path, write_parts, name, why):
    write_parts(WRONG)
    run_dir = tmp_path / "run"
    ended = trained(run_dir, callback=name)
    assert ended.startswith(f"ConfigError: --callback {name}: {why}")
    assert "\n" not in ended
    assert not run_dir.exists()


def test_a_callback_sees_every_checkpoint_that_is_written_between_updates(tmp_path, write_parts):
    """After `on_update`, and once for each file, also where the run has been resumed."""
    write_parts(NOTES)
    run_dir, flags = tmp_path / "run", {"checkpoint_every": 2, "callback": OWN}
    assert trained(run_dir, updates=5, **flags) == ""
    expected = [["update", 1], ["update", 2], ["checkpoint", 2], ["update", 3], ["update", 4], ["checkpoint", 4]]
    expected += [["update", 5], ["checkpoint", 5]]
    noted = notes()
    assert [[each[0], each[1][2]] for each in noted if each[0] in ("update", "checkpoint")] == expected
    for _, (*_, update, _, _, _), path, is_there in of_kind(noted, "checkpoint"):
        assert (path, is_there) == (str(run_dir / f"checkpoints/update_{update}.ckpt"), True)
    assert trained(run_dir, updates=5, resume=True, **flags) == ""
    assert of_kind(notes(), "checkpoint") == []


SETS = """
class Sets(Callback):
    def {method}(self, run, *given):
        note(run.envs.attributes)
        run.envs.set({values})
        note(run.envs.attributes)
"""
CARTPOLE_HAS = {"gravity": 9.0, "length": 0.75}


def test_a_callback_sees_what_was_set_also_before_a_run_was_resumed(tmp_path, write_parts):
    write_parts(SETS.format(method="on_update", values="gravity=run.update, length=0.75"))
    run_dir, own = tmp_path / "run", f"{MODULE}:Sets"
    assert trained(run_dir, updates=2, callback=own) == ""
    after = [{"gravity": update, "length": 0.75} for update in (1, 2, 3)]
    assert notes() == [[{}], [after[0]], [after[0]], [after[1]]]
    assert trained(run_dir, updates=3, callback=own, resume=True) == ""
    assert notes() == [[after[1]], [after[2]]]


def test_what_is_set_from_the_start_stays_where_a_run_was_resumed(tmp_path, write_parts):
    """What a curriculum has reached is not taken back by its `on_start`; what is new is set."""
    both = SETS.format(method="on_start", values="gravity=1.0, length=0.75")
    write_parts(SETS.format(method="on_start", values="gravity=9.0"))
    run_dir, own = tmp_path / "run", f"{MODULE}:Sets"
    assert trained(run_dir, updates=2, callback=own) == ""
    assert notes() == [[{}], [{"gravity": 9.0}]]
    write_parts(both)
    assert trained(run_dir, updates=3, callback=own, resume=True) == ""
    assert notes() == [[{"gravity": 9.0}], [CARTPOLE_HAS]]


@pytest.mark.parametrize(
    ("method", "values", "why"),
    [
        ("on_start", "gravitty=1", "envs.set(gravitty=...): CartPole-v1 has no such attribute; did you mean gravity?"),
        ("on_update", "reset=1", "envs.set(reset=...): it is a method of CartPole-v1; an attribute with a value"),
        ("on_update", "gravity=object()", "envs.set(gravity=...): Object of type object is not JSON serializable"),
        ("on_update", "gravity=float('nan')", "envs.set(gravity=...): Out of range float values"),
        ("on_checkpoint", "gravity=1", "envs.set(gravity): on_start, on_evaluation and on_update can set"),
        ("on_end", "gravity=1", "envs.set(gravity): on_start, on_evaluation and on_update can set"),
    ],
)
def test_what_cannot_be_set_is_named_in_one_line(tmp_path, write_parts, method, values, why):
    write_parts(SETS.format(method=method, values=values))
    run_dir = tmp_path / "run"
    ended = trained(run_dir, callback=f"{MODULE}:Sets")
    assert ended.startswith(f"ConfigError: {why}")
    assert "\n" not in ended
    assert run_dir.exists() == (method != "on_start"), "a run that cannot start leaves nothing"


def test_envpool_refuses_attributes_in_one_line(tmp_path, write_parts):
    write_parts(SETS.format(method="on_start", values="gravity=1"))
    ended = trained(tmp_path / "run", callback=f"{MODULE}:Sets", env_backend="envpool")
    assert ended.startswith("ConfigError: envs.set(gravity): --env-backend sync or async is needed")


def test_an_update_whose_callback_raises_keeps_what_it_had_set(tmp_path, write_parts):
    """H4: the checkpoint of that update has it."""
    sets = "class Sets(Callback):\n    def on_update(self, run, metrics):\n"
    sets += "        if run.update == 3:\n            run.envs.set(gravity=20.0, force_mag=3.0)\n"
    write_parts(sets + "            if not Path('healed').exists():\n                raise LookupError('told to')\n")
    alone, run_dir, flags = tmp_path / "alone", tmp_path / "run", {"callback": f"{MODULE}:Sets", "num_steps": 32}
    assert trained(run_dir, updates=8, **flags) == "LookupError: told to"
    assert checkpoints(run_dir)[0] == 3
    (tmp_path / "here/healed").touch()
    assert trained(alone, updates=8, **flags) == ""
    finish("torch", 1, run_dir, updates=8, resume=True, **flags)
    assert_same_run(run_dir, alone, resumes=1)
