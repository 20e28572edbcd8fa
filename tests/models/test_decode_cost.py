"""What decoding costs: bytes a token as models and other implementations keep them, batches that fit, steps' times."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmsys.cache import ContiguousCache
from llmsys.hardware.devices import DEVICES
from llmsys.hardware.roofline import estimate, total_seconds
from llmsys.models import Llama, LlamaConfig
from llmsys.models.decode_cost import (
    DecodeStep,
    bytes_per_token,
    cache_spec_of,
    decode_step,
    decode_step_of,
    decode_step_seconds,
    largest_batch,
    weights_of_step,
    with_kv_heads,
)
from llmsys.models.operations import operations
from llmsys.models.shapes import DTYPES, SHAPES, config_of, shape_of

H100 = DEVICES["H100 SXM"]
LLAMA = SHAPES["Llama-3-8B"]
KEPT = {
    "SmolLM2-135M": 23_040, "Qwen3-0.6B": 114_688, "Llama-2-7B": 524_288, "Falcon-7B": 8_192, "Llama-3-8B": 131_072,
    "Qwen2.5-72B": 327_680, "Llama-3.1-405B": 516_096, "DeepSeek-V3": 70_272,
}  # fmt: skip
TPUS = {"bandwidth": 820e9, "peak_flops": 197e12, "devices": 16}  # v5e
THIRTY = {"parameters": 30e9, "weight_bytes": 30e9, "bytes_per_token": 100e3, "context": 8192}
STEP = {"batch": 2, "context": 3, "parameters": 5, "weight_bytes": 7, "bytes_per_token": 11, "bandwidth": 13,
        "peak_flops": 17}  # fmt: skip


def test_real_models_keep_as_many_bytes_of_a_token_as_is_published():
    assert {name: bytes_per_token(shape) for name, shape in SHAPES.items()} == KEPT


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_go_with_the_dtype_by_its_name_or_torchs(dtype):
    for shape in SHAPES.values():
        size = DTYPES[dtype].itemsize
        assert bytes_per_token(shape, dtype) == bytes_per_token(shape, DTYPES[dtype]) == KEPT[shape.name] * size // 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["SmolLM2-135M", "Qwen3-0.6B", "Llama-2-7B", "Llama-3-8B", "Llama-3.1-405B"])
def test_a_shapes_cache_is_that_of_a_model_of_this_shape(name, dtype):
    with torch.device("meta"):
        model = Llama(config_of(SHAPES[name], context_length=64)).to(dtype)
    assert model.cache_spec() == cache_spec_of(SHAPES[name], dtype)


def test_smollm2_as_it_is_loaded_keeps_what_its_shape_says(smollm2):
    named = SHAPES["SmolLM2-135M"]
    assert dataclasses.replace(shape_of(smollm2.config), name=named.name, source=named.source) == named
    assert smollm2.cache_spec() == cache_spec_of(named, smollm2.dtype)


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_a_contiguous_cache_takes_these_bytes(kv_heads):
    config = LlamaConfig("tiny", 37, 24, layers=3, heads=6, kv_heads=kv_heads, head_size=8, mlp_size=40,
                         context_length=64)  # fmt: skip
    model = Llama(config).requires_grad_(False)
    cache = ContiguousCache(capacity=1000, spec=model.cache_spec())
    model(torch.randint(37, (5, 7)), cache)
    kept = bytes_per_token(shape_of(config), "float32")
    assert kept == 3 * kv_heads * 2 * 8 * 4
    assert 0 <= cache.bytes - 5 * 1000 * kept <= kept  # a cache may have a slot to spare


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("Llama", {"num_key_value_heads": 6}),
        ("Llama", {"num_key_value_heads": 2}),
        ("Qwen2", {"num_key_value_heads": 3}),
        ("Qwen3", {"num_key_value_heads": 1, "head_dim": 16}),
    ],
)
def test_transformers_cache_takes_these_bytes(family, sizes):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "head_dim": 8} | sizes
    config = getattr(transformers, f"{family}Config")(vocab_size=61, intermediate_size=80, **sizes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.inference_mode():
        cache = model(torch.randint(61, (2, 11)), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    shape = dataclasses.replace(LLAMA, layers=3, kv_heads=config.num_key_value_heads, head_dim=config.head_dim)
    assert held == 2 * 11 * bytes_per_token(shape, "float32")


def test_falcons_cache_in_transformers_has_one_head():
    transformers = pytest.importorskip("transformers")
    config = transformers.FalconConfig(vocab_size=61, hidden_size=48, num_attention_heads=6, num_hidden_layers=3)
    with torch.inference_mode():
        model = transformers.FalconForCausalLM(config).eval()
        cache = model(torch.randint(61, (2, 11)), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    shape = dataclasses.replace(SHAPES["Falcon-7B"], layers=3, head_dim=8)
    assert held == 2 * 11 * bytes_per_token(shape, "float32")


@pytest.mark.parametrize("name", SHAPES)
def test_a_step_reads_as_many_bytes_more_for_each_token_of_context(name):
    short, long = (operations(SHAPES[name], batch=3, queries=1, context=n) for n in (1000, 2000))
    more = sum(b.count * b.bytes - a.count * a.bytes for a, b in zip(short, long, strict=True))
    assert more == 3 * 1000 * bytes_per_token(SHAPES[name])


def test_fewer_kv_heads_keep_less_and_change_nothing_else():
    many, some, one = (with_kv_heads(LLAMA, n) for n in (32, 8, 1))
    assert [bytes_per_token(shape) for shape in (many, some, one)] == [524_288, 131_072, 16_384]
    assert dataclasses.replace(some, name=LLAMA.name) == LLAMA
    assert many.name == "Llama-3-8B with 32 KV heads" and many.heads == one.heads == 32
    assert many.parameters - some.parameters == 32 * 4096 * 2 * (32 - 8) * 128


def test_latent_attention_keeps_a_57th_of_what_as_many_heads_would():
    heads = with_kv_heads(SHAPES["DeepSeek-V3"], 128)
    assert bytes_per_token(heads) == 61 * 2 * 128 * 128 * 2
    assert round(bytes_per_token(heads) / bytes_per_token(SHAPES["DeepSeek-V3"])) == 57
    latent = cache_spec_of(SHAPES["DeepSeek-V3"]).layers[60]
    assert (latent.layer, latent.heads, latent.Dk, latent.Dv, latent.values_in_keys) == (60, 1, 576, 512, True)


@pytest.mark.parametrize("kv_heads", [0, -1, 3, 64])
def test_kv_heads_that_do_not_divide_the_query_heads_are_refused(kv_heads):
    with pytest.raises(ValueError, match=f"kv_heads must divide the 32 query heads of Llama-3-8B, got {kv_heads}"):
        with_kv_heads(LLAMA, kv_heads)


def test_an_unknown_dtype_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, float8, .* got 'bf16'"):
        bytes_per_token(LLAMA, "bf16")


@given(
    memory=st.integers(0, 10**12),
    weights=st.integers(0, 10**11),
    token=st.integers(1, 10**6),
    context=st.integers(1, 10**6),
)
def test_the_largest_batch_fits_and_one_more_does_not(memory, weights, token, context):
    batch = largest_batch(memory, weight_bytes=weights, bytes_per_token=token, context=context)
    assert batch >= 0 and weights + (batch + 1) * context * token > memory
    assert batch == 0 or weights + batch * context * token <= memory


def test_an_h100_holds_half_as_many_sequences_of_twice_the_length():
    weights = 2 * LLAMA.parameters
    fit = [largest_batch(80e9, weight_bytes=weights, bytes_per_token=131_072, context=n) for n in (4096, 8192, 131_072)]
    assert fit == [119, 59, 3]
    assert largest_batch(10e9, weight_bytes=weights, bytes_per_token=131_072, context=1) == 0, "not even the weights"


@pytest.mark.parametrize(("batch", "milliseconds"), [(4, "2.54"), (256, "20.9")])
def test_thirty_billion_int8_parameters_decode_on_16_tpus_as_published(batch, milliseconds):
    step = decode_step(batch=batch, **THIRTY, **TPUS)
    assert f"{1e3 * step.seconds:.3g}" == milliseconds
    assert step.seconds == decode_step_seconds(batch=batch, **THIRTY, **TPUS)
    assert step.waits_for == ("weights" if batch == 4 else "cache")


def test_the_cache_adds_to_whichever_of_weights_and_arithmetic_takes_longer():
    step = decode_step(**STEP)
    assert step == DecodeStep(2 * 3 * 11 / 13, 7 / 13, 2 * 5 * 2 / 17)
    assert step.seconds == 66 / 13 + 20 / 17
    assert decode_step_seconds(**STEP | {"peak_flops": 1e9}) == 73 / 13
    assert decode_step_seconds(**STEP, devices=4) == pytest.approx(step.seconds / 4)
    assert decode_step(**STEP | {"context": 1, "peak_flops": 1}).waits_for == "arithmetic"


def test_a_models_step_is_little_more_when_every_operation_is_counted():
    for name, batch, context in [("Llama-3-8B", 1, 8192), ("Llama-3-8B", 64, 8192), ("Llama-2-7B", 16, 4096),
                                 ("DeepSeek-V3", 1, 8192), ("Qwen2.5-72B", 256, 1024)]:  # fmt: skip
        whole = total_seconds(operations(SHAPES[name], batch=batch, queries=1, context=context), H100)
        assert 1 <= whole / decode_step_of(SHAPES[name], H100, batch=batch, context=context).seconds < 1.1, name


@pytest.mark.parametrize("name", SHAPES)
def test_attention_waits_for_memory_in_every_model_at_any_batch(name):
    for batch in (1, 1024):
        step = operations(SHAPES[name], batch=batch, queries=1, context=8192)
        (attention,) = [op for op in step if op.name == "attention"]
        assert estimate(attention, H100).bound == "HBM"


def test_a_step_reads_the_experts_that_were_chosen_and_only_rows_of_an_embedding():
    deepseek, smol = SHAPES["DeepSeek-V3"], SHAPES["SmolLM2-135M"]
    read, used = zip(*(weights_of_step(deepseek, batch=batch) for batch in (1, 64, 10_000)), strict=True)
    assert read[0] == pytest.approx(2 * used[0], rel=1e-3) and read[0] < read[1] < read[2]
    assert read[2] == pytest.approx(2 * (deepseek.parameters - deepseek.vocab * deepseek.width))
    assert used[0] == pytest.approx(used[2]) and 36e9 < used[0] < 38e9, "37 billion work on a token"
    assert weights_of_step(smol, batch=7)[0] == 2 * smol.parameters, "the embedding is the head"
    assert weights_of_step(LLAMA, batch=7)[0] == 2 * (LLAMA.parameters - LLAMA.vocab * LLAMA.width)


def test_devices_without_a_figure_for_the_dtype_are_refused():
    with pytest.raises(ValueError, match="dtype must be one of float32, float16 on Apple M4, got 'bfloat16'"):
        decode_step_of(LLAMA, DEVICES["Apple M4"], batch=1, context=1)


WHOLE, NONE = ("batch", "context", "devices"), ("parameters", "weight_bytes", "bytes_per_token")


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, -1) for name in (*STEP, "devices")]
    + [(name, 0) for name in (*STEP, "devices") if name not in NONE]
    + [(name, float(value)) for name in STEP if name not in WHOLE for value in ("nan", "inf")],
)
def test_what_is_no_step_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a finite number"):
        decode_step(**STEP | {name: value})


def test_a_model_may_have_no_cache_and_a_cache_no_weights():
    assert decode_step(**STEP | {"bytes_per_token": 0}).cache_seconds == 0
    assert decode_step(**STEP | dict.fromkeys(("parameters", "weight_bytes"), 0)).seconds == 66 / 13


@pytest.mark.parametrize(("name", "value"), [("memory", -1.0), ("weight_bytes", -1), ("bytes_per_token", 0),
                                             ("context", 0), ("memory", float("nan"))])  # fmt: skip
def test_what_is_no_memory_is_refused_by_name(name, value):
    right = {"memory": 10, "weight_bytes": 1, "bytes_per_token": 1, "context": 1} | {name: value}
    with pytest.raises(ValueError, match=f"^{name} must be a finite number"):
        largest_batch(right.pop("memory"), **right)
