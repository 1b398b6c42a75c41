"""Agents on the Hub, pushed to and pulled from a server that stores what the client sends."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import threading
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.agents.policy_file import newest_whole
from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError, HubError
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.tools import cli
from fabric_ppo.tools.hub import FILES
from tests.fixtures.configs import tiny
from tests.fixtures.hub_server import READ_TOKEN, Repository
from tests.fixtures.launching import ROOT
from tests.fixtures.pages import of_kind
from tests.fixtures.processes import PATIENCE

ID, ADDRESS = "me/cart", "hf://me/cart"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    return train(Config(**tiny(run_dir=str(folder), capture_video=True)), verbose=False).run_dir


@pytest.fixture
def run_dir(trained, tmp_path):
    """A run of the test's own."""
    return shutil.copytree(trained, tmp_path / "run")


def call(capsys, *words):
    """Status, stdout and stderr of a command."""
    status = cli.main(list(map(str, words)))
    return status, *capsys.readouterr()


def error_of(capsys, *words):
    """Status and the one line of a command that fails."""
    status, out, err = call(capsys, *words)
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return status, err


def test_a_push_is_one_commit_with_the_runs_own_files(hub, run_dir, capsys):
    (run_dir / "report.html").write_text("<html>")
    status, out, err = call(capsys, "push", run_dir, ID)
    assert (status, err) == (0, "")
    assert out == f"pushed   {hub.url}/{ID}\nevaluate python -m fabric_ppo evaluate {ADDRESS}\n"
    repository = hub.repositories[ID]
    assert not repository.private
    assert len(repository.commits) == 2  # the first is the Hub's own
    files = repository.files()
    assert set(files) == {*FILES, ".gitattributes"}
    for name in ("policy.safetensors", "config.yaml", "summary.json", "metrics.jsonl", "report.html"):
        assert files[name] == (run_dir / name).read_bytes()
    (video,) = (run_dir / "test_videos").glob("*.mp4")
    assert files["replay.mp4"] == video.read_bytes()
    assert hub.validated == [files["README.md"].decode()]


def test_a_pulled_agent_is_the_one_that_was_pushed(hub, run_dir, capsys):
    """The same actions and values; the same scores of `evaluate`."""
    call(capsys, "push", run_dir, ID)
    own, pulled = load_agent(run_dir), load_agent(ADDRESS)
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.testing.assert_array_equal(pulled.act(obs), own.act(obs))
    np.testing.assert_array_equal(pulled.value(obs), own.value(obs))
    assert pulled.spec == own.spec
    words = ("--episodes", 3, "--seed", 5, "--json")
    status, scores, _ = call(capsys, "evaluate", ADDRESS, *words)
    assert status == 0
    assert json.loads(scores) == json.loads(call(capsys, "evaluate", run_dir, *words)[1])
    assert json.loads(scores) == evaluate(own, 3, 5).to_dict()


def test_the_cards_metadata_is_what_the_library_reads(hub, run_dir, tmp_path, capsys):
    call(capsys, "push", run_dir, ID)
    (tmp_path / "card.md").write_bytes(hub.repositories[ID].files()["README.md"])
    data = ModelCard.load(tmp_path / "card.md").data
    assert data.library_name == "fabric-ppo"
    assert {"CartPole-v1", "ppo", "reinforcement-learning", "deep-reinforcement-learning"} <= set(data.tags)
    (result,) = data.eval_results
    assert (result.task_type, result.metric_type) == ("reinforcement-learning", "mean_reward")
    assert result.dataset_name == result.dataset_type == "CartPole-v1"
    test = json.loads((run_dir / "summary.json").read_text())["test"]
    mean, _, deviation = result.metric_value.partition(" +/- ")
    assert float(mean) == pytest.approx(test["return_mean"], abs=0.005)
    assert float(deviation) == pytest.approx(test["return_std"], abs=0.005)
    assert data.to_dict() == metadata_load(tmp_path / "card.md")


def test_a_dry_run_writes_the_folder_and_asks_for_nothing(hub, run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN")
    before = sorted(run_dir.rglob("*"))
    status, out, err = call(capsys, "push", run_dir, ID, "--dry-run")
    assert (status, err, hub.requests) == (0, "", [])
    (folder,) = tmp_path.glob("fabric-ppo-push-*")
    assert out == f"folder   {folder}\n"
    assert sorted(run_dir.rglob("*")) == before
    call(capsys, "push", run_dir, ID, "--dry-run")
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    call(capsys, "push", run_dir, ID)
    pushed = hub.repositories[ID].files()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} | {".gitattributes": b""} == pushed


