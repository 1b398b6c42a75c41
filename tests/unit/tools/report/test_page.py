"""The page of a report: what stands on it, for whole and for damaged runs, and that text stays text."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import shutil

import numpy as np
import pytest

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.tools import cli
from fabric_ppo.tools.report.page import render, write_report
from fabric_ppo.tools.report.runs import read_runs
from fabric_ppo.tools.report.series import MOST_POINTS
from fabric_ppo.tools.scores import curve_interval, interquartile_mean
from tests.fixtures.run_folders import columns, write_run

EVIL = """</script><script>alert(1)</script><img src=x onerror=alert(2)>"'&lt;{{ 7*7 }}{% raw %}\u2028"""


def page_of(*folders, **options) -> str:
    return render(read_runs(folders), **options)


def data_of(page: str):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def words_of(page: str) -> str:
    """The text of a page, without elements and what is drawn from."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def test_a_run_is_on_its_page(tmp_path):
    run = write_run(tmp_path / "lander", columns(12), env_id="Acrobot-v1", seed=7, learning_rate=0.002)
    words = words_of(page_of(run))
    for expected in (
        "lander",
        "Acrobot-v1",
        "seed 7",
        "Test return 3 ± 2.16 over 3 greedy episodes",
        "learning_rate 0.002",
    ):
        assert expected in words
    assert "python -m fabric_ppo train torch --env-id Acrobot-v1 --seed 7 --learning-rate 0.002" in words
    (group,) = data_of(page_of(run))["groups"]
    (series,) = group["runs"]
    assert series["metrics"]["Rewards/rew_avg"] == columns(12)["Rewards/rew_avg"]
    assert series["x"]["transitions"] == [100 * k for k in range(1, 13)]
    np.testing.assert_allclose(series["x"]["wall-time"], np.arange(1, 13))


def test_the_same_folders_give_the_same_page(tmp_path):
    runs = [write_run(tmp_path / f"s{seed}", columns(5), seed=seed) for seed in (1, 2)]
    assert page_of(*runs) == page_of(*runs)


def test_the_page_needs_nothing_else(tmp_path):
    page = page_of(write_run(tmp_path / "run", columns(3)))
    assert "default-src 'none'" in page
    without = page.replace("https://github.com/leeoniya/uPlot", "")  # a comment of the library
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"'>]*|@import|url\(|https?://""", without)


def test_text_of_a_run_is_no_markup(tmp_path):
    """Names of folder and run, environment, flags, metrics."""
    evil = {EVIL: [1.0, 2.0, 3.0]}
    first = write_run(tmp_path / "<b onclick=alert(3)>", columns(3) | evil, env_kwargs=json.dumps({"a": EVIL}))
    second = write_run(tmp_path / "run-->", columns(3) | evil, exp_name="other")
    config = (first / "config.yaml").read_text()
    (first / "config.yaml").write_text(
        config.replace(" CartPole-v1\n", f" {json.dumps(EVIL)}\n").replace(" default\n", f" {json.dumps(EVIL)}\n")
    )
    for runs in ([first], [first, second]):
        page = page_of(*runs)
        assert len(re.findall(r"<script\b", page)) == page.count("</script") == 2
        assert "<img" not in page
        assert "<b onclick" not in page
        assert "alert(1)" in words_of(page)
        assert EVIL in data_of(page)["groups"][0]["runs"][0]["metrics"]


def test_bands_are_the_interquartile_mean_and_its_interval(tmp_path):
    returns = np.random.default_rng(1).normal(size=(5, 8)).round(3)
    runs = [
        write_run(tmp_path / f"s{k}", columns(8, **{"Rewards/rew_avg": each.tolist()}), seed=k)
        for k, each in enumerate(returns)
    ]
    (group,) = data_of(page_of(*runs))["groups"]
    band = group["bands"]["Rewards/rew_avg"]["transitions"]
    assert (band["x"][0], band["x"][-1]) == (100, 800)
    low, high = curve_interval(returns[:, [0, -1]])
    np.testing.assert_allclose(
        [band["middle"][0], band["middle"][-1]], interquartile_mean(returns[:, [0, -1]].T), rtol=1e-5
    )
    np.testing.assert_allclose([band["low"][0], band["low"][-1]], low, atol=0.05)
    np.testing.assert_allclose([band["high"][0], band["high"][-1]], high, atol=0.05)


def test_groups_are_told_apart_by_what_differs(tmp_path):
    rates = [(0.001, 1), (0.001, 2), (0.002, 1), (0.002, 2)]
    runs = [write_run(tmp_path / f"{rate}_{seed}", columns(4), learning_rate=rate, seed=seed) for rate, seed in rates]
    page = page_of(*runs)
    assert [len(each["runs"]) for each in data_of(page)["groups"]] == [2, 2]
    words = words_of(page)
    assert "2 groups" in words
    assert words.index("These differ between the groups") < words.index("learning_rate") < words.index("Not at their")
    assert "seed 1, 2 1, 2" in words


def test_other_environments_are_allowed_and_said(tmp_path):
    runs = [write_run(tmp_path / name, columns(3), env_id=name) for name in ("CartPole-v1", "Acrobot-v1")]
    assert "of 2 environments (CartPole-v1, Acrobot-v1)" in words_of(page_of(*runs))
    assert "environments (" not in words_of(page_of(runs[0]))


