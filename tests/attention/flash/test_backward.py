"""The backward kernels, on whatever tier is here, against autograd in float64, and never outside their tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention import naive_attention
from llmsys.attention.flash import backward_kernels as kernels
from llmsys.attention.flash.backward import BackwardTiles, backward, backward_tiles_for, flash_backward
from llmsys.attention.flash.forward import launch
from llmsys.attention.flash.tiles import TileConfig
from llmsys.bench.low_precision import eager_attention
from llmsys.hardware import sanitizer
from llmsys.hardware.compiler import compile_kernels
from llmsys.hardware.launches import Recorder
from llmsys.hardware.tier import interpreting, load_triton, triton_device
from tests.attention.sample import examples, sample

load_triton()
DEVICE = triton_device()
SMALL = BackwardTiles(TileConfig(16, 16, 4, 1), TileConfig(16, 16, 4, 1))
OTHER = BackwardTiles(TileConfig(16, 32, 4, 1), TileConfig(32, 16, 4, 2))
LENGTHS = st.sampled_from([1, 2, 7, 16, 17, 33])
FORWARD = TileConfig(16, 16, 4, 1)


def inputs(B, G, Hkv, Tq, Tk, Dk, Dv, dtype=torch.float32):
    """q, k, v and do."""
    shapes = (B, G * Hkv, Tq, Dk), (B, Hkv, Tk, Dk), (B, Hkv, Tk, Dv), (B, G * Hkv, Tq, Dv)
    return tuple(torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes)


def flash_gradients(q, k, v, do, causal, *, scale=0.3, dlse=None, tiles=None, forward=FORWARD, **kernels):
    o, lse = launch(q, k, v, causal, scale, "ieee", forward, None)
    return backward(q, k, v, o, lse, do, dlse, causal, scale, "ieee", tiles=tiles, **kernels)


def autograd(q, k, v, do, causal, *, scale=0.3, dlse=None, attention=naive_attention):
    """The gradients of the naive form or another, by torch, in the precision of what is given."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    o, lse = attention(*leaves, causal=causal, scale=scale, return_lse=True)
    loss = (o * do).sum()
    if dlse is not None:
        loss = loss + torch.where(lse.isinf(), 0, lse.to(dlse.dtype) * dlse).sum()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else (None,) * 3
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]


def double(*tensors):
    return [None if x is None else x.double() for x in tensors]


def worst(got, exact):
    return [(a.double() - b).abs().max().item() if b.numel() else 0.0 for a, b in zip(got, exact, strict=True)]


