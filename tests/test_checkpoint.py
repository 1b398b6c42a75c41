"""Files that are never half-written; checkpoints that are whole or refused, and that run nothing when they are read."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import resource
import signal

import pytest
import torch
from safetensors.torch import save

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import Checkpoint, write_atomically
from fabric_ppo.run.checkpoint import BEST, newest_first, newest_intact, save_checkpoint
from tests.runs import in_fork

MAGIC = b"Fabric PPO checkpoint 1\n"
DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)
FLOATS = [0.1, 1 / 3, -0.0, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, math.pi, 1e23, -123456.789e-7]


def small() -> Checkpoint:
    """A checkpoint of some hundred bytes, with everything that can be in one."""
    tensors = {
        "weights.a": torch.tensor([1.5, -2.0]),
        "env.flags": torch.tensor([True, False, True]),
        "env.empty": torch.zeros((0, 2), dtype=torch.uint8),
        "optimizer.0.step": torch.tensor(3.0),
    }
    return Checkpoint(tensors, {"update": 7, "window": [0.1, -2.5], "text": "ä\n"})


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def refusal(content: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        Checkpoint.from_bytes(content)
    message = str(caught.value)
    assert "\n" not in message
    return message


# write_atomically


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_replaced_as_a_whole(tmp_path):
    write_atomically(tmp_path / "file", b"old")
    write_atomically(tmp_path / "file", b"newer")
    assert contents(tmp_path) == {"file": b"newer"}


def test_a_write_that_fails_at_any_byte_leaves_the_old_file(tmp_path):
    """No file may grow beyond k bytes, for each k: the kernel then refuses the next one."""
    path, new = tmp_path / "file", bytes(range(200))
    path.write_bytes(b"old")

    def attempts():
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit in range(len(new)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(OSError, match="File too large"):
                write_atomically(path, new)
            assert contents(tmp_path) == {"file": b"old"}
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(new), hard))
        write_atomically(path, new)

    in_fork(attempts)
    assert contents(tmp_path) == {"file": new}


@pytest.mark.parametrize(("call", "kept"), [("fsync", b"old"), ("replace", b"old"), ("rename_done", b"new")])
def test_a_process_killed_while_it_writes_leaves_one_of_both(tmp_path, monkeypatch, call, kept):
    """Before the data is on the disk, before the file is renamed, and after."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    replace = os.replace

    def die(*args):
        if call == "rename_done":
            replace(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(os, "fsync" if call == "fsync" else "replace", die)
    if (pid := os.fork()) == 0:
        write_atomically(path, b"new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert path.read_bytes() == kept


def test_the_data_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    """What a power cut asks for: fsync of the file, rename, fsync of the folder, in this order."""
    calls = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def replace(source, target):
        calls.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(tmp_path / "file", b"new")
    assert len(calls) == 3
    assert calls[0].endswith(".tmp")
    assert calls[1:] == ["rename", tmp_path.name]


# one checkpoint


def test_tensors_of_every_type_and_shape_come_back_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for dtype in DTYPES:
        for shape in ((), (0,), (3, 0, 2), (7,), (2, 3, 5)):
            raw = torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8, generator=generator)
            tensor = (raw % 2).view(dtype) if dtype == torch.bool else raw.view(dtype)
            tensors[f"{dtype}.{shape}"] = tensor.reshape(shape)
    tensors["odd values"] = torch.tensor([math.nan, math.inf, -0.0, 5e-324], dtype=torch.float64)
    tensors["not contiguous"] = torch.arange(12).view(3, 4).T[1:]
    got = Checkpoint.from_bytes(Checkpoint(tensors, {}).to_bytes()).tensors
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(got[name]) == bits(tensor), name


def test_values_come_back_exactly():
    values = {"floats": FLOATS, "none": None, "flag": True, "big": 2**63 + 1, "deep": {"a": ["ä\n\0", {}]}, "": ""}
    got = Checkpoint.from_bytes(Checkpoint({}, values).to_bytes()).values
    assert got == values
    assert [number.hex() for number in got["floats"]] == [number.hex() for number in FLOATS]


def test_tensors_under_a_prefix():
    names = ("weights.a.b", "weights.c", "weights2.d", "e.weights.f")
    checkpoint = Checkpoint({name: torch.tensor(index) for index, name in enumerate(names)}, {})
    assert {name: int(tensor) for name, tensor in checkpoint.under("weights.").items()} == {"a.b": 0, "c": 1}


def test_every_truncation_is_refused():
    content = small().to_bytes()
    for length in range(len(content)):
        assert refusal(content[:length])
    assert refusal(content + b"\0")


def test_every_flipped_bit_is_refused():
    content = bytearray(small().to_bytes())
    for position in range(len(content)):
        for bit in range(8):
            content[position] ^= 1 << bit
            assert refusal(bytes(content))
            content[position] ^= 1 << bit
    assert Checkpoint.from_bytes(bytes(content)).values == small().values


class RunsCode:
    """What unpickling it would do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def with_digest(content: bytes) -> bytes:
    return MAGIC + hashlib.sha256(content).digest() + content


@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_pickle_is_refused_and_not_run(tmp_path, form, is_wrapped):
    trap = tmp_path / "executed"
    if form == "pickle":
        content = pickle.dumps(RunsCode(trap))
    else:
        torch.save({"weights": RunsCode(trap)}, stream := io.BytesIO())
        content = stream.getvalue()
    assert "not a checkpoint of this program" in refusal(with_digest(content) if is_wrapped else content)
    assert not trap.exists()
    pickle.loads(pickle.dumps(RunsCode(trap)))
    assert trap.exists()  # it is a trap


def safetensors_with_header(header: object) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\0" * 64,
        b"\xff" * 64,
        save({"a": torch.zeros(2)}),
        save({"a": torch.zeros(2)}, {"values": "{"}),
        save({"a": torch.zeros(2)}, {"other": "{}"}),
        safetensors_with_header([]),
        safetensors_with_header({"__metadata__": None}),
        safetensors_with_header({"__metadata__": {"values": "{}"}, "a": {"dtype": "F32", "shape": [2**40]}}),
        safetensors_with_header(
            {"__metadata__": {"values": "{}"}, "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
        ),
    ],
    ids=range(11),
)
def test_foreign_files_are_refused(content):
    """Also with a digest that fits."""
    assert "not a checkpoint of this program" in refusal(content)
    assert "not a checkpoint of this program" in refusal(with_digest(content))


# a folder of them


def at(update: int) -> bytes:
    return Checkpoint({"a": torch.tensor(update)}, {"update": update}).to_bytes()


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept_and_the_best(tmp_path):
    folder = tmp_path / "checkpoints"
    for update in range(1, 13):
        path = save_checkpoint(folder, update, at(update), keep=3, is_best=update in (2, 4))
        assert path.read_bytes() == at(update)
        newest = range(max(1, update - 2), update + 1)
        best = [BEST] if update >= 2 else []
        assert names(folder) == sorted([*(f"update_{each}.ckpt" for each in newest), *best])
    assert [path.name for path in newest_first(folder)] == ["update_12.ckpt", "update_11.ckpt", "update_10.ckpt"]
    assert (folder / BEST).read_bytes() == at(4)


def test_updates_are_numbers_not_words(tmp_path):
    """`update_9` is older than `update_10`, which is older than `update_100`."""
    for update in (9, 100, 10, 99, 1):
        (tmp_path / f"update_{update}.ckpt").write_bytes(at(update))
    for other in (BEST, "update_x.ckpt", "update_101.ckpt.damaged", ".update_102.ckpt.tmp", "update_103.ckpt.old"):
        (tmp_path / other).write_bytes(at(1000))
    expected = [f"update_{update}.ckpt" for update in (100, 99, 10, 9, 1)]
    assert [path.name for path in newest_first(tmp_path)] == expected
    assert newest_intact(tmp_path) == (at(100), [])
    save_checkpoint(tmp_path, 101, at(101), keep=2, is_best=False)
    assert [path.name for path in newest_first(tmp_path)] == ["update_101.ckpt", "update_100.ckpt"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_ones(tmp_path):
    for update in (1, 2, 3):
        save_checkpoint(tmp_path, update, at(update), keep=3, is_best=False)
    before = contents(tmp_path)

    def attempts():
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit in range(0, len(at(4)), 7):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(OSError, match="File too large"):
                save_checkpoint(tmp_path, 4, at(4), keep=1, is_best=True)
            assert contents(tmp_path) == before

    in_fork(attempts)


def test_what_a_killed_write_left_goes_with_the_next_one(tmp_path):
    (tmp_path / ".update_3.ckpt.tmp").write_bytes(b"half")
    save_checkpoint(tmp_path, 4, at(4), keep=3, is_best=False)
    assert names(tmp_path) == ["update_4.ckpt"]


@pytest.mark.parametrize("num_damaged", [1, 2])
def test_damaged_ones_are_passed_over_and_named(tmp_path, num_damaged):
    for update in (9, 10, 11):
        save_checkpoint(tmp_path, update, at(update), keep=3, is_best=False)
    damaged = [11, 10][:num_damaged]
    for update in damaged:
        (tmp_path / f"update_{update}.ckpt").write_bytes(at(update)[:-1])
    content, refused = newest_intact(tmp_path)
    assert content == at(11 - num_damaged)
    assert len(refused) == num_damaged
    for update, why in zip(damaged, refused, strict=True):
        assert why.startswith(f"{tmp_path}/update_{update}.ckpt: damaged")
    # put aside, so that they neither count among the newest nor are told again
    again, refused = newest_intact(tmp_path)
    assert (again, refused) == (content, [])


def test_where_none_is_whole_nothing_begins_anew(tmp_path):
    """Neither at the first attempt nor at a later one, when the damaged have been put aside."""
    assert newest_intact(tmp_path / "no folder") == (b"", [])
    assert newest_intact(tmp_path) == (b"", [])
    for update in (3, 4):
        (tmp_path / f"update_{update}.ckpt").write_bytes(at(update)[:-1])
    for _ in range(2):
        with pytest.raises(ConfigError, match="no checkpoint is whole") as caught:
            newest_intact(tmp_path)
        assert all(f"update_{update}.ckpt" in str(caught.value) for update in (3, 4))


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "update_7.ckpt").mkdir()
    save_checkpoint(tmp_path, 6, at(6), keep=3, is_best=False)
    content, (why,) = newest_intact(tmp_path)
    assert content == at(6)
    assert "update_7.ckpt" in why
