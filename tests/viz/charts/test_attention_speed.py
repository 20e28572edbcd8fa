"""Speed of attention kernels: a bar as long as each is fast, and how this library's compare with cuDNN's."""

from xml.etree import ElementTree

import pytest

from llmsys.bench import recorded
from llmsys.viz.charts import attention_speed

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


@pytest.mark.parametrize(
    "names", [[*SPEEDS], ["FA2", "cuDNN", "sdpa"], ["flash", "FA2"], ["flash"], ["sdpa"], ["cuDNN", "new", "naive"]]
)
def test_speed_has_a_bar_for_each_kernel_and_shape_as_long_as_it_is_fast(names, assert_legible, texts):
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


def test_speed_says_how_this_librarys_kernels_compare_with_cudnn(texts):
    picture = attention_speed(table(SPEEDS))
    assert texts(picture).count("0.67 × cuDNN") == 12 and texts(picture).count("1.03 × cuDNN") == 12
    assert "flash 400, which is 0.67 of cuDNN's; hopper 620, which is 1.03 of cuDNN's" in picture.alt
    assert not any("×" in text for text in texts(attention_speed(table(["flash", "FA2"]))))
    assert not any("×" in text for text in texts(attention_speed(table(["FA2", "cuDNN"]))))


def test_speed_is_as_recorded(assert_legible, texts):
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


def test_speed_draws_chosen_names_other_passes_and_shapes_that_are_missing(texts):
    rows = table(SPEEDS, **{"pass": "backward"})
    rows = [row for row in rows if not (row["name"] == "FA2" and row["T"] == 1024)]
    picture = attention_speed(rows, names=["sdpa", "FA2"])
    assert "flash" not in texts(picture) and "sdpa" in texts(picture) and "backward pass" in picture.alt
    assert texts(picture).count("not measured") == 4
    odd = attention_speed(table(["flash"], shapes=((1, 1000), (2, 77))))
    assert "1,000" in texts(odd) and "77" in texts(odd) and "batches" not in " ".join(texts(odd))
    with pytest.raises(ValueError, match=r"no table rows of these kernels: take recorded\('attention'\)"):
        attention_speed(rows, names=["FA9"])
