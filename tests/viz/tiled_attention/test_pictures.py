"""The tile walker draws what the machine recorded; the charts draw what the records say."""

import itertools

import pytest
import torch

from llmsys import viz
from llmsys.attention import tiled_attention
from llmsys.bench import recorded
from llmsys.hardware.memory import HBM
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


def test_every_frame_of_the_walker_draws_and_describes_itself():
    walker = viz.tile_walker(causal=True)
    for order in ("query", "key"):
        walker.set(order=order)
        for index in range(len(walker.frames)):
            assert walker.svg(index).startswith("<svg") and "bytes have crossed" in walker.html(index)


def test_the_charts_say_what_they_show():
    assert "naive from" in viz.attention_growth(recorded("attention")).alt
    assert "16 rows 500 bytes" in viz.bytes_by_tile({16: 500, 32: 300}, {16: 500, 32: 300}, naive=900, once=200).alt
    assert "never exists" in viz.tiled_overview().alt
    with pytest.raises(ValueError, match="no growth rows"):
        viz.attention_growth([])
