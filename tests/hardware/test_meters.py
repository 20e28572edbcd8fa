"""The meters count what operations do to memory and compute, and nothing else."""


import pytest
import torch

from llmsys.attention.cost import naive_cost
from llmsys.hardware.meters import largest_allocation, reads_of, reads_of_each, saved_for_backward, work
from tests.hardware.fresh import run_fresh


def test_a_view_allocates_nothing_and_reads_nothing():
    x = torch.randn(8, 16)
    with largest_allocation() as allocated, reads_of(x) as reads:
        x[2:].T[None].expand(3, 16, 6)
    assert (allocated.bytes, allocated.shape) == (0, ())
    assert reads.elements == 0 and reads.passes == 0


def test_the_largest_of_several_allocations_is_kept():
    x = torch.randn(4, 10)
    with largest_allocation() as allocated:
        y = x @ x.T  # (4, 4)
        z = (x[:, :, None] * x[:, None, :]).sum()  # (4, 10, 10)
        y.mul_(2), z
    assert allocated.shape == (4, 10, 10) and allocated.bytes == 4 * 10 * 10 * 4


def test_a_score_matrix_is_seen_where_it_is_made_and_only_there():
    q, k, v = (torch.randn(1, 2, 64, 8) for _ in range(3))
    with largest_allocation() as naive:
        torch.softmax(q @ k.mT, -1) @ v
    with largest_allocation() as fused:
        torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert naive.bytes == 2 * 64 * 64 * 4
    assert fused.bytes < naive.bytes


@pytest.mark.parametrize(
    ("read", "elements"),
    [
        (lambda x: x.sum(), 24),
        (lambda x: x[1].sum(), 6),
        (lambda x: x[:, ::2].amax(), 12),
        (lambda x: x * x, 48),
        (lambda x: torch.cat([x[:1], x[:1]]), 12),
        (lambda x: x.clone(), 24),
        (lambda x: x.t().contiguous(), 24),
        (lambda x: x[2].unsqueeze(0).expand(5, 6).sum(), 30),
        (lambda x: x.new_full((5,), 0.0), 0),
        (lambda x: torch.empty_like(x), 0),
        (lambda x: x.copy_(torch.ones(4, 6)), 0),
        (lambda x: x.fill_(1.0), 0),
        (lambda x: torch.add(torch.ones(4, 6), 1.0, out=x), 0),
        (lambda x: x.add_(1.0), 24),
        (lambda x: x.shape, 0),
        (lambda x: torch.softmax(x, -1), 24),
        (lambda x: x[0, 0].item(), 1),
    ],
)
def test_each_operation_reads_the_elements_of_its_arguments(read, elements):
    x = torch.randn(4, 6)
    with reads_of(x) as reads:
        read(x)
    assert reads.elements == elements


def test_only_the_tensor_asked_about_counts_under_autograd_too():
    x, other = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    with reads_of(other) as reads:
        (x * 2).sum().backward()
    assert reads.elements == 0
    with reads_of(x) as reads:
        (x * other).sum()
    assert reads.passes == 1


def test_an_empty_tensor_has_no_passes():
    with reads_of(torch.empty(0)) as reads:
        pass
    assert reads.passes == 0


def test_metering_imports_neither_triton_nor_torch_s_compiler():
    """torch would, for a dispatch mode of its usual kind, and so fix Triton's mode before `load_triton` can."""
    run_fresh(
        """
        import sys, torch
        from llmsys.hardware.meters import largest_allocation, reads_of
        x = torch.ones(3)
        with largest_allocation(), reads_of(x):
            x + x
        assert not {'triton', 'torch._dynamo'} & set(sys.modules)
        """
    )


def test_a_matrix_product_by_hand():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    with work() as w:
        a @ b
    assert (w.matmul_flops, w.other_flops, w.exponentials) == (2 * 3 * 5 * 7, 0, 0)
    assert (w.bytes_read, w.bytes_written, w.bytes) == (4 * (15 + 35), 4 * 21, 4 * 71)


def test_a_softmax_by_hand():
    x = torch.randn(6, 10)
    with work() as fused:
        torch.softmax(x, -1)
    with work() as apart:
        e = (x - x.amax(-1, keepdim=True)).exp_()
        e.div_(e.sum(-1, keepdim=True))
    assert (fused.matmul_flops, fused.other_flops, fused.exponentials) == (0, 5 * 60, 60)
    assert (apart.other_flops, apart.exponentials) == (fused.other_flops, fused.exponentials)
    assert (fused.bytes_read, fused.bytes_written) == (240, 240)
    # maximum: 60 in, 6 out; difference: 66 in, 60 out; exp: 60, 60; sum: 60, 6; quotient: 66, 60
    assert (apart.bytes_read, apart.bytes_written) == (4 * 312, 4 * 192)


