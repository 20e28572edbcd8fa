"""The hopper backward kernel: compiled for Hopper, run by simulated warps, and on a Hopper GPU, its numbers."""

import importlib.util
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention import naive_attention
from llmsys.attention.hopper.backward import KEYS, TILES, backward, backward_schedule, hopper_backward
from llmsys.attention.hopper.schedule import packed
from llmsys.attention.hopper.simulated.backward import backward_kernel_here, rows_of, simulate_backward
from llmsys.attention.hopper.simulated.processor import Deadlock, Race
from llmsys.bench.low_precision import eager_attention
from llmsys.hardware.compiler import Build, Compiled, compile_kernels
from llmsys.hardware.tier import interpreting, load_triton, triton_device, triton_installed
from tests.attention.sample import examples, sample

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
KERNEL = "llmsys.attention.hopper.backward_kernels:hopper_backward_kernel"
DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
SM_90 = 227 * 1024  # bytes of shared memory that a program can have

on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")
with_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
if triton_installed():
    load_triton()  # before torch's compiler does, in the other mode


def inputs(B, G, Hkv, Tq, Tk, D, dtype=torch.bfloat16, device="cpu"):
    """q, k, v and do."""
    shapes = (B, G * Hkv, Tq, D), (B, Hkv, Tk, D), (B, Hkv, Tk, D), (B, G * Hkv, Tq, D)
    return tuple(torch.randn(shape, device=device).to(dtype) for shape in shapes)


