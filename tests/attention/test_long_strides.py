"""Tokens and rows that lie 2^31 elements apart, and further: kernels count elements in 64 bits, or work on a copy."""

import pytest
import torch

from llmsys.attention import naive_attention
from llmsys.attention.flash.backward import backward
from llmsys.attention.flash.forward import MOST_ROWS, flash_attention, launch
from llmsys.attention.hopper.forward import hopper_attention
from llmsys.attention.hopper.schedule import MOST_HEADS, TWO, hopper_schedule
from llmsys.hardware.tier import interpreting, load_triton, triton_device, triton_installed
from tests.hardware.fresh import run_fresh

if not triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)
load_triton()
from llmsys.attention.one_head import attend_one_head  # noqa: E402
from llmsys.attention.row_softmax import softmax_rows  # noqa: E402

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)

FAR = """
import torch
from llmsys.attention import naive_attention
from llmsys.attention.flash.tiles import TileConfig

torch.manual_seed(0)
MEMORY = torch.empty(2**31 + 2**28, dtype=torch.float16)  # 5 GB of addresses, of which a few pages are ever touched
TILES = TileConfig(16, 16, 4, 1)

def far(x, stride):
    "x (1, H, T, D), or x (T, D), as a view whose tokens lie `stride` elements apart."
    strides = (*[0] * (x.dim() - 3), *[x.shape[-1]] * (x.dim() > 2), stride, 1)
    view = MEMORY.as_strided(x.shape, strides)
    view.copy_(x)
    return view
"""


@pytest.mark.skipif(not interpreting(), reason="on a GPU, memory between the tokens would have to be there")
def test_flash_reads_tokens_2_to_the_31_elements_from_the_first():
    # A wrapped address is before the tensor, and would end this process: so it is another one.
    run_fresh(
        FAR
        + """
from llmsys.attention.flash.forward import launch

# With strides of 2^28, the product passes 2^31 within a tile.
for name, stride, T in (("q", 2**27, 17), ("k", 2**27, 17), ("v", 2**27, 17), ("k", 2**28, 9)):
    causal = name != "v"
    x = {each: torch.randn(1, 2 if each == "q" else 1, T, 16).half() for each in "qkv"}
    right = naive_attention(*(x[each].double() for each in "qkv"), causal=causal)
    x[name] = far(x[name], stride)
    o, lse = launch(*x.values(), causal, 0.25, "ieee", TILES)
    gap = (o.double() - right).abs().max()
    assert gap < 2e-3, (name, stride, gap)
""",
        TRITON_INTERPRET="1",
    )


@pytest.mark.skipif(not interpreting(), reason="on a GPU, memory between the tokens would have to be there")
def test_gradients_and_the_first_form_of_flash_and_softmax_rows_are_right_there_too():
    run_fresh(
        FAR
        + """
from llmsys.attention.flash.backward import BackwardTiles, backward
from llmsys.attention.flash.forward import launch
from llmsys.attention.one_head import attend_one_head
from llmsys.attention.row_softmax import softmax_rows
from llmsys.bench.three_pass_softmax import three_pass_kernel

q, k, v, do = (torch.randn(1, 1, 17, 16).half() for _ in range(4))
o, lse = launch(q, k, v, True, 0.25, "ieee", TILES, None)
given = dict(q=q, k=k, v=v, o=o, lse=lse, do=do)
def run(**changed):
    return backward(*(given | changed).values(), None, True, 0.25, "ieee", tiles=BackwardTiles(TILES, TILES))
right = run()
for name in ("q", "k", "v", "o", "do"):
    got = run(**{name: far(given[name], 2**27)})
    assert all(torch.equal(a, b) for a, b in zip(got, right)), name
one = attend_one_head(q[0, 0], k[0, 0], v[0, 0])
assert torch.equal(attend_one_head(far(q[0, 0], 2**27), k[0, 0], v[0, 0]), one)
assert torch.equal(attend_one_head(q[0, 0], far(k[0, 0], 2**27), v[0, 0]), one)
rows = q[0, 0]
for options in ({}, {"kernel": three_pass_kernel}):
    assert torch.equal(softmax_rows(far(rows, 2**27), **options), softmax_rows(rows, **options))
""",
        TRITON_INTERPRET="1",
    )


def test_what_32_bits_cannot_count_is_refused():
    few, many = (torch.empty(1, 1, T, 1, device="meta") for T in (4, MOST_ROWS + 1))
    for q, k, named in ((many, few, "q must .* at most .* rows a key"), (few, many, "k must .* at most .* tokens")):
        with pytest.raises(ValueError, match=named):
            flash_attention(q, k, k)
    one = torch.empty(1, 1, device=triton_device())
    with pytest.raises(ValueError, match=r"k must have fewer than 2\^31 elements a head for stage flash"):
        long = one.expand(1, 1, 2**28, 8)
        launch(one[None, None].expand(1, 1, 1, 8), long, long, False, 1.0, "ieee", None)
    with pytest.raises(ValueError, match=r"q must have fewer than 2\^31 elements here"):
        attend_one_head(one.expand(2**28, 16), one.expand(4, 16), one.expand(4, 16))
    with pytest.raises(ValueError, match="x must have at most 2^31 − 32768 columns".replace("^", r"\^")):
        softmax_rows(one[0].expand(2**31))
    with pytest.raises(ValueError, match="at most 65,535 heads for stage hopper, got 65536"):
        hopper_schedule(1, MOST_HEADS + 1, 1, 1, 1, 64, False, TWO[64], 1)