@pytest.mark.parametrize("inference", [False, True])
def test_naive_attention_by_hand(inference):
    B, H, T, D = 2, 3, 16, 4
    q, k, v = (torch.randn(B, H, T, D) for _ in range(3))
    with torch.inference_mode(inference), work() as w:
        torch.softmax(q @ k.mT, -1) @ v
    cost = naive_cost(B, H, T, D, itemsize=4)
    assert w.matmul_flops == cost.flops and w.bytes == cost.hbm_bytes
    assert w.exponentials == cost.score_elements and w.other_flops == 5 * cost.score_elements


def test_fused_attention_computes_as_much_and_moves_less():
    q, k = torch.randn(2, 6, 32, 8), torch.randn(2, 2, 32, 8)
    with work() as naive:
        torch.softmax(q.view(2, 2, 96, 8) @ k.mT * 8**-0.5, -1) @ k
    with work() as fused:
        torch.nn.functional.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    assert (fused.matmul_flops, fused.other_flops, fused.exponentials) == (
        (naive.matmul_flops, naive.other_flops, naive.exponentials)
    )
    assert fused.bytes < naive.bytes


@pytest.mark.parametrize(
    ("run", "matmul", "other", "exponentials"),
    [
        (lambda x, y: x + y, 0, 24, 0),
        (lambda x, y: x.mul_(2), 0, 24, 0),
        (lambda x, y: torch.add(x, y, out=torch.empty(4, 6)), 0, 24, 0),
        (lambda x, y: x[:, :1] * y[:1], 0, 24, 0),
        (lambda x, y: (x.sum(), x.mean(0), x.amax(-1), x.max(-1)), 0, 4 * 24, 0),
        (lambda x, y: x.exp2(), 0, 24, 24),
        (lambda x, y: torch.logsumexp(x, -1), 0, 4 * 24, 24),
        (lambda x, y: torch.nn.functional.silu(x), 0, 24, 24),
        (lambda x, y: torch.nn.functional.linear(x, y, y[:, 0]), 2 * 4 * 4 * 6, 16, 0),
        (lambda x, y: torch.einsum("ij,kj->ik", x, y), 2 * 4 * 4 * 6, 0, 0),
        (lambda x, y: x[0] @ y[0], 2 * 6, 0, 0),
        (lambda x, y: x @ y[0], 2 * 24, 0, 0),
        (lambda x, y: torch.baddbmm(x[None, :, :4], x[None], y.T[None]), 2 * 4 * 4 * 6, 16, 0),
        (lambda x, y: torch.nn.functional.rms_norm(x, (6,), y[0]), 0, 4 * 24 + 2 * 4, 0),
        (lambda x, y: torch.nn.functional.layer_norm(x, (6,), y[0], y[1]), 0, 7 * 24 + 2 * 4, 0),
        (lambda x, y: (x > y, torch.where(x > 0, x, y), x.masked_fill(x > 0, 0.0), x.clone(), x.half()), 0, 0, 0),
        (lambda x, y: (x.T, x[1:], x.view(24), x.expand(2, 4, 6), torch.cat([x, y]), torch.zeros(5)), 0, 0, 0),
        (lambda x, y: torch.arange(6) * 2 + 1, 0, 0, 0),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_operations_of_each_kind_are_counted(run, matmul, other, exponentials, inference):
    with torch.inference_mode(inference):
        x, y = torch.randn(4, 6), torch.randn(4, 6)
        with work() as w:
            run(x, y)
    assert (w.matmul_flops, w.other_flops, w.exponentials) == (matmul, other, exponentials)


@pytest.mark.parametrize(
    ("run", "read", "written"),
    [
        (lambda x, i: x + 1, 24, 24),
        (lambda x, i: x.add_(1), 24, 24),
        (lambda x, i: x.copy_(i[:1]), 2, 24),
        (lambda x, i: x.fill_(1.0), 0, 24),
        (lambda x, i: x[:2, :3].mul_(2), 6, 6),
        (lambda x, i: (x.T, x[1:], x.reshape(24), x.detach()), 0, 0),
        (lambda x, i: x[:1].expand(9, 6).sum(0), 6, 6),
        (lambda x, i: (torch.empty(9), torch.empty_like(x), x.new_empty(3)), 0, 0),
        (lambda x, i: (torch.ones(9), torch.zeros_like(x)), 0, 33),
        (lambda x, i: x.double(), 24, 48),
        (lambda x, i: x[0, 0].item(), 1, 0),
        (lambda x, i: x[i], 2 * 2 + 12, 12),
        (lambda x, i: x.index_select(0, i), 2 * 2 + 12, 12),
        (lambda x, i: torch.nn.functional.embedding(i, x), 2 * 2 + 12, 12),
        (lambda x, i: x.index_put_((i,), x.new_ones(2, 6)), 2 * 2 + 12, 12 + 12),
        (lambda x, i: x.index_copy_(0, i, x.new_ones(2, 6)), 2 * 2 + 12, 12 + 12),
        (lambda x, i: x.index_copy(0, i, x[:2].view(2, 6)), 24 + 2 * 2 + 12, 24),
    ],
)
def test_bytes_of_each_kind_of_operation_are_counted(run, read, written):
    x, i = torch.randn(4, 6), torch.tensor([1, 3])  # an index is two words
    with work() as w:
        run(x, i)
    assert (w.bytes_read, w.bytes_written) == (4 * read, 4 * written)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "run",
    [
        lambda q: torch.softmax(q @ q.mT, -1) @ q,
        lambda q: torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True),
        lambda q: torch.nn.functional.linear(q, q[0, 0], q[0, 0, :, 0]),
        lambda q: torch.nn.functional.rms_norm(q, (64,), q[0, 0, 0]),
        lambda q: torch.nn.functional.layer_norm(q, (64,), q[0, 0, 0], q[0, 0, 1]),
        lambda q: torch.nn.functional.silu(q) * q,
    ],
)
def test_what_is_computed_does_not_depend_on_the_device(run, dtype):
    counts = []
    for device in ("cpu", "cuda"):
        q = torch.randn(2, 4, 64, 64).to(device, dtype)
        for inference in (False, True):
            with torch.inference_mode(inference), work() as w:
                run(q)
            counts.append((w.matmul_flops, w.other_flops, w.exponentials))
    assert len(set(counts)) == 1


