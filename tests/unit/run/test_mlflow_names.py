"""Names of metrics as MLflow's own checks take them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_ppo.run.trackers.mlflow_names import mlflow_name

ODD = [
    *(
        "a//b",
        "/lead",
        "trail/",
        "p/../q",
        "..",
        ".",
        "",
        "/",
        "//",
        "./a",
        "a/.",
        "..x",
        "../x",
        "a/..",
        " ",
        "x" * 251,
    ),
    *("x[0]", "x(0)", "x_0_", "é" * 300, "a/" * 200, "100 %", "a\tb", "a\n", "q?", "\N{GRINNING FACE}", "__", "___"),
]


def require_valid(name):
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name, _validate_tag_name

    _validate_metric_name(name)
    _validate_tag_name(name)
    assert 0 < len(name) <= MAX_ENTITY_KEY_LENGTH


@pytest.mark.parametrize("text", ODD)
def test_an_odd_name_becomes_one_that_mlflow_takes(text):
    require_valid(mlflow_name(text))


def test_no_two_become_the_same_one():
    assert len({mlflow_name(text) for text in ODD}) == len(ODD)


@pytest.mark.parametrize(
    "text", ["Rewards/rew_avg", "Game/x position", "a.b", "ü", "stats.speed_sum", "a:b-c", "x" * 250]
)
def test_a_valid_name_stays(text):
    require_valid(text)
    assert mlflow_name(text) == text


@given(st.lists(st.text(alphabet="a/._[ü", max_size=8), unique=True, max_size=20))
def test_names_of_any_characters_are_valid_and_distinct(texts):
    names = [mlflow_name(text) for text in texts]
    for name in names:
        require_valid(name)
    assert len(set(names)) == len(texts)