@pytest.fixture(scope="module")
def fused():
    """20 GiB: 2^18 tokens, each with a row of 40,960 elements, as a fused projection makes it; NaN where not filled."""
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of free memory")
    memory = torch.full((2**18, 40960), float("nan"), dtype=torch.bfloat16, device="cuda")
    torch.manual_seed(0)
    for first in (0, 20_000, 40_960 - 256):
        memory[:, first : first + 256] = torch.randn(2**18, 256, device="cuda").bfloat16()
    yield memory
    del memory
    torch.cuda.empty_cache()


def heads_of(memory, first, D, tokens=slice(None)):
    """(1, 2, T, D): two heads of D in the columns from `first` on."""
    return memory[tokens, first : first + 2 * D].unflatten(1, (2, D)).transpose(0, 1)[None]


on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
STAGES = [flash_attention, pytest.param(hopper_attention, marks=on_hopper)]


@pytest.mark.gpu
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_on_a_gpu_views_of_20_gib_give_what_copies_of_them_give(fused, stage, D, causal):
    k, v = heads_of(fused, 20_000, D), heads_of(fused, 40_960 - 256, D)
    last = heads_of(fused, 0, D, slice(-300, None))
    assert (k.shape[2] - 1) * k.stride(2) > 2**31 and k.isfinite().all()
    o = stage(last, k, v, causal=causal)
    near = stage(last.contiguous(), k.contiguous(), v.contiguous(), causal=causal)
    assert torch.equal(o, near) and o.isfinite().all()
    q, near = heads_of(fused, 0, D), heads_of(fused, 0, D, slice(77))
    o = stage(q, near, near)
    assert torch.equal(o, stage(q.contiguous(), near.contiguous(), near.contiguous())) and o.isfinite().all()


@pytest.mark.gpu
def test_on_a_gpu_gradients_of_such_views_are_those_of_their_copies(fused):
    k, v = heads_of(fused, 20_000, 64), heads_of(fused, 40_960 - 256, 64)
    q, do = heads_of(fused, 0, 64, slice(-300, None)), heads_of(fused, 0, 64, slice(300))
    far, near = (q, k, v, do), [x.contiguous() for x in (q, k, v, do)]
    results = []
    for q, k, v, do in (far, near):
        o, lse = launch(q, k, v, True, 0.125, "ieee", None, None)
        results.append(backward(q, k, v, o, lse, do, None, True, 0.125, "ieee"))
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*results, strict=True))


@pytest.mark.gpu
def test_on_a_gpu_rows_and_blocks_far_apart_are_read_where_they_are(fused):
    rows = fused[:, 20_000:20_256]
    assert torch.equal(softmax_rows(rows), softmax_rows(rows.contiguous()))
    q, k = fused[-40:, :64], fused[:, 20_000:20_064]
    assert torch.equal(attend_one_head(q, k, k), attend_one_head(q.contiguous(), k.contiguous(), k.contiguous()))


@pytest.mark.gpu
@on_hopper
def test_on_a_gpu_codes_of_far_blocks_and_of_more_than_2_to_the_31_elements_are_right(fused):
    from llmsys.attention.hopper.fp8 import _quantize
    from llmsys.precision.fp8 import quantize_blocks

    far = fused[None, None, :, 20_000:20_128]
    for got, right in zip(_quantize(far), _quantize(far.contiguous()), strict=True):
        assert torch.equal(got.view(torch.uint8), right.view(torch.uint8))
    long = fused[:1, 20_000:20_128].expand(2**24 + 128, 128)[None, None]  # codes: 2 GiB
    codes, _ = _quantize(long)
    right, _ = quantize_blocks(long[:, :, -128:])
    assert torch.equal(codes[:, :, -128:].view(torch.uint8), right.view(torch.uint8))
    assert torch.equal(codes[:, :, :128].view(torch.uint8), right.view(torch.uint8))


@pytest.mark.gpu
def test_on_a_gpu_the_definition_agrees_over_many_far_keys(fused):
    k, v = heads_of(fused, 20_000, 64), heads_of(fused, 40_960 - 256, 64)
    q = heads_of(fused, 0, 64, slice(-8, None))
    exact = naive_attention(*(x.double() for x in (q, k, v)), causal=True)
    torch.testing.assert_close(flash_attention(q, k, v, causal=True).double(), exact, atol=1e-3, rtol=1e-2)
