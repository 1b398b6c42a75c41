"""Pushing and pulling as whole processes, told by the client's own variables where the Hub and its cache are."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading

import pytest

from fabric_ppo.api import train
from fabric_ppo.config import Config
from tests.fixtures.configs import tiny
from tests.fixtures.hub_server import TOKEN, HubServer
from tests.fixtures.launching import ROOT, clean_environment
from tests.fixtures.processes import PATIENCE

ADDRESS = "hf://me/cart"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    return train(Config(**tiny(run_dir=str(folder), test_episodes=0)), verbose=False).run_dir


class Client:
    """Starts commands that talk to a server."""

    def __init__(self, server, home):
        self.variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}

    def start(self, *words, **variables):
        args = [sys.executable, "-m", "fabric_ppo", *map(str, words)]
        env = clean_environment(**self.variables | variables)
        return subprocess.Popen(args, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *words, **variables):
        process = self.start(*words, **variables)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err


@pytest.fixture
def server():
    with HubServer() as server:
        yield server


@pytest.fixture
def client(server, tmp_path):
    return Client(server, tmp_path / "home")


def test_push_evaluate_and_what_the_cache_is_for(server, client, run_dir):
    status, out, err = client.run("push", run_dir, "me/cart", HF_TOKEN=TOKEN)
    assert (status, err) == (0, "")
    assert out.startswith(f"pushed   {server.url}/me/cart\n")
    words = ("--episodes", 3, "--seed", 5, "--json")
    status, scores, _ = client.run("evaluate", ADDRESS, *words)
    assert status == 0
    assert json.loads(scores) == json.loads(client.run("evaluate", run_dir, *words)[1])
    server.shutdown()
    server.server_close()
    # on a slow machine there are lines of progress besides
    assert client.run("evaluate", ADDRESS, *words, HF_HUB_OFFLINE="1")[:2] == (0, scores)
    assert client.run("evaluate", ADDRESS, *words)[:2] == (0, scores)
    for variables, status, reason in (
        (
            {"HF_HUB_OFFLINE": "1"},
            2,
            "HF_HUB_OFFLINE is set, and the cache does not have it; without that it is asked for",
        ),
        ({"HF_HUB_OFFLINE": "0"}, 1, f"{server.url} cannot be reached, or broke off ([Errno 111] Connection refused)"),
    ):
        found = client.run("evaluate", "hf://me/other", **variables)
        assert found == (status, "", f"error: hf://me/other: {reason}\n")


def test_a_push_that_is_killed_leaves_nothing_half_pushed(server, client, run_dir):
    """While it uploads the policy: no commit is there, and the next push has them all."""
    arrived, killed = threading.Event(), threading.Event()

    def hold(handler):
        arrived.set()
        killed.wait(PATIENCE)
        handler.close_connection = True

    server.faults["PUT /upload"] = hold
    process = client.start("push", run_dir, "me/cart", HF_TOKEN=TOKEN)
    assert arrived.wait(PATIENCE)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    killed.set()
    server.faults.clear()
    assert [set(files) for files in server.repositories["me/cart"].commits.values()] == [{".gitattributes"}]
    assert client.run("push", run_dir, "me/cart", HF_TOKEN=TOKEN)[0] == 0
    assert "policy.safetensors" in server.repositories["me/cart"].files()
