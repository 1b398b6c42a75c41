"""A suite that is run in parts, and its page."""

import dataclasses
import json
import os

import numpy as np
import pytest

from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.resolve import resolve
from fabric_ppo.tools import cli, locate, results_page, scores, suite
from fabric_ppo.tools.flags import load_yaml
from tests.fixtures.launching import ROOT

TINY = "env_id: CartPole-v1\ntotal_timesteps: 512\nnum_steps: 64\nupdate_epochs: 1\n"


@pytest.mark.parametrize("preset", suite.ROWS)
def test_every_preset_is_valid_and_its_comment_names_its_environment(preset):
    path = locate.preset_path(preset)
    config = resolve(Config(**load_yaml(str(path), Config)))
    assert config.env_id.rpartition(":")[2] in path.read_text().splitlines()[0]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Two presets that train in a second."""
    paths = {name: tmp_path / "configs" / f"{name}.yaml" for name in ("cartpole", "acrobot")}
    (tmp_path / "configs").mkdir()
    for path in paths.values():
        path.write_text(TINY)
    monkeypatch.setattr(suite, "preset_path", lambda preset: paths[preset])
    for module in (suite, results_page):
        monkeypatch.setattr(module, "TEST_EPISODES", 3)
    monkeypatch.setattr(scores, "_RESAMPLES", 100)
    return tmp_path


def bench(folder, *words):
    return cli.main(["benchmark", *words, "--log-dir", str(folder / "logs"), "--out", str(folder / "results.md")])


@pytest.mark.processes
def test_a_suite_is_run_in_parts_and_nothing_twice(tiny, capsys):
    assert bench(tiny, "cartpole", "--seeds", "1", "--jobs", "1") == 0
    first = (tiny / "logs" / "cartpole" / "seed_1" / "summary.json").stat().st_mtime_ns
    assert bench(tiny, "cartpole", "acrobot", "--seeds", "2", "--jobs", "2") == 0
    assert (tiny / "logs" / "cartpole" / "seed_1" / "summary.json").stat().st_mtime_ns == first
    known = json.loads((tiny / "results" / "results.json").read_text())
    assert [(each["preset"], each["seed"]) for each in known] == [
        ("cartpole", 1),
        ("cartpole", 2),
        ("acrobot", 1),
        ("acrobot", 2),
    ]
    scores = []
    for each in known:
        summary = json.loads((tiny / "logs" / each["preset"] / f"seed_{each['seed']}" / "summary.json").read_text())
        assert summary["seed"] == each["seed"]
        assert summary["test"]["episodes"] == 3
        assert each["test_return"] == summary["test"]["return_mean"]
        assert each["curve"][-1][0] == 512
        scores.append(each["test_return"])
    page = (tiny / "results.md").read_text()
    assert f"| 2 | {np.mean(scores[:2]):.1f} +- {np.std(scores[:2]):.1f} |" in page
    assert (tiny / "results" / "acrobot.svg").is_file()
    assert capsys.readouterr().out.count("cartpole, seed 1:") == 2


@pytest.mark.processes
def test_a_run_that_was_killed_in_its_test_is_tested(tiny):
    """What it trained is on record by then."""
    assert bench(tiny, "cartpole", "--seeds", "1") == 0
    path = tiny / "logs" / "cartpole" / "seed_1" / "summary.json"
    expected = json.loads(path.read_text())
    path.write_text(json.dumps(expected | {"test": {}}))
    assert bench(tiny, "cartpole", "--seeds", "1") == 0
    assert json.loads(path.read_text())["test"] == expected["test"]


@pytest.mark.processes
def test_a_run_of_other_flags_than_its_preset_has_now_is_no_result(tiny, capsys):
    assert bench(tiny, "cartpole", "--seeds", "1") == 0
    page = (tiny / "results.md").read_text()
    (tiny / "configs" / "cartpole.yaml").write_text(TINY.replace("512", "1024") + "gamma: 0.9\n")
    assert bench(tiny, "cartpole", "--seeds", "1") == 1
    said = capsys.readouterr().err
    assert "cartpole, seed 1: --total-timesteps, --gamma changed since it was trained" in said
    assert (tiny / "results.md").read_text() == page


def test_results_are_of_the_presets_as_they_are():
    results = ROOT / "docs" / "results" / "results.json"
    for each in json.loads(results.read_text()):
        now = load_yaml(str(locate.preset_path(each["preset"])), Config)
        assert each["flags"] == json.loads(json.dumps(now)), each["preset"]


def test_a_curve_is_of_means_over_stretches_of_the_training(tmp_path, monkeypatch):
    lines = [json.dumps({"step": 10 * k, "update": k, "Rewards/rew_avg": k**2}) for k in range(1, 121)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    summary = {"env_id": "E", "seed": 1, "world_size": 1, "env_steps": 1200, "wall_seconds": 90.0}
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"test": {"return_mean": 1.0, "return_std": 0.0}}))
    result = suite._result("cartpole", locate.preset_path("cartpole"), tmp_path)
    assert len(result.curve) == 60
    assert result.curve[:2] == [(15, 2.5), (35, 12.5)]
    assert (result.minutes, result.transitions) == (1.5, 1200)


def made(preset, *scores):
    return [
        results_page.Result(preset, preset, seed, 512, score, 0.0, 1.0, "2026-01-01", "this machine", {}, [(1.0, 0.0)])
        for seed, score in enumerate(scores, 1)
    ]


def test_the_page_says_what_was_reached_and_what_was_not(tmp_path):
    """LunarLander's goal has two parts: a mean of 260, and 240 in each run."""
    out = tmp_path / "results.md"
    for result in made("lunarlander", 300, 239, 290) + made("acrobot", -75, -72) + made("pendulum", -166):
        results_page.add_result(out, result, suite.ROWS)
    results_page.write_page(out, "pendulum", suite.ROWS)
    page = out.read_text()
    assert "| 260, each run 240: missed so far |" in page
    assert "| -74: reached so far |" in page
    assert "Goals missed: pendulum, lunarlander." in page
    assert "(five or ten): acrobot, pendulum, lunarlander." in page
    assert "Not run: cartpole, mountaincar, " in page
    assert "python -m fabric_ppo benchmark lunarlander --seeds 3\n" in page
    assert "this machine" in page


