"""The decode stepper draws what the library computes: bytes, times, the largest batch, and places on the roofline."""

import random
import statistics
import sys
import time
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from xml.etree import ElementTree

import pytest

from llmsys.hardware.devices import DEVICES
from llmsys.hardware.roofline import attainable_flops
from llmsys.models import decode_cost
from llmsys.models.shapes import ITEMSIZE, SHAPES
from llmsys.viz.kit.numbers import seconds_in_words, size_in_words
from llmsys.viz.kv_cache import stepper
from llmsys.viz.kv_cache.memory_map import COLUMNS, glasses
from llmsys.viz.kv_cache.step_frame import LANES, MEMORY, draw, largest, limit
from llmsys.viz.kv_cache.stepper import BATCHES, CARDS, CONTEXTS, MODELS, describe, most_telling, scenes

H100 = DEVICES["H100 SXM"]
LAPTOP = replace(H100, name="a laptop", memory_bytes=16 << 30, bandwidth=11e9, flops={"float32": 90e9})
SMALL = replace(H100, name="a small H100", memory_bytes=17_000_000_000)
KNOWN = DEVICES | {each.name: each for each in (LAPTOP, SMALL)}
SETTINGS = [
    *((model, H100.name, cards, context) for model, cards, context in product(MODELS, CARDS, CONTEXTS.values())),
    *((model, LAPTOP.name, 1, context) for model, context in product(MODELS, CONTEXTS.values())),
    *((model, device, 1, 8192) for model, device in product(SHAPES, DEVICES)),
]
ALWAYS = [("Llama-3-8B", H100.name, 1, 8192), ("DeepSeek-V3", H100.name, 16, 8192)]
SOME = [*random.Random(7).sample(SETTINGS, 8), *ALWAYS, ("DeepSeek-V3", LAPTOP.name, 1, 8192)]


@cache  # several tests look at the same frames
def frames_of(model, device="H100 SXM", cards=1, context=8192):
    return scenes(SHAPES[model], KNOWN[device], cards, context=context)


def ids(setting):
    return " ".join(map(str, setting))


@pytest.mark.parametrize("setting", SOME, ids=ids)
def test_each_frame_has_the_bytes_and_times_that_the_library_computes(setting):
    model, device, cards, context = setting[0], KNOWN[setting[1]], *setting[2:]
    for scene, batch in zip(frames_of(*setting), BATCHES, strict=True):
        cost, dtype = scene.cost, scene.axes.dtype
        step = decode_cost.decode_step_of(
            SHAPES[model], device, batch=batch, context=context, dtype=dtype, devices=cards
        )
        assert cost.reading(cost.attention) == pytest.approx(step.cache_seconds)
        assert cost.reading(cost.products) == pytest.approx(step.weight_seconds)
        assert cost.computing(cost.products) == pytest.approx(step.arithmetic_seconds)
        if cost.computing(cost.attention) <= cost.reading(cost.attention):
            assert cost.seconds == pytest.approx(step.seconds)
        else:  # many heads read one latent, on a machine with a low ridge
            assert cost.shape.latent and cost.seconds > step.seconds
        assert cost.largest_batch == decode_cost.largest_batch(
            cards * device.memory_bytes, weight_bytes=SHAPES[model].parameters * ITEMSIZE[dtype],
            bytes_per_token=decode_cost.bytes_per_token(SHAPES[model], dtype), context=context,
        )  # fmt: skip
        assert (batch <= cost.largest_batch) == (cost.needed <= cost.memory)


@pytest.mark.parametrize("setting", SOME, ids=ids)
def test_texts_can_be_read(setting, assert_legible):
    for scene in frames_of(*setting)[::3]:
        markup = draw(scene).markup()
        ElementTree.fromstring(markup)
        assert_legible(markup)


@pytest.mark.parametrize("model", MODELS)
def test_products_move_right_with_the_batch_and_attention_stays(model):
    for one, other in pairwise(frames_of(model)):
        (products, attention), (later, still) = one.dots, other.dots
        assert later.at[0] > products.at[0] and later.op.intensity > products.op.intensity
        assert still.at == pytest.approx(attention.at) and still.op.intensity == pytest.approx(attention.op.intensity)


def test_intensities_are_the_batch_and_the_query_heads_of_a_kv_head():
    for scene in frames_of("Llama-3-8B"):
        products, attention = (dot.op.intensity for dot in scene.dots)
        assert products == pytest.approx(scene.cost.batch, rel=1e-3) and attention == pytest.approx(32 / 8)
    assert frames_of("Qwen2.5-72B")[0].dots[1].op.intensity == pytest.approx(64 / 8)
    assert frames_of("DeepSeek-V3")[0].dots[1].op.intensity == pytest.approx(128 * (512 + 576) / 576)


