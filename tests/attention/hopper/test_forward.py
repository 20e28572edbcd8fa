"""The hopper kernel: compiled for Hopper anywhere; its schedule; what it refuses; on a Hopper GPU, its numbers."""

import importlib.util
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention import naive_attention
from llmsys.attention.hopper.descriptors import for_copy_engine
from llmsys.attention.hopper.forward import hopper_attention
from llmsys.attention.hopper.schedule import ROWS, TWO, HopperTiles, hopper_schedule, hopper_tiles, packed
from llmsys.bench.low_precision import eager_attention
from llmsys.hardware.compiler import Build, Compiled, compile_kernels
from tests.attention.sample import sample

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
KERNEL = "llmsys.attention.hopper.kernels:hopper_forward_kernel"
DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
CASES = [(D, causal, Tq) for D in (64, 128) for causal in (False, True) for Tq in (1024, 16384)]
SM_90 = 227 * 1024  # bytes of shared memory that a program can have

on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")


# Compiled for Hopper, without one


def build(D: int, causal: bool, tiles: HopperTiles, dtype: torch.dtype) -> Build:
    layout = (
        "NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4, "
        "transposed=False, fp4_padded=False, cga_layout=[])"
    )
    rows, keys = (f"tensordesc<{DTYPES[dtype]}[1,1,{n},{D}],{layout}>" for n in (ROWS, tiles.block_n))
    signature = {"q_desc": rows, "k_desc": keys, "v_desc": keys, "o_desc": rows, "lse_ptr": "*fp32"}
    numbers = {"schedule_ptr": "*i64", "Hq": "i32", "G": "i32", "Tq": "i32", "Tk": "i32", "scale_log2": "fp32"}
    constants = {
        "CAUSAL": causal, "CONSUMERS": tiles.consumers, "SLOTS": tiles.slots,
        "CONSUMER_REGISTERS": tiles.consumer_registers, "PRODUCER_REGISTERS": tiles.producer_registers,
    }  # fmt: skip
    return Build(KERNEL, signature | numbers, constants, num_warps=4)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[tuple, Compiled]:
    """Kernels of tiles that this stage can choose, through one process: those of the largest head, and another."""
    cases = dict.fromkeys((D, causal, hopper_tiles(D, Tq, causal)) for D, causal, Tq in CASES)
    cases = [(*case, dtype) for case in cases for dtype in DTYPES]
    builds = {case: build(*case) for case in sample(cases, 1, always=[(128, True, TWO[128], torch.bfloat16)])}
    return dict(zip(builds, compile_kernels(builds.values(), cache=tmp_path_factory.mktemp("compiled")), strict=True))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_compiled_for_hopper_warps_have_roles_and_nothing_spills(compiled):
    for (D, causal, tiles, dtype), kernel in compiled.items():
        assert isinstance(kernel, Compiled), kernel
        what = f"D {D}, causal {causal}, {tiles}, {dtype}: {kernel}"
        assert kernel.spill_bytes == 0, what
        assert kernel.shared_bytes <= SM_90, what
        assert not [each for each in kernel.warnings if "wgmma" in each], kernel.warnings  # serialised: waits at once
        # Warps have roles: a warpgroup for each consumer, and one (of which a warp works) for the producer.
        assert kernel.num_warps == 4 * (tiles.consumers + 1), what
        assert "ttg.warp_specialize" in kernel.ttgir
        asked = {int(n) for n in re.findall(r"setmaxnreg\.(?:inc|dec)\.sync\.aligned\.u32\s+(\d+)", kernel.ptx)}
        assert {tiles.consumer_registers, tiles.producer_registers} <= asked, what
        assert kernel.wgmma and f"m64n{tiles.block_n}k16" in kernel.ptx and f"m64n{D}k16" in kernel.ptx
        assert "cp.async.bulk.tensor.4d" in kernel.ptx and "mbarrier.try_wait" in kernel.ptx


@pytest.mark.parametrize(("D", "causal", "Tq"), CASES)
def test_the_registers_of_all_roles_fit_on_an_sm(D, causal, Tq):
    tiles = hopper_tiles(D, Tq, causal)
    assert 128 * (tiles.consumers * tiles.consumer_registers + tiles.producer_registers) <= 65_536


# The schedule


