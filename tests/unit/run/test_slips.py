"""Methods that look like one that is called, and are none."""

from __future__ import annotations

import pytest

from fabric_ppo.run.callbacks import Callback
from fabric_ppo.run.slips import uncalled_methods
from fabric_ppo.run.trackers.tracker import Tracker


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        *[(Callback, name, "on_update") for name in ("on_updates", "on_updat", "On_Update", "onupdate", "on_udpate")],
        (Callback, "on_train_end", ""),
        (Callback, "on_evaluate", "on_evaluation"),
        *[(Tracker, name, "finish") for name in ("finnish", "finished", "Finish")],
        (Tracker, "artifacts", "artifact"),
    ],
)
def test_a_misspelt_method_is_found(kind, name, meant):
    part = type("Mine", (kind,), {name: lambda self: None})()
    assert uncalled_methods(part, kind) == {name: meant}


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        (Callback, {"on_update": print, "on_end": print}),
        (Callback, {"helper": print, "_on_updates": print, "on_count": 3, "refresh": print}),
        (Tracker, {"log": print, "flush": print, "on_log": print, "connect": print, "labels": "text"}),
    ],
)
def test_others_are_not(kind, attributes):
    own = {name: (lambda self: None) if callable(each) else each for name, each in attributes.items()}
    assert uncalled_methods(type("Mine", (kind,), own)(), kind) == {}
