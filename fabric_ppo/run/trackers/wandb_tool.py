"""Weights & Biases, of its own package `wandb`; see `tool.py`."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fabric_ppo.run.trackers.tool import Opened, Row, TrackedRun, test_score, without_passwords


class Wandb:
    """Tool that keeps a run on a server of W&B, or in the run's folder for `wandb sync`.

    `WANDB_MODE` decides; if it is not set, the server is used if the user has logged in there. W&B can
    only append to its files: a resumed run without server gets new ones with all its rows, and the old
    ones are removed. A server cannot remove rows either. It already has those that are logged again,
    with the same numbers if the run is resumed exactly.
    """

    def address(self, run: TrackedRun) -> str:
        """See `Tool`."""
        folder = _folder(run)
        for name, under in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache")):
            os.environ.setdefault(name, str(folder / under))  # else in the user's home
        import wandb

        return without_passwords(wandb.setup().settings.base_url) if _is_online(wandb) else str(folder)

    def open(self, run: TrackedRun, warn: Callable[[str], None]) -> Opened:
        """See `Tool`; the run has the same id each time."""
        import wandb

        is_online = _is_online(wandb)
        self._id = run.remembered("wandb").get("id") or secrets.token_hex(4)
        run.remember("wandb", id=self._id, project=run.project)
        if not is_online:
            _remove_files(_folder(run), self._id, warn)
        settings = wandb.Settings(
            silent=True,
            console="off",  # nothing is printed here
            disable_git=True,
            disable_code=True,  # it would look for the code of this process
            x_stats_pid=os.getppid(),  # the load that the training is on the machine
        )
        self._run = wandb.init(
            project=run.project,
            group=run.group,
            tags=list(run.tags),
            name=run.dir.name,
            id=self._id,
            dir=str(_folder(run).parent),
            config=run.config,
            mode=os.environ.get("WANDB_MODE") or ("online" if is_online else "offline"),  # type: ignore[arg-type]
            resume="allow" if is_online else None,
            allow_val_change=True,
            settings=settings,
        )
        held = self._run.starting_step - 1 if is_online else -1
        if held > run.step:
            warn(
                f"it keeps the rows of steps {run.step + 1} to {held}, which it cannot take back; new ones follow them"
            )
        return Opened(held, self._place())

    def _place(self) -> str:
        if self._run.disabled:
            return "it is disabled by WANDB_MODE, and keeps nothing"
        if url := self._run.url:
            return str(url)
        return f"wandb sync {shlex.quote(str(Path(self._run.dir).parent))} uploads it"

    def log(self, rows: Sequence[Row]) -> None:
        """See `Tool`."""
        for step, metrics in rows:
            # with an underscore names of its own begin, such as `_step`
            named = {f"metric/{tag}" if tag.startswith("_") else tag: value for tag, value in metrics.items()}
            self._run.log(named, step=step)

    def artifact(self, path: Path, kind: str) -> None:
        """See `Tool`; an artifact is of the type `kind`."""
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self._id}", kind)
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def close(self, summary: dict[str, Any] | None) -> None:
        """See `Tool`; the summary's values are those of the run's summary."""
        import wandb

        if summary is not None:
            self.log(test_score(summary))
            self._run.summary.update(summary)
        self._run.finish(exit_code=0 if summary is not None else 1)
        wandb.teardown()


def _folder(run: TrackedRun) -> Path:
    """Return the folder into which W&B writes."""
    return Path(os.environ.get("WANDB_DIR") or run.dir, "wandb")


def _is_online(wandb: Any) -> bool:
    """Return True if the run goes to a server."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode in ("online", "shared", "run")
    return bool(wandb.api.api_key)


def _remove_files(folder: Path, run_id: str, warn: Callable[[str], None]) -> None:
    """Remove the files that earlier processes of a run have written for `wandb sync`."""
    for old in sorted(folder.glob(f"offline-run-*-{run_id}")):
        if any(old.glob("*.synced")):
            warn(f"{old} was uploaded: remove the run {run_id} from the server before you upload it again")
        shutil.rmtree(old)