def test_private_repositories(hub, run_dir, capsys, monkeypatch):
    assert call(capsys, "push", run_dir, ID, "--private")[0] == 0
    assert hub.repositories[ID].private
    load_agent(ADDRESS)
    hub.repositories["me/open"] = opened = Repository()
    opened.commit("main", {}, "")
    status, err = error_of(capsys, "push", run_dir, "me/open", "--private")
    assert status == 2
    assert "--private: hf://me/open is public already; nothing was pushed" in err
    assert len(opened.commits) == 1
    monkeypatch.setenv("HF_TOKEN", "")
    shutil.rmtree(run_dir.parent / "hf_home", ignore_errors=True)
    status, err = error_of(capsys, "evaluate", ADDRESS)
    assert (status, "no such repository, or it is private and needs a token" in err) == (2, True)


def test_branches_messages_and_revisions(hub, run_dir, capsys):
    call(capsys, "push", run_dir, ID, "--message", "first")
    repository = hub.repositories[ID]
    first = repository.branches["main"]
    assert repository.messages[first] == "first"
    (run_dir / "metrics.jsonl").unlink()
    status, out, _ = call(capsys, "push", run_dir, f"hf://{ID}", "--revision", "tries/two")
    assert status == 0
    assert out.splitlines() == [
        f"pushed   {hub.url}/{ID}/tree/tries/two",
        f"evaluate python -m fabric_ppo evaluate {ADDRESS}@tries/two",
    ]
    assert f'load_agent("{ADDRESS}@tries/two")' in repository.files("tries/two")["README.md"].decode()
    # what the run does not have any more is gone there, and nowhere else
    assert "metrics.jsonl" not in repository.files("tries/two")
    assert repository.branches["main"] == first
    assert "metrics.jsonl" in repository.files()
    for revision in ("main", "tries/two", first):
        assert load_agent(f"{ADDRESS}@{revision}").spec.env_id == "CartPole-v1"
    status, err = error_of(capsys, "evaluate", f"{ADDRESS}@three")
    assert (status, err) == (2, f"error: {ADDRESS}@three: the repository has no such branch, tag or commit\n")


def test_the_cache_is_enough_offline(hub, run_dir, capsys, monkeypatch):
    call(capsys, "push", run_dir, ID)
    load_agent(ADDRESS)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    seen = len(hub.requests)
    assert call(capsys, "evaluate", ADDRESS, "--episodes", 1)[0] == 0
    for other in ("hf://me/other", f"{ADDRESS}@other"):
        status, err = error_of(capsys, "evaluate", other)
        assert (status, "HF_HUB_OFFLINE is set, and the cache does not have it" in err) == (2, True)
    assert "HF_HUB_OFFLINE is set, and pushing takes the network" in error_of(capsys, "push", run_dir, ID)[1]
    assert len(hub.requests) == seen


def test_the_cache_is_enough_where_the_hub_is_down(hub, run_dir, capsys):
    call(capsys, "push", run_dir, ID)
    load_agent(ADDRESS)
    hub.faults[""] = 500
    load_agent(ADDRESS)


def test_a_run_that_is_stopped_has_its_newest_checkpoint_pushed(hub, run_dir, capsys):
    """Beside it are no scores, which would be those of another policy."""
    checkpoint = newest_whole(run_dir / "checkpoints")
    (run_dir / "policy.safetensors").unlink()
    (run_dir / "summary.json").unlink()
    status, _, err = call(capsys, "push", run_dir, ID)
    assert status == 0
    assert f"the run has not finished: the policy is that of its newest checkpoint, {checkpoint.name}" in err
    files = hub.repositories[ID].files()
    assert set(files) == {".gitattributes", "README.md", "config.yaml", "metrics.jsonl", "policy.safetensors"}
    assert f"This is the policy of `{checkpoint.name}`, which has not been tested." in files["README.md"].decode()
    assert "mean_reward" not in files["README.md"].decode()
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.testing.assert_array_equal(load_agent(ADDRESS).value(obs), load_agent(checkpoint).value(obs))


def test_a_checkpoint_of_a_finished_run_has_none_of_its_scores(hub, run_dir, capsys):
    assert call(capsys, "push", run_dir / "checkpoints" / "best.ckpt", ID)[0] == 0
    files = hub.repositories[ID].files()
    assert not {"summary.json", "replay.mp4"} & set(files)
    assert "This is the policy of `best.ckpt`, which has not been tested." in files["README.md"].decode()


