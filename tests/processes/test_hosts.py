"""Two hosts: both scripts across two network namespaces, which end where one host with as many ranks does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.fixtures.launching import BIN, ROOT, clean_environment, command, run
from tests.fixtures.processes import PATIENCE

FLAGS = (
    "--num-steps",
    "16",
    "--num-threads",
    "1",
    "--total-timesteps",
    "256",
    "--update-epochs",
    "2",
    "--test-episodes",
    "1",
)
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def ip(*args):
    return subprocess.run(["ip", *args], capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def hosts():
    """Names of two network namespaces that a cable joins."""
    if os.environ.get("FABRIC_PPO_TEST_HOSTS") != "1":
        pytest.skip("makes network namespaces: set FABRIC_PPO_TEST_HOSTS=1")
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2")
    names = [f"fabric_ppo_{os.getpid()}_{index}" for index in (0, 1)]
    try:
        made = [ip("netns", "add", name) for name in names]
        made.append(ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "cable1", "netns", names[1]))
        for index, (name, address) in enumerate(zip(names, ADDRESSES, strict=True)):
            made.append(ip("-n", name, "address", "add", f"{address}/24", "dev", f"cable{index}"))
            made += [ip("-n", name, "link", "set", device, "up") for device in (f"cable{index}", "lo")]
        failed = [each.stderr for each in made if each.returncode != 0]
        if failed:
            pytest.skip(f"network namespaces cannot be made here: {failed[0]}")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def launched(script, host, path):
    """What one starts on host number `host`."""
    if script == "torch":
        where = ["--nnodes=2", "--nproc_per_node=1", f"--node_rank={host}"]
        return [str(BIN / "torchrun"), *where, f"--master_addr={ADDRESSES[0]}", "--master_port=29511", path]
    where = ["--accelerator=cpu", "--strategy=ddp", "--devices=1", "--num-nodes=2", f"--node-rank={host}"]
    return [str(BIN / "fabric"), "run", *where, f"--main-address={ADDRESSES[0]}", "--main-port=29512", path]


@pytest.mark.parametrize("script", ["torch", "fabric"])
def test_train_finds_the_interface_between_them(tmp_path, hosts, script):
    """Each host has no name here that leads anywhere, and gloo would take the loopback."""
    words = [sys.executable, "-m", "fabric_ppo", "train", script, *FLAGS]
    words += ["--num-nodes=2", f"--main-address={ADDRESSES[0]}", "--main-port=29513"]
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, *words, f"--node-rank={host}", "--run-dir", f"host{host}"],
            cwd=tmp_path,
            env=clean_environment(TP_SOCKET_IFNAME=f"cable{host}", PYTHONPATH=str(ROOT)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for host, name in enumerate(hosts)
    ]
    said = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said


@pytest.mark.parametrize("share", ["--share-data", "--no-share-data"])
@pytest.mark.parametrize("script", ["torch", "fabric"])
def test_two_hosts_end_where_one_does(tmp_path, hosts, script, share):
    path = str(ROOT / f"train_{script}.py")
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, *launched(script, host, path), *FLAGS, share, "--run-dir", f"host{host}"],
            cwd=tmp_path,
            env=clean_environment(GLOO_SOCKET_IFNAME=f"cable{host}", TP_SOCKET_IFNAME=f"cable{host}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for host, name in enumerate(hosts)
    ]
    # when its ranks have ended, a launcher may still wait some minutes for the other host's (torchrun's exit barrier)
    said = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    print(said[0])
    assert not (tmp_path / "host1").exists()
    flags = [*FLAGS, share, "--run-dir", "one"]
    one = run(command(script, 2, *flags), tmp_path)
    assert one.returncode == 0, one.stderr
    policies = [(tmp_path / folder / "policy.safetensors").read_bytes() for folder in ("host0", "one")]
    assert policies[0] == policies[1]
