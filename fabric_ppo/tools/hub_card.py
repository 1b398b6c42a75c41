"""The page of a published agent: Markdown, with the metadata that the Hugging Face Hub reads.

The page is `hub_card.md`. Text of the user's own stands in code only, where Markdown and HTML mean
nothing; the metadata is written by a YAML library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from fabric_ppo.agents.agent import Architecture
from fabric_ppo.agents.hub import HubAddress
from fabric_ppo.agents.policy import own_modules
from fabric_ppo.envs.space_text import format_space
from fabric_ppo.envs.spaces import EnvSpec
from fabric_ppo.process.errors import flag, one_line
from fabric_ppo.process.extras import install
from fabric_ppo.tools.report.repeat import changed_flags, command_of
from fabric_ppo.tools.report.runs import ReportRun
from fabric_ppo.tools.run_groups import format_setting
from fabric_ppo.tools.run_states import finite

_LIBRARY = "fabric-ppo"
_WORDS = {
    "policy.safetensors": "the weights, with the spaces and the architecture as metadata",
    "config.yaml": "the flags; `--config` takes it",
    "summary.json": "steps, times and the test's scores",
    "metrics.jsonl": "what was logged, one line an update",
    "report.html": "curves and diagnostics, in one page to download and open",
    "replay.mp4": "a test episode",
}
"""Descriptions of the files, in the page's order."""


@dataclass(frozen=True)
class Published:
    """A policy to publish, and the run that it is of.

    Attributes:
        run: the run.
        spec, architecture: of the policy.
        address: repository and branch.
        checkpoint: name of the checkpoint that the policy is of; empty at the end of a run.
        files: names of the files beside the page.
    """

    run: ReportRun
    spec: EnvSpec
    architecture: Architecture
    address: HubAddress
    checkpoint: str
    files: Sequence[str]


def card_of(published: Published) -> str:
    """Return the page of a policy, with its metadata."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters |= {"code": code_span, "cell": table_cell, "block": code_block}
    text = files("fabric_ppo.tools").joinpath("hub_card.md").read_text(encoding="utf-8")
    run, spec, architecture = published.run, published.spec, published.architecture
    encoder = architecture.encoder.partition(":")[0] if ":" in architecture.encoder else ""
    return environment.from_string(text).render(
        install=install("hub"),
        metadata=_metadata(published),
        env_id=spec.env_id,
        scores=_scores(published),
        checkpoint=published.checkpoint,
        environment=_environment(spec),
        address=str(published.address),
        own_modules=list(dict.fromkeys([*own_modules(spec), *([encoder] if encoder else [])])),
        has_own_encoder=bool(encoder),
        has_memory=architecture.recurrent != "none",
        training=_training(run),
        flags=[(flag(name), format_setting(value)) for name, value in changed_flags(run).items()],
        command=command_of(run),
        files=[(name, words) for name, words in _WORDS.items() if name in published.files],
    )


def _metadata(published: Published) -> str:
    """Return the metadata as YAML; the score is one that the Hub's leaderboards can read."""
    from huggingface_hub import EvalResult, ModelCardData

    env_id, returns = published.spec.env_id, published.run.test_returns
    result: dict[str, Any] = {}
    if not published.checkpoint and returns.size:
        score = EvalResult(
            task_type="reinforcement-learning",
            task_name="reinforcement-learning",
            dataset_type=env_id,
            dataset_name=env_id,
            metric_type="mean_reward",
            metric_name="mean_reward",
            metric_value=f"{returns.mean():.2f} +/- {returns.std():.2f}",
            verified=False,
        )
        result = {"model_name": "PPO", "eval_results": [score]}
    tags = [env_id, "ppo", "reinforcement-learning", "deep-reinforcement-learning", _LIBRARY]
    data = ModelCardData(library_name=_LIBRARY, pipeline_tag="reinforcement-learning", tags=tags, **result)
    return str(data.to_yaml())


def _scores(published: Published) -> list[tuple[str, str]]:
    """Return the rows of the test's scores; none where there was no test of this policy."""
    returns, test = published.run.test_returns, published.run.summary.get("test")
    if published.checkpoint or not returns.size or not isinstance(test, dict):
        return []
    rows = [
        ("greedy episodes", f"{returns.size:,}"),
        ("return, mean +/- deviation", f"{returns.mean():.2f} +/- {returns.std():.2f}"),
        ("least and largest return", f"{returns.min():.2f}, {returns.max():.2f}"),
    ]
    length, cut_off = finite(test.get("length_mean")), finite(test.get("cut_off"))
    rows += [("mean length", f"{length:.1f} steps")] if length is not None else []
    return rows + ([("cut off at the limit of steps", f"{cut_off:.0f}")] if cut_off else [])


def _environment(spec: EnvSpec) -> list[tuple[str, str]]:
    """Return the rows about the environment, as text."""
    rows = [
        ("id", spec.env_id),
        ("observations", format_space(spec.observation)),
        ("actions", format_space(spec.action)),
        ("arguments", spec.make_args),
        ("wrapper", spec.wrapper),
    ]
    return [(name, value) for name, value in rows if value]


def _training(run: ReportRun) -> list[tuple[str, str]]:
    """Return the rows about the training, as Markdown."""
    seconds = run.number("train_seconds")
    words = (("run", run.result.run_dir.resolve().name), ("script", run.script), ("seed", run.seed))
    rows = [
        *((name, table_cell(value) if value else "") for name, value in words),
        ("transitions", f"{run.transitions:,}"),
        ("updates", f"{run.updates:,}" if run.updates else ""),
        ("time", f"{seconds:,.0f} s" if seconds is not None else ""),
    ]
    return [(name, value) for name, value in rows if value]


def code_span(text: str) -> str:
    """Return a text as code within a line of Markdown; what is not printable is escaped."""
    text = one_line(text) or " "
    fence = "`" * (1 + _longest_run(text))
    # a space that is taken off again, between backticks, and around what begins and ends with one
    pad = " " if text.startswith("`") or text.endswith("`") or (text != text.strip(" ") and text.strip(" ")) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def table_cell(text: str) -> str:
    """Return a text as code in a cell of a table."""
    return code_span(text).replace("|", "\\|")


def code_block(text: str) -> str:
    """Return shell commands as a block of code."""
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}sh\n{text}\n{fence}"


def _longest_run(text: str) -> int:
    """Return the length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