def test_gradients_are_counted_where_they_are_made():
    x, weight = torch.randn(5, 6), torch.randn(6, 7, requires_grad=True)
    with work() as forward:
        y = x @ weight
    with work() as backward:
        y.sum().backward()
    assert backward.matmul_flops == forward.matmul_flops == 2 * 5 * 6 * 7, "x needs no gradient"


def test_meters_nest_and_change_nothing():
    x = torch.randn(8, 8)
    with work() as outer, largest_allocation() as largest:
        with torch.inference_mode(), work() as inner:
            y = torch.softmax(x @ x, -1)
            y[torch.tensor([0, 2])] = torch.eye(8)[:2]
        z = x + 1
    assert outer.bytes == inner.bytes + 2 * z.nbytes
    assert outer.other_flops == inner.other_flops + 64 and outer.matmul_flops == inner.matmul_flops
    assert largest.shape == (8, 8)
    torch.testing.assert_close(y[1], torch.softmax(x @ x, -1)[1])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_autograd_keeps_is_counted_once_and_without_what_was_given(device):
    x = torch.ones(8, 16, device=device, requires_grad=True)
    with saved_for_backward(x) as saved:
        y = x.exp()  # keeps its result
        z = (y.view(16, 8) * x.view(16, 8)).sum()  # keeps both, of which nothing is new
    assert (saved.bytes, saved.shapes) == (y.nbytes, ((8, 16),))
    with saved_for_backward(x) as saved, torch.no_grad():
        (x * x.exp()).sum()
    assert saved.bytes == 0
    z.backward()
    assert x.grad.shape == x.shape


def test_reads_of_several_tensors_are_counted_apart():
    x, y = torch.ones(6), torch.ones(2, 3)
    with reads_of_each({"x": x, "rows of y": y, "all of y": y.view(6)}) as reads:
        torch.exp(x), y[:1] + y[:1], y.sum()
    assert reads["x"].passes == 1 and reads["rows of y"].passes == reads["all of y"].passes == 2
    with reads_of_each({}) as reads:
        x.sum()
    assert reads == {}
