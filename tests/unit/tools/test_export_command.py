"""The command `export`, and what README and docs/export.md say of it."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.tools import cli
from fabric_ppo.tools.commands.export import export_parser
from fabric_ppo.tools.export import Exported, export
from tests.fixtures.configs import tiny
from tests.fixtures.exported import save
from tests.fixtures.launching import ROOT
from tests.fixtures.pages import of_kind

PAGE = ROOT / "docs/export.md"


def test_the_commands_of_the_readme_are_parsed():
    found = of_kind("export")
    assert len(found) == 2
    for words in found:
        export_parser().parse_args(words[words.index("export") + 1 :])


def test_the_page_has_every_flag():
    shown = re.findall(r"^\| `(--[\w-]+)", PAGE.read_text(), re.MULTILINE)
    actions = export_parser()._actions
    assert shown == [each.option_strings[0] for each in actions if each.option_strings and each.dest != "help"]
    assert all(name in {each.name for each in fields(Exported)} for name in ("path", "program", "interface"))


@pytest.mark.parametrize(("to", "ending"), [("onnx", "onnx"), ("torchscript", "pt")])
def test_the_command_prints_what_it_wrote(to, ending, tmp_path, capsys):
    run_dir, out = save(tmp_path, "gru"), tmp_path / f"a policy.{ending}"
    words = ["export", str(run_dir), "--to", to, "--out", str(out), "--own-code", "--verify-steps", "30"]
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0] == f"policy   {out}"
    assert lines[1] == "inputs   obs [B, 3] float32, noise [B, 3] float32, memory [B, 4] float32 (noise: normal)"
    assert lines[2].startswith("outputs  action [B, 3] float32, params [B, 6] float32, value [B] float32, next_memory")
    assert lines[3].startswith("verified 30 observations of test episodes: the same actions; differences action ")
    assert out.is_file()
    assert (tmp_path / f"a policy_{ending}_run.py").is_file()


def test_a_run_and_its_checkpoint(tmp_path):
    """Seed and steps of a finished run are those of its summary, of a checkpoint those in it."""
    flags = tiny(env_id="CartPole-v1", seed=5, log_dir=str(tmp_path), checkpoint_every=1, keep_checkpoints=3)
    run = train(Config(**flags), verbose=False)
    import onnx

    for source, steps in ((run, "192"), (run / "checkpoints" / "update_2.ckpt", "128")):
        exported = export(source, "onnx", tmp_path / "p.onnx", verify_steps=80)
        found = {each.key: each.value for each in onnx.load(exported).metadata_props}
        assert (found["seed"], found["env_steps"]) == ("5", steps)
    assert load_agent(run).spec.env_id == found["env_id"]


def test_the_program_of_the_page_gives_the_agents_action(tmp_path, monkeypatch):
    run = train(Config(**tiny(env_id="CartPole-v1", log_dir=str(tmp_path))), verbose=False)
    export(run, "onnx", tmp_path / "policy.onnx", verify="none")
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names = {}
    exec(program, names)
    assert names["action"].tolist() == [load_agent(run).act(names["obs"][0])]
