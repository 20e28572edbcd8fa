"""The decode benchmark: a step over a full cache, split into attention and the rest, beside what the roofline says."""

from dataclasses import replace

import pytest
import torch

from llmsys.attention import sdpa_attention
from llmsys.bench import decode, recorded
from llmsys.bench.decode import (
    attending_by,
    captured,
    filled_cache,
    no_attention,
    random_model,
    sweep,
    table,
    time_step,
)
from llmsys.bench.record import new_record
from llmsys.hardware.devices import DEVICES
from llmsys.models.decode_cost import bytes_per_token, decode_step_of, largest_batch
from llmsys.models.shapes import SHAPES

SMALL = {"layers": 2, "width": 96, "heads": 6, "kv_heads": 2, "head_dim": 16, "ffn": 64, "vocab": 50}
TINY = replace(SHAPES["SmolLM2-135M"], name="tiny", **SMALL)
SPEC = replace(DEVICES["H100 SXM"], name="a machine", memory_bytes=10**9)


@pytest.fixture(scope="module")
def model():
    return random_model(TINY, 64)


def swept(model, batches, contexts, spec=SPEC):
    missing: dict[str, str] = {}
    return sweep(model, batches, contexts, spec=spec, missing=missing, repeats=3), missing


def test_there_is_a_row_for_each_context_and_batch_and_its_parts_add_up(model):
    rows, missing = swept(model, (1, 3), (1, 16, 33))
    assert not missing
    assert [(row["context"], row["batch"]) for row in rows] == [(1, 1), (1, 3), (16, 1), (16, 3), (33, 1), (33, 3)]
    for row in rows:
        assert row["name"] == "tiny" and row["dtype"] == str(model.dtype).removeprefix("torch.")
        assert row["ms"] == pytest.approx(row["rest_ms"] + row["attention_ms"], abs=1e-4)
        assert 0 < row["rest_ms"] and (row["attention_ms"] > 0 or torch.cuda.is_available())
        assert (row["eager_ms"] is None) == (not torch.cuda.is_available())


def test_a_row_has_the_bytes_that_a_step_reads_and_the_time_that_the_roofline_gives_them(model):
    (row,), _ = swept(model, (3,), (16,))
    step = decode_step_of(TINY, SPEC, batch=3, context=16, dtype=row["dtype"])
    assert row["cache_bytes"] == 3 * 16 * bytes_per_token(TINY, row["dtype"])
    assert row["weight_bytes"] == TINY.parameters * model.dtype.itemsize
    assert (row["bandwidth"], row["peak_flops"]) == (SPEC.bandwidth, SPEC.flops[row["dtype"]])
    assert row["predicted_ms"] == pytest.approx(1e3 * step.seconds, abs=1e-5)
    assert row["predicted_attention_ms"] + row["predicted_rest_ms"] == pytest.approx(row["predicted_ms"], abs=2e-5)


@pytest.mark.parametrize("context", [1, 2, 17])
def test_the_step_that_is_timed_attends_to_the_whole_context_and_is_the_same_each_time(model, context):
    seen = []

    def stage(q, k, v, **how):
        seen.append((q.shape[0], q.shape[2], k.shape[2]))
        assert torch.isfinite(k).all() and (k[:, :, 1:] != k[:, :, :-1]).any(dim=-1).all(), "every key is another"
        return sdpa_attention(q, k, v, **how)

    cache = filled_cache(model, 3, context)
    tokens = torch.randint(TINY.vocab, (3, 1), device=model.device)
    where = cache.begin(tokens)
    with attending_by(cache, stage):
        first, again = model(tokens, cache, where), model(tokens, cache, where)
    assert seen == [(3, 1, context)] * 4
    assert torch.equal(first, again) and torch.isfinite(first).all()
    spare = cache.bytes - 3 * context * bytes_per_token(TINY, model.dtype)
    assert 0 <= spare <= bytes_per_token(TINY, model.dtype), "a slot that belongs to nobody, at most"


def test_without_attention_a_step_does_not_depend_on_the_cache(model):
    tokens = torch.tensor([[3], [4]], device=model.device)
    plain, without = [], []
    for _ in range(2):
        cache = filled_cache(model, 2, 5)
        where = cache.begin(tokens)
        plain.append(model(tokens, cache, where))
        with attending_by(cache, no_attention):
            without.append(model(tokens, cache, where))
    assert torch.equal(*without) and not torch.equal(*plain)
    q, k, v = torch.randn(2, 6, 1, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 5)
    assert no_attention(q, k, v, causal=True, scale=0.5).shape == sdpa_attention(q, k, v, causal=True).shape


def test_a_caches_stage_comes_back_after_an_error(model):
    cache = filled_cache(model, 2, 5)
    stage = cache.stage
    with pytest.raises(RuntimeError, match="stop"), attending_by(cache, no_attention):
        assert cache.stage is no_attention
        raise RuntimeError("stop")
    assert cache.stage is stage