@settings(max_examples=examples(25), deadline=None)
@given(
    G=st.integers(1, 3), Tq=LENGTHS, Tk=st.sampled_from([1, 7, 16, 17, 33]), Dk=st.sampled_from([1, 8, 17]),
    Dv=st.sampled_from([1, 16, 20]), causal=st.booleans(), tiles=st.sampled_from([None, SMALL, OTHER]),
    with_dlse=st.booleans(), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_gradients_agree_with_autograd_on_any_shape(G, Tq, Tk, Dk, Dv, causal, tiles, with_dlse, seed):
    torch.manual_seed(seed)
    q, k, v, do = inputs(1, G, 2, Tq, Tk, Dk, Dv)
    dlse = torch.randn(1, 2 * G, Tq, device=DEVICE) if with_dlse else None
    got = flash_gradients(q, k, v, do, causal, dlse=dlse, tiles=tiles)
    d = double(q, k, v, do, dlse)
    exact = autograd(*d[:4], causal, dlse=d[4])
    for name, a, b, x in zip(("dq", "dk", "dv"), got, exact, (q, k, v), strict=True):
        assert a.shape == x.shape and a.dtype == x.dtype
        torch.testing.assert_close(a.double(), b, atol=3e-5, rtol=3e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.skipif(not interpreting(), reason="the sanitizer watches the interpreter")
@settings(max_examples=8, deadline=None)
@given(
    G=st.integers(1, 3), Tq=LENGTHS, Tk=LENGTHS, D=st.sampled_from([5, 16]), causal=st.booleans(),
    tiles=st.sampled_from([SMALL, OTHER]),
)  # fmt: skip
def test_no_lane_leaves_its_tensor_and_every_gradient_is_stored_once(G, Tq, Tk, D, causal, tiles):
    q, k, v, do = inputs(1, G, 2, Tq, Tk, D, D)
    o, lse = launch(q, k, v, causal, 1.0, "ieee", FORWARD, None)
    with sanitizer.watch(q=q, k=k, v=v, do=do, o=o, lse=lse) as report:
        dq, dk, dv = backward(q, k, v, o, lse, do, None, causal, 1.0, "ieee", tiles=tiles)
    assert report.ok, report
    assert report.bytes_stored == {
        "dq_ptr": dq.nbytes, "dk_ptr": dk.nbytes, "dv_ptr": dv.nbytes, "delta_ptr": lse.nbytes,
        "lse_log2_ptr": lse.nbytes,
    }  # fmt: skip


@pytest.mark.skipif(not interpreting(), reason="the sanitizer watches the interpreter")
def test_a_causal_mask_halves_what_is_loaded():
    q, k, v, do = inputs(1, 1, 1, 64, 64, 16, 16)
    loaded = {}
    for causal in (False, True):
        o, lse = launch(q, k, v, causal, 1.0, "ieee", FORWARD, None)
        with sanitizer.watch(q=q, k=k, v=v) as report:
            backward(q, k, v, o, lse, do, None, causal, 1.0, "ieee", tiles=SMALL)
        loaded[causal] = {name: report.bytes_loaded[name] for name in "qk"}
    # Once by the tile's own program, and once by each program that walks over it: 4, or 4, 3, 2 and 1 of four.
    assert loaded == {
        False: {"q": 5 * q.nbytes, "k": 5 * k.nbytes},
        True: {"q": 3.5 * q.nbytes, "k": 3.5 * k.nbytes},
    }


def test_rows_that_see_no_key_have_no_gradient():
    q, k, v, do = inputs(1, 2, 2, 21, 4, 8, 8)
    dlse = torch.randn(1, 4, 21, device=DEVICE)
    dq, dk, dv = flash_gradients(q, k, v, do, True, dlse=dlse, tiles=SMALL)
    assert (dq[:, :, :17] == 0).all() and (dq[:, :, 18:] != 0).any()
    seen = flash_gradients(q[:, :, 17:], k, v, do[:, :, 17:], True, dlse=dlse[:, :, 17:], tiles=SMALL)
    torch.testing.assert_close((dk, dv), seen[1:])


@pytest.mark.parametrize("shape", [(0, 2, 2, 3, 5), (1, 2, 2, 0, 5), (1, 2, 2, 3, 0), (1, 0, 2, 3, 5)])
def test_empty_tensors_have_empty_or_zero_gradients(shape):
    q, k, v, do = inputs(*shape, 8, 4)
    dlse = torch.zeros(q.shape[:3], device=DEVICE)
    for x, gradient in zip((q, k, v), flash_gradients(q, k, v, do, True, dlse=dlse), strict=True):
        assert gradient.shape == x.shape and (gradient == 0).all()


def test_with_values_of_width_zero_lse_still_has_its_gradient():
    q, k, v, do = inputs(1, 1, 1, 5, 7, 8, 0)
    dlse = torch.randn(1, 1, 5, device=DEVICE)
    got = flash_gradients(q, k, v, do, False, dlse=dlse)
    assert max(worst(got, autograd(*double(q, k, v, do), False, dlse=dlse.double()))) < 1e-5


def test_gradients_do_not_depend_on_the_strides_of_the_inputs():
    tensors = [torch.randn(2, 9, 2, 16, device=DEVICE).transpose(1, 2) for _ in range(4)]
    plain = flash_gradients(*[x.contiguous() for x in tensors], True)
    torch.testing.assert_close(flash_gradients(*tensors, True), plain, atol=0, rtol=0)
    wide = [torch.stack([x, x], dim=-1).flatten(3)[..., ::2] for x in tensors]  # gaps between the elements
    torch.testing.assert_close(flash_gradients(*wide, True), plain, atol=0, rtol=0)
    ones = torch.ones((), device=DEVICE).expand(2, 2, 9, 16)  # what o.sum().backward() gives: all strides are 0
    got = flash_gradients(*tensors[:3], ones, True)
    torch.testing.assert_close(got, flash_gradients(*tensors[:3], ones.contiguous(), True), atol=0, rtol=0)


def test_the_same_inputs_give_the_same_bits():
    q, k, v, do = inputs(1, 2, 2, 33, 40, 16, 16)
    first, second = (flash_gradients(q, k, v, do, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_half_precision_errs_at_most_twice_as_much_as_eager_code():
    for dtype in [torch.float16] if interpreting() else [torch.float16, torch.bfloat16]:
        for causal in (False, True):
            check_low_precision(inputs(1, 2, 2, 33, 65, 32, 32, dtype), causal)


def check_low_precision(tensors, causal):
    scale = tensors[0].shape[3] ** -0.5
    exact = autograd(*double(*tensors), causal, scale=scale)
    eager = worst(autograd(*tensors, causal, scale=scale, attention=eager_attention), exact)
    got = worst(flash_gradients(*tensors, causal, scale=scale, forward=None), exact)
    for name, error, allowed in zip(("dq", "dk", "dv"), got, eager, strict=True):
        assert error <= 2 * allowed + 2e-5, f"{name} is off by {error:.2e}, eager code by {allowed:.2e}"


def test_torch_can_trace_the_operator():
    q, k, v, do = inputs(1, 2, 1, 5, 7, 8, 4)
    o, lse = launch(q, k, v, True, 0.3, "ieee", FORWARD, None)
    for dlse in (None, torch.randn_like(lse)):
        arguments = q, k, v, o, lse, do, dlse, True, 0.3, "ieee"
        torch.library.opcheck(flash_backward, arguments, test_utils=("test_schema", "test_faketensor"))


def test_other_kernels_can_be_launched_with_the_same_grids():
    calls = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **options: calls.append((grid, options["BLOCK_M"]))

    q, k, v, do = inputs(2, 2, 3, 20, 9, 16, 16)
    flash_gradients(q, k, v, do, True, tiles=OTHER, delta_kernel=Kernel(), dkdv_kernel=Kernel(), dq_kernel=Kernel())
    # 20 queries of 12 heads; a tile of 32 keys in 6 groups; 40 rows in tiles of 32, in 6 groups
    assert calls == [((1, 12), 32), ((1, 6), 16), ((2, 6), 32)]


CONFIGURATIONS = [  # heads, dtype, causal, query heads a key head
    (64, torch.bfloat16, True, 1), (128, torch.bfloat16, True, 4), (128, torch.float16, False, 1),
    (256, torch.bfloat16, True, 1), (64, torch.float32, True, 1),
]  # fmt: skip
LARGEST = CONFIGURATIONS[3]


def test_compiled_for_hopper_the_shipped_tiles_spill_next_to_nothing(tmp_path):
    builds = {}
    for D, dtype, causal, G in sample(CONFIGURATIONS, 1, always=[LARGEST]):
        q = torch.empty(2, 16, 4096, D, dtype=dtype, device="meta")
        k = torch.empty(2, 16 // G, 4096, D, dtype=dtype, device="meta")
        lse = torch.empty(2, 16, 4096, device="meta")
        own = {name: Recorder(getattr(kernels, f"flash_{name}_kernel")) for name in ("delta", "dkdv", "dq")}
        own_kernels = {f"{name}_kernel": recorder for name, recorder in own.items()}
        backward(q, k, k, q, lse, q, None, causal, 0.1, "ieee", **own_kernels)
        builds |= {(name, D, dtype, causal): recorder.builds[0] for name, recorder in own.items()}
    results = compile_kernels(builds.values(), cache=tmp_path)
    for (name, D, dtype, causal), compiled in zip(builds, results, strict=True):
        what = f"D {D}, {dtype}, causal {causal}: {compiled}"
        assert not isinstance(compiled, Exception), what
        # A few addresses wait in memory while another loop runs. A part of a tile there would be hundreds of bytes.
        assert compiled.spill_bytes <= 160, what
        assert compiled.occupancy().programs >= 1 and not compiled.warnings, what
        assert compiled.wgmma == (name != "delta" and dtype != torch.float32), what


def test_a_group_of_heads_that_32_bits_cannot_count_is_refused():
    q = torch.empty(1, 64, 2**18, 128, device="meta")
    k, lse = torch.empty(1, 1, 4, 128, device="meta"), torch.empty(1, 64, 2**18, device="meta")
    with pytest.raises(ValueError, match=r"q must have fewer than 2\^31 elements for each key head"):
        backward(q, k, k, q, lse, q, None, False, 1.0, "ieee")


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("D", [16, 64, 128, 256])
def test_tiles_and_warps_are_powers_of_two(D, itemsize):
    tiles = backward_tiles_for(D, itemsize)
    for tile in (tiles.dkdv, tiles.dq):
        assert all(n & (n - 1) == 0 for n in (tile.block_m, tile.block_n, tile.num_warps))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("D", [64, 96, 128, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_large_inputs_on_a_gpu_err_at_most_twice_as_much_as_eager_code(dtype, D, causal):
    for G, Tq, Tk in ((1, 1000, 1000), (4, 257, 1025), (3, 1025, 257)):
        check_low_precision(inputs(2, G, 2, Tq, Tk, D, D, dtype), causal)


@pytest.mark.gpu
def test_keys_and_values_of_two_widths_and_slices_of_one_matrix_on_a_gpu():
    check_low_precision(inputs(1, 2, 2, 300, 300, 192, 128, torch.bfloat16), True)
    packed = torch.randn(1, 500, 4, 4, 64, device=DEVICE, dtype=torch.bfloat16)  # q, k, v and do of one matrix
    check_low_precision([packed[:, :, i].transpose(1, 2) for i in range(4)], True)


@pytest.mark.gpu
def test_the_same_inputs_give_the_same_bits_on_a_gpu():
    q, k, v, do = inputs(2, 4, 2, 2048, 2048, 64, 64, torch.bfloat16)
    first = flash_gradients(q, k, v, do, True, forward=None)
    for _ in range(3):
        again = flash_gradients(q, k, v, do, True, forward=None)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
def test_extra_memory_is_two_numbers_a_row_on_a_gpu():
    q, k, v, do = inputs(1, 1, 16, 16384, 16384, 64, 64, torch.bfloat16)
    o, lse = launch(q, k, v, True, 0.125, "ieee", None, None)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradients = backward(q, k, v, o, lse, do, None, True, 0.125, "ieee")
    extra = torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in gradients)
    assert extra <= 2 * lse.nbytes + (1 << 16)
