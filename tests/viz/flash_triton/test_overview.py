"""Lesson 04's opening picture: its sizes are the compiler's."""

from llmsys.attention.flash.tiles import tiles_for
from llmsys.viz.flash_triton import overview
from llmsys.viz.flash_triton.kernel_sweep import Configuration, recorded
from llmsys.viz.flash_triton.overview import TILES


def test_the_overview_has_the_compilers_sizes(assert_legible, texts):
    picture = overview()
    assert_legible(picture.svg)
    of = recorded()[Configuration(64, TILES.block_m, TILES.block_n, TILES.num_warps, TILES.num_stages)]
    assert tiles_for(64, 2, 4096) == TILES  # the library's own choice
    tile = 64 * 64 * 2
    assert of.shared_bytes == tile * (1 + 2 * TILES.num_stages)  # what is drawn is all: q, and k and v of each stage
    assert f"shared memory: {of.shared_bytes // 1024} KiB" in texts(picture)
    assert f"registers: {of.registers * 128 * 4 // 1024} KiB, {of.registers} a thread" in texts(picture)
    programs = of.occupancy(TILES.num_warps).programs
    assert f"An H100 runs {programs * 132} at a time:" in texts(picture)
    chip = [text for text in texts(picture) if text in ("in use", "on their way")]
    assert chip == ["in use"] + ["on their way"] * (TILES.num_stages - 1)
