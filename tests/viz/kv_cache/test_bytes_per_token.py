"""Bytes of cache for each token: bars are as long as the library's figures."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from llmsys.models import decode_cost
from llmsys.models.shapes import SHAPES
from llmsys.viz.kv_cache import bytes_per_token
from llmsys.viz.kv_cache.bytes_per_token import KINDS, kind_of


def bars(picture):
    rects = ElementTree.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}rect")
    return [(float(each.get("width")), each.get("class")) for each in rects if each.get("height") == "22"]


@pytest.mark.parametrize("names", [None, ["Llama-3-8B"], ["DeepSeek-V3", "Falcon-7B", "Llama-2-7B"]])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bars_are_as_long_as_the_bytes(names, dtype, assert_legible, words):
    picture = bytes_per_token(names, dtype=dtype)
    assert_legible(picture.svg)
    shown = [SHAPES[name] for name in names or SHAPES]
    sizes = sorted(decode_cost.bytes_per_token(shape, dtype) for shape in shown)
    lengths = sorted(bars(picture))
    for (length, _), size in zip(lengths, sizes, strict=True):
        assert length / lengths[-1][0] == pytest.approx(size / sizes[-1], abs=0.004)
        assert f"{size:,}" in words(picture) and f"{size:,} bytes" in picture.alt


def test_the_kinds_are_those_of_the_papers(words):
    kinds = {name: kind_of(shape) for name, shape in SHAPES.items()}
    assert (kinds["Llama-2-7B"], kinds["Llama-3-8B"], kinds["Falcon-7B"], kinds["DeepSeek-V3"]) == tuple(KINDS)
    said = words(bytes_per_token())
    assert "70,272 = 68.6 KiB · 1/57 of MHA" in said and "327,680 = 320 KiB · 1/8 of MHA" in said
    assert "126 layers × 8 of 128 heads × 2 × 128" in said and "61 layers × latent of 512 + 64" in said
    assert "1/" not in words(bytes_per_token(["Llama-2-7B"]))


def test_every_kind_has_its_own_colour_and_says_what_it_is(words):
    assert {colour for _, colour in bars(bytes_per_token())} == {colour for _, colour in KINDS.values()}
    one = words(bytes_per_token(["Falcon-7B"]))
    assert "MQA multi-query" in one and "grouped-query" not in one


def test_a_shape_of_ones_own_is_drawn():
    mine = replace(SHAPES["SmolLM2-135M"], name="mine", kv_heads=9)
    assert "mine, MHA, 69,120 bytes" in bytes_per_token([mine]).alt


def test_an_unknown_name_and_no_name_are_refused():
    with pytest.raises(ValueError, match="names must be of SmolLM2-135M, .* got 'GPT-9'"):
        bytes_per_token(["GPT-9"])
    with pytest.raises(ValueError, match="at least one model"):
        bytes_per_token([])
    with pytest.raises(ValueError, match="dtype must be one of"):
        bytes_per_token(dtype="int3")
