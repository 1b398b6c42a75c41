"""The picture of the results: what its bars stand for, and that it can be read."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks import chart
from benchmarks.chart import BARS, LABELS, RESULTS, STYLE, WIDTH, Bar, Group, draw, read_group

SVG = "{http://www.w3.org/2000/svg}"


def run(row: str, number: int, wall: float, train: float | None, problem: str = "") -> dict:
    counts = {"env_steps": 1024, "gradient_steps": 160, "return_mean": None}
    times = {"wall_seconds": wall, "train_seconds": train}
    return {"row": row, "round": number, "setting": "as it comes", "problem": problem, **counts, **times}


def write_results(folder, runs, name="p1"):
    work = {"env_id": "CartPole-v1", "env_steps": 1024, "num_envs": 1, "num_steps": 128, "batch_size": 64, "epochs": 10}
    about = {"date": "2026-11-25 12:00", "machine": {"cpu": "A CPU <& more>", "cores": 2}}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"workload": {**work, "name": name, "gradient_steps": 160}, **about, "runs": runs}))
    return path


RUNS = [
    run("train_torch.py", 1, 2.0, 1.0),
    run("SBX", 1, 8.0, None),
    run("SheepRL", 1, 0.5, 0.5, problem="16 gradient steps, 160 agreed"),
    run("train_torch.py", 2, 4.0, 2.0),
    run("SBX", 2, 10.0, None),
]


def test_a_bar_has_medians_and_the_ratio_of_the_rounds(tmp_path):
    group = read_group(write_results(tmp_path, RUNS))
    assert group.title == "P1: CartPole, one process"
    assert group.about == "1,024 transitions; 2026-11-25, A CPU <& more>, 2 cores"
    ours, sbx, sheeprl = group.bars
    assert ours == Bar("train_torch.py", 3.0, 1.5, 1.0)
    assert sbx == Bar("SBX", 9.0, None, 3.25)  # 8 / 2 and 10 / 4
    assert (sheeprl.problem, sheeprl.seconds) == ("16 gradient steps, 160 agreed", 0.0)


def bars_of(picture: str) -> list[tuple[str, float, float]]:
    """Class, left end and width of each bar, without background and legend."""
    found = []
    for each in ElementTree.fromstring(picture).iter(f"{SVG}rect"):
        if float(each.get("x", 0)) > LABELS and each.get("height") != "12":
            found.append((each.get("class"), float(each.get("x")), float(each.get("width"))))
    return found


def test_bars_are_as_long_as_the_seconds(tmp_path):
    picture = draw([read_group(write_results(tmp_path, RUNS))])
    (whole, left, ours), (training, _, trained), (other, _, theirs) = bars_of(picture)
    assert (whole, training, other) == ("ours rest", "ours", "theirs rest")
    assert ours / theirs == pytest.approx(3.0 / 9.0, abs=1e-3)
    assert trained / ours == pytest.approx(0.5, abs=1e-3)
    assert left + theirs == pytest.approx(BARS, abs=0.1)  # the longest


def texts_of(picture: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(picture).iter(f"{SVG}text"))


def test_a_row_without_a_good_run_has_words_and_no_bar(tmp_path):
    picture = draw([read_group(write_results(tmp_path, RUNS[2:3]))])
    assert bars_of(picture) == []
    assert "16 gradient steps, 160 agreed" in [each.text for each in texts_of(picture)]


def test_every_row_of_the_measured_results_is_in_the_picture():
    paths = sorted(RESULTS.glob("p*.json"))
    shown = " ".join(each.text for each in texts_of(draw([read_group(path) for path in paths])))
    for path in paths:
        for row in {run["row"] for run in json.loads(path.read_text())["runs"]}:
            assert row.split()[0].rstrip(",") in shown


def test_text_stays_inside_the_picture():
    """By a generous width of characters: 8.5 of the 13 units of their height."""
    picture = draw([read_group(path) for path in sorted(RESULTS.glob("p*.json"))])
    for each in texts_of(picture):
        at, width = float(each.get("x")), 8.5 * len(each.text)
        if "label" in each.get("class", ""):
            assert at - width > 0, each.text
        elif each.get("class") is None:  # figures behind a bar
            assert at + width < WIDTH, each.text


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_suffices_in_light_and_dark(scheme):
    """WCAG 2.1 AA: 4.5 for text, 3 for what is drawn."""
    colors = [dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in re.findall(r"svg \{ (--.*?) \}", STYLE)]
    page = luminance(colors[scheme]["page"])
    for name, wanted in (("text", 4.5), ("weak", 4.5), ("ours", 3.0), ("theirs", 3.0)):
        one, other = sorted((luminance(colors[scheme][name]), page))
        assert (other + 0.05) / (one + 0.05) >= wanted, name


def test_a_workload_without_results_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["chart", "p1", "--results", str(tmp_path), "--out", str(tmp_path / "a.svg")])
    with pytest.raises(SystemExit) as raised:
        chart.main()
    assert raised.value.code == 2
    assert "p1: no p1.json in" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_picture_is_written_where_it_is_wanted(tmp_path, monkeypatch):
    write_results(tmp_path, RUNS)
    write_results(tmp_path, RUNS, "p9")
    out = tmp_path / "new" / "a.svg"
    monkeypatch.setattr("sys.argv", ["chart", "--results", str(tmp_path), "--out", str(out)])
    assert chart.main() == 0
    titles = [each.text for each in texts_of(out.read_text()) if each.get("class") == "title"]
    assert titles == ["P1: CartPole, one process", "P9: HalfCheetah, one process"]


def test_an_empty_group_is_drawn():
    assert ElementTree.fromstring(draw([Group("P1", "", [Bar("SBX", problem="status 1")])])).tag == f"{SVG}svg"