@pytest.mark.parametrize(("first", "was_seen"), [(99, True), (101, False)])
def test_the_page_says_of_which_seeds_the_scores_are(tmp_path, first, was_seen):
    out = tmp_path / "results.md"
    for result in made("pendulum", -166, -150):
        results_page.add_result(out, dataclasses.replace(result, seed=result.seed + first - 1), suite.ROWS)
    results_page.write_page(out, "pendulum", suite.ROWS)
    page = out.read_text()
    assert f"python -m fabric_ppo benchmark pendulum --seeds 2 --first-seed {first}\n" in page
    assert f"--seed {first}\n" in page
    with_it = ", with some of which the preset was chosen" if was_seen else ""
    assert f"Scores of seeds {first}, {first + 1}{with_it}: -166.0, -150.0.\n" in page


@pytest.mark.processes
def test_other_seeds_are_other_runs(tiny):
    assert bench(tiny, "cartpole", "--seeds", "2", "--first-seed", "101", "--jobs", "2") == 0
    seeds = [each["seed"] for each in json.loads((tiny / "results" / "results.json").read_text())]
    assert seeds == [101, 102]


@pytest.mark.processes
def test_a_run_of_several_processes_is_named_with_them(tiny, capsys):
    """Each has the environments of the preset; a run of another number of them is no result."""
    assert bench(tiny, "cartpole", "--seeds", "1", "--devices", "2") == 0
    summary = json.loads((tiny / "logs" / "cartpole" / "seed_1" / "summary.json").read_text())
    assert (summary["world_size"], summary["updates"]) == (2, 512 / (64 * 2 * 2))
    page = (tiny / "results.md").read_text()
    assert "python -m fabric_ppo benchmark cartpole --seeds 1 --devices 2\n" in page
    assert "python -m fabric_ppo train torch --devices 2 --config configs/cartpole.yaml --test-episodes 3" in page
    assert bench(tiny, "cartpole", "--seeds", "1") == 1
    assert "cartpole, seed 1: --devices changed since it was trained" in capsys.readouterr().err


