"""The roofline explorer draws what the library computes: operations, times, and who waits for what."""

import random
import statistics
import sys
import time
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from xml.etree import ElementTree

import pytest

from llmsys.hardware import roofline
from llmsys.hardware.devices import DEVICES
from llmsys.models.operations import operations
from llmsys.models.shapes import SHAPES
from llmsys.viz.kit.numbers import seconds_in_words
from llmsys.viz.roofline import explorer
from llmsys.viz.roofline.axes import BOUNDS, Axes
from llmsys.viz.roofline.explorer import ATTENTION, PHASES, SWEEPS, cache_bytes, describe, scenes, weight_bytes
from llmsys.viz.roofline.frame import PLOT, draw

H100 = DEVICES["H100 SXM"]
SETTINGS = list(product(SHAPES, DEVICES, PHASES.values(), ATTENTION.values(), SWEEPS.values()))
SOME = [*random.Random(1).sample(SETTINGS, 24), ("Llama-3-8B", "H100 SXM", "decode", "flash", "batch 1024")]


@cache  # several tests look at the same frames
def frames_of(model, device, phase, attention, sweep):
    return scenes(SHAPES[model], DEVICES[device], phase=phase, attention=attention, sweep=sweep)


def decode(model="Llama-3-8B", device="H100 SXM", sweep="batch 1024", attention="flash"):
    return frames_of(model, device, "decode", attention, sweep)


@pytest.mark.parametrize("setting", SOME, ids=" ".join)
def test_each_frame_has_the_operations_and_times_that_the_library_computes(setting):
    model, device, phase, attention, _ = setting
    for scene in frames_of(*setting)[::3]:
        queries = 1 if phase == "decode" else scene.context
        where = {"batch": scene.batch, "queries": queries, "context": scene.context, "attention": attention}
        step = operations(SHAPES[model], **where, dtype=scene.axes.dtype)
        assert [dot.op for dot in scene.dots] == step
        assert scene.seconds == pytest.approx(roofline.total_seconds(step, DEVICES[device]))
        for dot in scene.dots:
            assert dot.bound == roofline.estimate(dot.op, DEVICES[device]).bound
            assert dot.share == pytest.approx(dot.seconds / scene.seconds)
        assert sum(scene.waiting.values()) == pytest.approx(1)


@pytest.mark.parametrize("setting", SOME, ids=" ".join)
def test_texts_can_be_read(setting, assert_legible):
    for scene in frames_of(*setting)[::2]:
        markup = draw(scene).markup()
        ElementTree.fromstring(markup)
        assert_legible(markup)


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_dots_stand_on_or_below_the_roof_at_their_intensity(device):
    for scene in frames_of("DeepSeek-V3", device.name, "decode", "naive", "context 64"):
        left, top, right, bottom = PLOT
        for dot in scene.dots:
            x, y = dot.at
            reach = roofline.attainable_flops(
                dot.op.intensity, peak_flops=device.flops[scene.axes.dtype], bandwidth=device.bandwidth
            )
            assert left <= x <= right and top <= y <= bottom
            assert y >= scene.axes.y(reach) - 1e-6
            assert x == pytest.approx(scene.axes.x(dot.op.intensity))
            if dot.bound in ("HBM", "compute") and dot.op.dtype != "float32":
                assert y == pytest.approx(scene.axes.y(reach))


def test_areas_are_shares_of_the_time():
    for scene in decode("DeepSeek-V3"):
        seen = [dot for dot in scene.dots if dot.radius > 2.5]
        for one, other in pairwise(seen):
            assert (one.radius / other.radius) ** 2 == pytest.approx(one.share / other.share)


def test_with_a_larger_batch_the_weights_cross_the_ridge_and_attention_stays_where_it_was():
    intensity = [{dot.op.name: dot.op.intensity for dot in scene.dots} for scene in decode()]
    bound = [{dot.op.name: dot.bound for dot in scene.dots} for scene in decode()]
    assert set(bound[0].values()) == {"HBM"}
    assert all(after["MLP"] > before["MLP"] for before, after in pairwise(intensity))
    assert bound[-1]["MLP"] == bound[-1]["q, k, v"] == "compute" and bound[-1]["attention"] == "HBM"
    assert [each["attention"] for each in intensity] == pytest.approx([intensity[0]["attention"]] * len(intensity))


def test_attention_over_latents_has_far_more_flop_a_byte_than_over_keys_and_values():
    first = (decode(model)[0].dots for model in ("Llama-3-8B", "DeepSeek-V3"))
    llama, deepseek = (next(dot for dot in dots if dot.op.name == "attention") for dots in first)
    assert deepseek.op.intensity > 20 * llama.op.intensity