def autograd(q, k, v, do, dlse=None, *, causal, attention=naive_attention):
    """o, lse and the gradients of the naive form or another, by torch, in the precision of what is given."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    o, lse = attention(*leaves, causal=causal, return_lse=True)
    loss = (o * do).sum()
    if dlse is not None:
        loss = loss + torch.where(lse.isinf(), 0, lse.to(dlse.dtype) * dlse).sum()
    return o.detach(), lse.detach(), torch.autograd.grad(loss, leaves)


def assert_as_exact_as_eager_code(run, q, k, v, do, dlse, causal):
    """`run(o, lse)` gives gradients whose error is at most twice that of eager code, plus a little."""
    double = [None if x is None else x.double() for x in (q, k, v, do, dlse)]
    o, lse, exact = autograd(*double, causal=causal)
    eager = autograd(q, k, v, do, dlse, causal=causal, attention=eager_attention)[2]
    got = run(o.to(q.dtype), lse.float())
    for name, mine, theirs, right in zip(("dq", "dk", "dv"), got, eager, exact, strict=True):
        # A gradient of 0, as of a lone key, is a sum of rounding errors in fp32: one for each query, or for each key.
        terms = k.shape[2] if name == "dq" else q.shape[1] // k.shape[1] * q.shape[2]
        allowed = 2 * (theirs.double() - right).norm() + 4e-6 * math.sqrt(right.numel() * terms)
        assert mine.dtype == q.dtype and mine.shape == right.shape
        assert (mine.double() - right).norm() <= allowed, (name, q.shape, k.shape, q.dtype, causal)


# Compiled for Hopper, without one


def build(D: int, causal: bool, dtype: torch.dtype, in_turn: bool) -> Build:
    def tiles(type, *shape, swizzle=128):
        bits = 32 if type == "fp32" else 16
        layout = f"NVMMASharedLayout(swizzle_byte_width={swizzle}, element_bitwidth={bits}, rank={len(shape)}, "
        return f"tensordesc<{type}{list(shape)},{layout}transposed=False, fp4_padded=False, cga_layout=[])>"

    t, block_m = DTYPES[dtype], TILES[D].block_m
    signature = {f"{x}_desc": tiles(t, 1, 1, block_m, D) for x in ("q", "do")}
    signature |= {f"{x}_desc": tiles(t, 1, 1, KEYS, D) for x in ("k", "v")}
    signature |= {f"{x}_desc": tiles(t, 1, 1, 64, D) for x in ("dk", "dv")}
    signature |= {"rows_desc": tiles("fp32", 2 * block_m, swizzle=0), "dq_desc": tiles("fp32", 1, 1, 64, 64)}
    signature |= {"schedule_ptr": "*i64", "counters_ptr": "*i32", "scale": "fp32", "scale_log2": "fp32"}
    signature |= dict.fromkeys(("Hq", "G", "Tq", "Tk"), "i32")
    constants = {
        "CAUSAL": causal, "IN_TURN": in_turn, "SLOTS": TILES[D].slots,
        "CONSUMER_REGISTERS": TILES[D].consumer_registers, "OTHER_REGISTERS": TILES[D].other_registers,
    }  # fmt: skip
    return Build(KERNEL, signature, constants, num_warps=4)


@with_triton
def test_compiled_for_hopper_warps_have_roles_and_spills_are_small(tmp_path):
    bf16, fp16 = torch.bfloat16, torch.float16
    cases = [(64, False, bf16, False), (64, True, fp16, False), (128, False, fp16, False), (128, True, bf16, False)]
    largest = (128, False, fp16, True)
    cases = sample([*cases, (64, True, bf16, True), largest], 1, always=[largest])
    kernels = compile_kernels([build(*case) for case in cases], cache=tmp_path)
    for (D, causal, dtype, in_turn), kernel in zip(cases, kernels, strict=True):
        assert isinstance(kernel, Compiled), kernel
        what = f"D {D}, causal {causal}, {dtype}, in turn {in_turn}: {kernel}"
        # Addresses and counters, and in a walk's last step, a part of a tile. A tile in every step would be more.
        assert kernel.spill_bytes <= 2800, what
        assert kernel.shared_bytes <= SM_90, what
        assert not [each for each in kernel.warnings if "wgmma" in each], kernel.warnings
        assert kernel.num_warps == 12 and "ttg.warp_specialize" in kernel.ttgir, what
        asked = {int(n) for n in re.findall(r"setmaxnreg\.(?:inc|dec)\.sync\.aligned\.u32\s+(\d+)", kernel.ptx)}
        assert {TILES[D].consumer_registers, TILES[D].other_registers} <= asked, what
        products = set(re.findall(r"wgmma\.mma_async\S*\.m64n(\d+)k16", kernel.ptx))
        assert products == {"64", "128"}, what
        assert "cp.reduce.async.bulk.tensor.4d" in kernel.ptx and "cp.async.bulk.tensor.4d" in kernel.ptx
        assert ("ld.acquire.gpu" in kernel.ptx) == in_turn


@pytest.mark.parametrize("D", TILES)
def test_the_registers_of_all_roles_fit_on_an_sm(D):
    assert 128 * (2 * TILES[D].consumer_registers + TILES[D].other_registers) <= 65_536


# The schedule


@settings(max_examples=30)
@given(
    B=st.integers(1, 3), Hkv=st.integers(1, 3), G=st.sampled_from([1, 4]), Tq=st.sampled_from([1, 127, 129, 1000]),
    Tk=st.sampled_from([1, 128, 700, 3000]), D=st.sampled_from([64, 128]), causal=st.booleans(),
    programs=st.integers(1, 9), in_turn=st.booleans(),
)  # fmt: skip
def test_every_tile_of_keys_is_given_to_one_program(B, Hkv, G, Tq, Tk, D, causal, programs, in_turn):
    tiles = -(-Tk // KEYS)
    programs = min(programs, B * Hkv * tiles)
    table = backward_schedule(B, G * Hkv, Hkv, Tq, Tk, causal, TILES[D], programs, in_turn)
    lists = [table[1 : 1 + table[0, p], p].tolist() for p in range(programs)]
    assert sorted(sum(lists, [])) == [packed(b, h, n) for b in range(B) for h in range(Hkv) for n in range(tiles)]
    assert (table[-1] == 0).all() and len(table) == max(map(len, lists)) + 2


@pytest.mark.parametrize(("D", "T"), [(64, 1024), (64, 16384), (128, 1024), (128, 4096), (128, 16384)])
def test_no_program_has_much_more_to_do_than_others(D, T):
    B, H = 16384 // T, 2048 // D
    for begin_and_end in (2, 5):  # steps that the beginning and the end of a walk may really take
        table = backward_schedule(B, H, H, T, T, True, TILES[D], 132)
        lists = [[tile % 2**24 for tile in table[1 : 1 + table[0, p], p].tolist()] for p in range(132)]
        steps = [sum((T - KEYS * n) // TILES[D].block_m + begin_and_end for n in each) for each in lists]
        assert max(steps) <= 1.03 * sum(steps) / len(steps)


@settings(max_examples=30)
@given(
    heads=st.integers(1, 4), Tq=st.sampled_from([1, 129, 1000, 2100]), Tk=st.sampled_from([1, 128, 700, 2100]),
    causal=st.booleans(), programs=st.integers(1, 20),
)  # fmt: skip
def test_programs_that_wait_for_their_turn_always_finish(heads, Tq, Tk, causal, programs):
    """Programs go down their lists, each tile when those of its head that add before it are done; and all end."""
    a_head = -(-Tk // KEYS)
    programs = min(programs, heads * a_head)
    table = backward_schedule(1, heads, heads, Tq, Tk, causal, TILES[128], programs, True)
    lists = [[divmod(tile, 2**24) for tile in table[1 : 1 + table[0, p], p].tolist()] for p in range(programs)]
    done = set()
    while any(lists):
        free = []
        for each in filter(None, lists):
            head, n = each[0]
            first = range(n + 1, a_head) if causal else range(n)
            free += [each] if all((head, other) in done for other in first) else []
        assert free, "nobody can go on"
        done |= {each.pop(0) for each in free}


# Before and after


@pytest.mark.skipif(not interpreting(), reason="on a GPU, the whole is tested")
@pytest.mark.parametrize(("B", "H", "T", "D"), [(1, 1, 1, 64), (2, 3, 64, 64), (1, 2, 150, 128)])
def test_the_kernels_before_and_after_compute_what_the_simulation_assumes(B, H, T, D):
    from llmsys.attention.hopper.backward_rows import hopper_finish_kernel, hopper_rows_kernel

    o, do = torch.randn(2, B, T, H, D, device=triton_device()).transpose(2, 3)
    lse, dlse = torch.randn(2, B, H, T, device=o.device)
    lse[0, 0, 0] = -math.inf
    for block_m in (64, 128):
        for gradient in (None, dlse):
            expected = rows_of(o, lse, do, gradient, block_m)
            rows, dq = torch.full_like(expected, math.nan), torch.full((B, H, T, D), math.nan)
            hopper_rows_kernel[(-(-T // block_m), B * H)](
                o, do, lse, gradient, rows, dq, *o.stride()[:3], *do.stride()[:3], H, T, D=D, BLOCK_M=block_m
            )
            torch.testing.assert_close(rows, expected, atol=1e-4, rtol=1e-5)
            assert (dq == 0).all()
    rounded = torch.full((B, H, T, D), math.nan, dtype=torch.float16)
    hopper_finish_kernel[(-(-o.numel() // 256),)](o.contiguous(), rounded, 0.5, o.numel(), BLOCK=256)
    assert torch.equal(rounded, (o * 0.5).half())


# The kernel on simulated warps


def simulated(q, k, v, do, dlse, causal, **options):
    return lambda o, lse: simulate_backward(q, k, v, o, lse, do, dlse, causal=causal, **options)


@settings(max_examples=examples(15))
@given(
    B=st.integers(1, 2), G=st.sampled_from([1, 3]), Tq=st.sampled_from([1, 64, 127, 129, 300]),
    Tk=st.sampled_from([1, 127, 128, 300]), D=st.sampled_from([64, 128]), causal=st.booleans(),
    with_dlse=st.booleans(), programs=st.sampled_from([1, 3]), dtype=st.sampled_from(list(DTYPES)),
    in_turn=st.booleans(), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_simulated_gradients_agree_with_autograd_in_any_order_of_warps(
    B, G, Tq, Tk, D, causal, with_dlse, programs, dtype, in_turn, seed
):
    torch.manual_seed(seed)
    q, k, v, do = inputs(B, G, 2, Tq, Tk, D, dtype)
    dlse = torch.randn(B, G * 2, Tq) if with_dlse else None
    run = simulated(q, k, v, do, dlse, causal, seed=seed, programs=programs, deterministic=in_turn)
    assert_as_exact_as_eager_code(run, q, k, v, do, dlse, causal)


def test_the_order_of_warps_changes_no_bit_of_dk_and_dv():
    torch.manual_seed(1)
    q, k, v, do = inputs(1, 2, 1, 300, 300, 64)
    o, lse, _ = autograd(q, k, v, do, causal=True)
    results = [simulate_backward(q, k, v, o, lse, do, causal=True, seed=seed) for seed in range(4)]
    assert all(torch.equal(a, b) for each in results for a, b in zip(each[1:], results[0][1:], strict=True))


def test_keys_beyond_the_end_do_no_harm_where_scores_are_very_negative():
    torch.manual_seed(2)
    q, k, v, do = inputs(1, 1, 1, 100, 65, 64)
    q, k = q.abs() * 40, -k.abs()  # so that exp(0 − lse), of a key that is not there, is infinite
    dq, dk, dv = simulated(q, k, v, do, None, False)(*autograd(q, k, v, do, causal=False)[:2])
    assert dq.isfinite().all() and dk.isfinite().all() and dv.isfinite().all()


def outcomes(kernel, seeds=12, Tq=400):
    """What running a wrong kernel leads to, in words."""
    q, k, v, do = inputs(1, 1, 1, Tq, 128, 64)
    o, lse, exact = autograd(q, k, v, do, causal=False)
    for seed in range(seeds):
        try:
            got = simulated(q, k, v, do, None, False, kernel=kernel, seed=seed)(o, lse)
            right = all((a - b).norm() < 0.02 * b.norm() for a, b in zip(got, exact, strict=True))
            yield "right" if right else "wrong"
        except (Race, Deadlock) as error:
            yield f"{type(error).__name__}: {error}"


def test_a_step_that_is_not_given_back_ends_in_a_deadlock():
    kernel = backward_kernel_here()
    kernel.__globals__["Steps"].give_back = lambda self, i: None
    assert re.match(r"Deadlock: .*produce 2 waits for Steps.empty\[\d\] to end", next(outcomes(kernel)))


def test_a_step_that_is_given_back_too_early_is_a_race():
    kernel = backward_kernel_here()
    steps = kernel.__globals__["Steps"]
    take, give_back = steps.take_do, steps.give_back

    def hasty(self, i):
        tile = take(self, i)
        give_back(self, i)
        return tile

    steps.take_do, steps.give_back = hasty, lambda self, i: None
    assert any("a copy is started into a tile that a product" in each for each in outcomes(kernel))


def test_ds_read_too_early_or_kept_in_one_place_only_is_found_out():
    kernel = backward_kernel_here()
    shares = kernel.__globals__["Shares"]
    take, put = shares.take, shares.put
    shares.take = lambda self, i: self.ds.index(i % 2)
    assert "wrong" in set(outcomes(kernel))
    shares.take = lambda self, i: take(self, i) and self.ds.index(0)
    shares.put = lambda self, i, J, ds: self.ds.index(0).slice(64 * J, 64, 0).store(ds) or put(self, i, J, ds)
    assert any(each == "wrong" or "still reads" in each for each in outcomes(kernel))


def test_a_missing_fence_before_the_copy_engine_reads_is_a_race():
    assert "no fence between storing a tile" in next(outcomes(backward_kernel_here(fence_async_shared=lambda: None)))


def test_torch_can_trace_the_operator():
    q, k, v, do = inputs(1, 2, 1, 5, 0, 64)  # no keys: nothing is launched
    lse = torch.full(q.shape[:3], -math.inf)
    for dlse in (None, torch.randn_like(lse)):
        arguments = q, k, v, q, lse, do, dlse, True, 0.3, False
        torch.library.opcheck(hopper_backward, arguments, test_utils=("test_schema", "test_faketensor"))


# On the GPU


def on_gpu(q, k, v, do, dlse, causal, deterministic=False):
    return lambda o, lse: backward(q, k, v, o, lse, do, dlse, causal, q.shape[3] ** -0.5, deterministic)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("D", TILES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("in_turn", [False, True])
def test_any_length_and_any_group_of_heads_err_at_most_twice_as_much_as_eager_code(D, causal, dtype, in_turn):
    lengths = (1, 127, 128, 129, 1000)
    for n, (Tq, Tk) in enumerate([(a, b) for a in lengths for b in lengths] + [(2500, 2500)]):
        q, k, v, do = inputs(2, (1, 3, 4, 8)[n % 4], 2, Tq, Tk, D, dtype, "cuda")
        dlse = torch.randn(q.shape[:3], device="cuda") if n % 2 else None
        assert_as_exact_as_eager_code(on_gpu(q, k, v, do, dlse, causal, in_turn), q, k, v, do, dlse, causal)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("D", TILES)
def test_what_lies_beyond_the_ends_of_a_view_is_not_seen(causal, D):
    def inside(B, H, T):  # a view (B, H, T, D) of (B, T + 130, H + 1, D): NaN around it
        whole = torch.full((B, T + 130, H + 1, D), math.nan, device="cuda", dtype=torch.bfloat16)
        view = whole[:, :T, :H].transpose(1, 2)
        view.copy_(torch.randn(B, H, T, D, device="cuda"))
        return view

    for Tq, Tk in ((129, 129), (1000, 77), (100, 1001)):
        q, k, v, do = inside(2, 8, Tq), inside(2, 2, Tk), inside(2, 2, Tk), inside(2, 8, Tq)
        assert_as_exact_as_eager_code(on_gpu(q, k, v, do, None, causal), q, k, v, do, None, causal)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("D", TILES)
def test_what_is_repeatable(D, causal):
    q, k, v, do = inputs(2, 2, 4, 2048, 2048, D, device="cuda")
    o, lse, _ = autograd(q, k, v, do, causal=causal)
    fast, exact = ([on_gpu(q, k, v, do, None, causal, d)(o, lse) for _ in range(4)] for d in (False, True))
    assert all(torch.equal(a, b) for each in fast for a, b in zip(each[1:], fast[0][1:], strict=True))
    assert all(torch.equal(a, b) for each in exact for a, b in zip(each, exact[0], strict=True))


@pytest.mark.gpu
@on_hopper
def test_gradients_of_rows_without_keys_of_empty_tensors_and_with_strides_of_zero():
    q, k, v, do = inputs(1, 2, 2, 700, 300, 64, device="cuda")
    o, lse, _ = autograd(q, k, v, do, causal=True)
    dq, dk, dv = on_gpu(q, k, v, do, None, True)(o, lse)
    assert (dq[:, :, :400] == 0).all() and (dq[:, :, 401:] != 0).any()
    ones = torch.ones((), device="cuda", dtype=q.dtype).expand(do.shape)  # what o.sum().backward() gives
    torch.testing.assert_close(
        on_gpu(q, k, v, ones, None, True)(o, lse)[1:],
        on_gpu(q, k, v, ones.contiguous(), None, True)(o, lse)[1:], atol=0, rtol=0,
    )  # fmt: skip
    for part in (slice(0), slice(None)):
        none = k[:, :, :0], v[:, :, :0]
        gradients = on_gpu(q[:, :, part], *none, do[:, :, part], None, True)(o[:, :, part], lse[:, :, part])
        assert all((x == 0).all() for x in gradients)


@pytest.mark.gpu
@on_hopper
def test_extra_memory_is_dq_in_fp32_and_two_numbers_a_row():
    q, k, v, do = inputs(1, 1, 16, 16384, 16384, 128, device="cuda")
    lse = torch.zeros(q.shape[:3], device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradients = on_gpu(q, k, v, do, None, True)(q, lse)
    extra = torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in gradients)
    assert extra <= 4 * q.numel() + 2 * lse.nbytes + (1 << 20)
