"""The one-head kernel against attention from the definition, and never outside its tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention import naive_attention
from llmsys.bench.low_precision import eager_attention
from llmsys.hardware import sanitizer
from llmsys.hardware.tier import interpreting, triton_device, triton_installed

if not triton_installed():
    pytest.skip("Triton is not installed here", allow_module_level=True)

from llmsys.attention.one_head import attend_one_head, one_head_kernel  # noqa: E402

DEVICE = triton_device()
if DEVICE.type == "cuda" and not torch.cuda.is_available():
    pytest.skip("Triton compiles in this process, and there is no GPU", allow_module_level=True)
LENGTHS = st.sampled_from([0, 1, 2, 7, 16, 17, 33])


def qkv(Tq, Tk, D=16, dtype=torch.float32, size=1.0):
    q, k, v = (torch.randn(T, D, device=DEVICE).to(dtype) for T in (Tq, Tk, Tk))
    return q * size, k, v


def exact(q, k, v, **options):
    return naive_attention(*(x.double()[None, None] for x in (q, k, v)), **options)[0, 0]


@settings(max_examples=30, deadline=None)
@given(
    Tq=LENGTHS, Tk=LENGTHS, D=st.sampled_from([16, 32]), causal=st.booleans(), scale=st.sampled_from([None, 0.7]),
    block_m=st.sampled_from([16, 32]), block_n=st.sampled_from([16, 32]), size=st.sampled_from([1.0, 1e3]),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_agrees_with_the_definition_on_any_length(Tq, Tk, D, causal, scale, block_m, block_n, size, seed):
    torch.manual_seed(seed)
    q, k, v = qkv(Tq, Tk, D, size=size)
    o = attend_one_head(q, k, v, causal=causal, scale=scale, block_m=block_m, block_n=block_n)
    tolerance = 1e-3 if size > 1 else 1e-5
    torch.testing.assert_close(o.double(), exact(q, k, v, causal=causal, scale=scale), atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(not interpreting(), reason="the sanitizer watches the interpreter")
@pytest.mark.parametrize(("Tq", "Tk", "causal"), [(33, 17, False), (40, 40, True), (9, 40, True), (40, 9, True)])
def test_no_lane_leaves_its_tensor_and_unseen_tiles_are_not_loaded(Tq, Tk, causal):
    q, k, v = qkv(Tq, Tk)
    with sanitizer.watch(q=q, k=k, v=v) as report:
        o = attend_one_head(q, k, v, causal=causal)
    assert report.ok, report
    keys = 0
    for first in range(0, Tq, 16):  # whole tiles of keys, up to the last that a row of the tile may see
        seen = max(first + 16 + Tk - Tq, 0) if causal else Tk
        keys += min(-(-min(seen, Tk) // 16) * 16, Tk)
    assert report.bytes_loaded == {"q": q.nbytes, "k": keys * 64, "v": keys * 64}
    assert report.bytes_stored == {"o_ptr": o.nbytes}


def test_tokens_may_lie_at_different_distances():
    wide = torch.randn(20, 4 * 16, device=DEVICE)
    q, k, v = wide[:, :16], wide[::2, 16:32], torch.randn(10, 16, device=DEVICE)
    torch.testing.assert_close(attend_one_head(q, k, v).double(), exact(q, k, v), atol=1e-5, rtol=1e-5)


def test_half_precision_errs_at_most_twice_as_much_as_eager_code():
    for dtype in [torch.float16] if interpreting() else [torch.float16, torch.bfloat16]:
        q, k, v = qkv(33, 65, 32, dtype)
        eager = eager_attention(q[None, None], k[None, None], v[None, None])[0, 0].double()
        error = (attend_one_head(q, k, v).double() - exact(q, k, v)).abs().max()
        assert error <= 2 * (eager - exact(q, k, v)).abs().max() + 1e-5


def test_another_kernel_can_be_launched_with_the_same_grid():
    launched = []

    class Spy:
        def __getitem__(self, grid):
            launched.append(grid)
            return one_head_kernel[grid]

    q, k, v = qkv(40, 5)
    torch.testing.assert_close(attend_one_head(q, k, v, kernel=Spy()), attend_one_head(q, k, v))
    assert launched == [(3,)]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda q, k, v: (q[None], k, v), r"q must have shape \(T, D\)"),
        (lambda q, k, v: (q, k.half(), v), "k must be torch.float32"),
        (lambda q, k, v: (q, k[:, :8], v), "k must have heads of 16"),
        (lambda q, k, v: (q, k, v[:4]), "v must have as many tokens as k, 5"),
        (lambda q, k, v: (q[:, :12], k[:, :12], v[:, :12]), "q must have heads of 16, 32, 64, 128, 256"),
        (lambda q, k, v: (q.double(), k.double(), v.double()), "q must be float32, float16 or bfloat16"),
        (lambda q, k, v: (q, k.T.contiguous().T, v), "k must have adjacent elements"),
    ],
)
def test_wrong_arguments_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        attend_one_head(*change(*qkv(3, 5)))
    with pytest.raises(ValueError, match="block_n must be a power of two from 16"):
        attend_one_head(*qkv(3, 5), block_n=24)


@pytest.mark.skipif(not interpreting(), reason="compiled kernels take bfloat16; this is about the interpreter")
def test_bfloat16_is_refused_where_it_would_be_silently_wrong():
    with pytest.raises(ValueError, match="interpreter"):
        attend_one_head(*qkv(3, 5, dtype=torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("D", "block"), [(64, 64), (128, 64), (256, 32)])
def test_large_inputs_on_a_gpu_err_at_most_twice_as_much_as_eager_code(dtype, D, block):
    for Tq, Tk, causal in ((1000, 1000, True), (1, 777, False), (257, 1025, True)):
        q, k, v = qkv(Tq, Tk, D, dtype)
        expected = exact(q, k, v, causal=causal)
        eager = eager_attention(q[None, None], k[None, None], v[None, None], causal=causal)[0, 0].double()
        o = attend_one_head(q, k, v, causal=causal, block_m=block, block_n=block // 2)
        assert (o.double() - expected).abs().max() <= 2 * (eager - expected).abs().max() + 2e-5