@pytest.mark.parametrize("setting", SOME, ids=ids)
def test_dots_stand_on_the_roof_at_their_intensity(setting):
    device = KNOWN[setting[1]]
    for scene in frames_of(*setting):
        for dot in scene.dots:
            peak = device.flops[scene.axes.dtype]
            reach = attainable_flops(dot.op.intensity, peak_flops=peak, bandwidth=device.bandwidth)
            assert dot.at == pytest.approx((scene.axes.x(dot.op.intensity), scene.axes.y(reach)))


def polygon(points):
    """The area inside corners."""
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True))) / 2


@pytest.mark.parametrize("setting", SOME, ids=ids)
def test_areas_are_to_scale(setting):
    for scene in frames_of(*setting):
        cost, box = scene.cost, glasses(scene.cost, **MEMORY)
        whole, total = MEMORY["width"] * MEMORY["height"], COLUMNS * box.column
        times = total / cost.memory
        assert times == pytest.approx(2 ** round(times).bit_length() / 2) and cost.needed <= total * (1 + 1e-9)
        assert times == 1 or cost.needed > total / 2
        read, held, needed = cost.products.bytes, cost.weights_held, cost.needed
        for start, stop in ((0, read), (read, held), (held, needed), (0, needed), (held, held + cost.sequence_bytes)):
            assert polygon(box.area(start, stop)) == pytest.approx(whole * (stop - start) / total, abs=0.01)


def shapes(scene, tag):
    return list(ElementTree.fromstring(draw(scene).markup()).iter(f"{{http://www.w3.org/2000/svg}}{tag}"))


def corners(path):
    return [tuple(map(float, corner.split())) for corner in path.get("d").strip("MZ").split("L")]


def test_what_is_drawn_is_to_scale_too():
    for scene in frames_of("DeepSeek-V3", cards=16)[::3] + frames_of("Llama-3-8B")[::2]:
        cost, box = scene.cost, glasses(scene.cost, **MEMORY)
        scale = MEMORY["width"] * MEMORY["height"] / (COLUMNS * box.column)
        area = {colour: 0.0 for colour in ("blue", "blue-soft", "orange", "orange-soft")}
        for path in shapes(scene, "path"):
            if path.get("class") in area and corners(path)[0][0] >= MEMORY["x"]:
                area[path.get("class")] += polygon(corners(path))
        read, held = cost.products.bytes, cost.weights_held
        assert area["blue"] == pytest.approx(scale * read, abs=3)
        assert area["blue-soft"] == pytest.approx(scale * (held - read), abs=3)
        assert area["orange"] == pytest.approx(scale * (min(cost.needed, cost.memory) - held), abs=3)
        assert area["orange-soft"] == pytest.approx(scale * max(cost.needed - cost.memory, 0), abs=3)


def test_each_sequence_is_drawn_where_there_is_room():
    for scene, lines in zip(frames_of("Llama-3-8B")[:3], (0, 1, 2), strict=True):
        flat = [each for each in shapes(scene, "line") if each.get("class") == "line-surface thin"
                and each.get("y1") == each.get("y2")]  # fmt: skip
        assert len(flat) == lines


@pytest.mark.parametrize("setting", SOME, ids=ids)
def test_lanes_are_as_long_as_their_times(setting):
    left, right, top = LANES
    for scene in frames_of(*setting)[::4]:
        cost = scene.cost
        scale = (right - left) / cost.seconds
        lanes = {}
        for each in shapes(scene, "rect"):
            if (y := float(each.get("y"))) >= top and y < top + 60 and each.get("class") != "panel":
                lanes.setdefault(y, []).append((float(each.get("x")), float(each.get("width"))))
        second = left + scale * cost.seconds_of(cost.products)
        for lane, seconds_of in zip(lanes.values(), (cost.reading, cost.computing), strict=True):
            for (x, width), start, op in zip(lane, (left, second), (cost.products, cost.attention), strict=True):
                assert x == pytest.approx(start, abs=0.06)
                assert width == pytest.approx(max(scale * seconds_of(op), 0.5), abs=0.06)


def test_the_ring_of_one_sequence_and_the_bars_are_named(texts):
    said = [texts(draw(scene).markup()) for scene in frames_of("Llama-3-8B")]
    assert "batch 1" not in said[0] and "batch 1" in said[11]  # the frame of the notebook
    assert "read weights: 4.48 ms" in said[3] and "cache" in said[3]  # the second has no room for its time
    assert "weights" in said[11] and "read cache: 20.5 ms" in said[11]


