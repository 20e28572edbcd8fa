"""Engines by a model from one that was measured: what is divided, what is not, and what does not fit."""

import pytest

from llmsys.bench.goodput import MISTRAL_7B, engine_blocks, recorded_times
from llmsys.bench.record import recorded
from llmsys.hardware.devices import DEVICES
from llmsys.models.shapes import SHAPES
from llmsys.serving.planning import blocks_left, engine_of, rescaled
from llmsys.serving.simulator import Prices, StepLoad, StepTimes

H200 = DEVICES["H200"]
TIMES = recorded_times()
BLOCKS = engine_blocks(recorded("goodput", "H200"))
DECODE, PROMPT = StepLoad(64, 64, 80_000, 80_000), StepLoad.of([(0, 2048)])


def engine(gpus, **more):
    return engine_of(MISTRAL_7B, gpus, **(dict(times=TIMES, num_blocks=BLOCKS, device=H200) | more))


def test_one_gpu_is_what_was_measured():
    one = engine(1)
    assert (one.times, one.num_blocks, one.modelled) == (TIMES, BLOCKS, False)
    assert engine(1, measured=False).modelled and engine(2).modelled


def test_what_is_divided_and_what_is_not():
    """By hand: 14.5 GB of weights at 4.8 TB/s are 3.0 of 4.5 ms; 64 all-reduces of 10 µs; a token's two bytes for each
    of 4,096 numbers, 64 times, at 450 GB/s, once around a ring of two."""
    prices = Prices(fixed=4.5e-3, per_token=2e-5, per_sequence=4e-5, per_attended=1e-8, per_pair=2e-9)
    two = engine(2, times=StepTimes(prices)).times.decode
    weights = 2 * MISTRAL_7B.parameters / 4.8e12
    assert 3.0e-3 < weights < 3.05e-3
    assert two.fixed == pytest.approx(4.5e-3 - weights / 2 + 64 * 10e-6)
    assert two.per_token == pytest.approx(1e-5 + 64 * 8192 / 450e9)
    assert (two.per_sequence, two.per_attended, two.per_pair) == (2e-5, 5e-9, 1e-9)


def test_more_gpus_are_faster_by_less_than_their_number():
    seconds = [[engine(n).times.seconds(load) for n in (1, 2, 4, 8)] for load in (DECODE, PROMPT)]
    for each in seconds:
        assert each[0] > each[1] > each[2] and each[1] > each[0] / 2 and each[2] > each[1] / 2
    assert engine(2, latency=1.0).times.seconds(DECODE) > 64


def test_the_cache_has_what_the_weights_leave():
    """Memory of p GPUs, less one copy of the weights, in blocks of 16 tokens of 131,072 bytes."""
    for gpus in (2, 4, 8):
        memory = 2 * MISTRAL_7B.parameters + BLOCKS * 16 * 131_072
        left = (gpus * memory - 2 * MISTRAL_7B.parameters) / (16 * 131_072)
        assert left - gpus < engine(gpus).num_blocks <= left


def test_another_model_by_its_sizes():
    same = rescaled(TIMES, MISTRAL_7B, MISTRAL_7B, H200)
    assert same.decode.fixed == pytest.approx(TIMES.decode.fixed) and same.mixed.per_pair == TIMES.mixed.per_pair
    llama = rescaled(TIMES, MISTRAL_7B, SHAPES["Llama-3-8B"], H200)  # alike but for its vocabulary
    assert llama.mixed.per_token == pytest.approx(TIMES.mixed.per_token)
    assert llama.mixed.per_sequence == pytest.approx(TIMES.mixed.per_sequence * 128_256 / 32_000)
    assert TIMES.decode.fixed < llama.decode.fixed < 1.2 * TIMES.decode.fixed
    qwen = rescaled(TIMES, MISTRAL_7B, SHAPES["Qwen2.5-72B"], H200)
    assert 8 < qwen.seconds(PROMPT) / TIMES.seconds(PROMPT) < 12, "ten times the weights"
    assert blocks_left(BLOCKS, MISTRAL_7B, MISTRAL_7B) == BLOCKS


def test_a_model_that_one_gpu_has_no_room_for_may_fit_into_two():
    shape = SHAPES["Qwen2.5-72B"]
    given = dict(times=rescaled(TIMES, MISTRAL_7B, shape, H200), num_blocks=blocks_left(BLOCKS, MISTRAL_7B, shape),
                 device=H200, measured=False)  # fmt: skip
    assert given["num_blocks"] < 2
    with pytest.raises(ValueError, match="gpus must be more for Qwen2.5-72B: 1 of H200 have no room"):
        engine_of(shape, 1, **given)
    assert engine_of(shape, 2, **given).num_blocks > 10_000


def test_what_cannot_be_is_refused():
    for wrong in (3, 16):
        with pytest.raises(ValueError, match="gpus must divide the 32 query heads and 8 KV heads of Mistral-7B"):
            engine(wrong)
    with pytest.raises(ValueError, match="gpus must be"):
        engine(0)
    lonely = next(each for each in DEVICES.values() if not each.interconnect)
    with pytest.raises(ValueError, match="device must have an interconnect"):
        engine(2, device=lonely)
    with pytest.raises(ValueError, match="DeepSeek-V3 has experts, or latent attention"):
        rescaled(TIMES, MISTRAL_7B, SHAPES["DeepSeek-V3"], H200)
