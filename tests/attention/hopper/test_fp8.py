"""The hopper kernel in eight bits: compiled for Hopper, run by simulated warps, and on a Hopper GPU, its error."""

import importlib.util
import math
import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention import naive_attention
from llmsys.attention.hopper.fp8 import TILES, hopper_fp8_attention, hopper_fp8_forward, quantize_qkv
from llmsys.attention.hopper.fresh_modules import FP8, fresh_modules
from llmsys.attention.hopper.schedule import ROWS, hopper_schedule
from llmsys.attention.hopper.simulated import gluon
from llmsys.attention.hopper.simulated.gluon import Descriptor, Pointer
from llmsys.attention.hopper.simulated.processor import Processor
from llmsys.bench.low_precision import eager_attention
from llmsys.hardware.compiler import Build, Compiled, compile_kernels
from llmsys.precision.fp8 import dequantize_blocks, quantize_blocks
from tests.attention.sample import examples, sample

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")

# The root mean square error is at most this many times that of the same attention in bfloat16: measured were 22 to 27
# with normal numbers, where rounding to e4m3 has 3 bits of mantissa and to bfloat16 has 7, 16 times as fine.
WORSE_THAN_BF16 = 32


def rms(x):
    return x.double().square().mean().sqrt().item()


def qkv(B, Hq, Hkv, Tq, Tk, device="cpu", dtype=torch.bfloat16):
    shapes = (B, Hq, Tq, 128), (B, Hkv, Tk, 128), (B, Hkv, Tk, 128)
    return tuple(torch.randn(shape, device=device).to(dtype) for shape in shapes)


# Compiled for Hopper, without one


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_compiled_for_hopper_products_are_in_e4m3_and_nothing_spills(tmp_path):
    def tiles(type, rows, bits):
        layout = f"NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth={bits}, rank=4, "
        return f"tensordesc<{type}[1,1,{rows},128],{layout}transposed=False, fp4_padded=False, cga_layout=[])>"

    signature = {f"{x}_desc": tiles("fp8e4nv", 64 if x == "q" else 128, 8) for x in "qkv"}
    signature |= {"o_desc": tiles("bf16", 64, 16), "schedule_ptr": "*i64", "lse_ptr": "*fp32", "scale_log2": "fp32"}
    signature |= {f"{x}_scales": "*fp32" for x in "qkv"} | dict.fromkeys(("Hq", "G", "Tq", "Tk"), "i32")
    registers = {
        "SLOTS": TILES.slots, "CONSUMER_REGISTERS": TILES.consumer_registers,
        "PRODUCER_REGISTERS": TILES.producer_registers,
    }  # fmt: skip
    forward = "llmsys.attention.hopper.fp8_kernels:hopper_fp8_kernel"
    quantize = "llmsys.attention.hopper.fp8_quantize:quantize_kernel"
    sizes = dict.fromkeys(("H", "T"), "i32") | {f"x_{x}_stride": "i32:16" for x in ("batch", "head", "row")}
    pointers = {"x_ptr": "*bf16", "codes_ptr": "*fp8e4nv", "scales_ptr": "*fp32"}
    masks = sample((False, True), 1)
    builds = [Build(forward, signature, registers | {"CAUSAL": causal}, num_warps=4) for causal in masks]
    builds += [
        Build(quantize, pointers | sizes, {"ROWS": 128, "D": 128, "TURNED": turned}, num_warps=4)
        for turned in (False, True)
    ]
    *kernels, plain, turned = compile_kernels(builds, cache=tmp_path)
    for kernel in (*kernels, plain, turned):
        assert isinstance(kernel, Compiled), kernel
        assert kernel.spill_bytes == 0, kernel
    for kernel in kernels:
        assert not [each for each in kernel.warnings if "wgmma" in each], kernel.warnings  # serialised: waits at once
        assert kernel.shared_bytes <= 227 * 1024 and kernel.num_warps == 12
        assert "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3" in kernel.ptx
        asked = {int(n) for n in re.findall(r"setmaxnreg\.(?:inc|dec)\.sync\.aligned\.u32\s+(\d+)", kernel.ptx)}
        assert {TILES.consumer_registers, TILES.producer_registers} <= asked
        # P's bytes stay together: whoever takes them apart needs prmt, or shifts of 16-bit registers.
        assert "prmt" not in kernel.ptx
    assert "ld.global.v4" in plain.ptx.replace(".L1::evict_first", "") and "st.global.v4" in turned.ptx


