"""Pages of the documentation site: code is that of the source, flags and names are ours.

`processes/test_site.py` builds the site and follows its links.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import fields
from typing import Literal, get_args, get_origin

import pytest

import fabric_ppo
from fabric_ppo.config import FLAG_GROUPS, SCRIPT_CONFIGS, Config, ProcessFlags, script_file
from fabric_ppo.config_names import other_name
from fabric_ppo.config_values import field_types
from fabric_ppo.process.errors import flag
from tests.fixtures.launching import ROOT
from tests.fixtures.pages import table_rows
from tests.fixtures.site_hooks import reference, sources

SOURCE = '''
def outer():
    """Doc."""
    # why
    # it is
    first = 1
    with_it, other = 2, {}
    other["first"] = 3
    def inner():
        return first
    for each in (1, 2):
        first += each
    return first
'''


@pytest.mark.parametrize(
    ("function", "first", "last", "start", "expected"),
    [
        ("outer", "first", "with_it", 4, "# why\n# it is\nfirst = 1\nwith_it, other = 2, {}"),
        ("outer", "other", "other", 7, "with_it, other = 2, {}"),
        ("outer", "with_it", "first", 7, textwrap.dedent("\n".join(SOURCE.splitlines()[6:12]))),
        ("outer.inner", "", "", 9, "def inner():\n    return first"),
        ("inner", "return", "return", 10, "return first"),
    ],
)
def test_a_snippet_is_the_lines_that_are_named(function, first, last, start, expected):
    assert sources.snippet(SOURCE, function, first, last) == (start, expected)


@pytest.mark.parametrize(("function", "name"), [("gone", ""), ("outer", "gone"), ("outer", "each")])
def test_a_snippet_that_is_gone_is_an_error(function, name):
    with pytest.raises(ValueError, match=r"gone|each"):
        sources.snippet(SOURCE, function, name, name)


@pytest.fixture(scope="module")
def site():
    return sources.Site()


EQUATIONS = {
    "2. Advantages": "deltas = rewards + gamma * next_values * (~terminated).to(values.dtype) - values",
    "3. Normalised advantages": "normalized = (advantages - mean) / (std + 1e-8)",
    "5. The clipped surrogate": "ratio = log_ratio.exp()",
    "6. The value loss": "value_loss = 0.5 * torch.dot(rows.weights, squared_error)",
    "7. The entropy": "entropy = -(log_p.exp() * log_p).sum(-1)",
    "8. The sum": "loss = policy_loss + coefs.vf_coef * value_loss + coefs.ent_coef * entropy_loss",
    "9. The gradient step": "norm = clip_gradient()",
    "10. Schedules": "schedule.start * (update + 1) / (num_warmup + 1)",
    "11. How far the policy has moved": "approx_kl = torch.dot(rows.weights, ratio - 1 - log_ratio)",
    "The whole": "stats = ppo_update(captured.loss, batch, captured.step, coefs, config, ranks)",
}


def test_equations_stand_beside_the_line_that_computes_them(site):
    text = site.texts["algorithm.md"]
    sections = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for title, line in EQUATIONS.items():
        code = "\n".join(re.findall(r"^```python.*?^```$", sections[title], re.MULTILINE | re.DOTALL))
        assert line in code, title
    assert "Code: " not in text
    assert "Diff: " not in site.texts["architectures.md"]


def test_the_diff_turns_one_script_into_the_other(site):
    """As `patch` would: what is kept and added is the second script, what is kept and removed the first."""
    for old, new in (("train_torch.py", "train_fabric.py"), ("train_fabric.py", "train_fabric_decoupled.py")):
        block = re.search(
            rf'^```diff title="diff {old} {new}"\n(.*?)^```$', site.texts["architectures.md"], re.M | re.S
        )
        assert block is not None
        for sign, name in (("-", old), ("+", new)):
            lines = [line[1:] for line in block[1].splitlines()[2:] if line[0] in (" ", sign)]
            source = (ROOT / name).read_text().splitlines()
            assert [line for line in source if line in set(lines)][: len(lines)], name
            rest = iter(source)
            assert all(line in rest for line in lines), f"{name}: other lines, or in another order"


KINDS = {name: kind for config in SCRIPT_CONFIGS.values() for name, kind in field_types(config).items()}
ROWS = re.findall(r"^\| `([\w.]+)`(?: of `\w+`)? \| (.*) \|$", (ROOT / "docs/coming-from.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("name", "here"), ROWS, ids=[name for name, _ in ROWS])
def test_a_name_of_another_program_is_the_flag_that_a_script_says(name, here):
    """The row has the flag that an unknown one's error names, or the same name."""
    last, whole = name.split(".")[-1], name.replace(".", "_")
    flags = {each for each in re.findall(r"--[\w-]+", here) if each != "--devices"}
    assert flags <= set(map(flag, KINDS))
    for each in (last, whole):
        ours, note = other_name(each, KINDS)
        if each in KINDS or ours:
            assert flag(each if each in KINDS else ours) in flags
            return
        if note:
            assert not flags or flags & set(re.findall(r"--[\w-]+", note))
            return
    raise AssertionError(f"no script knows {name}")


