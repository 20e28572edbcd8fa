"""A step's operations: weights add up to the models' known sizes, and FLOP and bytes to what really happens."""

import dataclasses

import pytest
import torch

from llmsys.attention.cost import naive_cost
from llmsys.hardware.devices import DEVICES
from llmsys.hardware.meters import work
from llmsys.hardware.roofline import estimate, total_seconds
from llmsys.models.llama import Llama, LlamaConfig
from llmsys.models.operations import operations
from llmsys.models.shapes import SHAPES, Experts, Latent, ModelShape, shape_of

H100 = DEVICES["H100 SXM"]
LLAMA, DEEPSEEK = SHAPES["Llama-3-8B"], SHAPES["DeepSeek-V3"]


def total(step, field):
    return sum(op.count * getattr(op, field) for op in step)


def named(step, name):
    return next(op for op in step if op.name == name)


def weights(shape, tokens=1):
    return total(operations(shape, batch=tokens, queries=1, context=1), "weight_bytes") / 2


@pytest.mark.parametrize("name", SHAPES)
def test_a_large_step_reads_all_weights(name):
    # So many tokens choose that no expert is left out; the embedding's lookup is no operation here.
    shape = SHAPES[name]
    embedding = 0 if shape.tied else shape.vocab * shape.width
    assert weights(shape, tokens=10_000) + embedding == pytest.approx(shape.parameters, rel=1e-12)


def test_one_token_reads_37_of_deepseeks_671_billion():
    active = weights(DEEPSEEK) + DEEPSEEK.vocab * DEEPSEEK.width
    assert round(active / 1e9) in (37, 38)
    assert weights(LLAMA) == weights(LLAMA, tokens=1000), "a dense model reads the same for any batch"
    assert weights(DEEPSEEK) < weights(DEEPSEEK, tokens=64) < weights(DEEPSEEK, tokens=1000) <= 671.1e9


def test_decoding_takes_what_reading_the_weights_takes():
    step = operations(LLAMA, batch=1, queries=1, context=1)
    assert total(step, "bytes") == pytest.approx(2 * weights(LLAMA), rel=0.005)
    assert total_seconds(step, H100) == pytest.approx(2 * weights(LLAMA) / H100.bandwidth, rel=0.005)
    assert {estimate(op, H100).bound for op in step} == {"HBM"}


