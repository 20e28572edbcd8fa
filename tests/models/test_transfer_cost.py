"""What moving a cache costs: the published figures, and the equation against a count of operations."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.models.shapes import SHAPES
from llmsys.models.transfer_cost import (
    LLAMA_3_70B,
    OPT_66B,
    bits_per_second,
    break_even_bandwidth,
    break_even_of,
    cache_bytes,
)

A800, H800 = 8 * 312e12, 8 * 989e12  # eight GPUs' dense bf16 peaks, FLOP/s: NVIDIA's data sheets of A100 and H100


def test_distserve_s_example_and_what_a_network_carries_for_it():
    assert cache_bytes(OPT_66B, tokens=512) == 1.125 * 2**30 == 2 * 64 * 9216 * 2 * 512
    assert bits_per_second(OPT_66B, tokens=512, rate=10) == pytest.approx(96.6e9, rel=1e-3)
    assert OPT_66B.parameters == pytest.approx(66e9, rel=0.02)


def test_mooncake_s_example():
    """The paper rounds to 6 and 19 GB/s."""
    found = [break_even_bandwidth(LLAMA_3_70B, prefix=8192, flops=flops) / 1e9 for flops in (A800, H800)]
    assert found == pytest.approx([5.86, 18.57], abs=0.01)
    assert LLAMA_3_70B.parameters == pytest.approx(70.6e9, rel=1e-3)


def test_the_equation_is_the_count_of_operations_with_other_constants():
    """Llama-3-70B's matrices have 12.75 d² weights a layer: b is 25.5. Of a causal prompt half the pairs are seen."""
    C, ffn = 8192, 28_672
    weights = 2 * C * C + 2 * C * 1024 + 3 * C * ffn
    assert 2 * weights / C**2 == 25.5
    for prefix in (512, 8192, 100_000):
        ours = break_even_of(LLAMA_3_70B, prefix=prefix, flops=A800)
        theirs = break_even_bandwidth(LLAMA_3_70B, prefix=prefix, flops=A800, attention_flops=2, matrix_flops=25.5)
        assert ours == pytest.approx(theirs, rel=0.002)
    assert break_even_of(LLAMA_3_70B, prefix=8192, flops=A800) == pytest.approx(5.5e9, rel=0.01)


@given(st.sampled_from(["Llama-2-7B", "Llama-3-8B", "Qwen2.5-72B"]), st.integers(1, 10**5), st.floats(1e12, 1e16))
def test_at_the_break_even_both_take_equally_long(name, prefix, flops):
    shape = SHAPES[name]
    bandwidth = break_even_bandwidth(shape, prefix=prefix, flops=flops)
    d, layers = shape.width, shape.layers
    computing = layers * (4 * prefix**2 * d + 22 * prefix * d**2) / flops
    assert cache_bytes(shape, tokens=prefix) / bandwidth == pytest.approx(computing)
    assert break_even_bandwidth(shape, prefix=prefix + 1, flops=flops) < bandwidth
    assert break_even_bandwidth(shape, prefix=prefix, flops=flops, dtype="float8") == pytest.approx(bandwidth / 2)


def test_latents_are_cheap_to_move():
    latent, heads = (break_even_of(SHAPES[name], prefix=8192, flops=H800) for name in ("DeepSeek-V3", "Llama-2-7B"))
    assert cache_bytes(SHAPES["DeepSeek-V3"], tokens=1) == 70_272
    assert latent < heads / 10


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="tokens must be at least 0"):
        cache_bytes(OPT_66B, tokens=-1)
    with pytest.raises(ValueError, match="rate must be a finite number"):
        bits_per_second(OPT_66B, tokens=5, rate=math.inf)
    with pytest.raises(ValueError, match="prefix must be a finite number above 0"):
        break_even_bandwidth(OPT_66B, prefix=0, flops=1.0)
    with pytest.raises(ValueError, match="DeepSeek-V3 has not: ask break_even_of"):
        break_even_bandwidth(SHAPES["DeepSeek-V3"], prefix=9, flops=1.0)
    with pytest.raises(ValueError, match="dtype must be one of"):
        break_even_bandwidth(OPT_66B, prefix=9, flops=1.0, dtype="int4")
    with pytest.raises(ValueError, match="flops must be"):
        break_even_of(OPT_66B, prefix=9, flops=0.0)
