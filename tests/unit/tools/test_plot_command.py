"""`fabric-ppo plot`: what is drawn, and what a picture's file holds."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fabric_ppo.process.errors import BAD_INPUT, ConfigError
from fabric_ppo.run.result import load_run
from fabric_ppo.tools import plot
from fabric_ppo.tools.cli import main
from fabric_ppo.tools.curves import band, curve
from fabric_ppo.tools.plot_lines import Drawn, panels_of, seed_groups, single_runs
from tests.fixtures.logged_runs import UPDATE, write_run

pytest.importorskip("matplotlib")


@pytest.fixture
def suite(tmp_path):
    for rate in (0.01, 0.001):
        for seed in (1, 2, 3):
            returns = [None, *(float(seed * rate * 1000 + k) for k in range(5))]
            loss = {"Loss/value_loss": [1.0, 0.5, -1.0, 0.1, 2.0, 0.3], "Loss/low": [-1.0] * 6}
            write_run(tmp_path / f"logs/{rate}_{seed}", returns, learning_rate=rate, seed=seed, metrics=loss)
    return tmp_path / "logs"


@pytest.fixture
def drawn(monkeypatch):
    """What is handed to matplotlib."""
    calls = []
    original = plot.draw_panels
    monkeypatch.setattr(plot, "draw_panels", lambda *args: (calls.append(args[1:]), original(*args)))
    return calls


def labels_of(drawn):
    (((panel, *_), _),) = drawn
    return [line.label for line in panel.lines]


def test_a_line_for_each_run_has_its_values(suite, tmp_path, drawn, capsys):
    assert main(["plot", str(suite / "0.01_2"), str(suite / "0.001_1"), "--out", str(tmp_path / "x.svg")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'x.svg'}\n"
    assert labels_of(drawn) == ["0.01_2", "0.001_1"]
    (panel,), look = drawn[0]
    assert panel.lines[0].x.tolist() == [k * UPDATE for k in (2, 3, 4, 5, 6)]
    assert panel.lines[0].y.tolist() == [20, 21, 22, 23, 24]
    assert (panel.lines[0].band, look.x_title) == (None, "transitions")


@pytest.mark.parametrize("args", [["--bands"], ["--group-by", "learning-rate"]])
def test_groups_of_seeds_are_bands(suite, tmp_path, drawn, args):
    assert main(["plot", str(suite), *args, "--smooth", "3", "--x", "updates", "--out", str(tmp_path / "x.png")]) == 0
    assert labels_of(drawn) == ["learning-rate 0.001 (n = 3)", "learning-rate 0.01 (n = 3)"]
    (panel,), _ = drawn[0]
    merged = band([curve(load_run(suite / f"0.001_{seed}"), x="updates", smooth=3) for seed in (1, 2, 3)])
    line, expected = panel.lines[0], (merged.x, merged.middle, merged.low, merged.high)
    for values, its in zip((line.x, line.y, *line.band), expected, strict=True):
        np.testing.assert_array_equal(values, its)


def test_several_metrics_are_panels_over_time(suite, tmp_path, drawn):
    args = ["--metric", "Loss/value_loss,Rewards/rew_avg", "--x", "wall-time", "--labels", r"$\alpha$,_b"]
    assert main(["plot", str(suite), "--bands", *args, "--title", "A", "--out", str(tmp_path / "x.pdf")]) == 0
    panels, look = drawn[0]
    assert [panel.metric for panel in panels] == ["Loss/value_loss", "Rewards/rew_avg"]
    assert [line.label for line in panels[0].lines] == [r"$\alpha$", "_b"]
    assert look.x_title == "seconds of training"
    assert panels[0].lines[0].x[[0, -1]] == pytest.approx([UPDATE / 512, 6 * UPDATE / 512])


@pytest.mark.parametrize(
    ("speed", "unit", "last"), [(512, "seconds", 12), (20, "minutes", 5.12), (0.5, "hours", 3.413333)]
)
def test_the_unit_of_time_fits(tmp_path, speed, unit, last):
    run = load_run(write_run(tmp_path / "run", [1.0] * 6, speed=speed))
    (panel,), title = panels_of(single_runs([run]), Drawn(["Rewards/rew_avg"], "wall-time", 1), False)
    assert title == f"{unit} of training"
    assert panel.lines[0].x[-1] == pytest.approx(last)


@pytest.mark.parametrize("kind", ["svg", "png", "pdf", "PDF"])
def test_the_same_runs_give_the_same_file_whatever_the_configuration(suite, tmp_path, monkeypatch, kind):
    matplotlib = pytest.importorskip("matplotlib")
    first, second = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    assert main(["plot", str(suite), "--bands", "--out", str(first)]) == 0
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20)
    monkeypatch.setitem(matplotlib.rcParams, "svg.hashsalt", None)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert main(["plot", str(suite), "--bands", "--out", str(second)]) == 0
    assert first.read_bytes() == second.read_bytes()
    assert matplotlib.rcParams["font.size"] == 20


def test_text_in_a_pdf_is_in_a_font_that_journals_take(suite, tmp_path):
    assert main(["plot", str(suite), "--out", str(tmp_path / "x.pdf")]) == 0
    fonts = set(re.findall(rb"/Subtype /(Type\d|TrueType|CIDFontType2)", (tmp_path / "x.pdf").read_bytes()))
    assert fonts
    assert b"Type3" not in fonts


def test_a_style_comes_before_the_defaults(suite, tmp_path, drawn):
    style = tmp_path / "mine.mplstyle"
    style.write_text("axes.prop_cycle: cycler('color', ['123456'])\nfont.size: 7\n")
    assert main(["plot", str(suite), "--style", str(style), "--size", "3x2", "--out", str(tmp_path / "x.svg")]) == 0
    text = (tmp_path / "x.svg").read_text()
    assert "#123456" in text
    assert plot.PALETTE[0].lower() not in text
    assert 'width="216pt" height="144pt"' in text
    assert main(["plot", str(suite), "--style", "ggplot", "--out", str(tmp_path / "y.svg")]) == 0


def test_names_of_folders_are_no_formulas_and_are_told_apart(tmp_path, drawn, capsys):
    for name in ("a/$x_1", "b/$x_1", "_c/\x1b[1m", "d/環境"):
        write_run(tmp_path / name, [1.0, 2.0], learning_rate=0.5)
    assert main(["plot", str(tmp_path), "--out", str(tmp_path / "x.svg")]) == 0
    assert labels_of(drawn) == [r"_c/\x1b[1m", r"a/\$x_1", r"b/\$x_1", "d/環境"]
    assert capsys.readouterr().err.startswith("note: no font has 環境: boxes stand for these characters; ")


def test_runs_without_values_and_lines_that_end_early_are_told(tmp_path, capsys):
    logs = tmp_path / "logs"
    for seed, updates in ((1, 10), (2, 4), (3, 0)):
        write_run(logs / f"{seed}", [1.0] * updates, seed=seed)
    write_run(logs / "4", [*[None] * 4, 1.0], seed=4, gamma=0.5)
    write_run(logs / "5", [1.0], seed=5, gamma=0.5)
    assert main(["plot", str(logs), "--bands", "--out", str(tmp_path / "x.png")]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "note: gamma 0.5 (n = 2): its runs have no transitions of Rewards/rew_avg in common: there is no line",
        f"note: {logs / '3'}: has no values of Rewards/rew_avg",
        f"note: gamma 0.99 (n = 3): the line ends where {logs / '2'} does, after 4,096 of 10,240 transitions",
    ]


BAD = {
    "--metric Loss/none": "--metric Loss/none: no metric of these runs; one of Time/step_per_second, ",
    "--metric a,,b": "--metric a,,b: names with commas between them are expected",
    "--metric Loss/low --log-y": "--log-y: Loss/low has no value above 0",
    "--x steps": "--x invalid choice: 'steps'",
    "--smooth 0": "--smooth 0: a number of updates from 1 up is expected",
    "--smooth x": "--smooth x: a whole number is expected",
    "--group-by lr": "lr: no flag of these runs",
    "--labels a": "--labels a: one for each of 6 lines is expected",
    "--size 7": "--size 7: width and height",
    "--size 0x4": "--size 0x4: width and height",
    "--size 1e9x4": "--size 1e9x4: width and height",
    "--style none": "--style none: no such file",
    "--style bad.mplstyle": "--style bad.mplstyle: Bad key",
    "--style value.mplstyle": "--style value.mplstyle: Bad value",
    "--style bytes.mplstyle": "--style bytes.mplstyle: ",
    "--title $\\frac{a$": "--out x.svg: cannot be drawn",
    "--out x.doc": "--out x.doc: a name that ends with ",
    "--out x": "--out x: a name that ends with .svg, .png, .pdf is expected",
    "--out x.gif": "--out x.gif: a name that ends with ",
    "--out x.jpg": "--out x.jpg: a name that ends with ",
    "--out none/x.svg": "--out none/x.svg: cannot be written",
    "nothing": "nothing: holds no run",
}


@pytest.mark.parametrize("args", BAD)
def test_bad_input_is_one_line_and_leaves_no_picture(suite, tmp_path, monkeypatch, capsys, args):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.mplstyle").write_text("no.such: 1\n")
    (tmp_path / "value.mplstyle").write_text("lines.linewidth: thick\n")
    (tmp_path / "bytes.mplstyle").write_bytes(b"font.family: \xff\n")
    before = sorted(tmp_path.rglob("*"))
    assert main(["plot", "--out", "x.svg", "logs", *args.split(" ")]) == BAD_INPUT
    caught = capsys.readouterr()
    assert (caught.out, caught.err.count("\n")) == ("", 1)
    assert caught.err.startswith(f"error: {BAD[args]}")
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_that_have_logged_nothing_are_bad_input(tmp_path, capsys):
    write_run(tmp_path / "run", [])
    write_run(tmp_path / "none", [None])
    for name, problem in (
        ("run", "these runs have none yet"),
        ("none", "no episode of these runs ended in training; one of Time/step_per_second is expected"),
    ):
        assert main(["plot", str(tmp_path / name), "--out", str(tmp_path / "x.svg")]) == BAD_INPUT
        assert problem in capsys.readouterr().err


def test_a_picture_of_a_benchmark_has_a_mean_where_all_seeds_have_points(tmp_path):
    """And none where there is no such place."""
    curves = [
        np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]]),
        np.array([[2.0, 4.0], [5.0, 6.0]]),
        np.array([[9.0], [1.0]]),
    ]
    for count in (1, 2, 3):
        plot.draw(tmp_path / f"{count}.svg", curves[:count], "title", 3.0)
    with pytest.raises(ConfigError, match="a name that ends with"):
        plot.draw(tmp_path / "x.y", curves, "title", None)


def test_without_matplotlib_a_line_says_what_to_install(suite, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.style", None)
    assert main(["plot", str(suite), "--out", str(tmp_path / "x.svg")]) == BAD_INPUT
    assert capsys.readouterr().err == "error: plot: needs matplotlib: pip install matplotlib\n"


def test_groups_say_how_many_runs_they_have(suite):
    runs = [load_run(suite / name) for name in ("0.01_1", "0.01_2", "0.001_3")]
    assert [each.label for each in seed_groups(runs, None)] == [
        "learning-rate 0.001 (n = 1)",
        "learning-rate 0.01 (n = 2)",
    ]


def notes_of(capsys, *args):
    assert main(["plot", *map(str, args)]) == 0
    return [line.removeprefix("note: ") for line in capsys.readouterr().err.splitlines()]


def test_what_a_logarithmic_axis_has_no_place_for_is_told_and_not_in_the_legend(tmp_path, drawn, capsys):
    """A gap is where a value is not above 0: the points around it are not joined."""
    for name, returns in {"all": [1.0, 2.0], "none": [-1.0, 0.0], "some": [3.0, -1.0, 4.0]}.items():
        write_run(tmp_path / f"logs/{name}", returns)
    found = notes_of(capsys, tmp_path / "logs", "--log-y", "--out", tmp_path / "x.svg")
    assert found == [
        "--log-y: none: no value of Rewards/rew_avg is above 0: there is no line",
        "--log-y: some: 1 of 3 values of Rewards/rew_avg are not above 0: the line has gaps",
    ]
    assert labels_of(drawn) == ["all", "some"]
    np.testing.assert_array_equal(drawn[0][0][0].lines[1].y, [3, np.nan, 4])


def test_a_legend_has_only_what_is_drawn_in_a_panel(tmp_path, drawn, capsys):
    write_run(tmp_path / "logs/a", [1.0, 2.0])
    write_run(tmp_path / "logs/b", [None, None])
    write_run(tmp_path / "logs/c", [])
    for metrics, labels in (("Rewards/rew_avg", ["a"]), ("Rewards/rew_avg,Time/step_per_second", ["a", "b"])):
        drawn.clear()
        found = notes_of(capsys, tmp_path / "logs", "--metric", metrics, "--out", tmp_path / "x.svg")
        assert labels_of(drawn) == labels
        assert f"{tmp_path / 'logs/c'}: has no values of Rewards/rew_avg" in found


def test_different_environments_on_an_axis_are_told(tmp_path, capsys):
    for env_id in ("CartPole-v1", "Acrobot-v1"):
        write_run(tmp_path / f"logs/{env_id}", [1.0, 2.0], env_id=env_id)
    found = notes_of(capsys, tmp_path / "logs", "--out", tmp_path / "x.svg")
    assert found == ["different environments: Acrobot-v1, CartPole-v1; their returns are on different scales"]


def figure_of(monkeypatch, args):
    """The picture that is saved."""
    from matplotlib.figure import Figure

    figures, savefig = [], Figure.savefig
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, *a, **b: (figures.append(self), savefig(self, *a, **b))[1])
        assert main(["plot", *map(str, args)]) == 0
    (figure,) = figures
    return figure


@pytest.mark.parametrize("size", ["7x3", "4x2.5", "7x5"])
def test_the_title_of_a_low_pictures_axis_is_in_it(tmp_path, monkeypatch, size):
    run = write_run(tmp_path / "run", [1.0, 2.0])
    figure = figure_of(monkeypatch, [run, "--size", size, "--out", tmp_path / "x.png"])
    title = figure.axes[0].yaxis.label.get_window_extent()
    assert figure.bbox.y0 <= title.y0
    assert title.y1 <= figure.bbox.y1


def legend_of(monkeypatch, args):
    """Legend and panel of the picture, in pixels, and the legend's texts."""
    figure = figure_of(monkeypatch, args)
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    return legend.get_window_extent(), figure.axes[0].get_window_extent(), figure.bbox, texts


