"""Files that are never half-written, and checkpoints: what a run goes on from, safe to load from anybody."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fabric_ppo.errors import ConfigError

_MAGIC = b"Fabric PPO checkpoint 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_NAME = re.compile(r"update_(\d+)\.ckpt")
BEST = "best.ckpt"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is, at every moment, either the old one or the new one, also after a power cut.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@dataclass(frozen=True)
class Checkpoint:
    """A run at the end of an update.

    Attributes:
        tensors: weights, optimizer, environments.
        values: everything else, as JSON has it.
    """

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix`, without it."""
        return {name.removeprefix(prefix): each for name, each in self.tensors.items() if name.startswith(prefix)}

    def to_bytes(self) -> bytes:
        """A line that says what this is, the SHA-256 of the rest, and the rest: safetensors with JSON inside."""
        tensors = {name: each.detach().cpu().contiguous() for name, each in self.tensors.items()}
        content = save(tensors, {"values": json.dumps(dict(self.values))})
        return _MAGIC + hashlib.sha256(content).digest() + content

    @classmethod
    def from_bytes(cls, content: bytes) -> Checkpoint:
        """The inverse of `to_bytes`; nothing in `content` is ever executed.

        Raises:
            ConfigError: the bytes are something else, or damaged; says which.
        """
        if not content.startswith(_MAGIC):
            raise ConfigError("not a checkpoint of this program")
        head = len(_MAGIC) + _DIGEST_BYTES
        digest, rest = content[len(_MAGIC) : head], content[head:]
        if hashlib.sha256(rest).digest() != digest:
            raise ConfigError("damaged: its checksum does not fit")
        try:
            header = json.loads(rest[8 : 8 + int.from_bytes(rest[:8], "little")])
            return cls(load(rest), json.loads(header["__metadata__"]["values"]))
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"not a checkpoint of this program ({error})") from None


def save_checkpoint(folder: Path, update: int, content: bytes, keep: int, is_best: bool) -> Path:
    """Write `update_<n>.ckpt`, and `best.ckpt` where it is the best; drop all but the `keep` newest.

    Raises:
        OSError: it cannot be written; the older ones are as they were.
    """
    folder.mkdir(exist_ok=True)
    for stale in folder.glob(".*.tmp"):
        stale.unlink()  # a kill in the middle of a write leaves one
    path = folder / f"update_{update}.ckpt"
    if is_best:
        write_atomically(folder / BEST, content)  # first: a run killed between the two comes here again
    write_atomically(path, content)
    drop_old(folder, keep)
    return path


def drop_old(folder: Path, keep: int) -> None:
    """Drop all but the `keep` newest numbered checkpoints; a kill may have come between writing one and this."""
    for old in list(newest_first(folder))[keep:]:
        old.unlink()


def newest_first(folder: Path) -> Iterator[Path]:
    """The numbered checkpoints in `folder`, from the last update to the first."""
    numbered = [(int(found[1]), path) for path in folder.glob("*.ckpt") if (found := _NAME.fullmatch(path.name))]
    yield from (path for _, path in sorted(numbered, reverse=True))


def newest_intact(folder: Path) -> tuple[bytes, list[str]]:
    """The newest checkpoint that is whole, empty if there is no checkpoint, and what is wrong with newer ones.

    A damaged file is renamed to `update_<n>.ckpt.damaged`.

    Raises:
        ConfigError: there are checkpoints, and none is whole, those included that were renamed before.
    """
    refused: list[str] = []
    put_aside = [f"{path}: damaged" for path in sorted(folder.glob("*.ckpt.damaged"))]
    for path in newest_first(folder):
        try:
            content = path.read_bytes()
            Checkpoint.from_bytes(content)
            return content, refused
        except OSError as error:
            refused.append(f"{path}: {error}")
        except ConfigError as error:
            refused.append(f"{path}: {error}")
            with contextlib.suppress(OSError):
                path.rename(path.with_name(f"{path.name}.damaged"))
    if refused or put_aside:
        raise ConfigError(f"--resume: no checkpoint is whole; {'; '.join([*refused, *put_aside])}")
    return b"", refused
