"""The backward pass in PyTorch, against autograd of the naive form in float64, and what it holds in memory."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention import naive_attention, sdpa_attention, tiled_attention
from llmsys.attention.backward import backward_stored, backward_tiled, differentiable
from llmsys.attention.contract import visible_keys
from llmsys.bench.low_precision import eager_attention
from llmsys.hardware.meters import largest_allocation, work

LENGTHS = st.sampled_from([1, 2, 5, 8, 13])


def inputs(B, G, Hkv, Tq, Tk, Dk, Dv, dtype=torch.float64):
    """q, k, v and do."""
    shapes = (B, G * Hkv, Tq, Dk), (B, Hkv, Tk, Dk), (B, Hkv, Tk, Dv), (B, G * Hkv, Tq, Dv)
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def by_autograd(q, k, v, do, **options):
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    return torch.autograd.grad(naive_attention(*leaves, **options), leaves, do.double())


def tiled(q, k, v, do, *, causal=False, scale=None, **blocks):
    o, lse = naive_attention(q, k, v, causal=causal, scale=scale, return_lse=True)
    return backward_tiled(q, k, v, o, lse, do, causal=causal, scale=scale, **blocks)


def weights(q, k, *, causal=False, scale=None):
    """P (B, Hq, Tq, Tk), written without a line of the library's attention."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    s = scale * torch.einsum("bhid,bhjd->bhij", q, k.repeat_interleave(q.shape[1] // k.shape[1], dim=1))
    if not causal:
        return s.softmax(dim=-1)
    seen = visible_keys(q.shape[2], k.shape[2])
    return s.masked_fill(~seen, float("-inf")).softmax(dim=-1).nan_to_num(0)


def close(got, expected, **tolerance):
    for name, a, b in zip(("dq", "dk", "dv"), got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, msg=lambda m, name=name: f"{name}: {m}", **tolerance)


