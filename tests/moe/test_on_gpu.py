"""Experts on a GPU: precision and gradients at any loads, CUDA graphs that serve other loads, nothing waited for."""

import contextlib
import itertools

import pytest
import torch

from llmsys.moe import DEEPSEEK_V3, MixtureOfExperts, RouterConfig, balance_loss
from llmsys.moe.experts import experts_torch, group_by_expert, hopper, run_experts

pytestmark = pytest.mark.gpu
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@contextlib.contextmanager
def nothing_waits():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def loads(kind, N, K, E):
    """(N, K) experts, those of a token all different but for "one", where all go to one."""
    random = torch.Generator().manual_seed(1)
    likely = {
        "even": torch.ones(E),
        "skewed": 1 / torch.arange(1, E + 1) ** 1.5,
        "empty": (torch.arange(E) < K + 1).float(),
        "elsewhere": torch.ones(E),
    }
    if kind == "one":
        return torch.full((N, K), E // 2).cuda()
    experts = torch.multinomial(likely[kind].expand(N, E), K, generator=random)
    if kind == "elsewhere":
        experts[torch.rand(N, K, generator=random) < 0.4] = -1
    return experts.cuda()


def tensors(dtype, N, K, E, C, I, seed=0):  # noqa: E741
    torch.manual_seed(seed)
    x = torch.randn(N, C, device="cuda").to(dtype)
    gate_up, down = (torch.randn(E, o, i, device="cuda").div(i**0.5).to(dtype) for o, i in ((2 * I, C), (C, I)))
    return x, torch.rand(N, K, device="cuda"), gate_up, down


def with_gradients(run, experts, tensors, dout):
    leaves = [each.detach().clone().requires_grad_() for each in tensors]
    out = run(leaves[0], experts, *leaves[1:])
    return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(out.dtype))]


def triton(*arguments):
    return run_experts(*arguments, form="triton")


SHAPES = [(700, 4, 16, 256, 384), (33, 2, 64, 200, 72), (1, 8, 32, 512, 128)]
CASES = [
    *itertools.product(DTYPES, ["even", "skewed", "empty", "elsewhere", "one"], SHAPES),
    # Enough rows for Hopper's kernels, sizes that are no multiples of its tiles, or none that its copy engine reads.
    *itertools.product([torch.bfloat16], ["skewed", "one"], [(601, 3, 5, 520, 136), (300, 2, 3, 37, 65)]),
]


@pytest.mark.parametrize(("dtype", "kind", "shape"), CASES)
def test_output_and_gradients_err_at_most_twice_as_much_as_torchs_products(dtype, kind, shape):
    N, K, E, C, I = shape  # noqa: E741
    experts, names = loads(kind, N, K, E), ("out", "x", "weights", "gate_up", "down")
    worst = {name: [0.0, 0.0, 0.0] for name in names}
    for seed in range(1 if N > 1 else 8):  # where one token has one expert, a weight's error is a single number
        given = tensors(dtype, N, K, E, C, I, seed)
        dout = torch.randn(N, C, device="cuda").to(dtype)
        exact = with_gradients(experts_torch, experts, [each.float() for each in given], dout)
        plain = with_gradients(experts_torch, experts, given, dout)
        got = with_gradients(triton, experts, given, dout)
        for name, a, b, right in zip(names, got, plain, exact, strict=True):
            found = [float(each.abs().max()) for each in (a.float() - right, b.float() - right, right)]
            worst[name] = [max(pair) for pair in zip(worst[name], found, strict=True)]
    for name, (error, allowed, largest) in worst.items():
        assert error <= 2 * allowed + 1e-5 * (1 + largest), (name, error, allowed)
    again = with_gradients(triton, experts, given, dout)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))  # nothing is added up in a race


@pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")
@pytest.mark.parametrize("tiles", [hopper.WIDE, hopper.NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("counts", [[300, 0, 1, 700, 129, 64, 0], [128] * 4, [0, 0, 5], [0, 63, 65, 127, 128, 129, 0]])
def test_hoppers_products_read_and_write_nothing_of_other_experts(counts, tiles):
    """What lies beyond an expert's rows is another's, or nobody's and NaN."""
    E, IN, OUT, R = len(counts), 200, 328, sum(counts) + 70
    experts = torch.repeat_interleave(torch.arange(E), torch.tensor(counts))
    experts = torch.cat([experts, torch.full((70,), -1)])[:, None].cuda()
    groups = group_by_expert(experts, E, block_m=hopper.BLOCK_M)
    there = torch.arange(R, device="cuda")[:, None] < sum(counts)
    x, y = (torch.randn(R, n, device="cuda").where(there, float("nan")).bfloat16() for n in (IN, OUT))
    weight = torch.randn(E, OUT, IN, device="cuda").div(14).bfloat16()
    ends = groups.starts.tolist()
    for given, matrices in ((x, weight), (y, weight.transpose(1, 2))):
        out = hopper.multiply(given, matrices, groups, tiles=tiles)
        for e, (a, b) in enumerate(zip(ends, ends[1:], strict=False)):
            right = given[a:b].float() @ matrices[e].float().t()
            torch.testing.assert_close(out[a:b].float(), right, atol=2e-2, rtol=1e-2)
    found = hopper.weight_gradient(y, x, groups, tiles=tiles)
    for e, (a, b) in enumerate(zip(ends, ends[1:], strict=False)):
        torch.testing.assert_close(found[e].float(), y[a:b].float().t() @ x[a:b].float(), atol=0.3, rtol=1e-2)
    poisoned = torch.full((R, OUT), float("nan"), device="cuda", dtype=torch.bfloat16)
    assert hopper.multiply(x, weight, groups, tiles=tiles, out=poisoned)[sum(counts) :].isnan().all()


def test_one_graph_of_forward_and_backward_serves_any_loads_and_nothing_is_waited_for():
    N, K, E, C, I = 256, 4, 24, 128, 192  # noqa: E741  # more than 16 rows an expert: on Hopper its own kernels
    given = tensors(torch.bfloat16, N, K, E, C, I)
    dout = torch.randn(N, C, device="cuda").bfloat16()
    experts = loads("even", N, K, E)
    with_gradients(triton, experts, given, dout)  # compiles
    with nothing_waits():
        with_gradients(triton, experts, given, dout)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        with_gradients(triton, experts, given, dout)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = with_gradients(triton, experts, given, dout)
    for kind in ("skewed", "one", "elsewhere", "empty", "even"):
        experts.copy_(loads(kind, N, K, E))
        for each in captured:
            each.fill_(float("nan"))
        graph.replay()
        for got, right in zip(captured, with_gradients(triton, experts, given, dout), strict=True):
            assert torch.equal(got, right), kind


@pytest.mark.parametrize("config", [DEEPSEEK_V3, RouterConfig(32, 2)], ids=["deepseek", "softmax"])
def test_a_layer_and_its_router_wait_for_nothing_and_equal_the_same_on_a_cpu(config):
    torch.manual_seed(0)
    layer = MixtureOfExperts(96, 64, config, shared_size=64)
    x = torch.randn(2, 30, 96)
    expected, routing = layer(x)
    balance_loss(routing, sequences=2).backward()
    right = layer.router.weight.grad.clone()
    layer.zero_grad(set_to_none=True)
    layer, x = layer.cuda(), x.cuda()
    layer(x)  # compiles
    with nothing_waits():
        got, found = layer(x)
        balance_loss(found, sequences=2).backward()
        layer.after_step(found.loads, 0.001)
    assert torch.equal(found.loads.cpu(), routing.loads)
    torch.testing.assert_close(got.cpu(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.router.weight.grad.cpu(), right, atol=1e-6, rtol=1e-3)