FLAGS_HEADER = "| flag | default | meaning |"


def test_the_page_of_the_flags_is_that_of_the_code():
    """`make flags` writes it."""
    assert reference.FLAGS_PAGE.read_text() == reference.flags_page()


def test_every_flag_has_a_row_with_its_default_and_its_choices():
    rows = {row[0].strip("`"): (row[1], row[2]) for row in table_rows(FLAGS_HEADER)}
    assert len(rows) == len(table_rows(FLAGS_HEADER)), "a flag has two rows"
    defaults = {each.name: each.default for config in SCRIPT_CONFIGS.values() for each in fields(config)}
    assert set(rows) == set(map(flag, defaults))
    words = {"None": "none", "True": "on", "False": "off"}
    for name, value in defaults.items():
        default, meaning = rows[flag(name)]
        plain = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert default == words.get(plain, f"`{plain}`"), name
        if get_origin(KINDS[name]) is Literal:
            assert all(f"`{choice}`" in meaning for choice in get_args(KINDS[name])), name
        having = {script_file(config) for config in SCRIPT_CONFIGS.values() if name in field_types(config)}
        named = set(re.findall(r"`(train_\w+\.py)`", meaning))
        assert named == (having if len(having) < len(SCRIPT_CONFIGS) else set()), name


def test_the_tables_of_flags_are_grouped_as_the_help_is():
    """The same titles, and under each the same flags in the same order; flags of one script alone are of devices."""
    alone = [name for name in KINDS if name not in field_types(Config)]
    expected = []
    for group in FLAG_GROUPS:
        names = [each.name for each in fields(group)] + (alone if group is ProcessFlags else [])
        expected.append(((group.__doc__ or "").rstrip("."), [flag(name) for name in names]))
    text = reference.FLAGS_PAGE.read_text()
    found = re.findall(r"^## (.*)\n\n\| flag .*\n\|-.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert [(title, re.findall(r"^\| `(--[\w-]+)`", rows, re.MULTILINE)) for title, rows in found] == expected


def test_every_public_name_and_method_is_on_the_page_of_the_api():
    entries = set(re.findall(r"^#{3,4} `([\w.]+)`$", reference.api(), re.MULTILINE))
    expected = {name for name in fabric_ppo.__all__ if name != "__version__"}
    for name in ("Callback", "Policy", "RunResult", "RunView", "Tracker"):
        own = vars(getattr(fabric_ppo, name))
        expected |= {f"{name}.{each}" for each in own if not each.startswith("_") and inspect.getdoc(own[each])}
    assert entries - expected == set()
    missing = expected - entries
    values = {
        each: inspect.getattr_static(getattr(fabric_ppo, each.split(".")[0]), each.split(".")[1]) for each in missing
    }
    assert {each for each, value in values.items() if callable(value) or isinstance(value, property)} == set()


@pytest.mark.parametrize(
    ("title", "anchor"),
    [
        ("W&B, MLflow, Trackio", "wb-mlflow-trackio"),
        ("When to use --share-data", "when-to-use---share-data"),
        ("What `fast/` replaces", "what-fast-replaces"),
        ("Coupled: `train_torch.py`, `train_fabric.py`", "coupled-train_torchpy-train_fabricpy"),
    ],
)
def test_anchors_are_those_of_github(title, anchor):
    assert sources.slug(title) == anchor
