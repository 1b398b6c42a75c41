"""Groups of runs: which settings differ, and which runs belong together."""

from __future__ import annotations

import pytest

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.result import load_run
from fabric_ppo.tools.run_groups import baseline_first, differing_flags, format_setting, groups, settings
from tests.fixtures.logged_runs import write_run


def runs(folder, *variants):
    return [load_run(write_run(folder / str(i), [1.0], **flags)) for i, flags in enumerate(variants)]


def labels(found):
    return [(each.label, [run.run_dir.name for run in each.runs]) for each in found]


def test_runs_that_differ_by_seed_and_by_what_only_looks_are_one_group(tmp_path):
    same = runs(tmp_path, {"seed": 1}, {"seed": 2, "quiet": True, "checkpoint_every": 5}, {"seed": 2})
    assert differing_flags(same) == []
    assert labels(groups(same)) == [("CartPole-v1", ["0", "1", "2"])]


def test_groups_are_named_by_what_tells_them_apart_in_order_of_size(tmp_path):
    flags = [{"learning_rate": rate, "seed": seed} for seed in (1, 2) for rate in (0.01, 0.001)]
    found = groups(runs(tmp_path, *flags))
    assert labels(found) == [("learning-rate 0.001", ["1", "3"]), ("learning-rate 0.01", ["0", "2"])]
    assert [each.settings for each in found] == [{"learning_rate": 0.001}, {"learning_rate": 0.01}]


def test_one_setting_names_groups_that_differ_in_many_and_the_environment_comes_first(tmp_path):
    found = runs(tmp_path, {"gamma": 0.9, "ent_coef": 0.1}, {"env_id": "Acrobot-v1", "gamma": 0.99})
    assert differing_flags(found) == ["env_id", "gamma", "ent_coef"]
    assert [each.label for each in groups(found)] == ["CartPole-v1", "Acrobot-v1"]


def test_as_many_settings_as_it_takes_name_the_groups(tmp_path):
    variants = [{"gamma": gamma, "hidden_sizes": sizes} for gamma in (0.9, 0.99) for sizes in ([64, 64], [8])]
    names = [each.label for each in groups(runs(tmp_path, *variants))]
    assert names == [f"gamma {gamma}, hidden-sizes {sizes}" for gamma in (0.9, 0.99) for sizes in ("8", "64 64")]


def test_equal_numbers_are_equal_and_a_flag_of_a_newer_version_was_at_its_default(tmp_path):
    old, new = runs(tmp_path, {"gamma": 1}, {"gamma": 1.0})
    lines = (old / "config.yaml").read_text().splitlines(keepends=True)
    (old / "config.yaml").write_text("".join(line for line in lines if not line.startswith("frame_stack")))
    assert differing_flags([load_run(old), new]) == []


def test_the_script_and_the_number_of_ranks_are_settings(tmp_path):
    one, two = runs(tmp_path, {"header": "# train_torch.py\n"}, {"header": "# train_fabric.py with --devices=2\n"})
    assert differing_flags([one, two]) == ["script", "world_size"]
    assert (settings(one)["script"], settings(one)["world_size"]) == ("torch", 1)
    assert (settings(two)["script"], settings(two)["world_size"]) == ("fabric", 2)


def test_runs_are_grouped_by_the_flags_that_are_named(tmp_path):
    found = runs(tmp_path, {"gamma": 0.9, "ent_coef": 0.1}, {"gamma": 0.9}, {"gamma": 0.8})
    for name in ("ent_coef", "ent-coef", "--ent-coef", " ent_coef "):
        assert labels(groups(found, [name])) == [("ent-coef 0", ["1", "2"]), ("ent-coef 0.1", ["0"])]
    assert labels(groups(found, ["seed"])) == [("seed 42", ["0", "1", "2"])]
    assert len(groups(found, ["gamma", "ent_coef"])) == 3
    with pytest.raises(ConfigError, match=r"^lr: no flag of these runs; .*\(those that differ: gamma, ent-coef\)$"):
        groups(found, ["gamma", "lr"])


def test_damaged_runs_have_what_can_be_read(tmp_path):
    config, summary, nothing = runs(tmp_path, {"test": [1.0]}, {"test": [2.0]}, {"test": None})
    (config / "summary.json").write_text("{")
    (summary / "config.yaml").write_text("a: [")
    (nothing / "config.yaml").unlink()
    assert settings(config)["env_id"] == settings(summary)["env_id"] == "CartPole-v1"
    assert settings(nothing) == {}
    assert [len(each.runs) for each in groups([nothing])] == [1]
    assert groups([nothing])[0].label == nothing.run_dir.name


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (True, "on"), (False, "off"), (1e-5, "1e-05"), (3, "3"), ([64, 64], "64 64"), ("x", "x")],
)
def test_values_are_written_as_on_the_command_line(value, text):
    assert format_setting(value) == text


def test_groups_are_in_order_of_size_and_their_runs_in_order_of_their_seeds(tmp_path):
    rates, seeds = [0.002, 0.005, 0.01, 1e-5, 0.1], [1, 13, 19, 7, 100, 2]
    found = groups(runs(tmp_path, *({"learning_rate": rate, "seed": seed} for rate in rates for seed in seeds)))
    assert [each.settings["learning_rate"] for each in found] == sorted(rates)
    for each in found:
        assert [settings(run)["seed"] for run in each.runs] == sorted(seeds)


def test_groups_whose_values_are_words_are_as_they_come(tmp_path):
    found = groups(runs(tmp_path, {"exp_name": "b"}, {"exp_name": "a"}, {"exp_name": "c"}))
    assert [each.label for each in found] == ["b", "a", "c"]


def test_several_settings_sort_groups_in_the_order_of_their_labels(tmp_path):
    variants = [{"num_envs": envs, "gamma": gamma} for envs in (16, 4) for gamma in (0.99, 0.9)]
    found = groups(runs(tmp_path, *variants), by=["gamma", "num-envs"])
    assert [each.label for each in found] == [f"gamma {gamma}, num-envs {n}" for gamma in (0.9, 0.99) for n in (4, 16)]


@pytest.mark.parametrize("how", ["learning-rate 0.1", "learning-rate=0.1", "--learning-rate=0.1", "0.1", "FOLDER"])
def test_a_baseline_comes_first(tmp_path, how):
    found = groups(runs(tmp_path, *({"learning_rate": rate} for rate in (0.1, 0.01, 1.0))))
    first = baseline_first(found, str(tmp_path / "0") if how == "FOLDER" else how)
    assert [each.settings["learning_rate"] for each in first] == [0.1, 0.01, 1.0]
    for wrong in ("0.5", str(tmp_path), "", "nothing"):
        with pytest.raises(ConfigError, match=r"one of the groups \(learning-rate 0.01; learning-rate 0.1; learning"):
            baseline_first(found, wrong)