@pytest.mark.processes
def test_a_run_that_fails_is_named(tiny, capsys):
    (tiny / "configs" / "acrobot.yaml").write_text(TINY + "run_dir: elsewhere\ninit_from: nowhere\n")
    assert bench(tiny, "acrobot", "cartpole", "--seeds", "1", "--jobs", "2") == 1
    said = capsys.readouterr()
    assert "acrobot, seed 1: ended with status 2" in said.err
    assert "cartpole, seed 1:" in said.out


@pytest.mark.parametrize(
    "words",
    [
        ("nothing",),
        ("classic", "--seeds", "0"),
        ("classic", "--jobs", "0"),
        ("classic", "--devices", "0"),
        ("classic", "--first-seed", "4294967295"),
    ],
)
def test_what_cannot_work_is_refused(tiny, words, capsys):
    assert bench(tiny, *words) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_environment_that_cannot_be_made_is_refused_before_anything_is_trained(tiny, capsys):
    """A package that is missing, for instance, would be noticed hours later."""
    (tiny / "configs" / "acrobot.yaml").write_text(TINY + "env_id: tests.fixtures.toy_envs:BrokenConstructor-v0\n")
    assert bench(tiny, "cartpole", "acrobot", "--seeds", "1") == 2
    start = f"error: benchmark {tiny}/configs/acrobot.yaml: --env-id tests.fixtures.toy_envs:BrokenConstructor-v0"
    assert capsys.readouterr().err.startswith(start)
    assert not (tiny / "logs").exists()


def test_a_length_that_is_no_update_is_refused_before_anything_is_trained(tiny, capsys):
    (tiny / "configs" / "acrobot.yaml").write_text(TINY + "num_envs: 1000000\n")
    assert bench(tiny, "cartpole", "acrobot", "--seeds", "1") == 2
    start = f"error: benchmark {tiny}/configs/acrobot.yaml: --total-timesteps 512: at least 64000000 "
    assert capsys.readouterr().err.startswith(start)
    assert not (tiny / "logs").exists()


@pytest.mark.processes
def test_a_result_keeps_what_it_was_made_with(tiny, monkeypatch):
    """Also when the suite is looked at again after something has been installed."""
    monkeypatch.setattr(suite, "made_with", lambda: "old things")
    assert bench(tiny, "cartpole", "--seeds", "1") == 0
    monkeypatch.setattr(suite, "made_with", lambda: "new things")
    assert bench(tiny, "cartpole", "--seeds", "1") == 0
    page = (tiny / "results.md").read_text()
    assert "old things" in page
    assert "new things" not in page


def test_suites_and_presets_are_found_by_name_once():
    presets = suite.presets_of(["cartpole", "classic", str(ROOT / "configs" / "acrobot.yaml")])
    assert list(presets) == [row.preset for row in suite.SUITES["classic"]]
    assert presets == {name: locate.preset_path(name) for name in presets}
    with pytest.raises(ConfigError, match=r"^benchmark doom: one of classic, box2d, mujoco, long, minigrid, atari"):
        suite.presets_of(["doom"])


@pytest.mark.parametrize(
    ("preset", "goal"), [("cartpole", "500, each run 500: missed so far"), ("minigrid-memory-mlp", "-")]
)
def test_a_goal_is_shown_where_there_is_one(tmp_path, preset, goal):
    out = tmp_path / "page.md"
    curve = [(1.0, -21.0), (100.0, -5.0)]
    result = results_page.Result(preset, "Some-v0", 1, 100, -5.0, 1.0, 2.0, "2026-01-01", "Python", {}, curve)
    results_page.add_result(out, result, suite.ROWS)
    results_page.write_page(out, preset, suite.ROWS)
    row = next(line for line in out.read_text().splitlines() if line.startswith("| Some-v0"))
    assert row.split(" | ")[6] == goal
    assert ("<!-- goal -->" in (tmp_path / "page" / f"{preset}.svg").read_text()) is (goal != "-")


