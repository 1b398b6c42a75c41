"""Attributes of environments that the callbacks of a run set: the same on all ranks, and kept.

A callback sets them on rank 0. The following update sends them to all ranks (`merge`). From the end of
that update on, all environments of all ranks take them at their next reset.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fabric_ppo.envs.attributes import AttributeLog, attributes_text, names_of, require_text
from fabric_ppo.envs.contract import Array
from fabric_ppo.process.group import Ranks, from_rank_zero
from fabric_ppo.rollouts.buffer import RolloutBuffer


class EnvAttributes:
    """Attributes of the environments of all ranks.

    Attributes:
        on_set: function that is called whenever a callback has set attributes.
    """

    def __init__(self, buffer: RolloutBuffer, ranks: Ranks, overlaps: bool) -> None:
        """Start with the environments of `buffer` as they are made.

        Args:
            buffer: buffer of this rank's environments.
            ranks: the ranks with environments.
            overlaps: true if a rollout has begun when the update before it ends.
        """
        self._buffer, self._ranks, self._overlaps = buffer, ranks, overlaps
        self._log = AttributeLog(buffer.num_envs * ranks.size)
        # asked for on rank 0; agreed on by all ranks; handed to this rank's environments
        self._asked = self._agreed = self._handed = ""
        self._is_resumed = self._is_starting = False
        self.on_set: Callable[[], object] = lambda: None

    @property
    def values(self) -> dict[str, Any]:
        """Attributes that were set last, name -> value; empty for none."""
        return dict(json.loads(self._asked or "{}"))

    @property
    def is_asked(self) -> bool:
        """True if attributes were set that other ranks do not have yet."""
        return self._asked != self._agreed

    def set(self, values: Mapping[str, Any]) -> None:
        """Set attributes, on rank 0.

        While a resumed run starts, attributes that have a value keep it.

        Raises:
            ConfigError: a value has no JSON type, or the environments have no such attribute.
        """
        asked = attributes_text("", values)  # also those that are left out are checked
        self._buffer.envs.check_attributes(names_of(asked))
        kept = self.values if self._is_resumed and self._is_starting else {}
        asked = attributes_text(self._asked, {name: each for name, each in values.items() if name not in kept})
        if asked != self._asked:
            self._asked = asked
            self.on_set()

    def start(self, call: Callable[[], object]) -> None:
        """Call the callbacks' `on_start`; the first episodes of a new run have the attributes set there."""
        self._is_starting = True
        call()
        self._is_starting = False
        if not self._is_resumed:
            self.merge(True)
            if self._agreed:
                self._log.current = self._agreed
                self.apply()
                self._buffer.restart()
                self._log.begin()
        self.apply()

    def merge(self, is_asked: bool) -> None:
        """Send attributes to all ranks if `is_asked`, the same on all ranks (two collectives)."""
        if is_asked:
            content = b"+" + self._asked.encode()  # a collective takes no empty tensor
            self._agreed = from_rank_zero(content, self._ranks)[1:].decode()
            self._asked = self._agreed

    def finish_update(self, ended: Array) -> None:
        """Note which episodes of a rollout ended, `[T, N]` bool, of the environments of all ranks."""
        self._log.append(ended)
        # with overlap, the next rollout has been collected already, with what there was
        self._log.current = self._handed if self._overlaps else self._agreed

    def apply(self) -> None:
        """Pass the attributes of all ranks to the environments of this rank."""
        self._hand(self._agreed)

    def _hand(self, text: str) -> None:
        if text != self._handed:
            self._handed = text
            self._buffer.envs.set_attributes(text)

    def to_values(self) -> dict[str, Any]:
        """Return this as JSON values, for a checkpoint."""
        return {"asked": self._asked, "agreed": self._agreed, "log": self._log.to_values()}

    def load_values(self, values: Mapping[str, Any] | None) -> None:
        """Restore the result of `to_values`; None, of an older version, means no attributes.

        Raises:
            ValueError, KeyError, TypeError: the values have another form.
        """
        self._is_resumed = True
        if values is not None:
            for name in ("asked", "agreed"):
                require_text(values[name])
            self._asked, self._agreed = values["asked"], values["agreed"]
            self._log.load_values(values["log"])

    def of_episodes(self) -> list[str]:
        """Return the attributes with which this rank's episodes in progress began."""
        first = self._ranks.rank * self._buffer.num_envs
        return self._log.of_episodes[first : first + self._buffer.num_envs]

    def hand_to_next_rollout(self) -> None:
        """Pass the attributes of the next rollout to the environments, before episodes are rebuilt."""
        self._hand(self._log.current)

    def begin_anew(self, begun: Array) -> None:
        """Note the environments, `[N]` bool of all ranks, whose episode could not be rebuilt."""
        self._log.begin(np.flatnonzero(begun))
