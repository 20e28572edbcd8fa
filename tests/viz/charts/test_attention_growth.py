"""Growth of time and memory: the lines are the recorded ones, and end where memory did."""

from dataclasses import replace

import pytest

from llmsys.bench import recorded
from llmsys.viz.charts import attention_growth


def rows_of(name, tokens, **more):
    row = {"name": name, "sweep": "growth", "extra_bytes": 1 << 20}
    return [row | {"T": T, "ms": T / 1000} | more for T in tokens]


def quadratic(names):
    return [
        {"name": name, "sweep": "growth", "T": T, "ms": (1 + n) * T * T / 1e6, "extra_bytes": (1 + 20 * n) * T}
        for n, name in enumerate(names)
        for T in (1024, 2048, 4096, 8192)
    ]


def test_growth_is_as_recorded_and_ends_where_memory_did(words):
    record = recorded("attention")
    picture = attention_growth(record)
    times, memory = picture.figure.axes
    for axes, key in ((times, "ms"), (memory, "extra_bytes")):
        drawn = {line.get_label(): line for line in axes.get_lines()}
        for name in ("naive", "sdpa"):
            rows = [row for row in record.rows if row["sweep"] == "growth" and row["name"] == name]
            assert list(drawn[name].get_xdata()) == [row["T"] for row in rows]
            assert list(drawn[name].get_ydata()) == [row[key] for row in rows]
    assert "naive from" in picture.alt and "e+0" not in picture.alt and "and out of memory at 32,768" in picture.alt
    assert "out of memory" in words(picture) and "GiB" in words(picture)


def test_growth_can_be_of_some_stages_and_have_this_machine_beside_it(words):
    rows = rows_of("naive", (1024, 2048, 4096)) + rows_of("sdpa", (1024, 4096), extra_bytes=0)
    one = attention_growth(rows, names=["sdpa"])
    assert "naive" not in one.alt and "out of memory" not in one.alt and "sdpa: none" in words(one)
    both = attention_growth(rows, here=rows_of("naive", (256, 512)))
    assert len(both.figure.axes) == 3 and "here: time" in words(both)
    assert list(both.figure.axes[2].get_lines()[0].get_ydata()) == [0.256, 0.512]
    with pytest.raises(ValueError, match="no growth rows of FA9"):
        attention_growth(rows, names=["FA9"])


def test_growth_gives_each_name_its_colour_and_marker():
    names = ("naive", "tiled", "flash", "hopper", "sdpa")
    picture = attention_growth(quadratic(names))
    lines = {line.get_label(): line for line in picture.figure.axes[0].get_lines()}
    assert list(lines) == list(names)
    looks = {name: (line.get_color(), line.get_marker()) for name, line in lines.items()}
    assert len(set(looks.values())) == len(names)
    alone = attention_growth(quadratic(names), names=["flash"]).figure.axes[0].get_lines()[0]
    assert (alone.get_color(), alone.get_marker()) == looks["flash"]


@pytest.mark.parametrize("names", [None, ("naive", "sdpa")])
@pytest.mark.parametrize("here", [False, True])
def test_no_line_runs_through_the_words_out_of_memory(names, here, words):
    record = recorded("attention")
    sdpa = [row for row in record.rows if row["sweep"] == "growth" and row["name"] == "sdpa"]
    flash = [row | {"name": "flash", "extra_bytes": 64 * row["T"]} for row in sdpa]
    record = replace(record, rows=[row for row in record.rows if row["name"] != "flash"] + flash)
    figure = attention_growth(record, names=names, here=quadratic(["naive"]) if here else None).figure
    figure.canvas.draw()
    axes = figure.axes[1]
    words = next(text for text in axes.texts if text.get_text() == "out of memory").get_window_extent()
    assert axes.bbox.y1 >= words.y1 and axes.bbox.x0 <= words.x0
    for line in axes.get_lines():
        path = line.get_path().transformed(line.get_transform())
        assert not path.intersects_bbox(words.padded(2), filled=False), line.get_label()


def test_where_there_is_no_growth_to_draw_it_says_so():
    with pytest.raises(ValueError, match="no growth rows"):
        attention_growth([])
