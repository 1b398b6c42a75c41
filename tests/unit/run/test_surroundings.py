"""What a resumed run says about what has changed since its checkpoint: each reason in words of its own."""

from __future__ import annotations

import sys

import pytest

from fabric_ppo.config import Config, DecoupledConfig
from fabric_ppo.run import code
from fabric_ppo.run.surroundings import changes, surroundings
from tests.fixtures.agents import build_agent
from tests.fixtures.spaces import ACTIONS

NOT_THE_SAME = "the result will not be the same bit for bit"


@pytest.fixture
def now():
    return surroundings(Config(), build_agent(ACTIONS["discrete"]))


def test_nothing_is_said_where_nothing_has_changed(now):
    assert changes(now, surroundings(Config(), build_agent(ACTIONS["discrete"]))) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"processor": "abacus"}, "resumed on another processor, {processor} (before abacus)"),
        ({"threads": 77}, "resumed with another number of threads, {threads} (before 77)"),
        ({"ranks": 77}, "resumed with another number of ranks, {ranks} (before 77)"),
        ({"device": "cuda"}, "resumed on another device, cpu (before cuda)"),
        ({"gpu": "Voodoo"}, "resumed on another GPU, none (before Voodoo)"),
        ({"kernels": "none"}, "resumed with other compiled functions, {kernels} (before none)"),
        ({"precision": "bf16-mixed"}, "resumed in another precision, 32-true (before bf16-mixed)"),
    ],
)
def test_each_reason_is_a_line(now, change, line):
    assert changes(now | change, now) == [f"{line.format(**now)}: {NOT_THE_SAME}"]


def test_versions_are_named(now):
    old = now["versions"] | {"numpy": "0.1"}
    line = f"resumed with other libraries, numpy {now['versions']['numpy']} (before 0.1): {NOT_THE_SAME}"
    assert changes(now | {"versions": old}, now) == [line]


def test_changed_code_is_named_by_file_and_not_as_a_change_of_bits(now):
    files = now["code"] | {"fabric_ppo/ppo/loss.py": "0"}
    line = "resumed with changed code (fabric_ppo/ppo/loss.py): the run goes on with the code as it is now"
    assert changes(now | {"code": files}, now) == [line]
    files = {name: "0" if name.startswith("fabric_ppo/ppo/") else digest for name, digest in now["code"].items()}
    changed = [name for name, digest in files.items() if digest == "0"]
    (line,) = changes(now | {"code": files}, now)
    assert f"({', '.join(sorted(changed)[:3])} and {len(changed) - 3} more)" in line


def test_a_checkpoint_of_an_older_version_of_the_program(now):
    """It had the versions side by side, and one digest of the whole program."""
    old = now["versions"] | {name: now[name] for name in ("processor", "threads", "ranks")} | {"fabric_ppo": "12ab"}
    line = "resumed with changed code (another version of this program): the run goes on with the code as it is now"
    assert changes(old, now) == [line]


def test_code_is_that_of_package_and_script():
    files = code.code_of(DecoupledConfig())
    assert {"fabric_ppo/ppo/loss.py", "fabric_ppo/envs/worker.py", "train_fabric_decoupled.py"} <= files.keys()
    assert not {"train_torch.py", "fabric_ppo/tools/plot.py"} & files.keys()


PARTS = {
    "__init__.py": "from . import wrappers",
    "wrappers.py": "from .maths import half\ndef wrap(env): return env",
    "maths.py": "half = 0.5",
    "unused.py": "",
}


def test_a_users_package_is_followed_through_its_imports(tmp_path, monkeypatch):
    """Whatever folder it lies in; libraries, and files that it does not import, are left out."""
    seen = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        (folder / "own_parts").mkdir(parents=True)
        for name, text in PARTS.items():
            (folder / "own_parts" / name).write_text(text)
        (folder / "own_net.py").write_text("import json\nimport numpy\n")
        monkeypatch.syspath_prepend(folder)
        __import__("own_parts.wrappers")
        __import__("own_net")
        config = Config(env_wrapper="own_parts.wrappers:wrap", encoder="own_net:Net")
        own = {name: digest for name, digest in code.code_of(config).items() if name.startswith("own_")}
        assert own.keys() == {f"own_parts/{name}" for name in PARTS if name != "unused.py"} | {"own_net.py"}
        seen.append(own)
        for name in [each for each in sys.modules if each.startswith("own_")]:
            monkeypatch.delitem(sys.modules, name)
    assert seen[0] == seen[1]