@pytest.mark.parametrize(
    ("where", "fault", "status", "words"),
    [
        ("repos/create", 401, 2, "the token is not accepted: `hf auth login`, or HF_TOKEN"),
        ("repos/create", 403, 2, "the token may not do that"),
        ("preupload", 403, 2, "the token may not do that"),
        ("repos/create", 429, 1, "takes no more requests for a while"),
        ("preupload", 429, 1, "takes no more requests for a while"),
        ("/commit/", 500, 1, "answered with status 500"),
        ("preupload", 503, 1, "answered with status 503"),
        ("/commit/", 413, 2, "answered with status 413"),
        ("PUT /upload", 500, 1, "answered with status 500"),
        ("repos/create", "cut", 1, "cannot be reached, or broke off"),
        ("PUT /upload", "cut", 1, "cannot be reached, or broke off"),
        ("/commit/", "cut", 1, "cannot be reached, or broke off"),
        ("validate-yaml", lambda handler: handler.reply(200, b"<html>log in"), 1, "broke off"),
    ],
)
def test_a_push_that_fails_leaves_nothing_half_pushed(hub, run_dir, capsys, where, fault, status, words):
    hub.faults[where] = fault
    found, err = error_of(capsys, "push", run_dir, ID)
    assert (found, words in err) == (status, True), err
    assert err.startswith(f"error: {ADDRESS}: nothing was pushed: ")
    for repository in hub.repositories.values():
        assert [set(files) for files in repository.commits.values()] == [{".gitattributes"}]
    hub.faults.clear()
    assert call(capsys, "push", run_dir, ID)[0] == 0


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "pushing takes a token that may write: `hf auth login`, or HF_TOKEN"),
        (READ_TOKEN, "the token may not do that: one that may write there is expected"),
        ("hf_wrong", "the token is not accepted"),
    ],
)
def test_a_token_without_rights_pushes_nothing(hub, run_dir, capsys, monkeypatch, token, words):
    hub.repositories["other/one"] = theirs = Repository()
    theirs.commit("main", {}, "")
    monkeypatch.setenv("HF_TOKEN", token)
    for repo_id in (ID, "other/one"):
        status, err = error_of(capsys, "push", run_dir, repo_id)
        assert (status, words in err) == (2, True), err
    assert list(hub.repositories) == ["other/one"]
    assert len(theirs.commits) == 1


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (401, 2, "the token is not accepted"),
        (403, 2, "the token may not do that"),
        (429, 1, "takes no more requests for a while"),
        (500, 1, "answered with status 500"),
        (404, 2, "answered with status 404"),
        ("cut", 1, "cannot be reached, or broke off"),
    ],
)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_pull_that_fails_is_one_line(hub, run_dir, capsys, method, fault, status, words):
    call(capsys, "push", run_dir, ID)
    if (method, fault) == ("HEAD", "cut"):
        pytest.skip("a head has no middle")
    hub.faults[f"{method} .*/(resolve|large)/"] = fault
    found, err = error_of(capsys, "evaluate", ADDRESS)
    assert (found, words in err) == (status, True), err
    assert err.startswith(f"error: {ADDRESS}: ")
    with pytest.raises(ConfigError if status == 2 else HubError):
        load_agent(ADDRESS)
    hub.faults.clear()
    load_agent(ADDRESS)


