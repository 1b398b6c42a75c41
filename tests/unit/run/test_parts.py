"""Callbacks and trackers that `train` is given as objects."""

from __future__ import annotations

import pytest

from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.callbacks import Callback
from fabric_ppo.run.parts import name_of, parts_of
from fabric_ppo.run.trackers.tracker import Tracker
from tests.fixtures import watchers
from tests.fixtures.configs import TINY

POLICY = "policy.safetensors"


class Listed(Callback):
    """Notes what it is called for in a list that whoever made it has."""

    def __init__(self, seen=None, stop_at=0):
        self.seen, self.stop_at = [] if seen is None else seen, stop_at

    def on_start(self, run):
        self.seen.append("start")

    def on_update(self, run, metrics):
        self.seen.append(run.update)
        return run.update == self.stop_at

    def on_end(self, run, summary):
        self.seen.append(summary["ended_by"])


class Kept(Tracker):
    """Keeps the steps that are logged."""

    def __init__(self):
        self.steps = []

    def log(self, metrics, step):
        self.steps.append(step)


class Raises(Callback):
    def __init__(self):
        raise ValueError("no key")


made: list[Listed] = []


class Counted(Listed):
    """Notes that it was made."""

    def __init__(self):
        super().__init__()
        made.append(self)


def test_objects_and_classes_are_called_besides_those_of_flags(tmp_path, capfd):
    seen, kept = [], Kept()
    made.clear()
    flags = TINY | {"callback": f"{__name__}:Counted", "run_dir": tmp_path / "run"}
    run = train(Config(**flags), callbacks=[Listed(seen), Counted], trackers=[kept], verbose=False)
    assert seen == ["start", 1, 2, 3, "total_timesteps"]
    assert [each.seen for each in made] == [seen, seen]
    assert kept.steps == [64, 128, 192]
    assert f"callback: {__name__}:Counted\n" in (run / "config.yaml").read_text()
    assert capfd.readouterr() == ("", "")


def test_the_weights_are_those_of_a_run_without(tmp_path):
    alone = train(Config(**TINY, run_dir=tmp_path / "alone"), verbose=False)
    flags = TINY | {"run_dir": tmp_path / "run"}
    run = train(Config(**flags), verbose=False, callbacks=[watchers.Busy()], trackers=[watchers.Own])
    assert (run / POLICY).read_bytes() == (alone / POLICY).read_bytes()


def test_an_object_ends_a_run_which_then_is_over_for_the_same_class(tmp_path):
    config = Config(**TINY | {"total_timesteps": 384}, run_dir=tmp_path / "run")
    assert train(config, verbose=False, callbacks=[Listed(stop_at=1)]).summary["updates"] == 2
    again = Config(run_dir=tmp_path / "run", resume=True)
    seen = []
    assert train(again, verbose=False, callbacks=[Listed(seen)]).summary["updates"] == 2
    assert seen == ["start", "callback"]
    assert train(again, verbose=False).summary["updates"] == 6


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            {"callbacks": [3]},
            r"train\(callbacks=\[int\]\): an object or a subclass of fabric_ppo.run.callbacks.Callback",
        ),
        ({"callbacks": [Kept()]}, r"train\(callbacks=\[Kept\]\): an object or a subclass of"),
        ({"callbacks": [dict]}, r"train\(callbacks=\[dict\]\): an object or a subclass of"),
        ({"callbacks": [None]}, r"train\(callbacks=\[NoneType\]\): an object or a subclass of"),
        ({"callbacks": Listed()}, r"train\(callbacks=Listed\): a list of Callback objects is expected"),
        ({"callbacks": "mine:Own"}, r"train\(callbacks=str\): a list of Callback objects is expected"),
        ({"callbacks": [Raises]}, r"train\(callbacks=\[Raises\]\): it raised ValueError: no key in "),
        ({"trackers": [Listed()]}, r"train\(trackers=\[Listed\]\): an object or a subclass of .*Tracker is expected"),
        ({"trackers": Kept}, r"train\(trackers=Kept\): a list of Tracker objects is expected"),
    ],
)
def test_what_is_neither_is_refused_in_one_line_before_anything_is_written(tmp_path, given, why):
    with pytest.raises(ConfigError, match=f"^{why}") as caught:
        train(Config(**TINY, run_dir=tmp_path / "run"), **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_class_has_the_name_that_a_flag_would_have():
    (part,) = parts_of([Listed], []).callbacks
    assert name_of(part) == f"{__name__}:Listed"
    assert parts_of((), ()).trackers == []
