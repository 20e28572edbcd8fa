"""Lesson 04's pictures: the compiler's sizes, the tiles that are visited, and the record's bars."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from llmsys.attention.flash.tiles import tiles_for
from llmsys.attention.tiled import tiled_attention
from llmsys.bench import recorded
from llmsys.hardware.memory import HBM
from llmsys.viz import attention_growth, attention_speed, causal_tiles, flash_overview
from llmsys.viz.flash_triton.kernel_sweep import Configuration
from llmsys.viz.flash_triton.kernel_sweep import recorded as compiled
from llmsys.viz.flash_triton.overview import TILES

IMAGE = Path(__file__).parents[3] / "lessons" / "images" / "attention_speed.svg"
SVG = "{http://www.w3.org/2000/svg}"
COLOURS = {
    "flash": "green",
    "hopper": "green",
    "FlexAttention": "purple",
    "FA2": "orange",
    "naive": "orange",
    "cuDNN": "blue",
}
SPEEDS = {
    "flash": 400.0,
    "hopper": 620.0,
    "FlexAttention": 450.0,
    "FA2": 340.0,
    "cuDNN": 600.0,
    "sdpa": 600.0,
    "naive": 7.0,
}


def texts(picture):
    return ["".join(text.itertext()) for text in ElementTree.fromstring(picture.svg).iter(f"{SVG}text")]


def bars(picture, colour):
    rects = ElementTree.fromstring(picture.svg).iter(f"{SVG}rect")
    return sorted(float(rect.get("width")) for rect in rects if rect.get("class") == colour)


def table(names, shapes=((16, 1024), (4, 4096), (1, 16384)), **more):
    return [
        {"name": name, "pass": "forward", "sweep": "table", "B": B, "H": 2048 // D, "Hkv": 2048 // D, "T": T, "D": D,
         "dtype": "bfloat16", "causal": causal, "tflops": SPEEDS.get(name, 100.0), "ms": 1000 / SPEEDS.get(name, 100.0)}
        | more
        for B, T in shapes
        for D in (64, 128)
        for causal in (False, True)
        for name in names
    ]  # fmt: skip


def growth(names):
    return [
        {"name": name, "sweep": "growth", "T": T, "ms": (1 + n) * T * T / 1e6, "extra_bytes": (1 + 20 * n) * T}
        for n, name in enumerate(names)
        for T in (1024, 2048, 4096, 8192)
    ]


def test_the_overview_has_the_compilers_sizes(assert_legible):
    picture = flash_overview()
    assert_legible(picture.svg)
    of = compiled()[Configuration(64, TILES.block_m, TILES.block_n, TILES.num_warps, TILES.num_stages)]
    assert tiles_for(64, 2, 4096) == TILES  # the library's own choice
    tile = 64 * 64 * 2
    assert of.shared_bytes == tile * (1 + 2 * TILES.num_stages)  # what is drawn is all: q, and k and v of each stage
    assert f"shared memory: {of.shared_bytes // 1024} KiB" in texts(picture)
    assert f"registers: {of.registers * 128 * 4 // 1024} KiB, {of.registers} a thread" in texts(picture)
    programs = of.occupancy(TILES.num_warps).programs
    assert f"An H100 runs {programs * 132} at a time:" in texts(picture)
    chip = [text for text in texts(picture) if text in ("in use", "on their way")]
    assert chip == ["in use"] + ["on their way"] * (TILES.num_stages - 1)


@pytest.mark.parametrize(
    "shape", [(64, 64, 16, 16), (24, 64, 16, 16), (60, 44, 16, 16), (7, 5, 3, 2), (64, 64, 8, 32), (1, 9, 4, 4)]
)
def test_the_tiles_are_those_that_tiled_attention_loads(shape, assert_legible):
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


def test_where_the_loops_end_stands_beside_each_row_of_tiles_that_has_room():
    said = texts(causal_tiles(60, 44, 16, 16))
    numbers = said[said.index("stop") + 1 : said.index("3 without a mask")]
    assert numbers == ["0", "0", "0", "16", "16", "32", "32", "44"]
    assert "stop" not in texts(causal_tiles(4096, 4096, 64, 64))


def test_a_map_of_nothing_is_refused():
    with pytest.raises(ValueError, match="must be positive, got 64, 0, 16 and 16"):
        causal_tiles(64, 0)


@pytest.mark.parametrize(
    "names", [[*SPEEDS], ["FA2", "cuDNN", "sdpa"], ["flash", "FA2"], ["flash"], ["sdpa"], ["cuDNN", "new", "naive"]]
)
def test_speed_has_a_bar_for_each_kernel_and_shape_as_long_as_it_is_fast(names, assert_legible):
    picture = attention_speed(table(names))
    assert_legible(picture.svg)
    drawn = [name for name in names if name != "sdpa"] or names
    assert {name for name in SPEEDS if name in texts(picture)} == set(drawn) & set(SPEEDS)
    widest = max(SPEEDS.get(name, 100) for name in drawn)
    for name in set(drawn) & COLOURS.keys():
        widths = bars(picture, COLOURS[name])
        expected = [204 * SPEEDS[other] / widest for other in drawn if COLOURS.get(other) == COLOURS[name]]
        assert widths == pytest.approx(sorted(12 * expected), abs=0.1)
        assert sum(text == f"{SPEEDS[name]:.0f}" for text in texts(picture)) == 12


def test_speed_says_how_this_librarys_kernels_compare_with_cudnn():
    picture = attention_speed(table(SPEEDS))
    assert texts(picture).count("0.67 × cuDNN") == 12 and texts(picture).count("1.03 × cuDNN") == 12
    assert "flash 400, which is 0.67 of cuDNN's; hopper 620, which is 1.03 of cuDNN's" in picture.alt
    assert not any("×" in text for text in texts(attention_speed(table(["flash", "FA2"]))))
    assert not any("×" in text for text in texts(attention_speed(table(["FA2", "cuDNN"]))))


def test_speed_is_as_recorded(assert_legible):
    record = recorded("attention")
    picture = attention_speed(record)
    assert_legible(picture.svg)
    rows = [row for row in record.rows if row["sweep"] == "table" and row["name"] != "sdpa"]
    for name in {row["name"] for row in rows}:
        assert name in texts(picture)
    for row in rows:
        assert f"{row['tflops']:.0f}" in texts(picture)
    assert "H100 80GB HBM3, bfloat16" in " ".join(texts(picture)) and "batches of 16k tokens" in " ".join(
        texts(picture)
    )


def test_speed_takes_names_passes_and_gaps():
    rows = table(SPEEDS, **{"pass": "backward"})
    rows = [row for row in rows if not (row["name"] == "FA2" and row["T"] == 1024)]
    picture = attention_speed(rows, names=["sdpa", "FA2"])
    assert "flash" not in texts(picture) and "sdpa" in texts(picture) and "backward pass" in picture.alt
    assert texts(picture).count("not measured") == 4
    odd = attention_speed(table(["flash"], shapes=((1, 1000), (2, 77))))
    assert "1,000" in texts(odd) and "77" in texts(odd) and "batches" not in " ".join(texts(odd))
    with pytest.raises(ValueError, match=r"no table rows of these kernels: take recorded\('attention'\)"):
        attention_speed(rows, names=["FA9"])


def test_the_committed_picture_of_speed_is_up_to_date(tmp_path):
    now = attention_speed(recorded("attention"), framed=True).save(tmp_path / "speed.svg").read_text(encoding="utf-8")
    remedy = "regenerate it: python -m llmsys.viz.charts.attention_speed lessons/images/attention_speed.svg"
    assert IMAGE.read_text(encoding="utf-8") == now, remedy


def test_growth_gives_each_name_its_colour_and_marker():
    names = ("naive", "tiled", "flash", "hopper", "sdpa")
    picture = attention_growth(growth(names))
    lines = {line.get_label(): line for line in picture.figure.axes[0].get_lines()}
    assert list(lines) == list(names)
    looks = {name: (line.get_color(), line.get_marker()) for name, line in lines.items()}
    assert len(set(looks.values())) == len(names)
    alone = attention_growth(growth(names), names=["flash"]).figure.axes[0].get_lines()[0]
    assert (alone.get_color(), alone.get_marker()) == looks["flash"]


@pytest.mark.parametrize("names", [None, ("naive", "sdpa")])
@pytest.mark.parametrize("here", [False, True])
def test_no_line_runs_through_the_words_out_of_memory(names, here):
    record = recorded("attention")
    sdpa = [row for row in record.rows if row["sweep"] == "growth" and row["name"] == "sdpa"]
    flash = [row | {"name": "flash", "extra_bytes": 64 * row["T"]} for row in sdpa]
    record = replace(record, rows=[row for row in record.rows if row["name"] != "flash"] + flash)
    figure = attention_growth(record, names=names, here=growth(["naive"]) if here else None).figure
    figure.canvas.draw()
    axes = figure.axes[1]
    words = next(text for text in axes.texts if text.get_text() == "out of memory").get_window_extent()
    assert axes.bbox.y1 >= words.y1 and axes.bbox.x0 <= words.x0
    for line in axes.get_lines():
        path = line.get_path().transformed(line.get_transform())
        assert not path.intersects_bbox(words.padded(2), filled=False), line.get_label()