@pytest.mark.parametrize("attention", ["flash", "naive"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_larger_batch_raises_the_intensity_of_weights_and_not_of_attention(name, attention):
    shape = SHAPES[name]
    one, many = (operations(shape, batch=b, queries=1, context=2048, attention=attention) for b in (1, 64))
    for a, b in zip(one, many, strict=True):
        assert (a.name, a.count, a.dtype) == (b.name, b.count, b.dtype)
        if a.weight_bytes > 0.5 * a.bytes and a.name != "experts":
            assert b.intensity > 30 * a.intensity
        elif a.name in ("attention", "scores", "softmax", "weighted sum"):
            assert b.intensity == pytest.approx(a.intensity)
    if shape.experts:  # 64 tokens choose 512 times among 256 experts: two tokens an expert
        assert named(many, "experts").intensity < 3 * named(one, "experts").intensity


@pytest.mark.parametrize("grouped", [1, 3])
def test_products_are_counted_as_a_model_runs_them(grouped):
    config = LlamaConfig("tiny", 37, 24, layers=2, heads=3, kv_heads=3 // grouped, head_size=8, mlp_size=40,
                         context_length=64)  # fmt: skip
    model = Llama(config).eval()
    tokens = torch.randint(37, (2, 11))
    with torch.inference_mode(), work() as done:
        model(tokens)
    step = operations(shape_of(config), batch=2, queries=11, context=11, attention="naive", dtype="float32")
    products = [op for op in step if op.name not in ("softmax", "norm, residual")]
    # The model makes logits for every token here, and a step those of the last.
    head = named(step, "head").flops * 10
    fused = named(operations(shape_of(config), batch=2, queries=11, context=11), "attention")
    naive = named(step, "scores").flops + named(step, "weighted sum").flops
    assert done.matmul_flops == total(products, "flops") + head
    assert fused.flops == naive * (11 + 1) / (2 * 11), "half of the scores, and the diagonal"


@pytest.mark.parametrize("T", [1, 100, 4096])
def test_naive_attention_costs_what_cost_says(T):
    step = operations(dataclasses.replace(LLAMA, kv_heads=32), batch=2, queries=T, context=T, attention="naive")
    scores, softmax, values = (named(step, name) for name in ("scores", "softmax", "weighted sum"))
    cost = naive_cost(2, 32, T, 128)
    assert scores.flops + values.flops == cost.flops
    assert scores.bytes + softmax.bytes + values.bytes == cost.hbm_bytes
    assert softmax.exponentials == cost.score_elements


def test_flash_attention_moves_less_and_computes_half():
    naive, flash = (operations(LLAMA, batch=1, queries=4096, context=4096, attention=a) for a in ("naive", "flash"))
    fused = named(flash, "attention")
    assert fused.bytes < 0.03 * sum(named(naive, name).bytes for name in ("scores", "softmax", "weighted sum"))
    assert estimate(fused, H100).bound == "compute"
    assert {estimate(named(naive, name), H100).bound for name in ("scores", "softmax", "weighted sum")} == {"HBM"}
    assert fused.bytes < fused.l2_bytes, "every tile of queries asks the cache for keys again"
    assert total_seconds(flash, H100) < 0.7 * total_seconds(naive, H100)


@pytest.mark.parametrize("name", SHAPES)
def test_chunks_of_a_prefill_compute_what_the_whole_does(name):
    def flops(queries, context):
        step = operations(SHAPES[name], batch=1, queries=queries, context=context)
        counted = ("attention", "scores") if name == "DeepSeek-V3" else ("attention", "MLP", "output", "q, k, v")
        return sum(op.count * op.flops for op in step if op.name in counted)

    assert sum(flops(1024, end) for end in (1024, 2048, 3072, 4096)) == flops(4096, 4096)


def test_deepseeks_cache_is_one_latent_a_token():
    contexts = (1000, 2000)
    short, long = (operations(DEEPSEEK, batch=1, queries=1, context=n) for n in contexts)
    assert total(long, "bytes") - total(short, "bytes") == 1000 * 70_272, "61 layers of 512 + 64 in bf16"
    short, long = (operations(LLAMA, batch=1, queries=1, context=n) for n in contexts)
    assert total(long, "bytes") - total(short, "bytes") == 1000 * 2 * 2 * 8 * 128 * 32


def test_latent_attention_is_absorbed_for_few_queries_and_expanded_for_many():
    few = [op.name for op in operations(DEEPSEEK, batch=4, queries=1, context=4096)]
    many = [op.name for op in operations(DEEPSEEK, batch=4, queries=4096, context=4096)]
    assert "absorb k" in few and "absorb v" in few and "k, v" not in few
    assert "k, v" in many and "absorb k" not in many
    # Both hold the same weights, so that the form does not matter to the memory of a model.
    two = [operations(DEEPSEEK, batch=1000, queries=q, context=4096) for q in (1, 4096)]
    kv = [sum(op.weight_bytes for op in step if op.name in ("absorb k", "absorb v", "k, v")) for step in two]
    assert kv[0] == kv[1] == 2 * 512 * 128 * (128 + 128)


def test_absorbing_is_the_same_attention():
    # What the two forms compute, on small random matrices: (q Wuk) · c = q · (c Wukᵀ), and likewise for the values.
    H, D, rank, T = 3, 8, 5, 7
    q, c = torch.randn(H, 1, D, dtype=torch.float64), torch.randn(T, rank, dtype=torch.float64)
    up_k, up_v = torch.randn(2, H, rank, D, dtype=torch.float64)
    expanded = torch.softmax(q @ (c @ up_k).mT, -1) @ (c @ up_v)
    absorbed = torch.softmax(q @ up_k.mT @ c.T, -1) @ c @ up_v
    torch.testing.assert_close(absorbed, expanded)


def test_a_narrower_type_halves_the_bytes_and_nothing_else():
    wide, narrow = (operations(DEEPSEEK, batch=8, queries=16, context=64, dtype=d) for d in ("bfloat16", "float8"))
    for a, b in zip(wide, narrow, strict=True):
        assert (b.flops, b.exponentials, b.bytes) == (a.flops, a.exponentials, a.bytes / 2)
        assert b.dtype == ("float32" if a.dtype == "float32" else "float8")


def test_a_model_of_experts_alone_has_no_dense_layer():
    shape = ModelShape("tiny", 2, 16, 2, 2, 8, 32, 64, experts=Experts(4, 2, 0, 8, 0), latent=Latent(8, 4, 2))
    names = [op.name for op in operations(shape, batch=1, queries=1, context=1)]
    assert "MLP" not in names and "shared expert" not in names and "experts" in names


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch": 0}, "got batch 0, queries 2, context 3"),
        ({"context": 1}, "context at least queries"),
        ({"attention": "tiled"}, 'attention must be "flash" or "naive", got \'tiled\''),
        ({"dtype": "bf16"}, "dtype must be one of float32, bfloat16, float16, float8, got 'bf16'"),
    ],
)
def test_what_is_no_step_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        operations(LLAMA, **({"batch": 1, "queries": 2, "context": 3} | changed))
