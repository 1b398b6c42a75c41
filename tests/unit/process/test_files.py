"""Files that are never half-written; checkpoints that are whole or refused, and that run nothing when they are read."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle

import pytest
import torch
from safetensors.torch import save

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import Checkpoint, tidy_path, write_atomically
from tests.fixtures.checkpoints import contents

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


def test_a_file_is_replaced_as_a_whole(tmp_path):
    write_atomically(tmp_path / "file", b"old")
    write_atomically(tmp_path / "file", b"newer")
    assert contents(tmp_path) == {"file": b"newer"}


def test_the_data_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    """For power cuts: fsync of the file, rename, fsync of the folder, in this order."""
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
    """Makes a folder when it is unpickled."""

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


def test_a_path_is_printed_without_what_leads_back(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "file").touch()
    assert tidy_path(f"{tmp_path}/a/../file") == f"{tmp_path}/file"
    assert tidy_path(f"{tmp_path}/a/.//b/../../file") == f"{tmp_path}/file"
    assert tidy_path(f"{tmp_path}/a/../none") == f"{tmp_path}/a/../none"


def test_but_for_one_through_a_link_to_another_folder(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a/b")
    (tmp_path / "a/file").touch()
    (tmp_path / "file").touch()
    assert tidy_path(f"{tmp_path}/link/../file") == f"{tmp_path}/link/../file"