def test_the_picture_says_the_time_of_the_step_and_of_each_operation():
    stepper = explorer()
    stepper.go(9)
    words = "".join(ElementTree.fromstring(stepper.svg()).itertext())
    scene = stepper.frame
    assert (scene.batch, scene.tokens) == (512, 512)
    assert seconds_in_words(scene.seconds) in words and f"{512 / scene.seconds:,.0f} tokens/s" in words
    assert f"{100 * scene.waiting['HBM']:.0f}% memory" in words and "989.5 TFLOP/s" in words and "ridge: 295" in words
    for dot in scene.dots:
        assert words.count(dot.op.name) >= 2 and seconds_in_words(dot.seconds) in words  # in the plot and beside it


def test_the_caption_says_the_step_what_it_waits_for_and_its_longest_operation():
    first, last = decode()[0], decode()[-1]
    assert "decodes a token of one sequence of 1,024 tokens on H100 SXM" in describe(first)
    assert "It waits for memory all the time. The longest is MLP" in describe(first)
    assert "% of the time, but not in: q, k, v; output; MLP; head. The longest is attention" in describe(last)
    prefill = frames_of("Llama-3-8B", "H100 SXM", "prefill", "flash", "context 64")[2]
    assert "prefills 64 sequences of 4,096 tokens" in describe(prefill) and prefill.tokens == 64 * 4096


def test_a_model_needs_the_memory_that_its_checkpoint_and_cache_take():
    assert weight_bytes(SHAPES["Llama-3-8B"]) == pytest.approx(2 * 8.03e9, rel=1e-3)
    assert weight_bytes(SHAPES["SmolLM2-135M"]) == pytest.approx(2 * 134.5e6, rel=1e-3)
    assert weight_bytes(SHAPES["DeepSeek-V3"]) == pytest.approx(2 * 671e9, rel=2e-3)
    assert cache_bytes(SHAPES["Llama-3-8B"]) == 131_072
    assert cache_bytes(SHAPES["DeepSeek-V3"]) == 70_272
    assert cache_bytes(SHAPES["SmolLM2-135M"], "float32") == 2 * cache_bytes(SHAPES["SmolLM2-135M"])
    here = "".join(ElementTree.fromstring(explorer(model="DeepSeek-V3").svg(0)).itertext())
    assert "1,342 GB: 85.9 GB are here, as if there were more" in here


def test_controls_change_the_step_and_keep_the_place():
    stepper = explorer()
    stepper.go(6)
    stepper.set(model="SmolLM2-135M", device="RTX 4090", attention="naive")
    assert (stepper.index, stepper.frame.batch, stepper.frame.device.name) == (6, 64, "RTX 4090")
    assert "softmax" in stepper.svg()
    stepper.set(sweep="context 64")
    assert (stepper.frame.batch, stepper.frame.context) == (64, 65536)


def test_the_static_frame_shows_both_sides_and_fits():
    page = explorer().static_html()
    assert "512 sequences" in page and "memory</" in page and "arithmetic</" in page
    assert "as if there were more" not in page


def test_it_takes_a_device_and_a_model_of_the_readers_own(assert_legible):
    mine = replace(H100, name="this laptop", flops={"float32": 90e9}, bandwidth=11e9, exponentials=None)
    other = replace(SHAPES["SmolLM2-135M"], name="mine", layers=3)
    stepper = explorer(device=mine, model=other)
    assert stepper.frame.axes.dtype == "float32" and "this laptop" in stepper.svg() and "mine, decode" in stepper.svg()
    assert_legible(stepper.svg())


@pytest.mark.parametrize(("how", "said"), [({"device": "Cray-1"}, "device must be one of 'H100 SXM'"),
                                           ({"model": "GPT-9"}, "model must be one of 'SmolLM2-135M'")])  # fmt: skip
def test_an_unknown_device_or_model_is_refused_with_those_that_there_are(how, said):
    with pytest.raises(ValueError, match=said):
        explorer(**how)


def test_the_picture_shows_what_the_library_computes(monkeypatch):
    right = explorer().svg(5)
    monkeypatch.setattr(
        sys.modules["llmsys.viz.roofline.explorer"], "operations", lambda *a, **how: operations(*a, **how)[1:]
    )
    assert explorer().svg(5) != right


def test_whatever_an_operation_waits_for_has_a_colour():
    axes = Axes(H100, "bfloat16", *PLOT)
    op = roofline.Operation("all at once", flops=1, bytes=1, exponentials=1e12, l2_bytes=1, sram_bytes=1)
    assert axes.dots([op])[0].bound == "exponentials"
    assert set(roofline.estimate(op, replace(H100, l2_bandwidth=1e12)).parts) <= set(BOUNDS)


def test_a_frame_costs_a_millisecond_and_not_a_second(record_property):
    stepper = explorer(model="DeepSeek-V3")
    times = []
    for index in [*range(len(stepper.frames))] * 20:
        start = time.perf_counter()
        stepper.svg(index)
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    record_property("median_ms", 1e3 * median)  # 0.6 ms on a slow core of 2026; the bound is for a busy machine
    assert median < 0.02