# Simulated: the kernel's own text, on warps and engines that take turns at random


def pack(p, layout):
    """What `fp8_kernels.pack` does: codes of p, of whose every 16 columns the order (a, c, e) becomes (c, a, e)."""
    p = p.unflatten(1, (-1, 2, 4, 2)).transpose(2, 3).flatten(1)
    return p.clamp(max=448).to(torch.float8_e4m3fn)


def turned(codes):
    """v's codes (B, H, T, D) as `fp8_quantize` stores them: transposed tiles of 128 keys, in the order of `pack`."""
    B, H, T, D = codes.shape
    codes = torch.nn.functional.pad(codes.float(), (0, 0, 0, -T % 128)).view(B, H, -1, 8, 2, 4, 2, D)
    return codes.permute(0, 1, 2, 7, 3, 5, 4, 6).reshape(B, H, -1, 128).to(torch.float8_e4m3fn)


def simulate(q, k, v, causal, seed, programs=2):
    module = fresh_modules(*FP8, gluon=gluon, functions={"pack": pack})
    (B, Hq, Tq, D), (Hkv, Tk) = q.shape, k.shape[1:3]
    programs = min(programs, B * Hq * -(-Tq // 128))
    schedule = hopper_schedule(B, Hq, Hkv, Tq, Tk, D, causal, TILES, programs).flatten()
    (q, q_scales), (k, k_scales), (v, v_scales) = (quantize_blocks(x) for x in (q, k, v))
    o, lse = torch.full(q.shape, math.nan, dtype=torch.bfloat16), torch.full((B * Hq * Tq,), math.nan)
    for program in range(programs):
        Processor(program, programs, random.Random(f"{seed} {program}"))
        module.hopper_fp8_kernel(
            Descriptor(q, ROWS), Descriptor(k, 128), Descriptor(turned(v), 128), Descriptor(o, ROWS),
            *(Pointer(x.flatten()) for x in (q_scales, k_scales, v_scales)), Pointer(lse), Pointer(schedule),
            Hq, Hq // Hkv, Tq, Tk, D**-0.5 * math.log2(math.e),
            CAUSAL=causal, SLOTS=TILES.slots, CONSUMER_REGISTERS=0, PRODUCER_REGISTERS=0,
        )  # fmt: skip
    return o, lse.view(B, Hq, Tq)


@settings(max_examples=examples(20))
@given(
    B=st.integers(1, 2), G=st.sampled_from([1, 3]), Hkv=st.integers(1, 2),
    Tq=st.sampled_from([1, 64, 127, 129, 300]), Tk=st.sampled_from([1, 127, 128, 300, 700]), causal=st.booleans(),
    programs=st.sampled_from([1, 3]), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_simulated_the_kernel_computes_attention_of_the_quantised_tensors(B, G, Hkv, Tq, Tk, causal, programs, seed):
    torch.manual_seed(seed)
    q, k, v = qkv(B, G * Hkv, Hkv, Tq, Tk)
    v = v * torch.logspace(-3, 3, Tk)[:, None]  # the scales of values differ from tile to tile
    o, lse = simulate(q, k, v, causal, seed, programs)
    stored = (dequantize_blocks(*quantize_blocks(x)).double() for x in (q, k, v))
    exact, exact_lse = naive_attention(*stored, causal=causal, return_lse=True)
    torch.testing.assert_close(lse.double(), exact_lse.double(), atol=1e-5, rtol=1e-5)
    # P is rounded to 1/16 of itself at most, and not at all below 2⁻¹⁷ of its row's largest
    weight = naive_attention(q.double(), k.double(), v.double().abs(), causal=causal)
    assert ((o.double() - exact).abs() <= 0.09 * weight + 1e-2 * v.double().abs().amax() * 2**-8).all()


def test_the_order_of_warps_changes_no_bit():
    torch.manual_seed(1)
    q, k, v = qkv(1, 2, 1, 300, 400)
    results = [simulate(q, k, v, True, seed) for seed in range(4)]
    assert all(torch.equal(o, results[0][0]) and torch.equal(lse, results[0][1]) for o, lse in results)


# What goes in


def test_refused_arguments_are_named():
    q, k, v = qkv(1, 2, 2, 3, 3)
    with pytest.raises(ValueError, match="q must have heads of 128 for stage hopper in fp8, got 64"):
        hopper_fp8_attention(*(x[..., :64] for x in (q, k, v)))
    with pytest.raises(ValueError, match="v must have heads of 128 for stage hopper in fp8, got 64"):
        hopper_fp8_attention(q, k, v[..., :64])
    with pytest.raises(ValueError, match="q must be float16 or bfloat16 for stage hopper in fp8, got torch.float32"):
        hopper_fp8_attention(q.float(), k.float(), v.float())
    with pytest.raises(ValueError, match=r"no gradients: call it under torch.no_grad\(\)"):
        hopper_fp8_attention(q, k.requires_grad_(), v)
    with pytest.raises(ValueError, match="q must be on a Hopper GPU"):
        quantize_qkv(q, k.detach(), v)


# On the GPU


@pytest.mark.gpu
@on_hopper
def test_the_quantising_kernel_makes_the_codes_of_quantize_blocks():
    q, k, v = qkv(2, 3, 3, 300, 300, "cuda")
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    q[0, 0, 5, 7], q[1, 2, 290, 3], k[0, 0, :128] = math.inf, math.nan, 0
    got = quantize_qkv(q, k, v)
    for x, codes, scales in ((q, got.q, got.q_scales), (k, got.k, got.k_scales), (v, got.v, got.v_scales)):
        exact_codes, exact_scales = quantize_blocks(x)
        exact_codes = turned(exact_codes) if x is v else exact_codes
        assert torch.equal(scales, exact_scales)
        torch.testing.assert_close(codes.float(), exact_codes.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("causal", [False, True])
def test_the_error_is_at_most_32_times_that_of_bfloat16(causal):
    lengths = (1, 127, 128, 129, 1000)
    for n, (Tq, Tk) in enumerate([(a, b) for a in lengths for b in lengths] + [(2500, 2500)]):
        G = (1, 3, 4, 8)[n % 4]
        dtype = (torch.bfloat16, torch.float16)[n % 2]
        q, k, v = qkv(2, 2 * G, 2, Tq, Tk, "cuda", dtype)
        o, lse = hopper_fp8_attention(q, k, v, causal=causal, return_lse=True)
        exact, exact_lse = naive_attention(q.double(), k.double(), v.double(), causal=causal, return_lse=True)
        sixteen = eager_attention(*(x.bfloat16() for x in (q, k, v)), causal=causal)
        assert o.dtype == dtype and lse.dtype == torch.float32
        if Tk > 1:
            assert rms(o - exact) <= WORSE_THAN_BF16 * rms(sixteen - exact), (Tq, Tk, dtype)
        unseen = exact_lse == -math.inf
        assert torch.equal(lse == -math.inf, unseen) and (o[unseen] == 0).all()
        assert (lse - exact_lse)[~unseen].abs().amax() < 0.2  # a score is the sum of 128 rounded products


@pytest.mark.gpu
@on_hopper
def test_long_sums_of_one_sign_are_not_cut_off():
    q, k, v = qkv(1, 2, 2, 256, 32768, "cuda")
    o = hopper_fp8_attention(q, k, v.abs() + 1)
    exact = naive_attention(q.double(), k.double(), v.double().abs() + 1)
    assert (o.double() / exact - 1).mean().abs() < 5e-3  # 0.3 and more, if the tensor cores add up all keys


@pytest.mark.gpu
@on_hopper
def test_values_of_very_different_size_and_no_keys_and_the_same_bits_every_time():
    q, k, v = qkv(1, 4, 2, 700, 900, "cuda")
    v = v * torch.logspace(-6, 6, 900, device="cuda").bfloat16()[:, None]
    o = hopper_fp8_attention(q, k, v, causal=True)
    exact = naive_attention(q.double(), k.double(), v.double(), causal=True)
    assert rms(o - exact) < 0.1 * rms(exact)
    quantized = quantize_qkv(q, k, v)
    assert all(torch.equal(o, hopper_fp8_forward(quantized, causal=True)[0]) for _ in range(3))
    o, lse = hopper_fp8_attention(q, k[:, :, :0], v[:, :, :0], return_lse=True)
    assert (o == 0).all() and (lse == -math.inf).all()
