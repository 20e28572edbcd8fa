"""The flash kernel, on whatever tier is here, against attention from the definition, and never outside its tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention import naive_attention
from llmsys.attention.flash.forward import flash_attention, flash_forward, launch
from llmsys.attention.flash.tiles import TileConfig
from llmsys.bench.low_precision import eager_attention
from llmsys.hardware import sanitizer
from llmsys.hardware.tier import interpreting, load_triton, triton_device
from tests.attention.sample import examples

load_triton()
DEVICE = triton_device()
SMALL, OTHER = TileConfig(16, 16, 4, 1), TileConfig(32, 16, 4, 2)
LENGTHS = st.sampled_from([1, 2, 7, 16, 17, 33])


def qkv(B, G, Hkv, Tq, Tk, Dk, Dv, dtype=torch.float32, size=1.0):
    shapes = (B, G * Hkv, Tq, Dk), (B, Hkv, Tk, Dk), (B, Hkv, Tk, Dv)
    q, k, v = (torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes)
    return q * size, k, v


@settings(max_examples=examples(25), deadline=None)
@given(
    G=st.integers(1, 3), Tq=LENGTHS, Tk=st.sampled_from([0, 1, 7, 16, 17, 33]), Dk=st.sampled_from([1, 8, 17]),
    Dv=st.sampled_from([1, 16, 20]), causal=st.booleans(), tiles=st.sampled_from([None, SMALL, OTHER]),
    size=st.sampled_from([1.0, 1e3]), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_output_and_lse_agree_with_the_definition_on_any_shape(G, Tq, Tk, Dk, Dv, causal, tiles, size, seed):
    torch.manual_seed(seed)
    q, k, v = qkv(1, G, 2, Tq, Tk, Dk, Dv, size=size)
    o, lse = flash_attention(q, k, v, causal=causal, return_lse=True, tiles=tiles)
    exact, exact_lse = naive_attention(q.double(), k.double(), v.double(), causal=causal, return_lse=True)
    torch.testing.assert_close(o.double(), exact, atol=1e-3 if size > 1 else 2e-5, rtol=1e-3 if size > 1 else 2e-5)
    torch.testing.assert_close(lse.double(), exact_lse.double(), atol=1e-2 if size > 1 else 2e-5, rtol=2e-5)
    assert o.dtype == q.dtype and lse.dtype == torch.float32


@pytest.mark.skipif(not interpreting(), reason="the sanitizer watches the interpreter")
@settings(max_examples=8, deadline=None)
@given(G=st.integers(1, 2), Tq=LENGTHS, Tk=LENGTHS, D=st.sampled_from([5, 16]), causal=st.booleans())
def test_no_lane_leaves_its_tensor_and_every_element_of_o_is_stored_once(G, Tq, Tk, D, causal):
    q, k, v = qkv(1, G, 2, Tq, Tk, D, D)
    with sanitizer.watch(q=q, k=k, v=v) as report:
        o, lse = launch(q, k, v, causal, 1.0, "ieee", SMALL, None)
    assert report.ok, report
    assert report.bytes_stored == {"o_ptr": o.nbytes, "lse_ptr": lse.nbytes}
    assert report.bytes_loaded["q"] == q.nbytes


def test_the_result_does_not_depend_on_the_strides_of_the_inputs():
    q, k, v = (torch.randn(2, 9, 4, 16, device=DEVICE).transpose(1, 2) for _ in range(3))
    expected = naive_attention(q, k, v, causal=True)
    torch.testing.assert_close(flash_attention(q, k, v, causal=True), expected, atol=1e-5, rtol=1e-5)
    q, k, v = (x[..., ::2] for x in (q, k, v))
    torch.testing.assert_close(flash_attention(q, k, v), naive_attention(q, k, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(0, 2, 3), (1, 2, 0)])
def test_empty_tensors_give_empty_results(shape):
    B, H, T = shape
    q, k = torch.randn(B, H, T, 8, device=DEVICE), torch.randn(B, max(H, 1), 5, 8, device=DEVICE)
    o, lse = flash_attention(q, k, k, return_lse=True)
    assert o.shape == (B, H, T, 8) and lse.shape == (B, H, T)


def test_half_precision_errs_at_most_twice_as_much_as_eager_code():
    dtypes = [torch.float16] if interpreting() else [torch.float16, torch.bfloat16]
    for dtype in dtypes:
        q, k, v = qkv(2, 2, 2, 33, 65, 32, 32, dtype)
        exact = naive_attention(q.double(), k.double(), v.double(), causal=True)
        eager = (eager_attention(q, k, v, causal=True).double() - exact).abs().max()
        assert (flash_attention(q, k, v, causal=True).double() - exact).abs().max() <= 2 * eager + 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("D", [64, 96, 128, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_large_inputs_on_a_gpu_err_at_most_twice_as_much_as_eager_code(dtype, D, causal):
    for G, Tq, Tk in ((1, 1000, 1000), (4, 1, 777), (3, 257, 1025)):
        q, k, v = qkv(2, G, 2, Tq, Tk, D, D, dtype)
        exact = naive_attention(q.double(), k.double(), v.double(), causal=causal)
        eager = (eager_attention(q, k, v, causal=causal).double() - exact).abs().max()
        assert (flash_attention(q, k, v, causal=causal).double() - exact).abs().max() <= 2 * eager + 2e-5


@pytest.mark.gpu
def test_opcheck_and_compile_accept_the_operator():
    q, k, v = qkv(1, 2, 2, 70, 70, 64, 64, torch.bfloat16)
    torch.library.opcheck(flash_forward, (q, k, v, True, 0.125, "ieee", None))
    compiled = torch.compile(lambda q, k, v: flash_attention(q, k, v, causal=True) * 2, fullgraph=False)
    torch.testing.assert_close(compiled(q, k, v), flash_attention(q, k, v, causal=True) * 2)


@pytest.mark.parametrize("autotune", [False, True])
def test_gradients_of_o_and_of_lse_are_those_of_the_definition(autotune):
    torch.manual_seed(4)
    arguments = [x.requires_grad_() for x in qkv(1, 2, 2, 5, 19, 16, 8)]
    exact = [x.detach().double().requires_grad_() for x in arguments]
    found = flash_attention(*arguments, causal=True, return_lse=True, autotune=autotune)
    expected = naive_attention(*exact, causal=True, return_lse=True)
    weights = [torch.randn_like(x) for x in found]
    for outputs, inputs in ((found, arguments), (expected, exact)):
        sum((x * w.to(x.dtype)).sum() for x, w in zip(outputs, weights, strict=True)).backward()
        assert all(x.grad is not None for x in inputs)
    for mine, theirs in zip(arguments, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, atol=2e-5, rtol=2e-5)


def test_torch_can_trace_the_operator():
    q, k, v = (x.requires_grad_() for x in qkv(1, 2, 1, 5, 7, 8, 4))
    torch.library.opcheck(flash_forward, (q, k, v, True, 0.3, "ieee", [16, 16, 4, 1]))


def test_another_kernel_can_be_launched_with_the_same_grid():
    calls = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **options: calls.append((grid, options["BLOCK_M"]))

    q, k, v = qkv(2, 2, 3, 20, 9, 16, 16)
    flash_attention(q, k, v, kernel=Kernel(), tiles=SMALL)
    assert calls == [((3, 6), 16)]  # 40 rows are three tiles; two sequences of three key heads


def test_refusals_name_the_argument():
    q, k, v = qkv(1, 1, 1, 4, 4, 8, 8)
    with pytest.raises(ValueError, match='precision must be "ieee" or "tf32"'):
        flash_attention(q, k, v, precision="high")
    with pytest.raises(ValueError, match="q must be float32, float16 or bfloat16"):
        flash_attention(q.double(), k.double(), v.double())
    with pytest.raises(ValueError, match="heads of at most 256"):
        flash_attention(*qkv(1, 1, 1, 4, 4, 257, 8))
    if interpreting():
        with pytest.raises(ValueError, match="interpreter"):
            flash_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    else:
        with pytest.raises(ValueError, match="on a GPU"):
            flash_attention(q.cpu(), k.cpu(), v.cpu())