@pytest.mark.parametrize("preset", locate.preset_names())
def test_every_preset_is_found_by_its_name_by_its_file_and_by_a_copy(preset, tmp_path):
    path = locate.preset_path(preset)
    (tmp_path / path.name).write_bytes(path.read_bytes())
    for word in (preset, str(path), str(tmp_path / path.name)):
        assert suite.presets_of([word]) == {preset: path}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of files of the user's own, the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("b.yaml", "a.yml", ".hidden.yaml", "notes.txt"):
        (tmp_path / "mine" / name).write_text(TINY)
    return tmp_path


def test_a_file_and_a_folder_of_files_are_presets(own):
    """In the order of their names; what is hidden or no YAML is left out."""
    assert suite.presets_of(["mine/b.yaml"]) == {"b": own / "mine/b.yaml"}
    assert suite.presets_of([str(own / "mine" / "b.yaml")]) == {"b": own / "mine/b.yaml"}
    assert list(suite.presets_of(["mine"]).items()) == [("a", own / "mine/a.yml"), ("b", own / "mine/b.yaml")]
    assert list(suite.presets_of(["mine/", "cartpole", "mine/a.yml"])) == ["a", "b", "cartpole"]
    (own / "mine" / "no_suffix").write_text(TINY)
    assert list(suite.presets_of(["mine/no_suffix"])) == ["no_suffix"]
    (own / "mine" / "lr 3e-4, é.yaml").write_text(TINY)
    assert list(suite.presets_of(["mine/lr 3e-4, é.yaml"])) == ["lr-3e-4-é"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("mine/b.yaml", "num_envs: 0", "--num-envs 0: a whole number from 1 up is expected"),
        ("mine/b.yaml", "n_steps: 4", "unknown key n_steps; here it is --num-steps"),
        ("mine/b.yaml", "num_envs: [3", "cannot be read"),
        ("mine/b.yaml", "", "a YAML mapping of flags to values is expected"),
        ("mine/b.yaml", "env_id: Nothing-v0", "--env-id Nothing-v0: "),
        ("mine/b.yaml", "env_wrapper: nothing_there:wrap", "--env-wrapper nothing_there:wrap: "),
    ],
)
@pytest.mark.parametrize("through", ["file", "folder"])
def test_an_unusable_file_is_one_line_that_names_it(own, name, text, expected, through, capsys):
    (own / name).write_text(text)
    assert bench(own, "mine" if through == "folder" else name, "--seeds", "1") == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: benchmark {name}: {expected}")
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert not (own / "logs").exists()
    assert not (own / "results.md").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["doom"], "benchmark doom: one of classic, "),
        (["nothing.yaml"], "benchmark nothing.yaml: no such file"),
        (["mine/nothing"], "benchmark mine/nothing: no such file"),
        (["empty"], "benchmark empty: no file .yaml or .yml in it"),
        (["pipe.yaml"], "benchmark pipe.yaml: no regular file"),
        (["mine/b.yaml", "other/b.yaml"], "benchmark other/b.yaml: mine/b.yaml has the name b, too"),
        (["other/cartpole.yaml"], "benchmark other/cartpole.yaml: the preset cartpole has that name"),
    ],
)
def test_what_is_no_file_of_its_own_name_is_refused(own, words, expected, capsys):
    for name in ("empty", "other"):
        (own / name).mkdir()
    os.mkfifo(own / "pipe.yaml")
    for name in ("b", "cartpole"):
        (own / "other" / f"{name}.yaml").write_text(TINY)
    assert bench(own, *words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {expected}")
    assert said.count("\n") == 1


def test_a_page_of_files_of_ones_own_has_their_commands_and_no_goals(tmp_path):
    """Beside presets of the package, and alone."""
    out = tmp_path / "page.md"
    for preset, file in (("zebra", "mine/zebra.yaml"), ("ape", "my files/ape.yaml")):
        result = dataclasses.replace(made(preset, 3.0)[0], file=file)
        results_page.add_result(out, result, suite.ROWS)
        results_page.write_page(out, preset, suite.ROWS)
    page = out.read_text()
    assert "python -m fabric_ppo benchmark mine/zebra.yaml --seeds 1\n" in page
    assert "python train_torch.py --config 'my files/ape.yaml' --test-episodes 100 --seed 1\n" in page
    assert not [
        word for word in ("Not run", "Goals missed", "(../configs)", "Published", "were chosen") if word in page
    ]
    for result in made("acrobot", -75):
        results_page.add_result(out, result, suite.ROWS)
    results_page.write_page(out, "acrobot", suite.ROWS)
    page = out.read_text()
    assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")][1:] == [
        "| acrobot",
        "| zebra, zebra",
        "| ape, ape",
    ]
    assert "Not run: cartpole, mountaincar, " in page
    known = json.loads((tmp_path / "page" / "results.json").read_text())
    assert [each["preset"] for each in known] == ["acrobot", "zebra", "ape"]