def test_what_limits_changes_with_batch_and_context():
    assert limit(frames_of("Llama-3-8B")[0].cost)[0] == "Reading the weights limits:"
    assert limit(frames_of("Llama-3-8B")[11].cost)[:2] == (
        "Reading the cache limits:", "every sequence adds 321 µs, which it shares with no other."
    )  # fmt: skip
    assert limit(frames_of("Llama-3-8B", context=256)[-1].cost)[0] == "Arithmetic limits:"
    assert limit(frames_of("DeepSeek-V3", "a laptop", context=131072)[-1].cost)[0] == "Attention's arithmetic limits:"
    assert "more experts" in limit(frames_of("DeepSeek-V3")[0].cost)[1]


def test_it_says_what_fits():
    assert largest(frames_of("Llama-3-8B")[0].cost) == "At most 65 sequences of 8k tokens fit into 80 GiB."
    assert "this batch does not, times are as if it did" in largest(frames_of("Llama-3-8B")[12].cost)
    assert "do not fit into 80 GiB, that takes 16 such devices" in largest(frames_of("DeepSeek-V3")[0].cost)
    assert "At most one sequence of 4k" in largest(frames_of("Llama-3-8B", "a small H100", 1, 4096)[0].cost)
    assert "Not one sequence" in largest(frames_of("Llama-3-8B", "a small H100")[0].cost)


def test_picture_and_caption_say_time_and_bytes(words):
    shown = stepper()
    shown.go(11)
    cost, said = shown.frame.cost, words(shown.svg())
    assert (cost.batch, cost.context) == (64, 8192)
    assert seconds_in_words(cost.seconds) in said and f"{64 / cost.seconds:,.0f} tokens/s" in said
    assert f"which is {seconds_in_words(cost.seconds / 64)} for each token" in said and "ridge: 295" in said
    assert "cache 64 × 1 GiB = 64 GiB" in said and f"free {size_in_words(cost.memory - cost.needed)}" in said
    assert "weights 15 GiB, 14 GiB read (pale: not read)" in said
    caption = describe(shown.frame)
    assert "decodes a token of 64 sequences of 8,192 tokens on H100 SXM." in caption
    assert "It reads 14 GiB of weights (64 FLOP a byte) and" in caption
    assert "64 GiB of cache (4 FLOP a byte), and takes at least 25 ms, 391 µs a token" in caption
    assert "8 × H100 SXM (communication not counted)" in describe(frames_of("Qwen2.5-72B", cards=8)[0])


def test_controls_keep_the_batch():
    shown = stepper()
    shown.go(6)
    shown.set(model="DeepSeek-V3", device="16 × H100 SXM", context=CONTEXTS["32k"])
    cost = shown.frame.cost
    assert (cost.batch, cost.cards, cost.context, cost.shape.name) == (12, 16, 32768, "DeepSeek-V3")
    slider = shown.widget.children[1].children[2]
    assert type(slider).__name__ == "SelectionSlider" and slider.value == 32768
    slider.value = 1024
    assert (shown.frame.cost.context, shown.frame.cost.batch) == (1024, 12)


def test_the_static_frame_is_the_last_that_fits():
    frames = frames_of("Llama-3-8B")
    assert frames[most_telling(frames)].cost.batch == 64
    assert most_telling(frames_of("DeepSeek-V3")) == 0
    assert "64 sequences" in stepper().static_html()


def test_it_takes_a_device_and_a_model_of_the_readers_own(assert_legible):
    mine = replace(SHAPES["SmolLM2-135M"], name="mine", kv_heads=9)
    shown = stepper(mine, LAPTOP, context=1024)
    assert shown.frame.axes.dtype == "float32" and "a laptop" in shown.svg() and "mine, decode" in shown.svg()
    assert_legible(shown.svg())
    assert stepper(device="RTX 4090").frame.cost.device.name == "RTX 4090"
    assert stepper("Llama-2-7B").frame.cost.shape.name == "Llama-2-7B"


@pytest.mark.parametrize(("how", "said"), [({"device": "Cray-1"}, "device must be one of 'H100 SXM'"),
                                           ({"model": "GPT-9"}, "model must be one of 'SmolLM2-135M'"),
                                           ({"context": 1000}, "context must be one of 256, 512")])  # fmt: skip
def test_what_is_not_there_is_refused_with_what_there_is(how, said):
    with pytest.raises(ValueError, match=said):
        stepper(**how)


def test_the_picture_shows_what_the_library_computes(monkeypatch):
    right = stepper().svg(5)
    module = sys.modules["llmsys.viz.kv_cache.step_cost"]
    monkeypatch.setattr(module, "bytes_per_token", lambda *how: 2 * decode_cost.bytes_per_token(*how))
    assert stepper().svg(5) != right


def test_a_frame_costs_a_millisecond_and_not_a_second(record_property):
    shown = stepper()
    times = []
    for index in [*range(len(shown.frames))] * 10:
        start = time.perf_counter()
        shown.svg(index)
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    record_property("median_ms", 1e3 * median)  # 0.7 ms on a slow core of 2026; the bound is for a busy machine
    assert median < 0.02
