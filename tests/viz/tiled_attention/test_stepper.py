"""The stepper of lesson 03 draws the transfers that the machine recorded, and no others."""

import itertools

import pytest
import torch

from llmsys.attention import tiled_attention
from llmsys.hardware.memory import HBM
from llmsys.viz.tiled_attention import stepper
from llmsys.viz.tiled_attention.stepper import D, steps, tile_kind

CASES = list(itertools.product(["query", "key"], [False, True], ["16 × 16", "32 × 16"], ["64", "60", "24 of 64"]))


@pytest.mark.parametrize("order, causal, tile, length", CASES)
def test_every_tile_that_is_not_skipped_is_computed_and_every_byte_is_counted(order, causal, tile, length):
    frames = steps(order, causal, tile, length)
    last = frames[-1]
    block_q, block_k = last.block_q, last.block_k
    tiles = set(itertools.product(range(0, last.Tq, block_q), range(0, last.Tk, block_k)))
    assert last.done == {ij for ij in tiles if tile_kind(*ij, last) != "skipped"}
    assert last.stored == set(range(0, last.Tq, block_q))
    q, k, v = (torch.zeros(1, 1, T, D) for T in (last.Tq, last.Tk, last.Tk))
    with HBM(sram=None, q=q, k=k, v=v) as hbm:
        tiled_attention(q, k, v, causal=causal, block_q=block_q, block_k=block_k, order=order, hbm=hbm)
    assert last.bytes == hbm.bytes == sum(t.bytes for step in frames for t in step.moved)


def test_every_frame_is_drawn_and_described():
    walker = stepper(causal=True)
    for order in ("query", "key"):
        walker.set(order=order)
        for index in range(len(walker.frames)):
            assert walker.svg(index).startswith("<svg") and "bytes have crossed" in walker.html(index)


def of_one_head(q, k, v, *, causal, block_q, block_k, hbm):
    """Right for one head, and with transfers in another order than the library's: v before k, lse before o."""
    Tq, Tk = q.shape[2], k.shape[2]
    o, lse = hbm.empty(q.shape, name="o"), hbm.empty(q.shape[:3], name="lse")
    for i in range(0, Tq, block_q):
        Q = hbm.load(q[:, :, i : i + block_q])  # four-dimensional: no groups
        stop = min(i + Q.shape[2] + Tk - Tq, Tk) if causal else Tk
        for j in range(0, stop, block_k):
            hbm.load(v[:, :, j : min(j + block_k, stop)])
            hbm.load(k[:, :, j : min(j + block_k, stop)])
        hbm.store(lse[:, :, i : i + block_q], Q.new_zeros(Q.shape[:3]))
        hbm.store(o[:, :, i : i + block_q], Q)
    return o


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", ["64", "60", "24 of 64"])
def test_the_run_is_of_the_attention_that_is_handed_in(causal, length):
    last = steps("query", causal, "16 × 16", length, attention=of_one_head)[-1]
    by_library = steps("query", causal, "16 × 16", length)[-1]
    assert (last.done, last.stored, last.bytes) == (by_library.done, by_library.stored, by_library.bytes)
    walker = stepper(attention=of_one_head)
    assert all(walker.svg(index).startswith("<svg") for index in range(len(walker.frames)))
    with pytest.raises(ZeroDivisionError):
        steps("query", causal, "16 × 16", length, attention=lambda *_, **options: 1 / 0)
    assert steps("key", causal, "16 × 16", length, attention=lambda *_, **options: 1 / 0)  # the library's