@pytest.mark.processes
def test_a_file_of_ones_own_is_trained_and_tested(own, monkeypatch):
    for module in (suite, results_page):
        monkeypatch.setattr(module, "TEST_EPISODES", 3)
    monkeypatch.setattr(scores, "_RESAMPLES", 100)
    assert bench(own, "mine/b.yaml", "--seeds", "1", "--jobs", "1") == 0
    (known,) = json.loads((own / "results" / "results.json").read_text())
    assert (known["preset"], known["file"], known["seed"]) == ("b", "mine/b.yaml", 1)
    summary = json.loads((own / "logs" / "b" / "seed_1" / "summary.json").read_text())
    assert known["test_return"] == summary["test"]["return_mean"]
    assert (own / "results" / "b.svg").is_file()
    (own / "mine" / "b.yaml").write_text(TINY + "gamma: 0.9\n")
    assert bench(own, "mine", "--seeds", "1", "--jobs", "1") == 1, "b has been trained with other flags"
    known = json.loads((own / "results" / "results.json").read_text())
    assert [each["preset"] for each in known] == ["b", "a"]


def test_a_page_has_successes_where_an_environment_tells_them(tmp_path):
    """As a share of the test's episodes, mean over the runs that have it; no column where none has."""
    out, heads = tmp_path / "page.md", []
    runs = [("acrobot", 1, None), ("pendulum", 1, 0.5), ("pendulum", 2, 1.0)]
    for preset, seed, success in runs:
        more = {} if success is None else {"success": success}
        day, curve = "2026-01-01", [(1.0, 0.0)]
        result = results_page.Result(preset, preset, seed, 512, 1.0, 0.0, 1.0, day, "here", {}, curve, **more)
        results_page.add_result(out, result, suite.ROWS)
        results_page.write_page(out, preset, suite.ROWS)
        table = [line for line in out.read_text().splitlines() if line.startswith("|")]
        heads.append(table[0])
        assert {line.count("|") for line in table} == {table[0].count("|")}
    assert ["success" in head for head in heads] == [False, True, True]
    assert [line.split("|")[-2].strip() for line in table[2:]] == ["-", "75.0 % +- 25.0"]


@pytest.mark.parametrize(
    ("suites", "page"),
    [
        (["classic"], "docs/results.md"),
        (["cartpole", "acrobot"], "docs/results.md"),
        (["mine.yaml"], "logs/mine/results.md"),
        (["cartpole", "mine.yaml"], "logs/mine/results.md"),
        (["folder"], "logs/mine/results.md"),
    ],
)
def test_the_projects_own_page_is_for_its_own_presets(suites, page, tmp_path, monkeypatch):
    """Unless --out names it, a page with files of one's own is beside their runs."""
    pages = []
    monkeypatch.setattr(suite, "run_suite", lambda *args: pages.append(args[-1]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "mine.yaml", tmp_path / "folder/other.yaml"):
        path.write_text("total_timesteps: 1000\n")
    assert cli.main(["benchmark", *suites, "--log-dir", "logs/mine"]) == 0
    assert cli.main(["benchmark", *suites, "--log-dir", "logs/mine", "--out", "mine.md"]) == 0
    assert list(map(str, pages)) == [page, "mine.md"]
