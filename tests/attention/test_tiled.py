"""Tiled attention: any tiles, any order, the same answer; never a score matrix; and the bytes it was said to move."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention import naive_attention, tiled_attention
from llmsys.attention.cost import naive_cost, tiled_bytes
from llmsys.attention.tiled import attend_one_query
from llmsys.bench.low_precision import eager_attention
from llmsys.hardware.memory import HBM, KIB, SRAMOverflow
from llmsys.hardware.meters import largest_allocation
from tests.attention.sample import examples

FORMS = list(itertools.product(["query", "key"], [True, False]))
EVERY_FORM = pytest.mark.parametrize("order, deferred", FORMS)
LENGTHS = st.sampled_from([0, 1, 2, 5, 16, 17, 31])
TILES = st.sampled_from([1, 3, 8, 16, 64])


def qkv(B, G, Hkv, Tq, Tk, Dk, Dv, size=1.0):
    return torch.randn(B, G * Hkv, Tq, Dk) * size, torch.randn(B, Hkv, Tk, Dk), torch.randn(B, Hkv, Tk, Dv)


@EVERY_FORM
@settings(max_examples=examples(25), deadline=None)
@given(
    G=st.integers(1, 3), Tq=LENGTHS, Tk=LENGTHS, Dv=st.sampled_from([1, 5, 8]), block_q=TILES, block_k=TILES,
    causal=st.booleans(), size=st.sampled_from([1.0, 1e3]), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_the_result_does_not_depend_on_the_sizes_of_tiles(
    order, deferred, G, Tq, Tk, Dv, block_q, block_k, causal, size, seed
):
    torch.manual_seed(seed)
    q, k, v = qkv(2, G, 2, Tq, Tk, 7, Dv, size)
    tiles = {"block_q": block_q, "block_k": block_k, "order": order, "deferred": deferred}
    o, lse = tiled_attention(q, k, v, causal=causal, return_lse=True, **tiles)
    exact, exact_lse = naive_attention(q.double(), k.double(), v.double(), causal=causal, return_lse=True)
    torch.testing.assert_close(o, exact.float(), atol=1e-4 * size**0.5, rtol=1e-4)
    torch.testing.assert_close(lse, exact_lse, atol=1e-4 * size, rtol=1e-5)


@EVERY_FORM
@settings(max_examples=examples(25), deadline=None)
@given(
    T=st.tuples(LENGTHS, LENGTHS), D=st.tuples(st.integers(1, 9), st.integers(1, 9)), block_q=TILES, block_k=TILES,
    causal=st.booleans(), dtype=st.sampled_from([torch.float32, torch.float16]),
)  # fmt: skip
def test_it_moves_the_bytes_that_tiled_bytes_counts(order, deferred, T, D, block_q, block_k, causal, dtype):
    q, k, v = (x.to(dtype) for x in qkv(2, 1, 3, *T, *D))
    tiles = {"block_q": block_q, "block_k": block_k, "order": order, "deferred": deferred}
    with HBM(programs=6, q=q, k=k, v=v) as hbm:
        tiled_attention(q, k, v, causal=causal, **tiles, hbm=hbm)
    expected = tiled_bytes(
        *T, *D, block_q=block_q, block_k=block_k, causal=causal, itemsize=q.element_size(), order=order
    )
    if order == "query" or dtype == torch.float32:  # in 16 bits, state waits in fp32 and o is stored once more
        assert hbm.bytes == 6 * expected
    assert hbm.stored["o"] >= q.shape[:3].numel() * D[1] * q.element_size()


def test_queries_outside_load_q_once_and_store_o_once_and_a_group_shares_its_keys():
    q, k, v = qkv(1, 4, 2, 40, 56, 8, 8)
    with HBM(programs=2, q=q, k=k, v=v) as hbm:
        tiled_attention(q, k, v, block_q=16, block_k=8, hbm=hbm)
    assert hbm.loaded == {"q": q.nbytes, "k": 3 * k.nbytes, "v": 3 * v.nbytes}  # 40 rows are three tiles of 16
    assert hbm.stored == {"o": q.nbytes, "lse": q.shape[:3].numel() * 4}


def test_causal_tiles_that_no_query_sees_are_not_loaded():
    q, k, v = qkv(1, 1, 1, 64, 64, 8, 8)
    with HBM(q=q, k=k, v=v) as hbm:
        tiled_attention(q, k, v, causal=True, block_q=16, block_k=16, hbm=hbm)
    assert hbm.loaded["k"] == k.nbytes * (1 + 2 + 3 + 4) / 4


def test_no_buffer_grows_with_the_square_of_the_tokens():
    q, k, v = qkv(1, 1, 1, 512, 512, 8, 8)
    with largest_allocation() as largest:
        tiled_attention(q, k, v, block_q=32, block_k=32)
    assert largest.bytes == q.nbytes  # o itself


def test_the_chip_holds_a_few_tiles_however_many_tokens_there_are():
    q, k, v = qkv(1, 1, 1, 256, 256, 64, 64)
    for block in (16, 64):
        with HBM(q=q, k=k, v=v) as hbm:
            tiled_attention(q, k, v, block_q=block, block_k=block, hbm=hbm)
        assert hbm.sram_peak < 12 * block * max(block, 64) * 4
    with pytest.raises(SRAMOverflow), HBM(sram=32 * KIB, q=q, k=k, v=v) as hbm:
        tiled_attention(q, k, v, hbm=hbm)


@settings(max_examples=examples(25), deadline=None)
@given(T=st.sampled_from([1, 2, 7, 16, 33]), tile=TILES, Dv=st.integers(1, 5), size=st.sampled_from([1.0, 1e3]))
def test_one_query_over_keys_that_stream_in_gives_attention_for_any_tile(T, tile, Dv, size):
    q, k, v = torch.randn(4) * size, torch.randn(T, 4), torch.randn(T, Dv)
    expected = naive_attention(*(x.double()[None, None] for x in (q[None], k, v)))[0, 0, 0].float()
    torch.testing.assert_close(attend_one_query(q, k, v, tile=tile), expected, atol=1e-4, rtol=1e-4)


@EVERY_FORM
def test_gradients_are_those_of_the_definition(order, deferred):
    q, k, v = (x.double().requires_grad_() for x in qkv(1, 2, 1, 5, 7, 3, 2))
    loss = tiled_attention(q, k, v, causal=True, block_q=2, block_k=3, order=order, deferred=deferred).pow(2).sum()
    other = naive_attention(q, k, v, causal=True).pow(2).sum()
    for ours, theirs in zip(torch.autograd.grad(loss, (q, k, v)), torch.autograd.grad(other, (q, k, v)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_sums_of_half_precision_are_kept_in_single():
    q, k, v = (x.half() for x in qkv(1, 1, 1, 33, 400, 16, 16))
    exact = naive_attention(q.double(), k.double(), v.double())
    eager = (eager_attention(q, k, v).double() - exact).abs().max()
    for order, deferred in FORMS:
        o = tiled_attention(q, k, v, block_q=16, block_k=16, order=order, deferred=deferred)
        assert o.dtype == torch.float16
        assert (o.double() - exact).abs().max() <= 2 * eager + 1e-6


def test_refusals_name_the_argument():
    q, k, v = qkv(1, 1, 1, 4, 4, 4, 4)
    with pytest.raises(ValueError, match="block_q must be at least 1 row, got 0"):
        tiled_attention(q, k, v, block_q=0)
    with pytest.raises(ValueError, match="block_k"):
        tiled_attention(q, k, v, block_k=-1)
    with pytest.raises(ValueError, match='order must be "query" or "key"'):
        tiled_attention(q, k, v, order="rows")
    with pytest.raises(ValueError, match="order must be"):
        tiled_bytes(4, 4, 4, 4, block_q=2, order="rows")
    with pytest.raises(ValueError, match="tile must be at least 1"):
        attend_one_query(q[0, 0, 0], k[0, 0], v[0, 0], tile=0)


def test_naive_cost_gives_the_figures_of_lesson_01_s_example():
    cost = naive_cost(1024, 32, 4096, 128)
    assert cost.score_elements == 2**39 and cost.flops == 2**48
    assert cost.saved_bytes == 2**40  # 1 TiB in bf16


@pytest.mark.parametrize("itemsize", [2, 4])
def test_naive_cost_is_what_three_kernels_move(itemsize):
    B, H, T, D = 2, 3, 16, 8
    dtype = {2: torch.float16, 4: torch.float32}[itemsize]
    q, k, v = (torch.randn(B, H, T, D).to(dtype) for _ in range(3))
    with HBM(sram=None, q=q, k=k, v=v) as hbm:
        s, p, o = (hbm.empty((B, H, T, n), dtype=dtype, name=name) for name, n in (("s", T), ("p", T), ("o", D)))
        hbm.store(s, hbm.load(q) @ hbm.load(k).mT)
        hbm.store(p, torch.softmax(hbm.load(s).float(), -1))
        hbm.store(o, hbm.load(p) @ hbm.load(v))
    cost = naive_cost(B, H, T, D, itemsize=itemsize)
    assert cost.hbm_bytes == hbm.bytes and cost.saved_bytes == p.nbytes and cost.score_elements == s.numel()