def test_nobody_listens(hub, run_dir, capsys, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    for words in (("push", run_dir, ID), ("evaluate", ADDRESS)):
        status, err = error_of(capsys, *words)
        assert (status, f"{url} cannot be reached" in err) == (1, True), err
    with pytest.raises(ConnectionError, match="cannot be reached"):
        load_agent(ADDRESS)


@pytest.mark.parametrize("where", ["repos/create", "preupload", "PUT /upload", "/commit/"])
def test_a_hub_that_does_not_answer_is_given_up(hub, run_dir, capsys, monkeypatch, where):
    """A slow machine meets the limit earlier, with the same error."""
    monkeypatch.setattr("fabric_ppo.agents.hub._ANSWER_SECONDS", 0.5)
    ended = threading.Event()
    hub.faults[where] = lambda handler: ended.wait(PATIENCE)
    status, err = error_of(capsys, "push", run_dir, ID)
    ended.set()
    assert (status, "nothing was pushed: " in err, "cannot be reached, or broke off" in err) == (1, True, True), err


def test_a_metadata_error_of_the_hub_is_named(hub, run_dir, capsys):
    answer = json.dumps({"errors": [{"message": "tags are wrong"}], "error": "Bad metadata"}).encode()
    hub.faults["validate-yaml"] = lambda handler: handler.reply(400, answer, Content_Type="application/json")
    status, err = error_of(capsys, "push", run_dir, ID)
    assert (status, "nothing was pushed: " in err, "tags are wrong" in err) == (2, True, True), err


def test_a_download_that_is_cut_is_not_kept(hub, run_dir, capsys):
    """Half a file in the cache would be damaged from then on."""
    call(capsys, "push", run_dir, ID)
    hub.faults["GET /large/"] = "cut"
    status, err = error_of(capsys, "evaluate", ADDRESS)
    assert (status, "cannot be reached, or broke off" in err) == (1, True), err
    hub.faults.clear()
    assert call(capsys, "evaluate", ADDRESS, "--episodes", 1)[0] == 0


def test_a_cache_that_cannot_be_written_is_named(hub, run_dir, capsys):
    call(capsys, "push", run_dir, ID)
    (run_dir.parent / "hf_home").write_text("a file")
    status, err = error_of(capsys, "evaluate", ADDRESS)
    assert (status, "a cache that can be written is expected (HF_HOME)" in err) == (2, True), err


def test_a_training_may_start_from_a_pulled_policy(hub, run_dir, tmp_path, capsys):
    """`--init-from` with a learning rate of nearly nothing leaves the weights as they were."""
    call(capsys, "push", run_dir, ID)
    flags = tiny(run_dir=str(tmp_path / "second"), init_from=ADDRESS, learning_rate=1e-12, test_episodes=0)
    second = train(Config(**flags), verbose=False)
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.testing.assert_allclose(second.agent.value(obs), load_agent(run_dir).value(obs), atol=1e-6)
    assert second.flags["init_from"] == ADDRESS
    with pytest.raises(ConfigError, match="--init-from hf://me/other: there is no such repository"):
        train(Config(**flags | {"run_dir": str(tmp_path / "third"), "init_from": "hf://me/other"}), verbose=False)
    hub.faults[""] = 500
    with pytest.raises(ConfigError, match=r"--init-from hf://me/other: .* answered with status 500"):
        train(Config(**flags | {"run_dir": str(tmp_path / "third"), "init_from": "hf://me/other"}), verbose=False)


def test_an_export_of_a_pulled_policy(hub, run_dir, tmp_path, capsys):
    call(capsys, "push", run_dir, ID)
    out = tmp_path / "policy.pt"
    status = call(capsys, "export", ADDRESS, "--to", "torchscript", "--out", out, "--verify-steps", 20)[0]
    assert (status, out.is_file()) == (0, True)


def test_flags_of_a_hostile_config_are_left_out(hub, run_dir, capsys):
    """`evaluate` reads the keys of info from it, and nothing else."""
    policy = (run_dir / "policy.safetensors").read_bytes()
    for config in (
        b"[" * 100_000,
        b"!!python/object/apply:os.abort []",
        b"\xff",
        b"info_keys: [1]",
        b"info_keys: ')('",
    ):
        pushed(hub, {"policy.safetensors": policy, "config.yaml": config})
        shutil.rmtree(run_dir.parent / "hf_home", ignore_errors=True)
        status, out, _ = call(capsys, "evaluate", ADDRESS, "--episodes", 1)
        assert (status, out.count("\n")) == (0, 1)


def pushed(hub, files, **repository):
    hub.repositories[ID] = made = Repository(**repository)
    made.commit("main", files, "")


def test_what_is_no_policy_is_refused(hub, run_dir, capsys):
    """A repository that does not exist, is gated, holds something else, or a policy that is damaged."""
    policy = (run_dir / "policy.safetensors").read_bytes()
    assert "there is no such repository" in error_of(capsys, "evaluate", "hf://no/body")[1]
    pushed(hub, {"model.bin": b"", "checkpoints/update_1.ckpt": b""})
    status, err = error_of(capsys, "evaluate", ADDRESS)
    assert (status, "does not hold a policy of this program (policy.safetensors)" in err) == (2, True)
    for content in (b"", b"pickle", policy[:-8], policy.replace(b"CartPole-v1", b'CartP"le-v1')):
        pushed(hub, {"policy.safetensors": content})
        status, err = error_of(capsys, "evaluate", ADDRESS)
        assert (status, f"{ADDRESS}: not a policy of this program" in err) == (2, True), err
    pushed(hub, {"policy.safetensors": policy}, gated=True)
    hub.repositories["me/gated"] = hub.repositories.pop(ID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", READ_TOKEN)
        assert "its owner has to give access first" in error_of(capsys, "evaluate", "hf://me/gated")[1]


def test_a_pulled_policy_has_nothing_imported(hub, tmp_path, run_dir, capsys, monkeypatch):
    """Neither its environment's module nor its encoder's, where these are there to be imported."""
    (tmp_path / "trap_of_hub.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    policy = load_agent(run_dir)
    weights = (run_dir / "policy.safetensors").read_bytes()
    size = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + size])
    spec = replace(policy.spec, env_id="trap_of_hub:Trap-v0").to_json()
    architecture = json.loads(header["__metadata__"]["agent"]) | {"encoder": "trap_of_hub:Net"}
    for values in ({"env_spec": spec}, {"agent": json.dumps(architecture)}):
        text = json.dumps(header | {"__metadata__": header["__metadata__"] | values}).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        pushed(hub, {"policy.safetensors": len(text).to_bytes(8, "little") + text + weights[8 + size :]})
        status, err = error_of(capsys, "evaluate", ADDRESS)
        assert (status, "trap_of_hub" in err, "--own-code" in err) == (2, True, True), err


@pytest.mark.parametrize("repo", ["cart", "a/b/c", "me/", "/cart", "me/c t", "me/a--b", "me/..", "me/-a", "me/a.git"])
def test_names_that_no_repository_can_have(hub, run_dir, capsys, repo):
    for words in (("push", run_dir, repo), ("evaluate", f"hf://{repo}")):
        status, err = error_of(capsys, *words)
        assert (status, "USER/NAME is expected" in err) == (2, True), err
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["", "..", "../../x", "a b", "-x", "a..b", "x.lock", "a\nb"])
def test_names_that_no_branch_can_have(hub, run_dir, capsys, revision):
    for words in (("push", run_dir, ID, f"--branch={revision}"), ("evaluate", f"{ADDRESS}@{revision}")):
        status, err = error_of(capsys, *words)
        assert (status, "the name of a branch, a tag or a commit is expected" in err) == (2, True), err
    assert hub.requests == []


