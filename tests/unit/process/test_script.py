"""The end of a process: with its status, whatever an environment has left behind."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from fabric_ppo.process import script
from tests.fixtures.launching import run

PROGRAM = """
import atexit, threading, time
from fabric_ppo.process import script
script._SECONDS_FOR_THREADS = {seconds}
atexit.register(print, "in order")
threading.Thread(target=time.sleep, args=({busy},)).start()
{end}(3)
"""


@pytest.mark.parametrize("end", ["script.end_process", "script.shut_down"])
def test_a_thread_that_goes_on_does_not_keep_the_process(tmp_path, end):
    done = run([sys.executable, "-c", PROGRAM.format(seconds=0.1, busy=1e6, end=end)], tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith("warning: threads that an environment has started go on; ")


def test_a_thread_that_ends_is_waited_for(tmp_path):
    done = run([sys.executable, "-c", PROGRAM.format(seconds=1e6, busy=0.1, end="script.end_process")], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "in order\n", "")


COLLECTING = """
import gc
from fabric_ppo.config import TorchConfig
from fabric_ppo.process.script import run_script
from fabric_ppo.tools.flags import parse_args

def tell(config):
    print(gc.isenabled(), gc.get_freeze_count() > 0)

config = parse_args(TorchConfig)
print(gc.isenabled())
run_script(tell, config)
"""


def test_nothing_is_collected_while_a_script_imports(tmp_path):
    """And what it has imported is not looked at again while it trains."""
    done = run([sys.executable, "-c", COLLECTING], tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, ["False", "True", "True"])


def test_graphs_are_gone_before_the_group_whose_collectives_they_hold(monkeypatch):
    """Or nccl would wait for them for ever."""
    calls = []
    distributed = SimpleNamespace(is_initialized=lambda: True, destroy_process_group=lambda: calls.append("group"))
    graphs = SimpleNamespace(release_graphs=lambda: calls.append("graphs"))
    monkeypatch.setitem(sys.modules, "torch.distributed", distributed)
    monkeypatch.setitem(sys.modules, "fabric_ppo.fast.cuda_graphs", graphs)
    script._destroy_process_group()
    assert calls == ["graphs", "group"]
