"""What can be tested of CUDA graphs without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

from fabric_ppo.fast.cuda_graphs import CudaGraphs, release_graphs


def test_all_graphs_are_freed_whoever_holds_them():
    resets = []
    graphs = [SimpleNamespace(reset=lambda k=k: resets.append(k)) for k in range(3)]
    recorders = [CudaGraphs.__new__(CudaGraphs) for _ in range(2)]
    recorders[0].graphs, recorders[1].graphs = graphs[:2], graphs[2:]
    recorders[0].cycle = recorders[0]
    holder = {"step": recorders.pop()}
    release_graphs()
    assert sorted(resets) == [0, 1, 2]
    assert holder
