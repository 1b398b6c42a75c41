"""Files that a crash leaves whole: the atomic write, and the checksummed container of a checkpoint.

PyTorch is imported where a checkpoint is packed or read, so that `--help` does not wait for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric_ppo.process.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_MAGIC = b"Fabric PPO checkpoint 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_BESIDE_FLAGS = ("checkpoints", "metrics.jsonl", "summary.json", "policy.safetensors", ".lock")
"""Names in the folder of a run of which there is one beside its flags, at least."""
_CHECKPOINT_NAME = re.compile(r"update_(\d+)\.ckpt")


def tidy_path(path: str) -> str:
    """Return a path without `..`, for people to read; as it is where that would be another file."""
    tidy = os.path.normpath(path)
    try:
        return tidy if os.path.samefile(tidy, path) else path
    except OSError:
        return path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is, at every moment, the old one or the new one, also after a power cut.

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
    # the new name is on the disk only when the folder is
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def require_text_path(of: str, path: str | None) -> None:
    """Raise a ConfigError for a path that is no text, which TensorBoard and others cannot open.

    Args:
        of: flag or argument that names it, for the error's text.
        path: of a file or folder, which need not exist; None for none.
    """
    if path is not None:
        try:
            path.encode()  # fails for bytes that are no text in the locale's encoding
            os.fsencode(path)  # fails for text that the locale's encoding does not have
        except UnicodeEncodeError:
            raise ConfigError(
                f"{of} {path}: a path in UTF-8 is expected, and a locale of that encoding, such as LC_ALL=C.UTF-8"
            ) from None
        if "\0" in path:
            raise ConfigError(f"{of} {path}: a path without NUL characters is expected")


@dataclass(frozen=True)
class Checkpoint:
    """A run at the end of an update, as tensors and plain values.

    Its bytes are a line of text (`Fabric PPO checkpoint 1`), the SHA-256 of what follows (32
    bytes), and a safetensors file that holds `tensors`, with `values` as JSON in its metadata.

    Attributes:
        tensors: weights, optimizer, environments; a part's names share a prefix such as `agent.`.
        values: everything else, as JSON has it.
    """

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with `prefix`, named without it."""
        return {name.removeprefix(prefix): each for name, each in self.tensors.items() if name.startswith(prefix)}

    def to_bytes(self) -> bytes:
        """Pack the checkpoint as the class describes; tensors on a GPU are copied to the CPU."""
        from safetensors.torch import save

        tensors = {name: each.detach().cpu().contiguous() for name, each in self.tensors.items()}
        content = save(tensors, {"values": json.dumps(dict(self.values))})
        return _MAGIC + hashlib.sha256(content).digest() + content

    @classmethod
    def from_bytes(cls, content: bytes) -> Checkpoint:
        """Read what `to_bytes` packed; nothing in `content` is ever executed.

        Raises:
            ConfigError: the bytes are something else, or damaged; the message says which.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        if not content.startswith(_MAGIC):
            raise ConfigError("not a checkpoint of this program")
        head = len(_MAGIC) + _DIGEST_BYTES
        digest, rest = content[len(_MAGIC) : head], content[head:]
        if hashlib.sha256(rest).digest() != digest:
            raise ConfigError("damaged: its checksum does not fit")
        try:
            # safetensors: 8 bytes with the length of a JSON header, the header, the numbers
            header = json.loads(rest[8 : 8 + int.from_bytes(rest[:8], "little")])
            return cls(load(rest), json.loads(header["__metadata__"]["values"]))
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"not a checkpoint of this program ({error})") from None


def run_around(path: Path) -> Path | None:
    """Return the folder of the run that a path is a file or folder of, such as its `checkpoints`; None for none."""
    whole = path.absolute()
    for folder in list(whole.parents)[: 2 if whole.parent.name == "checkpoints" else 1]:
        if (folder / "config.yaml").is_file() and any((folder / name).exists() for name in _BESIDE_FLAGS):
            return folder
    return None


def newest_first(folder: Path) -> Iterator[Path]:
    """Yield the numbered checkpoints in `folder`, from the last update to the first."""
    numbered = [path for path in folder.glob("*.ckpt") if _CHECKPOINT_NAME.fullmatch(path.name)]
    yield from sorted(numbered, key=update_of, reverse=True)


def update_of(checkpoint: Path) -> int:
    """Return the number of updates after which a numbered checkpoint was written, from its name."""
    found = _CHECKPOINT_NAME.fullmatch(checkpoint.name)
    assert found is not None
    return int(found[1])