@pytest.mark.parametrize("count", [2, 7, 14, 28, 45, 120])
@pytest.mark.parametrize("more", [[], ["--size", "5x4"], ["--metric", "Rewards/rew_avg,Loss/value_loss"]])
def test_a_legend_of_many_long_names_is_in_the_picture_and_lower_than_its_panels(tmp_path, monkeypatch, count, more):
    for seed in range(1, count + 1):
        loss = {"Loss/value_loss": [1.0, 2.0]}
        name = f"2026-11-27_15-03-{seed:02}_CartPole-v1_with_a_long_name_{seed}"
        write_run(tmp_path / "logs" / name, [1.0, 2.0], seed=seed, metrics=loss)
    legend, panel, whole, texts = legend_of(monkeypatch, [tmp_path / "logs", *more, "--out", tmp_path / "x.png"])
    assert legend.height <= panel.height * (2 if len(more) > 1 and more[0] == "--metric" else 1)
    assert legend.width <= whole.width
    assert whole.x0 <= legend.x0
    assert legend.x1 <= whole.x1
    assert len(set(texts)) == len(texts)
    more_than_fit = count - (len(texts) - 1)
    assert len(texts) == count or texts[-1] == f"and {more_than_fit} more"
    if count <= 28 and "--size" not in more:
        assert len(texts) == count


def test_updates_that_were_logged_twice_are_drawn_once(tmp_path, drawn, capsys):
    run = write_run(tmp_path / "run", [1.0, 2.0, 3.0])
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text() * 2)
    assert main(["plot", str(run), "--out", str(tmp_path / "x.svg")]) == 0
    (line,) = drawn[0][0][0].lines
    assert (line.x.tolist(), line.y.tolist()) == ([UPDATE, 2 * UPDATE, 3 * UPDATE], [1, 2, 3])
    assert main(["runs", str(tmp_path)]) == 0
    assert "metrics.jsonl has updates more than once: 3 of 6 lines are left out" in capsys.readouterr().err