def test_other_wrong_words(hub, run_dir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for words, expected in (
        (("push", tmp_path / "empty", ID), "no policy.safetensors and no whole checkpoint in it"),
        (("push", run_dir, ID, "--message", " "), "--message: a text that is not empty is expected"),
        (("push", run_dir, ID, "--branch", "refs/pr/1"), "answered with status 400 (Invalid reference for a branch)"),
        (("push", ADDRESS, "me/copy"), "the folder of a run on this machine is expected"),
        (("evaluate", ADDRESS, "--video"), "--video: the folder of a run is expected"),
    ):
        status, err = error_of(capsys, *words)
        assert (status, expected in err) == (2, True), err
    (run_dir / "policy.safetensors").write_bytes(b"damaged")
    assert "not a policy of this program" in error_of(capsys, "push", run_dir, ID)[1]


def test_a_client_that_is_not_installed(run_dir, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None)
    for words in (("push", run_dir, ID), ("push", run_dir, ID, "--dry-run"), ("evaluate", ADDRESS)):
        status, err = error_of(capsys, *words)
        assert (status, "needs huggingface_hub: pip install huggingface_hub" in err) == (2, True), err


def test_the_commands_of_the_pages_run(hub, run_dir, capsys):
    """Those of docs/hub.md all, and those of README.md that push."""
    (block,) = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/hub.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    commands = [words[3:] for words in lines if words[:3] == ["python", "-m", "fabric_ppo"]]
    assert len(commands) == 3
    for words in [*commands, *(words[3:] for words in of_kind("push"))]:
        places = {"RUN_DIR": str(run_dir), "USER/NAME": f"me/{len(hub.requests)}" if "--private" in words else ID}
        args = [re.sub("|".join(places), lambda found, places=places: places[found[0]], word) for word in words]
        more = ["--episodes", "2"] if words[0] == "evaluate" else []
        assert call(capsys, *args, *more)[0] == 0


def test_the_page_lists_the_flags(capsys):
    with pytest.raises(SystemExit):
        cli.main(["push", "--help"])
    flags = set(re.findall(r"(--[\w-]+)", capsys.readouterr().out)) - {"--help"}
    page = (ROOT / "docs/hub.md").read_text().partition("\n## Push\n")[2].partition("\n## ")[0]
    rows = "".join(re.findall(r"^\| `--.*$", page, re.MULTILINE))
    assert {word for word in re.findall(r"(?<=`)(--[\w-]+)", rows)} == flags
