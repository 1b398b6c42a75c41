"""The page of a published agent, read by a Markdown parser and by YAML: text of the user's own stays text."""

from __future__ import annotations

import html
import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from markdown_it import MarkdownIt

from fabric_ppo.agents.agent import Architecture
from fabric_ppo.agents.hub import HubAddress
from fabric_ppo.envs.spaces import EnvSpec, SpaceSpec
from fabric_ppo.tools.hub_card import Published, card_of, code_block, code_span, table_cell
from fabric_ppo.tools.report.runs import read_runs
from tests.fixtures.run_folders import columns, write_run

SPEC = EnvSpec("CartPole-v1", SpaceSpec("box", (4,), "float32"), SpaceSpec("discrete", (), "int64", (2,), (0,)))
HOSTILE = [
    "plain-v0",
    "`",
    "``a`b```",
    "`begins, ends`",
    "a|b|c",
    "\\|",
    "<script>alert(1)</script>",
    "![x](https://evil.example/x.png)",
    "[x](javascript:alert(1))",
    "https://evil.example",
    "# title",
    "a\n\n---\nlicense: mit\n---\n# other",
    "x: [y, &a *b",
    "{{ 7 * 7 }} {% raw %}",
    "~~~\n```\n~~~",
    "null",
    "1e3",
    "  spaces  ",
    "&lt;b&gt; &amp;",
    "$x$ \\(y\\)",
    "\u202eevil\u0000\ud800",
    "日本語 ü",
]


class Tags(HTMLParser):
    """Names of elements, addresses, and texts of code in a page."""

    def __init__(self, text):
        super().__init__()
        self.names, self.links, self.codes, self.titles = set(), set(), [], []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.links |= {value for name, value in attrs if name in ("href", "src")}
        self.inside = tag
        if tag == "code":
            self.codes.append("")
        if tag in ("h1", "h2"):
            self.titles.append("")

    def handle_data(self, data):
        if self.inside == "code":
            self.codes[-1] += data
        if self.inside in ("h1", "h2"):
            self.titles[-1] += data

    def handle_endtag(self, tag):
        self.inside = ""


def rendered(text):
    return Tags(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


def published(folder, spec=SPEC, checkpoint="", architecture=None, **flags):
    run = read_runs([write_run(folder, columns(3), **flags)])[0]
    files = ["policy.safetensors", "config.yaml"]
    return Published(run, spec, architecture or Architecture("tanh", (8,)), HubAddress("me/it"), checkpoint, files)


def printable(text):
    """The text as `ConfigError` shows it."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_code_is_the_text_itself(text):
    for written in (code_span(text), f"| a |\n|---|\n| {table_cell(text)} |"):
        found = rendered(written)
        assert found.names <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td"}
        assert found.codes == [printable(text)]
    block = rendered(code_block(text))
    assert (block.names, block.links) == ({"pre", "code"}, set())
    assert len(block.codes) == 1


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_text_of_the_users_own_stays_text(tmp_path, text):
    """As an environment's id, its arguments, its wrapper, a flag and the name of a folder."""
    spec = replace(SPEC, env_id=text, make_args=json.dumps({"x": text}), wrapper="a:" + text)
    name = re.sub(r"[/\0\ud800]", "_", text)
    given = published(tmp_path / name, spec, env_kwargs=json.dumps({"x": text.replace("\ud800", "")}))
    card = card_of(given).encode("utf-8", "backslashreplace").decode()
    data = ModelCard(card).data
    plain = text.encode("utf-8", "backslashreplace").decode()
    assert data.tags[1:] == ["ppo", "reinforcement-learning", "deep-reinforcement-learning", "fabric-ppo"]
    assert set(data.to_dict()) == {"library_name", "pipeline_tag", "tags", "model-index"}
    if "\u202e" not in text:
        assert data.tags[0] == data.eval_results[0].dataset_name == plain
    found = rendered(ModelCard(card).text)
    assert "script" not in found.names
    assert "img" not in found.names
    assert found.links == {"https://arxiv.org/abs/1707.06347"}
    assert found.titles[1:] == ["Scores", "Environment", "Use", "Training", "Files"]
    assert printable(text) in found.codes


def test_the_metadata_has_the_hubs_form(tmp_path):
    """The library's own round trip, and the test's returns 1, 2, 6: mean 3, deviation sqrt(14 / 3)."""
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card_of(published(tmp_path / "run")), re.DOTALL)[1])
    name, results = model_index_to_eval_results(data["model-index"])
    assert eval_results_to_model_index(name, results) == data["model-index"]
    assert [(each.metric_type, each.metric_value) for each in results] == [("mean_reward", "3.00 +/- 2.16")]


@pytest.mark.parametrize("checkpoint", ["", "update_3.ckpt"])
def test_scores_are_those_of_this_policy_or_none(tmp_path, checkpoint):
    card = card_of(published(tmp_path / "run", checkpoint=checkpoint))
    assert ("3.00 +/- 2.16" in card) == ("mean_reward" in card) == (not checkpoint)
    assert ("`update_3.ckpt`, which has not been tested" in card) == bool(checkpoint)


@pytest.mark.parametrize(
    "test", [None, {}, {"returns": []}, {"returns": "x"}, {"returns": [None, "x"]}, [1], {"returns": [float("nan")]}]
)
def test_a_summary_without_a_readable_test_gives_no_score(tmp_path, test):
    given = published(tmp_path / "run")
    path = tmp_path / "run" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test": test}))
    card = card_of(replace(given, run=read_runs([tmp_path / "run"])[0]))
    assert "The run was not tested at its end." in card
    assert "mean_reward" not in card


def test_flags_that_differ_and_the_command_that_repeats_the_run(tmp_path):
    card = card_of(published(tmp_path / "run", seed=7, hidden_sizes=(8, 8), env_kwargs='{"x": "it\'s"}'))
    rows = dict(re.findall(r"^\| `(--[\w-]+)` \| `(.*)` \|$", card, re.MULTILINE))
    assert rows == {"--seed": "7", "--hidden-sizes": "8 8", "--env-kwargs": '{"x": "it\'s"}'}
    (command,) = re.findall(r"^python -m fabric_ppo train .*$", card, re.MULTILINE)
    words = shlex.split(command)
    assert words[:5] == ["python", "-m", "fabric_ppo", "train", "torch"]
    assert words[words.index("--env-kwargs") + 1] == '{"x": "it\'s"}'


@pytest.mark.parametrize(("env_id", "encoder"), [("mine:Env-v0", "auto"), ("Env-v0", "nets.own:Net")])
def test_modules_that_the_reader_needs_are_named(tmp_path, env_id, encoder):
    given = published(
        tmp_path / "run", replace(SPEC, env_id=env_id), architecture=Architecture("tanh", (8,), encoder=encoder)
    )
    card = card_of(given)
    module = "mine" if ":" in env_id else "nets.own"
    assert f"It needs modules that are not part of this repository: `{module}`." in card
    assert "evaluate hf://me/it --own-code" in card
    assert ("own_code=True" in card) == (":" in encoder)


def test_a_run_without_flags_has_a_page(tmp_path):
    given = published(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("[")
    card = card_of(replace(given, run=read_runs([tmp_path / "run"])[0]))
    assert "Hyperparameters" not in card
    assert html.unescape(card) == card
