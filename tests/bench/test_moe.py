"""The mixture-of-experts benchmark: its loads are what they are called, and its peer computes the contract."""

import pytest
import torch

from llmsys.bench import moe
from llmsys.bench.moe import LAYERS, LOOP, SHAPES, LayerShape, Shape, experts_of_torchs_operations, measure, table
from llmsys.moe import load_statistics
from llmsys.moe.experts import experts_loop


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loads_add_up_and_are_what_they_are_called(shape):
    loads = torch.tensor(shape.loads())
    found = load_statistics(loads)
    assert loads.sum() == shape.R and len(loads) == shape.E and shape.loads() == shape.loads()
    if shape.load == "even":
        assert found.busiest == 1
    elif shape.load == "skewed":
        assert (loads.diff() <= 0).all() and loads[0] == pytest.approx(shape.E * int(loads[-1]), rel=0.05)
    elif shape.load == "one in eight":
        assert found.idle == shape.E * 7 // 8 and found.busiest == pytest.approx(8, rel=0.01)
    else:
        assert shape.R / shape.E <= 32 and found.busiest > 1


def test_the_shapes_of_the_targets_are_among_them():
    assert {Shape(64, 65_536, 2048, 1408, load) for load in ("even", "skewed")} <= set(SHAPES)
    assert any(layer.N * layer.K == 65_536 for layer in LAYERS)


def grouped(x, weight, *, offs):
    """`torch._grouped_mm` of three dimensions, as its documentation says it is."""
    starts = [0, *offs.tolist()]
    parts = [x[a:b] @ weight[e] for e, (a, b) in enumerate(zip(starts, starts[1:], strict=False))]
    return torch.cat(parts)


def test_the_peer_of_torchs_operations_is_the_loop(monkeypatch):
    monkeypatch.setattr(torch, "_grouped_mm", grouped, raising=False)
    torch.manual_seed(0)
    N, K, E, C, I = 13, 3, 5, 8, 6  # noqa: E741
    x, gate_up, down = torch.randn(N, C), torch.randn(E, 2 * I, C), torch.randn(E, C, I)
    experts = torch.stack([torch.randperm(E - 1)[:K] for _ in range(N)])  # the last one has nothing to do
    arguments = (x, experts, torch.rand(N, K), gate_up, down)
    torch.testing.assert_close(experts_of_torchs_operations(*arguments), experts_loop(*arguments))


@pytest.mark.parametrize(("load", "even"), [("even", True), ("skewed", False)])
def test_a_layers_loads_are_what_they_are_called(load, even):
    torch.manual_seed(0)
    layer = moe._layer(LayerShape(512, 64, 16, 16, 2, load), experts_loop, "cpu", torch.float32)
    busiest = float(load_statistics(layer(torch.randn(512, 64))[1].loads).busiest)
    assert (busiest < 1.8) is even and busiest < 8


def test_its_small_form_runs_here_and_a_wrong_result_is_not_timed(monkeypatch):
    record = measure(quick=True)
    assert {row["what"] for row in record.rows} >= {"layer forward", "layer forward and backward"}
    assert all(row["ratio"] > 0 for row in record.rows) and table(record).row_count >= 2
    monkeypatch.setattr(moe, "experts_loop", lambda *arguments: 2 * experts_loop(*arguments))
    with pytest.raises(RuntimeError, match="the layer's output is off by"):
        moe._layers(moe.QUICK_LAYERS[0], {}, repeats=1)
    assert LOOP == "loop"