def test_a_random_model_keeps_its_tied_matrix_and_gives_finite_logits(model):
    assert model.head.weight is model.embedding.weight
    assert sum(weight.numel() for weight in model.parameters()) == TINY.parameters
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]], device=model.device))).all()


def test_what_is_out_of_memory_is_listed_and_the_others_go_on(model, monkeypatch):
    def fails_at_4(model, batch, context, *, repeats):
        if batch == 4:
            raise torch.OutOfMemoryError("no")
        return time_step(model, batch, context, repeats=repeats)

    monkeypatch.setattr(decode, "time_step", fails_at_4)
    rows, missing = swept(model, (1, 4, 5), (8,))
    assert [row["batch"] for row in rows] == [1, 5]
    assert list(missing) == ["tiny at batch 4, context 8"]
    assert missing["tiny at batch 4, context 8"].startswith("out of memory: 0.0 GB of cache beside 0.0 GB of weights")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's memory is nobody else's: there it is tried")
def test_a_cpu_is_not_filled_beyond_a_quarter(model):
    enough = 4 * (TINY.parameters * 4 + 16 * bytes_per_token(TINY, "float32"))
    rows, missing = swept(model, (1, 2), (16,), replace(SPEC, memory_bytes=enough))
    assert [row["batch"] for row in rows] == [1]
    assert "not tried" in missing["tiny at batch 2, context 16"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's memory is nobody else's: there it is tried")
def test_weights_that_no_step_reads_take_their_room_as_well():
    untied = replace(TINY, tied=False)
    needed = 4 * (untied.parameters * 4 + 16 * bytes_per_token(untied, "float32"))
    rows, _ = swept(random_model(untied, 64), (1,), (16,), replace(SPEC, memory_bytes=needed))
    assert len(rows) == 1 and rows[0]["weight_bytes"] < untied.parameters * 4
    assert not swept(random_model(untied, 64), (1,), (16,), replace(SPEC, memory_bytes=needed - 1))[0]


def test_the_table_has_a_line_a_row_with_the_prediction_in_brackets(model):
    rows, missing = swept(model, (2,), (8, 9))
    known = {"ms": 4.0, "predicted_ms": 3.0, "attention_ms": 1.0, "predicted_attention_ms": 0.5, "rest_ms": 3.0,
             "predicted_rest_ms": 2.5, "eager_ms": 12.0}  # fmt: skip
    columns = table(new_record("decode", [rows[0] | known, rows[1] | {"eager_ms": None}], missing)).columns
    assert [column._cells[0] for column in columns[4:]] == ["4 (3)", "1 (0.5)", "3 (2.5)", "0.75", "12", "500"]
    assert columns[8]._cells[1] == "–" and columns[1]._cells == ["8", "9"]


def test_the_h100_record_has_every_point_that_fits_and_no_step_is_faster_than_the_roofline():
    record, h100 = recorded("decode", "H100"), DEVICES["H100 SXM"]
    fits = {
        name: {
            (batch, context)
            for context in (1024, 4096, 16384)
            for batch in (1, 4, 16, 64, 256)
            if batch <= largest_batch(
                h100.memory_bytes, weight_bytes=2 * SHAPES[name].parameters,
                bytes_per_token=bytes_per_token(SHAPES[name]), context=context,
            )
        }
        for name in ("SmolLM2-135M", "Llama-3-8B")
    }  # fmt: skip
    assert {name: len(points) for name, points in fits.items()} == {"SmolLM2-135M": 14, "Llama-3-8B": 12}
    for name, points in fits.items():
        assert {(row["batch"], row["context"]) for row in record.rows if row["name"] == name} == points
    assert len(record.missing) == 4 and all(reason.startswith("out of memory") for reason in record.missing.values())
    for row in record.rows:
        step = decode_step_of(SHAPES[row["name"]], h100, batch=row["batch"], context=row["context"])
        assert row["predicted_ms"] == pytest.approx(1e3 * step.seconds, rel=1e-3)
        assert row["ms"] > row["predicted_ms"] and row["eager_ms"] > 0.95 * row["ms"]


@pytest.mark.gpu
def test_on_a_gpu_a_captured_step_computes_what_the_eager_one_does(model):
    with torch.inference_mode():
        cache = filled_cache(model, 4, 100)
        tokens = torch.randint(TINY.vocab, (4, 1), device="cuda")
        where = cache.begin(tokens)
        kept = torch.empty(4, 1, TINY.vocab, dtype=model.dtype, device="cuda")
        graph = captured(lambda: kept.copy_(model(tokens, cache, where)))
        expected = model(tokens, cache, where)
        kept.zero_()
        graph.replay()
    torch.testing.assert_close(kept, expected)


@pytest.mark.gpu
def test_on_a_gpu_the_graph_is_faster_than_its_launches(model):
    times = time_step(model, 4, 64, repeats=5)
    assert 0 < times["ms"] < times["eager_ms"]
