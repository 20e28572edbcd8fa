"""Measured decode steps: points are the rows, lines their predictions, crosses what did not fit."""

from dataclasses import replace

import pytest

from llmsys.bench.record import Record
from llmsys.hardware.devices import DEVICES
from llmsys.models.decode_cost import decode_step_of
from llmsys.models.shapes import SHAPES
from llmsys.viz.kv_cache import decode_time

H100 = DEVICES["H100 SXM"]
LAPTOP = replace(H100, name="a laptop", bandwidth=11e9, flops={"float32": 90e9})
FULL = ((64, 16384), (256, 16384), (256, 4096))


BATCHES, CONTEXTS = (1, 4, 16, 64, 256), (1024, 4096, 16384)


def rows_of(name="Llama-3-8B", device=H100, dtype="bfloat16", batches=BATCHES, contexts=CONTEXTS):
    found = []
    for context in contexts:
        for batch in batches:
            step = decode_step_of(SHAPES[name], device, batch=batch, context=context, dtype=dtype)
            rest, attention = 1e3 * (step.seconds - step.cache_seconds), 1e3 * step.cache_seconds
            found.append({
                "name": name, "batch": batch, "context": context, "dtype": dtype, "bandwidth": device.bandwidth,
                "peak_flops": device.flops[dtype], "predicted_ms": rest + attention, "predicted_rest_ms": rest,
                "predicted_attention_ms": attention, "ms": 1.2 * rest + 1.5 * attention, "rest_ms": 1.2 * rest,
                "attention_ms": 1.5 * attention,
            })  # fmt: skip
    return found


def record(full=FULL):
    rows = [row for row in rows_of() if (row["batch"], row["context"]) not in full]
    missing = {f"Llama-3-8B at batch {batch}, context {context}": "out of memory: tried" for batch, context in full}
    return Record("decode", "NVIDIA H100 80GB HBM3", {}, "2026-01-01", rows, missing)


def points(axes, marker):
    return [(x, y) for line in axes.get_lines() if line.get_marker() == marker
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]  # fmt: skip


def test_points_are_rows_and_lines_are_predictions():
    whole = record(full=())
    left, right = decode_time(whole).figure.axes
    for marker, context in (("o", 1024), ("s", 4096), ("^", 16384)):
        line = [row for row in whole.rows if row["context"] == context]
        assert points(left, marker) == [(row["batch"], row["ms"] / row["batch"]) for row in line]
        predicted = [row["predicted_ms"] / row["batch"] for row in line]
        assert any(list(each.get_ydata()) == predicted for each in left.get_lines())
    longest = [row for row in whole.rows if row["context"] == 16384]
    for marker, key in (("o", "rest_ms"), ("s", "attention_ms")):
        assert points(right, marker) == [(row["batch"], row[key]) for row in longest]
        assert any(list(each.get_ydata()) == [row[f"predicted_{key}"] for row in longest] for each in right.get_lines())


def test_what_did_not_fit_is_a_cross_where_the_roofline_has_it(words):
    picture = decode_time(record())
    crosses = points(picture.figure.axes[0], "x")
    for batch, context in FULL:
        seconds = decode_step_of(SHAPES["Llama-3-8B"], H100, batch=batch, context=context).seconds
        assert any(point == pytest.approx((batch, 1e3 * seconds / batch)) for point in crosses)
    assert len(crosses) == len(FULL) and "out of memory" in words(picture)
    assert "with 16,384 tokens: " in picture.alt and "out of memory at 64, 256" in picture.alt
    assert "out of memory" not in words(decode_time(record(full=())))


def test_other_reasons_and_other_models_are_no_crosses():
    odd = replace(record(full=()), missing={"SmolLM2-135M at batch 4, context 1024": "out of memory", "sdpa": "absent",
                                            "Llama-3-8B at batch 512, context 1024": "it was too slow"})  # fmt: skip
    assert points(decode_time(odd).figure.axes[0], "x") == []


def test_this_machine_stands_below(words):
    here = rows_of("SmolLM2-135M", LAPTOP, "float32", (1, 4, 16), (256, 1024))
    picture = decode_time(record(), here=here)
    assert len(picture.figure.axes) == 4
    assert "SmolLM2-135M, this machine: a token" in words(picture) and "Llama-3-8B, H100 80GB HBM3" in words(picture)
    shortest = [row for row in here if row["context"] == 256]
    assert points(picture.figure.axes[2], "o") == [(row["batch"], row["ms"] / row["batch"]) for row in shortest]
    assert "SmolLM2-135M on this machine, with 256 tokens" in picture.alt


def test_a_model_and_contexts_can_be_chosen():
    both = record().rows + rows_of("SmolLM2-135M")
    assert "SmolLM2-135M on recorded" in decode_time(both, model="SmolLM2-135M").alt
    chosen = decode_time(both, contexts=(4096,))
    assert "with 4,096 tokens" in chosen.alt and "1,024" not in chosen.alt


def test_an_attention_lost_in_the_noise_is_left_out():
    rows = rows_of(contexts=(1024,))
    rows[0]["attention_ms"] = -0.001
    right = decode_time(rows).figure.axes[1]
    assert [batch for batch, _ in points(right, "s")] == [4, 16, 64, 256]


def test_one_row_is_enough():
    assert "ms a token at batch 1 (predicted" in decode_time(rows_of(batches=(1,), contexts=(1024,))).alt


def test_where_there_is_nothing_to_draw_it_says_so():
    with pytest.raises(ValueError, match="record has no decode rows of any model: take recorded"):
        decode_time([])
    with pytest.raises(ValueError, match="record has no decode rows of GPT-9; it has Llama-3-8B"):
        decode_time(record(), model="GPT-9")
    with pytest.raises(ValueError, match="no decode rows of Llama-3-8B at context 7"):
        decode_time(record(), contexts=(7,))
    with pytest.raises(ValueError, match="at most 4 contexts"):
        decode_time(rows_of(contexts=(1, 2, 3, 4, 5)))
