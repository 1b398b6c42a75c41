"""Pages of `--help`: groups in order, whole sentences, no torn lines, at 80 and 120 columns and when piped."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re

import pytest

from fabric_ppo.config import FLAG_GROUPS, SCRIPT_CONFIGS, Config
from fabric_ppo.process.errors import flag
from fabric_ppo.tools import cli
from fabric_ppo.tools.commands import train
from fabric_ppo.tools.flags import parse_flags
from fabric_ppo.tools.help import MOST_USED, field_docs
from tests.fixtures.launching import ROOT

pytestmark = pytest.mark.usefixtures("no_launcher")

COMMANDS = ("evaluate", "plot", "benchmark", "sweep", "presets")
PAGES = [
    *((kind, word) for kind in SCRIPT_CONFIGS for word in ("--help", "--help-all")),
    *(("train " + kind, word) for kind in SCRIPT_CONFIGS for word in ("--help", "--help-all")),
    *((command, "--help") for command in ("", "train", *COMMANDS)),
]


def printed(name, word, capsys):
    """The page of a script, such as `torch`, or of a command; ends with status 0."""
    if name in SCRIPT_CONFIGS:
        with pytest.raises(SystemExit) as caught:
            parse_flags(SCRIPT_CONFIGS[name], [word])
        status = caught.value.code
    else:
        try:
            status = cli.main([*name.split(), word])
        except SystemExit as stop:
            status = stop.code
    text, errors = capsys.readouterr()
    assert (status, errors) == (0, "")
    return text


@pytest.fixture(params=["80", "120", "piped"])
def width(request, monkeypatch):
    """Columns that a page may have; a pipe has 80."""
    if request.param == "piped":
        monkeypatch.delenv("COLUMNS", raising=False)
        return 80
    monkeypatch.setenv("COLUMNS", request.param)
    return min(int(request.param), 100)


def blocks(text, width):
    """The texts of a page, each as its lines and their room: paragraphs, and the descriptions of entries."""
    found = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.rstrip("\n").split("\n")
        if not re.search(r":$", lines[0]):
            found.append((lines, width))
            continue
        entry = []
        for line in lines[1:]:
            if re.match(r"  \S", line):
                found.append((entry, width - 30))
                entry = [line[30:].strip()] if re.match(r"  \S.{0,25}  ", line) else []
            else:
                assert line.startswith(" " * 30)
                entry.append(line.strip())
        found.append((entry, width - 30))
    return found


@pytest.mark.parametrize(("name", "word"), PAGES)
def test_no_line_is_torn_or_too_long(name, word, width, capsys):
    """A line ends where the next word has no room, and nowhere else; no word is cut."""
    text = printed(name, word, capsys)
    assert max(map(len, text.splitlines())) <= width
    assert not [line for line in text.splitlines() if line != line.rstrip() or not line.isprintable()]
    found = blocks(text, width)
    assert sum(len(lines) for lines, _ in found) > 2
    for lines, room in found:
        for line, following in itertools.pairwise(lines):
            first = re.match(r"\(default: \S+|\S+", following.strip())[0]
            assert len(line) + 1 + len(first) > room, (line, following)


@pytest.mark.parametrize("kind", SCRIPT_CONFIGS)
def test_every_description_is_on_the_page_of_all_flags(kind, width, capsys):
    text = " ".join(printed(kind, "--help-all", capsys).split())
    docs = field_docs(SCRIPT_CONFIGS[kind])
    assert docs.keys() == {field.name for field in dataclasses.fields(SCRIPT_CONFIGS[kind])}
    for name, doc in docs.items():
        assert f" {flag(name)}" in text
        assert doc in text, name


def test_descriptions_are_the_strings_below_the_fields():
    """Read from the file, not from the classes."""
    tree = ast.parse((ROOT / "fabric_ppo" / "config.py").read_text())
    expected = {}
    for owner in [node for node in tree.body if isinstance(node, ast.ClassDef)]:
        for node, below in itertools.pairwise(owner.body):
            if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
                expected[ast.unparse(node.target)] = " ".join(ast.literal_eval(below.value).split())
    names = {field.name for field in dataclasses.fields(Config)}
    assert field_docs(Config) == {name: text for name, text in expected.items() if name in names}
    assert all(re.search(r"\.\Z", text) for text in expected.values())


@pytest.mark.parametrize("kind", SCRIPT_CONFIGS)
def test_groups_are_in_order_and_have_titles(kind, capsys):
    text = printed(kind, "--help-all", capsys)
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert titles == [*(group.__doc__.rstrip(".") for group in FLAG_GROUPS), "Help"]
    config_type = SCRIPT_CONFIGS[kind]
    own = {field.name for field in dataclasses.fields(config_type)} - {each.name for each in dataclasses.fields(Config)}
    devices = text.partition("Processes and devices:")[2].partition("\n\n")[0]
    assert all(flag(name) in devices for name in own)


@pytest.mark.parametrize("kind", SCRIPT_CONFIGS)
def test_the_short_page_has_what_most_need_and_names_the_long_one(kind, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(kind, "--help", capsys)
    shown = re.findall(r"^  (--[\w-]+)", text, re.MULTILINE)
    count = len(dataclasses.fields(SCRIPT_CONFIGS[kind]))
    assert 18 <= len(shown) <= 28
    assert f"--help-all shows all {count}" in " ".join(text.split())
    assert len(text.splitlines()) <= 80, "two screens"
    needed = ["--env-id", "--num-envs", "--total-timesteps", "--seed", "--learning-rate", "--num-steps", "--config"]
    needed += ["--anneal-lr", "--stop-at-return", "--checkpoint-every"]
    assert {*needed, "--hidden-sizes", "--run-dir", "--resume"} <= set(shown)
    every = {field.name for config in SCRIPT_CONFIGS.values() for field in dataclasses.fields(config)}
    assert set(MOST_USED) <= every


@pytest.mark.parametrize("word", ["--help", "-h", "--help-all", "--help_all"])
def test_help_has_several_names(word, capsys):
    assert printed("torch", word, capsys).startswith("usage: python train_torch.py [FLAGS]\n")


def test_defaults_are_those_of_the_file(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("gamma: 0.5\nhidden_sizes: [8]\nanneal_lr: false\nrun_dir: runs/a\n")
    with pytest.raises(SystemExit):
        parse_flags(Config, ["--config", str(tmp_path / "mine.yaml"), "--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Discount factor. (default: 0.5)" in text
    assert "network alike. (default: 8)" in text
    assert "--anneal-lr Lower --learning-rate linearly to zero over the run, if it is a number. (default: off)" in text
    assert "(default: runs/a)" in text
    assert "--torch-deterministic, --no-torch-deterministic" in text


@pytest.mark.parametrize("kind", SCRIPT_CONFIGS)
def test_the_launchers_flags_are_a_group_of_the_same_page(kind, capsys):
    own, launched = (printed(name, "--help", capsys) for name in (kind, f"train {kind}"))
    launcher = launched.partition("\n\nLauncher:\n")[2].partition("\n\n")[0]
    assert {entry.names.split()[0] for entry in train.launcher_parser(kind).flag_entries()} == set(
        re.findall(r"^  (--[\w-]+)", launcher, re.MULTILINE)
    )
    assert launched.startswith(f"usage: fabric-ppo train {kind} [FLAGS]\n")
    start = f"\n\n{FLAG_GROUPS[0].__doc__.rstrip('.')}:"
    assert launched.partition(start)[1:] == own.partition(start)[1:]


@pytest.mark.parametrize("args", [[], ["train"]])
def test_a_command_without_what_it_needs_prints_its_page(args, capsys):
    assert cli.main(args) == 2
    text = capsys.readouterr().out
    assert text == printed(" ".join(args), "--help", capsys)
    names = SCRIPT_CONFIGS if args else ("train", *COMMANDS)
    assert set(names) <= set(re.findall(r"^  ([\w-]+)", text, re.MULTILINE))


def test_only_rank_0_prints_the_page(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        parse_flags(Config, ["--help"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("columns", ["0", "1", "x", "-5", "10000"])
def test_an_odd_width_is_survived(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert "--env-id ID" in printed("torch", "--help", capsys)
