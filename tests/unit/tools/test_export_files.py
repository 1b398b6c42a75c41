"""The files of an export: two formats keep apart, and a file of the user's stays as it is."""

from __future__ import annotations

import pytest

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.tools import cli
from fabric_ppo.tools.export_files import SUFFIXES, program_path, require_paths, write_both
from tests.fixtures.exported import save

TEXT = "print('é')\n"


def test_each_policy_has_a_program_of_its_own(tmp_path):
    """Whatever its format and ending is, and where one name has a dot more."""
    endings = [ending for of_format in SUFFIXES.values() for ending in of_format]
    outs = [tmp_path / f"{stem}{ending}" for stem in ("policy", "policy.v2", "policy_onnx") for ending in endings]
    assert len({program_path(out) for out in outs}) == len(outs)
    assert not {program_path(out) for out in outs} & set(outs)


def test_the_commands_of_the_page_leave_two_pairs_of_files(tmp_path):
    run_dir = save(tmp_path, "discrete")
    for to, name in (("onnx", "policy.onnx"), ("torchscript", "policy.pt")):
        words = ["export", str(run_dir), "--to", to, "--out", str(tmp_path / name), "--verify", "none"]
        assert cli.main(words) == 0
    for name in ("policy.onnx", "policy.pt"):
        text = program_path(tmp_path / name).read_text()
        assert name in text
        assert "onnxruntime" in text if name.endswith("onnx") else "torch.jit" in text


def test_an_export_replaces_one_that_is_as_it_was_written(tmp_path):
    out = tmp_path / "p.onnx"
    write_both(out, b"first", TEXT)
    require_paths("onnx", out)
    write_both(out, b"second", TEXT * 2)
    require_paths("onnx", out)
    assert out.read_bytes() == b"second"
    assert program_path(out).read_text().startswith(TEXT * 2)


def edited(program):
    program.write_text(program.read_text().replace("print", "print  "))


def added_to(program):
    program.write_text(program.read_text() + "print('more')\n")


def of_the_user(program):
    program.write_text("mine\n")


def empty(program):
    program.write_bytes(b"")


def folder(program):
    program.unlink()
    program.mkdir()


def link(program):
    other = program.with_name("mine.py")
    program.rename(other)
    program.symlink_to(other)


def link_to_nothing(program):
    program.unlink()
    program.symlink_to("mine.py")


@pytest.mark.parametrize("change", [edited, added_to, of_the_user, empty, folder, link, link_to_nothing])
@pytest.mark.parametrize("to", SUFFIXES)
def test_what_the_user_has_at_the_place_of_the_program_stays(change, to, tmp_path, capsys):
    """And nothing is written, and nothing computed before that is said."""
    out = tmp_path / f"p{SUFFIXES[to][0]}"
    write_both(out, b"first", TEXT)
    change(program_path(out))
    before = {each: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()}
    assert cli.main(["export", str(tmp_path), "--to", to, "--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: --out {out}: its program would replace {program_path(out)}, which is not as ")
    assert printed.count("\n") == 1
    assert {each: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()} == before


@pytest.mark.parametrize("name", ["p", "p.pt", "p.onnx.txt", "p.", ".onnx"])
def test_a_name_of_another_kind_of_file_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=r"for --to onnx a name that ends with \.onnx is expected"):
        require_paths("onnx", tmp_path / name)


@pytest.mark.parametrize("name", ["p.onnx", "p.ONNX", "a b.onnx"])
def test_a_name_of_its_kind_is_taken(name, tmp_path):
    require_paths("onnx", tmp_path / name)