@settings(max_examples=60, deadline=None)
@given(
    G=st.integers(1, 3), Tq=LENGTHS, Tk=LENGTHS, Dk=st.sampled_from([1, 4]), Dv=st.sampled_from([1, 6]),
    causal=st.booleans(), scale=st.sampled_from([None, 0.3]), block_q=st.integers(1, 9), block_k=st.integers(1, 9),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_stored_and_tiled_gradients_agree_with_autograd_on_any_shape(
    G, Tq, Tk, Dk, Dv, causal, scale, block_q, block_k, seed
):
    torch.manual_seed(seed)
    q, k, v, do = inputs(2, G, 2, Tq, Tk, Dk, Dv)
    expected = by_autograd(q, k, v, do, causal=causal, scale=scale)
    stored = backward_stored(q, k, v, weights(q, k, causal=causal, scale=scale), do, scale=scale)
    close(stored, expected, atol=1e-12, rtol=1e-12)
    # lse is returned in fp32, so that is how exactly P can be made again
    got = tiled(q, k, v, do, causal=causal, scale=scale, block_q=block_q, block_k=block_k)
    close(got, expected, atol=1e-5, rtol=1e-5)


def test_rows_without_a_key_have_no_gradient():
    q, k, v, do = inputs(1, 2, 2, 9, 3, 4, 4)
    for gradients in (
        tiled(q, k, v, do, causal=True, block_q=4, block_k=2),
        backward_stored(q, k, v, weights(q, k, causal=True), do),
    ):
        assert all(x.isfinite().all() for x in gradients)
        assert (gradients[0][:, :, :6] == 0).all() and (gradients[0][:, :, 6:] != 0).any()


def test_large_scores_overflow_nothing():
    q, k, v, do = inputs(1, 1, 1, 12, 12, 8, 8, torch.float32)
    q = q * 1e4
    exact = by_autograd(q, k, v, do)
    assert all(x.isfinite().all() for x in tiled(q, k, v, do, block_q=4, block_k=4))
    close(tiled(q, k, v, do, block_q=4, block_k=4), exact, atol=0.05, rtol=0.05)  # s is ±10⁴: P is good to 10⁻³


@pytest.mark.parametrize("shape", [(0, 1, 2, 3, 5), (1, 1, 2, 0, 5), (1, 1, 2, 3, 0)])
def test_empty_tensors_have_gradients_of_zero(shape):
    q, k, v, do = inputs(*shape, 4, 4)
    for x, gradient in zip((q, k, v), tiled(q, k, v, do, causal=True), strict=True):
        assert gradient.shape == x.shape and (gradient == 0).all()


def test_gradients_do_not_depend_on_the_strides_of_the_inputs():
    q, k, v, do = (torch.randn(2, 9, 4, 8).transpose(1, 2) for _ in range(4))
    plain = tiled(*(x.contiguous() for x in (q, k, v, do)), causal=True, block_q=4, block_k=4)
    torch.testing.assert_close(tiled(q, k, v, do, causal=True, block_q=4, block_k=4), plain)
    p = weights(q, k)
    torch.testing.assert_close(
        backward_stored(q, k, v, p.mT.contiguous().mT, do), backward_stored(q, k, v, p, do.contiguous())
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_errs_at_most_twice_as_much_as_eager_code(dtype, seed):
    torch.manual_seed(seed)
    q, k, v, do = inputs(1, 2, 2, 33, 65, 16, 16, dtype)
    exact = by_autograd(q, k, v, do, causal=True)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    eager = torch.autograd.grad(eager_attention(*leaves, causal=True), leaves, do)
    stored = backward_stored(q, k, v, weights(q.float(), k.float(), causal=True).to(dtype), do)
    for got in (tiled(q, k, v, do, causal=True), stored):
        for x, low, true in zip(got, eager, exact, strict=True):
            assert x.dtype == dtype
            # Of all together. The worst single one can be 5 times eager code's: delta is made of an o that has
            # been rounded, and where a row sees few keys, dP − delta is what is left of two almost equal numbers.
            error, allowed = ((y.double() - true).norm().item() for y in (x, low))
            assert error <= 2 * allowed


def test_memory_is_a_few_tiles_and_the_gradients():
    q, k, v, do = inputs(1, 1, 1, 512, 512, 16, 16, torch.float32)
    o, lse = tiled_attention(q, k, v, return_lse=True)
    with largest_allocation() as largest:
        backward_tiled(q, k, v, o, lse, do, block_q=32, block_k=32)
    assert largest.bytes == q.nbytes  # dq: a 32nd of the matrix
    with largest_allocation() as largest:
        backward_stored(q, k, v, weights(q, k), do)
    assert largest.bytes == 512 * 512 * 4


def test_a_tile_takes_five_products_and_a_hidden_tile_none():
    q, k, v, do = inputs(1, 1, 1, 64, 64, 16, 16, torch.float32)
    o, lse = tiled_attention(q, k, v, return_lse=True)
    with work() as whole:
        backward_tiled(q, k, v, o, lse, do, block_q=16, block_k=16)
    assert whole.matmul_flops == 5 * 2 * 64 * 64 * 16
    with work() as causal:
        backward_tiled(q, k, v, o, lse, do, causal=True, block_q=16, block_k=16)
    assert causal.matmul_flops == whole.matmul_flops * 10 // 16


@pytest.mark.parametrize("causal", [False, True])
def test_differentiable_attention_passes_gradcheck(causal):
    attention = differentiable(naive_attention, backward_tiled)
    leaves = [x.requires_grad_() for x in inputs(1, 2, 1, 3, 4, 3, 2)[:3]]

    def forward(q, k, v):
        return attention(q, k, v, causal=causal)

    assert torch.autograd.gradcheck(forward, leaves, atol=1e-5, rtol=1e-4, eps=1e-4)


def test_the_backward_pass_given_is_the_one_that_runs():
    def mine(q, k, v, o, lse, do, *, causal, scale):
        called.append((causal, scale, o.shape, lse.shape))
        return tuple(torch.full_like(x, 7) for x in (q, k, v))

    called = []
    q, k, v, do = inputs(1, 2, 2, 3, 5, 4, 6, torch.float32)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    o, lse = differentiable(tiled_attention, mine)(*leaves, causal=True, return_lse=True)
    torch.testing.assert_close(o, sdpa_attention(q, k, v, causal=True))
    assert not lse.requires_grad
    assert all((x == 7).all() for x in torch.autograd.grad(o, leaves, do))
    assert called == [(True, 0.5, (1, 4, 3, 6), (1, 4, 3))]


def test_without_gradients_nothing_is_kept_for_a_backward_pass():
    q, k, v, _ = inputs(1, 1, 1, 3, 5, 4, 4, torch.float32)
    o = differentiable(tiled_attention)(q, k, v)
    assert not o.requires_grad


def test_gradients_of_gradients_are_refused_and_not_wrong():
    leaves = [x.requires_grad_() for x in inputs(1, 1, 1, 3, 3, 2, 2)[:3]]
    o = differentiable(tiled_attention)(*leaves)
    (dq,) = torch.autograd.grad((o * o).sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.update(o=a["o"][:, :, 1:]), r"o must have shape \(1, 2, 4, 4\) to go with q, k and v, got"),
        (lambda a: a.update(lse=a["lse"][..., None]), r"lse must have shape \(1, 2, 4\)"),
        (lambda a: a.update(do=a["do"][0]), r"do must have shape \(1, 2, 4, 4\)"),
        (lambda a: a.update(k=a["k"][:, :, 1:]), "v must have k's heads and tokens"),
        (lambda a: a.update(block_q=0), "block_q must be at least 1 row, got 0"),
        (lambda a: a.update(block_k=-1), "block_k must be at least 1 row, got -1"),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(change, message):
    q, k, v, do = inputs(1, 1, 2, 4, 4, 4, 4, torch.float32)
    o, lse = tiled_attention(q, k, v, return_lse=True)
    arguments = {"q": q, "k": k, "v": v, "o": o, "lse": lse, "do": do}
    change(arguments)
    bare = inspect.unwrap(backward_tiled)  # without the shape checks that the tests add: its own must suffice
    with pytest.raises(ValueError, match=message):
        bare(**arguments)


def test_a_matrix_of_another_shape_is_refused():
    q, k, v, do = inputs(1, 2, 2, 4, 5, 4, 4)
    with pytest.raises(ValueError, match=r"p must have shape \(1, 4, 4, 5\)"):
        inspect.unwrap(backward_stored)(q, k, v, torch.zeros(1, 2, 4, 5, dtype=torch.float64), do)


@pytest.mark.parametrize("shape", [(0, 2, 1, 3, 4), (2, 0, 1, 3, 4), (1, 2, 2, 0, 4), (1, 2, 2, 3, 0)])
def test_no_sequence_no_head_or_no_token_has_gradients_of_zero(shape):
    B, Hq, Hkv, Tq, Tk = shape
    q, k, v = torch.randn(B, Hq, Tq, 8), torch.randn(B, Hkv, Tk, 8), torch.randn(B, Hkv, Tk, 4)
    o = torch.zeros(B, Hq, Tq, 4)
    do, lse = torch.randn_like(o), torch.full((B, Hq, Tq), -torch.inf)
    p = o.new_zeros(B, Hq, Tq, Tk)
    for got in (backward_tiled(q, k, v, o, lse, do, causal=True), backward_stored(q, k, v, p, do)):
        assert all(g.shape == x.shape and (g == 0).all() for g, x in zip(got, (q, k, v), strict=True))
