"""Tiles under a causal mask: those that are drawn as computed are those that attention loads."""

import pytest
import torch

from llmsys.attention.tiled import tiled_attention
from llmsys.hardware.memory import HBM
from llmsys.viz.flash_triton import causal_tiles


@pytest.mark.parametrize(
    "shape", [(64, 64, 16, 16), (24, 64, 16, 16), (60, 44, 16, 16), (7, 5, 3, 2), (64, 64, 8, 32), (1, 9, 4, 4)]
)
def test_the_tiles_are_those_that_tiled_attention_loads(shape, assert_legible, texts):
    Tq, Tk, block_q, block_k = shape
    picture = causal_tiles(*shape)
    assert_legible(picture.svg)
    q, k, v = (torch.zeros(1, 1, T, 4) for T in (Tq, Tk, Tk))
    with HBM(sram=None, q=q, k=k, v=v) as hbm:
        tiled_attention(q, k, v, causal=True, block_q=block_q, block_k=block_k, hbm=hbm)
    loaded = sum(each.kind == "load" and each.tensor == "k" for each in hbm.transfers)
    seen = torch.ones(Tq, Tk).tril(Tk - Tq).bool()
    tiles = [tile for rows in seen.split(block_q) for tile in rows.split(block_k, dim=1)]
    full = sum(bool(tile.all()) and tile.shape[1] == block_k for tile in tiles)
    assert f"of {len(tiles)} tiles, {loaded} are computed" in texts(picture)
    assert f"{full} without a mask" in texts(picture) and f"{loaded - full} with a mask" in texts(picture)
    assert f"{len(tiles) - loaded} skipped" in texts(picture)


def test_where_the_loops_end_stands_beside_each_row_of_tiles_that_has_room(texts):
    said = texts(causal_tiles(60, 44, 16, 16))
    numbers = said[said.index("stop") + 1 : said.index("3 without a mask")]
    assert numbers == ["0", "0", "0", "16", "16", "32", "32", "44"]
    assert "stop" not in texts(causal_tiles(4096, 4096, 64, 64))


def test_sizes_that_are_not_positive_are_refused():
    with pytest.raises(ValueError, match="must be positive, got 64, 0, 16 and 16"):
        causal_tiles(64, 0)