def test_long_runs_are_thinned_and_that_is_said(tmp_path):
    run = write_run(tmp_path / "run", columns(2 * MOST_POINTS))
    (series,) = data_of(page_of(run))["groups"][0]["runs"]
    assert series["metrics"]["Rewards/rew_avg"][0] == 15.0
    assert len(series["x"]["transitions"]) == len(series["metrics"]["Rewards/rew_avg"]) == MOST_POINTS
    assert "more than 1,000 updates" in words_of(page_of(run))


def damaged(folder, how):
    """A run with damage of a kind."""
    run = write_run(folder / how.replace(" ", "_"), columns(6))
    path, summary = run / "metrics.jsonl", json.loads((run / "summary.json").read_text())
    lines = path.read_text().splitlines(keepends=True)
    if how == "a torn line":
        path.write_text("".join(lines[:3]) + "{" + "".join(lines[3:]))
    elif how == "no metrics":
        path.unlink()
    elif how == "bytes for metrics":
        path.write_bytes(bytes(range(256)) * 9)
    elif how == "bytes for flags":
        (run / "config.yaml").write_bytes(bytes(range(256)))
    elif how == "a list for flags":
        (run / "config.yaml").write_text("- 1\n- 2\n")
    elif how == "no summary":
        (run / "summary.json").unlink()
    elif how == "odd values in the summary":
        (run / "summary.json").write_text(json.dumps({name: [{}] for name in summary}))
    elif how == "odd returns":
        summary["test"] = {"returns": [1, None, "x", 10**400, True]}
        (run / "summary.json").write_text(json.dumps(summary))
    elif how == "numbers that are none":
        odd = {"Info/approx_kl": math.nan, "Info/explained_variance": -math.inf, "Time/step_per_second": "x"}
        path.write_text("".join(json.dumps(json.loads(line) | odd) + "\n" for line in lines))
    elif how == "odd flags":
        (run / "config.yaml").write_text("# train_torch.py\nnum_envs: {a: [1]}\nx: 2020-01-01\nenv_id: [1]\nseed: ~\n")
    elif how == "only flags":
        for name in ("metrics.jsonl", "summary.json", "policy.safetensors"):
            (run / name).unlink()
    return run


SAID = {
    "a torn line": "metrics.jsonl is damaged after update 3. Lines left out: 3.",
    "no metrics": "there are no curves",
    "bytes for metrics": "there are no curves",
    "bytes for flags": "the flags are not known",
    "a list for flags": "the flags are not known",
    "no summary": "summary.json is missing",
    "odd values in the summary": "",
    "odd returns": "over 1 greedy episode",
    "numbers that are none": "Infinite in 6 of 6 updates",
    "odd flags": "",
    "only flags": "was stopped before its end",
}


@pytest.mark.parametrize("how", SAID)
def test_of_a_damaged_run_is_shown_what_can_be_read(tmp_path, how):
    run, whole = damaged(tmp_path, how), write_run(tmp_path / "whole", columns(6))
    assert SAID[how] in words_of(page_of(run))
    assert SAID[how] in words_of(page_of(run, whole)) or how in ("odd returns", "numbers that are none")


def test_a_run_of_one_update_has_points(tmp_path):
    one = write_run(tmp_path / "one", columns(1))
    assert "of 1 update only" in words_of(page_of(one))
    other = write_run(tmp_path / "two", columns(1), seed=9)
    (group,) = data_of(page_of(one, other))["groups"]
    assert group["bands"]["Rewards/rew_avg"]["transitions"]["middle"] == [10.0]


def test_the_video_is_inside_or_named(tmp_path):
    run = write_run(tmp_path / "run", columns(2))
    (run / "test_videos").mkdir()
    content = bytes(1_500_000)
    (run / "test_videos" / "episode.mp4").write_bytes(content)
    assert f"data:video/mp4;base64,{base64.b64encode(content).decode()}" in page_of(run)
    small = page_of(run, video_megabytes=1)
    assert "<video" not in small
    assert "test_videos/episode.mp4 is left out: its 1.5 MB do not fit in --video-megabytes 1" in words_of(small)


def report(*words) -> int:
    return cli.main(["report", *map(str, words)])


def test_the_command_writes_the_file_and_names_it(tmp_path, capsys):
    run = write_run(tmp_path / "run", columns(2))
    out = tmp_path / "report.html"
    assert report(run, run, "--out", out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_text(encoding="utf-8") == page_of(run)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nothing", "--out", "r.html"], "nothing: holds no run"),
        (["run", "nothing", "--out", "r.html"], "nothing: holds no run"),
        (["run", "--out", "r.pdf"], "--out r.pdf: a file that ends with .html is expected"),
        (["run", "--out", "missing/r.html"], "--out missing/r.html: cannot be written (No such file or directory)"),
        (["run", "--out", "folder.html"], "--out folder.html: cannot be written (Is a directory)"),
        (["run", "--out", "r.html", "--video-megabytes", "-1"], "--video-megabytes -1: a number from 0 up is expected"),
        (["run", "--out", "r.html", "--video-megabytes", "nan"], "--video-megabytes nan: a number from 0 up"),
        (["run"], "--out"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", columns(2))
    (tmp_path / "nothing").mkdir()
    (tmp_path / "folder.html").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert report(*words) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_older_page_is_replaced_as_a_whole(tmp_path):
    run, out = write_run(tmp_path / "run", columns(2)), tmp_path / "r.html"
    write_report([run], out)
    before = out.read_text(encoding="utf-8")
    shutil.rmtree(run)
    with pytest.raises(ConfigError):
        write_report([run], out)
    assert out.read_text(encoding="utf-8") == before