def key_tiles(tile: int, Tq: int, Tk: int, causal: bool, tiles: HopperTiles) -> int:
    """Counted from the definition: query i sees the keys j ≤ i + Tk − Tq."""
    last = (tile % 2**24 + 1) * tiles.block_m - 1
    seen = sum(j <= last + Tk - Tq for j in range(Tk)) if causal else Tk
    return max(-(-seen // tiles.block_n), 1)


@settings(max_examples=30)
@given(
    B=st.integers(1, 3), Hkv=st.integers(1, 3), G=st.sampled_from([1, 3, 4]), Tq=st.sampled_from([1, 127, 129, 1000]),
    Tk=st.sampled_from([1, 128, 700, 3000]), D=st.sampled_from([64, 128]), causal=st.booleans(),
    programs=st.integers(1, 9),
)  # fmt: skip
def test_every_tile_is_given_to_one_program_and_no_program_has_much_more_to_do(B, Hkv, G, Tq, Tk, D, causal, programs):
    tiles = hopper_tiles(D, Tq, causal)
    number = B * Hkv * G * -(-Tq // tiles.block_m)
    programs = min(programs, number)
    table = hopper_schedule(B, Hkv * G, Hkv, Tq, Tk, D, causal, tiles, programs)
    lists = [table[1 : 1 + table[0, p], p].tolist() for p in range(programs)]
    a_head = range(-(-Tq // tiles.block_m))
    assert sorted(sum(lists, [])) == [packed(b, h, n) for b in range(B) for h in range(Hkv * G) for n in a_head]
    assert (table[-1] == 0).all() and len(table) == max(map(len, lists)) + 2
    lengths = [sum(1 + key_tiles(tile, Tq, Tk, causal, tiles) for tile in each) for each in lists]
    longest = 1 + key_tiles(a_head[-1], Tq, Tk, causal, tiles)
    assert max(lengths) - min(lengths) <= longest  # greedy: who is behind by a tile gets it


def test_heads_that_fit_in_the_cache_take_turns_and_their_longest_tiles_go_first():
    tiles = HopperTiles(2, 128, 2, 240, 24)
    table = hopper_schedule(1, 4, 4, 16384, 16384, 128, True, tiles, 1)  # 8 MiB of K and V a head: groups of two
    order = [(tile >> 24, tile % 2**24) for tile in table[1:, 0].tolist()]
    assert order[:4] == [(0, 127), (1, 127), (0, 126), (1, 126)]
    assert order[256:258] == [(2, 127), (3, 127)]
    full = hopper_schedule(1, 4, 4, 16384, 16384, 128, False, tiles, 1)
    assert full[1:129, 0].tolist() == list(range(127, -1, -1))  # a head at a time


# What goes in


def test_tensors_that_the_copy_engine_cannot_read_are_copied_and_others_are_not():
    x = torch.randn(2, 10, 4, 64, dtype=torch.float16)
    for view in (x, x.transpose(1, 2), x[:, :, :1], x[:1].expand(1, 10, 4, 64), x[..., :, :], x[:, 1:3]):
        assert for_copy_engine(view) is view
    odd = torch.randn(2 * 10 * 4 * 65 + 1, dtype=torch.float16)
    for view in (
        x[:, :, :, ::2], x[:1].expand(3, 10, 4, 64), x.transpose(2, 3),
        odd[1:5121].view(2, 10, 4, 64), odd[:5200].view(2, 10, 4, 65)[..., :64],
    ):  # fmt: skip
        copy = for_copy_engine(view)
        assert copy is not view and copy.is_contiguous() and copy.data_ptr() % 16 == 0
        torch.testing.assert_close(copy, view)


def test_refused_arguments_are_named_with_the_stage_that_takes_them():
    def qkv(D, Dv, dtype=torch.float16):
        return (
            torch.zeros(1, 2, 3, D, dtype=dtype),
            torch.zeros(1, 2, 3, D, dtype=dtype),
            torch.zeros(1, 2, 3, Dv, dtype=dtype),
        )

    for arguments, message in (
        (qkv(96, 96), "q must have heads of 64 or 128 for stage hopper, got 96; .*flash"),
        (qkv(192, 192), "q must have heads of 64 or 128 for stage hopper, got 192; .*flash"),
        (qkv(192, 128), "q must have heads of 64 or 128 for stage hopper, got 192; .*flash"),
        (qkv(256, 256), "q must have heads of 64 or 128 for stage hopper, got 256; .*flash"),
        (qkv(64, 128), "v must have q's head size, 64, for stage hopper, got 128; .*flash"),
        (qkv(64, 64, torch.float32), "q must be float16 or bfloat16 for stage hopper, got torch.float32; .*flash"),
        (qkv(64, 64), "q must be on a Hopper GPU for stage hopper, got cpu; .*flash"),
    ):
        with pytest.raises(ValueError, match=message):
            hopper_attention(*arguments)
    with pytest.raises(ValueError, match="k must have q's head size"):
        hopper_attention(qkv(64, 64)[0], *qkv(128, 128)[1:])


# On the GPU


def qkv(B, Hq, Hkv, Tq, Tk, D, dtype=torch.bfloat16, size=1.0):
    shapes = (B, Hq, Tq, D), (B, Hkv, Tk, D), (B, Hkv, Tk, D)
    q, k, v = (torch.randn(shape, device="cuda").to(dtype) for shape in shapes)
    return q * size, k, v


def assert_as_exact_as_eager_code(q, k, v, causal):
    o, lse = hopper_attention(q, k, v, causal=causal, return_lse=True)
    exact, exact_lse = naive_attention(q.double(), k.double(), v.double(), causal=causal, return_lse=True)
    eager = eager_attention(q, k, v, causal=causal)
    assert (o.double() - exact).abs().max() <= 2 * (eager.double() - exact).abs().max() + 1e-5
    torch.testing.assert_close(lse.double(), exact_lse.double(), atol=1e-4, rtol=1e-5)
    assert o.dtype == q.dtype and lse.dtype == torch.float32


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_any_length_and_any_group_of_heads_err_at_most_twice_as_much_as_eager_code(D, causal, dtype):
    lengths = (1, 127, 128, 129, 1000)
    for n, (Tq, Tk) in enumerate([(Tq, Tk) for Tq in lengths for Tk in lengths]):
        G = (1, 3, 4, 8)[n % 4]
        assert_as_exact_as_eager_code(*qkv(2, 2 * G, 2, Tq, Tk, D, dtype), causal)
    assert_as_exact_as_eager_code(*qkv(1, 3, 3, 2500, 2500, D, dtype), causal)  # more than 2048: other tiles
    assert_as_exact_as_eager_code(*qkv(24, 16, 4, 384, 450, D, dtype), causal)  # several tiles a program


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("D", [64, 128])
def test_rows_that_see_no_key_give_zero_and_minus_infinity(D):
    q, k, v = qkv(1, 2, 2, 700, 300, D)
    o, lse = hopper_attention(q, k, v, causal=True, return_lse=True)
    assert (o[:, :, :400] == 0).all() and (lse[:, :, :400] == float("-inf")).all()
    assert_as_exact_as_eager_code(q, k, v, True)
    o, lse = hopper_attention(q, k[:, :, :0], v[:, :, :0], return_lse=True)
    assert (o == 0).all() and (lse == float("-inf")).all()
    assert hopper_attention(q[:, :, :0], k, v).shape == (1, 2, 0, D)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("causal", [False, True])
def test_large_scores_overflow_nothing(causal):
    q, k, v = qkv(1, 2, 2, 257, 300, 64, size=1e3)
    o, lse = hopper_attention(q, k, v, causal=causal, return_lse=True)
    exact, exact_lse = naive_attention(q.double(), k.double(), v.double(), causal=causal, return_lse=True)
    torch.testing.assert_close(o.double(), exact, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(lse.double(), exact_lse.double(), atol=1e-2, rtol=1e-5)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("D", [64, 128])
def test_memory_around_a_view_is_neither_read_nor_written(causal, D):
    def inside(B, H, T):  # a view (B, H, T, D) of (B, T + 130, H + 1, D): NaN around it
        whole = torch.full((B, T + 130, H + 1, D), float("nan"), device="cuda", dtype=torch.bfloat16)
        view = whole[:, :T, :H].transpose(1, 2)
        view.copy_(torch.randn(B, H, T, D, device="cuda"))
        return view

    for Tq, Tk in ((129, 129), (1000, 77), (100, 1001)):
        q, k, v = inside(2, 8, Tq), inside(2, 2, Tk), inside(2, 2, Tk)
        o = hopper_attention(q, k, v, causal=causal)
        assert torch.equal(o, hopper_attention(q.contiguous(), k.contiguous(), v.contiguous(), causal=causal))
        assert_as_exact_as_eager_code(q, k, v, causal)


@pytest.mark.gpu
@on_hopper
def test_the_result_does_not_depend_on_strides_and_is_the_same_every_time():
    q, k, v = (torch.randn(2, 300, 4, 64, device="cuda", dtype=torch.float16).transpose(1, 2) for _ in range(3))
    o = hopper_attention(q, k, v, causal=True)
    assert torch.equal(o, hopper_attention(q.contiguous(), k.contiguous(), v.contiguous(), causal=True))
    shared = k[:, :1].expand(2, 4, 300, 64)  # a stride of 0
    assert torch.equal(hopper_attention(q, shared, v), hopper_attention(q, shared.contiguous(), v))


@pytest.mark.gpu
@on_hopper
def test_gradients_on_the_gpu_are_those_of_the_definition():
    q, k, v = (x.requires_grad_() for x in qkv(1, 4, 2, 150, 200, 64))
    hopper_attention(q, k, v, causal=True).float().square().sum().backward()
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    naive_attention(*exact, causal=True).square().sum().backward()
    for mine, theirs in zip((q, k, v), exact, strict=True):
        assert ((mine.grad.double() - theirs.grad).norm() / theirs.grad.norm()).item() < 2e-2
