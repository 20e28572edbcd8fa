"""The MLA decode kernel for Hopper: compiled for it, run by simulated warps, and on a Hopper GPU, its numbers."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention.hopper.simulated.processor import Deadlock, Race
from llmsys.attention.latent import latent_decode
from llmsys.attention.latent.hopper import hopper_takes
from llmsys.attention.latent.hopper.decode import kernel_constants
from llmsys.attention.paged import paged_attention_reference
from llmsys.hardware.compiler import Build, Compiled, compile_kernels
from llmsys.hardware.tier import load_triton, triton_installed
from tests.attention.sample import examples, sample
from tests.support.ragged import Ragged, Shape, ragged

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
KERNEL = "llmsys.attention.latent.hopper.kernel:latent_decode_kernel"
DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
SM_90 = 227 * 1024  # bytes of shared memory that a program can have
SCALE = 192**-0.5

on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")
with_triton = pytest.mark.skipif(not triton_installed(), reason="needs Triton")
if triton_installed():
    load_triton()
    from llmsys.attention.latent.hopper.simulated import latent_kernel_here, simulate_latent_decode


def batch_of(sequences, heads: int, page: int = 64, **options) -> Ragged:
    pad = options.pop("pad", 0)
    return ragged(Shape(sequences, page, heads, 1, 576, 512, pad=pad), **options)


def step_of(batch: Ragged) -> dict:
    names = ("query_start_loc", "seq_lens", "block_table")
    return {name: batch.step[name] for name in names} | {"scale": SCALE}


def expected(batch: Ragged) -> tuple[torch.Tensor, torch.Tensor]:
    pages = batch.key_pages.double()[:, :, :1]
    return paged_attention_reference(batch.q.double(), pages, pages[..., :512], **step_of(batch), return_lse=True)


# Compiled for Hopper, without one


def build(heads, members, page, dtype) -> Build:
    def described(*shape):
        layout = "NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2, "
        return f"tensordesc<{DTYPES[dtype]}{list(shape)},{layout}transposed=False, fp4_padded=False, cga_layout=[])>"

    signature = {"q_desc": described(64, 64), "pages_desc": described(min(page, 64), 64), "o_ptr": f"*{DTYPES[dtype]}"}
    signature |= dict.fromkeys(("lse_ptr", "part_ptr", "part_lse_ptr"), "*fp32")
    signature |= dict.fromkeys(("cuts_ptr", "starts_ptr", "lengths_ptr", "table_ptr"), "*i32")
    signature |= {"table_stride": "i32", "S": "i32", "scale_log2": "fp32"}
    return Build(KERNEL, signature, kernel_constants(heads, members, page, 128), num_warps=4)


@with_triton
def test_compiled_for_hopper_one_program_fits_on_an_sm_and_no_product_waits_for_registers(tmp_path):
    always = [((128, 2), 64, torch.bfloat16)]
    every = itertools.product(((16, 1), (128, 2), (128, 4), (9, 1)), (16, 32, 64, 256), DTYPES)
    cases = sample(every, 1, always=always)
    kernels = compile_kernels([build(*each, *rest) for each, *rest in cases], cache=tmp_path)
    for (each, page, dtype), kernel in zip(cases, kernels, strict=True):
        assert isinstance(kernel, Compiled), kernel
        what = f"heads and members {each}, page {page}, {dtype}: {kernel}"
        assert kernel.spill_bytes <= 300, what  # once an entry, and by those who copy; loops with products have none
        assert kernel.shared_bytes <= SM_90, what
        assert not [warning for warning in kernel.warnings if "wgmma" in warning], kernel.warnings
        assert kernel.num_warps == 16 and "ttg.warp_specialize" in kernel.ttgir, what
        assert kernel.occupancy().programs == 1, what  # two at a time have hung
        assert kernel.ptx.count("griddepcontrol.launch_dependents") == 1, what  # the merge may be launched
        assert set(re.findall(r"wgmma\.mma_async\S*\.m64n(\d+)k16", kernel.ptx)) == {"64", "128"}, what
        units = 64 // min(page, 64)
        assert kernel.ptx.count("cp.async.bulk.tensor.2d") == 9 * units + 9, what  # a tile, and queries


# The kernel on simulated warps


def check(sequences, heads, page=64, *, seed=0, teams=3, max_query_len=1, pad=0, kernel=None):
    batch = batch_of(sequences, heads, page, pad=pad, seed=seed, dtype=torch.float16)
    o, lse = simulate_latent_decode(
        batch.q, batch.key_pages[:, :, 0], **step_of(batch), max_query_len=max_query_len, seed=seed, teams=teams,
        kernel=kernel,
    )  # fmt: skip
    exact, exact_lse = expected(batch)
    torch.testing.assert_close(o.double(), exact, atol=4e-3, rtol=4e-3)
    torch.testing.assert_close(lse.double(), exact_lse.double(), atol=1e-3, rtol=1e-3)


@with_triton
@settings(max_examples=examples(8), deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 16, 63, 64, 65, 129, 300]), min_size=1, max_size=4),
    brings=st.lists(st.sampled_from([0, 1, 1, 2, 3]), min_size=4, max_size=4), page=st.sampled_from([16, 32, 64, 128]),
    heads=st.sampled_from([1, 16, 33, 64, 128]), pad=st.sampled_from([0, 3]), said=st.sampled_from([1, 2, 9]),
    teams=st.integers(1, 7), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_simulated_results_agree_with_the_definition_wherever_the_line_is_cut(
    lengths, brings, page, heads, pad, said, teams, seed
):
    sequences = tuple(zip(brings, lengths, strict=False))
    if sum(brings[: len(lengths)]) + pad:
        check(sequences, heads, page, seed=seed, teams=teams, max_query_len=said, pad=pad)


@with_triton
def test_one_sequence_shared_by_many_teams_is_added_up_from_all_parts():
    check(((1, 1400),), 16, teams=11)
    check(((2, 400),), 33, teams=3, max_query_len=2)


@with_triton
@pytest.mark.parametrize(("teams", "cut"), [(2, True), (3, False), (4, False), (5, True)])
def test_sequences_of_one_length_are_cut_only_where_runs_of_whole_ones_would_be_much_longer(teams, cut):
    left, kernel = [], latent_kernel_here()
    consumers = kernel.__globals__["accumulate"].__globals__
    store = consumers["store"]

    def noting(half, o_ptr, *rest):
        left.extend([half] if o_ptr.memory.dtype == torch.float32 else [])
        store(half, o_ptr, *rest)

    consumers["store"] = noting
    check(((1, 500), (1, 481), (1, 512)), 16, teams=teams, kernel=kernel)  # three of eight tiles each
    assert left.count(0) == left.count(1) and (len(left) > 0) == cut


def outcomes(kernel, seeds=8):
    """What running a wrong kernel leads to, in words."""
    for seed in range(seeds):
        try:
            check(((1, 400), (1, 90)), 16, seed=seed, kernel=kernel)
            yield "right"
        except AssertionError:
            yield "wrong"
        except (Race, Deadlock) as error:
            yield f"{type(error).__name__}: {error}"


def ring_of(kernel):
    return kernel.__globals__["new_latent_ring"].__globals__["LatentRing"]


@with_triton
def test_a_tile_that_is_not_given_back_ends_in_a_deadlock():
    kernel = latent_kernel_here()
    ring_of(kernel).give_back = lambda self, i: None
    assert re.match(r"Deadlock: .*copy_latents 3 waits for LatentRing.empty\[\d\] to end", next(outcomes(kernel)))


@with_triton
def test_a_tile_that_is_given_back_before_it_is_multiplied_is_found_out():
    kernel = latent_kernel_here()
    ring = ring_of(kernel)
    take, give_back = ring.weights_and_values, ring.give_back

    def hasty(self, i, half):
        found = take(self, i, half)
        give_back(self, i)
        return found

    ring.weights_and_values, ring.give_back = hasty, lambda self, i: None
    found = set(outcomes(kernel))
    assert any(each == "wrong" or "a copy is started into a tile that a product" in each for each in found), found


@with_triton
def test_weights_that_are_put_over_keys_that_a_product_still_reads_are_found_out():
    kernel = latent_kernel_here()
    consumers = kernel.__globals__["score"].__globals__
    consumers["warpgroup_mma_wait"] = lambda pending, products: products[0]  # nobody waits
    assert any(each.startswith("Race") for each in outcomes(kernel))


@with_triton
def test_what_nobody_wrote_spoils_results_unless_it_is_cleared():
    kernel = latent_kernel_here()
    ring_of(kernel).clear = lambda self, i, end: None
    assert "wrong" in set(outcomes(kernel))


# On the GPU


def call(batch, **options):
    said = {"latent": 512, "max_query_len": batch.step["max_query_len"]} | options
    return latent_decode(batch.q, batch.key_pages[:, :, 0], **step_of(batch), **said)


MANY = tuple((1, n) for n in (1, 4000, 0, 16, 17, 63, 64, 65, 3001, 128, 1000)) + ((0, 50), (0, 0), (1, 2))


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("page", [16, 64, 256])
@pytest.mark.parametrize("heads", [1, 16, 20, 32, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_decoding_errs_no_more_than_rounding_explains_and_gives_the_same_bits_again(dtype, heads, page):
    batch = batch_of(MANY, heads, page, pad=3, dtype=dtype, device="cuda")
    o, lse = call(batch, return_lse=True, language="gluon")
    exact, exact_lse = expected(batch)
    worst = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]  # of a sequence of one key, whose o is its latent
    torch.testing.assert_close(o.double(), exact, atol=worst, rtol=worst)
    torch.testing.assert_close(lse.double(), exact_lse.double(), atol=1e-3, rtol=1e-3)
    for _ in range(3):
        again, again_lse = call(batch, return_lse=True, language="gluon")
        assert torch.equal(o, again) and torch.equal(lse, again_lse)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("said", [1, 2, 4])
@pytest.mark.parametrize("heads", [16, 128])
def test_several_tokens_a_sequence_are_causal_whatever_was_said(heads, said):
    sequences = ((2, 3000), (1, 77), (5, 200), (2, 2), (3, 1), (0, 9), (17, 640))
    batch = batch_of(sequences, heads, pad=2, dtype=torch.bfloat16, device="cuda")
    exact, _ = expected(batch)
    for language in ("gluon", "triton"):
        o = call(batch, language=language, max_query_len=said)
        torch.testing.assert_close(o.double(), exact, atol=1.6e-2, rtol=1.6e-2)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize(("B", "length"), [(1, 1), (1, 30_000), (3, 100), (132, 3001), (128, 1024), (1500, 100)])
def test_any_number_of_sequences_is_decoded(B, length):
    sequences = tuple((1, max(length - 13 * i % (length + 5), 0)) for i in range(B))
    for heads in (16, 128):
        batch = batch_of(sequences, heads, dtype=torch.bfloat16, device="cuda")
        torch.testing.assert_close(
            call(batch, language="gluon"), call(batch, language="triton"), atol=2e-2, rtol=2e-2
        )  # fmt: skip


@pytest.mark.gpu
@on_hopper
def test_one_graph_serves_other_lengths():
    batch = batch_of(tuple((1, n) for n in (1000, 5, 300, 64)), 128, dtype=torch.bfloat16, device="cuda")
    call(batch)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [call(batch) for _ in range(3)]
    for lengths in ([16, 5, 16, 16], [400, 5, 300, 0], [1000, 1, 299, 63]):
        batch.step["seq_lens"].copy_(torch.tensor(lengths))
        graph.replay()
        exact, _ = expected(batch)
        for o in results:
            torch.testing.assert_close(o.double(), exact, atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@on_hopper
def test_steps_go_to_the_kernel_that_takes_them():
    batch = batch_of(((1, 30), (1, 20)), 16, dtype=torch.bfloat16, device="cuda")
    q, pages, table = batch.q, batch.key_pages[:, :, 0], batch.step["block_table"]
    assert hopper_takes(q, pages, 512, table)
    assert not hopper_takes(q.float(), pages.float(), 512, table)
    assert not hopper_takes(q, pages, 448, table)
    assert not hopper_takes(q.repeat(1, 9, 1), pages, 512, table)
    assert not hopper_takes(q, pages[::2], 512, table)
    assert torch.equal(call(batch), call(batch, language="gluon"))
