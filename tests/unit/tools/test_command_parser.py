"""Flags of the commands: whole numbers as people write them, and errors in one line."""

from __future__ import annotations

import pytest

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.tools import cli
from fabric_ppo.tools.command_parser import CommandParser, count
from fabric_ppo.tools.commands import evaluate, train


@pytest.mark.parametrize(("text", "number"), [("1e3", 1000), ("2k", 2000), ("1_000", 1000), ("7", 7)])
def test_counts_take_the_spellings_of_large_numbers(text, number):
    given = evaluate.evaluate_parser().parse_args(["RUN_DIR", "--episodes", text, f"--step-limit={text}"])
    assert (given.episodes, given.step_limit) == (number, number)
    assert train.launcher_parser("torch").parse_args(["--devices", text]).devices == number


@pytest.mark.parametrize("text", ["1.5", "1e-3", "many"])
@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["evaluate", "RUN_DIR", "--episodes"], "--episodes"),
        (["benchmark", "classic", "--seeds"], "--seeds"),
        (["train", "torch", "--devices"], "--devices"),
    ],
)
def test_what_is_no_count_is_named_in_one_line(words, flag, text, capsys):
    assert cli.main([*words, text]) == 2
    assert capsys.readouterr() == ("", f"error: {flag} {text}: a whole number is expected\n")


def test_an_error_of_argparse_is_a_config_error():
    parser = CommandParser("fabric-ppo some")
    parser.add_argument("--size", type=count, required=True, help="Size.")
    with pytest.raises(ConfigError, match=r"^the following arguments are required: --size$"):
        parser.parse_args([])
    with pytest.raises(ConfigError, match=r"^--si: unknown flag; did you mean --size\?$"):
        parser.parse_args(["--size", "3", "--si", "3"])


def test_the_usage_has_what_is_needed(capsys):
    parser = CommandParser("fabric-ppo some")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="Runs.")
    parser.add_argument("--size", type=count, required=True, help="Size.")
    assert parser.format_help().splitlines()[0] == "usage: fabric-ppo some RUN ... --size N"
    parser.add_argument("--quick", action="store_true", help="Hurry.")
    assert parser.format_help().splitlines()[0] == "usage: fabric-ppo some RUN ... --size N [FLAGS]"


@pytest.mark.parametrize(("nargs", "usage"), [(None, "DIR"), ("?", "[DIR]"), ("*", "[DIR ...]"), ("+", "DIR ...")])
def test_what_may_be_left_out_stands_in_brackets(nargs, usage):
    parser = CommandParser("fabric-ppo some")
    parser.add_argument("dir", metavar="DIR", nargs=nargs, help="Folder.")
    assert parser.format_help().splitlines()[0] == f"usage: fabric-ppo some {usage}"
