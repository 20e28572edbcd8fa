"""The paged decode kernel for Hopper: compiled for it, run by simulated warps, and on a Hopper GPU, its numbers."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention.hopper.simulated.processor import Deadlock, Race
from llmsys.attention.paged import paged_attention, paged_attention_reference
from llmsys.attention.paged.hopper import DecodeTiles, decode_tiles, hopper_decode, hopper_takes
from llmsys.attention.paged.hopper.counters import counters_for
from llmsys.attention.paged.hopper.simulated import decode_kernel_here, simulate_decode
from llmsys.hardware.compiler import Build, Compiled, compile_kernels
from llmsys.hardware.tier import load_triton, triton_installed
from tests.attention.sample import examples, sample
from tests.support.ragged import Shape, ragged

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
KERNEL = "llmsys.attention.paged.hopper.kernel:paged_decode_kernel"
DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
SM_90 = 227 * 1024  # bytes of shared memory that a program can have

on_hopper = pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")
with_triton = pytest.mark.skipif(not triton_installed(), reason="needs Triton")
if triton_installed():
    load_triton()


# Compiled for Hopper, without one


def build(D, Hq, Hkv, page, dtype=torch.bfloat16, tiles=None, S=64) -> Build:
    tiles = tiles or decode_tiles(D, Hq, Hkv, page)
    together = Hkv if tiles.together else 1
    heads = Hq // Hkv * together
    columns = max(8, 1 << (heads - 1).bit_length())

    def described(*shape):
        layout = f"NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank={len(shape)}, "
        return f"tensordesc<{DTYPES[dtype]}{list(shape)},{layout}transposed=False, fp4_padded=False, cga_layout=[])>"

    signature = {"q_desc": described(1, 1, columns, D)}
    signature |= {f"{x}_desc": described(tiles.unit, 64) for x in "kv"}
    signature |= {"o_ptr": f"*{DTYPES[dtype]}"} | dict.fromkeys(("lse_ptr", "part_ptr", "part_lse_ptr"), "*fp32")
    signature |= dict.fromkeys(("counters_ptr", "starts_ptr", "lengths_ptr", "table_ptr"), "*i32")
    signature |= dict.fromkeys(("table_stride", "S", "N", "groups", "rows"), "i32") | {"scale_log2": "fp32"}
    constants = {
        "HEADS": heads, "TOGETHER": together, "PAGE": page, "BLOCK_S": max(128, 1 << (S - 1).bit_length()),
        "BLOCK_N": tiles.block_n, "SLOTS": tiles.slots, "PRODUCER_REGISTERS": tiles.registers,
    }  # fmt: skip
    return Build(KERNEL, signature, constants, num_warps=4)


@with_triton
def test_compiled_for_hopper_one_program_fits_on_an_sm_and_nothing_spills(tmp_path):
    always = [(128, 32, 8, 16, torch.bfloat16), (64, 9, 3, 16, torch.bfloat16)]
    heads = ((128, 32, 8), (64, 9, 3), (128, 32, 1), (64, 32, 1), (64, 8, 8), (128, 8, 8))
    cases = sample(
        [(*each, page, dtype) for each, page, dtype in itertools.product(heads, (16, 256), DTYPES)], 1, always=always
    )
    kernels = compile_kernels([build(*case) for case in cases], cache=tmp_path)
    for (D, Hq, Hkv, page, dtype), kernel in zip(cases, kernels, strict=True):
        assert isinstance(kernel, Compiled), kernel
        what = f"D {D}, {Hq}/{Hkv} heads, page {page}, {dtype}: {kernel}"
        assert kernel.spill_bytes == 0, what
        assert kernel.shared_bytes <= SM_90, what
        assert not [each for each in kernel.warnings if "wgmma" in each], kernel.warnings
        assert kernel.num_warps == 8 and "ttg.warp_specialize" in kernel.ttgir, what
        assert kernel.occupancy().programs == 1, what  # two at a time have hung
        tiles = decode_tiles(D, Hq, Hkv, page)
        asked = {int(n) for n in re.findall(r"setmaxnreg\.(?:inc|dec)\.sync\.aligned\.u32\s+(\d+)", kernel.ptx)}
        assert tiles.registers in asked, what
        columns = max(8, 1 << (Hq // Hkv * (Hkv if tiles.together else 1) - 1).bit_length())
        assert set(re.findall(r"wgmma\.mma_async\S*\.m64n(\d+)k16", kernel.ptx)) == {str(columns)}, what
        boxes = 2 * tiles.block_n // tiles.unit * D // 64
        assert kernel.ptx.count("cp.async.bulk.tensor.2d") == boxes, what  # each unit of keys and of values, once
        assert "mbarrier.try_wait" in kernel.ptx and re.search(r"atom\S*\.acq_rel", kernel.ptx), what


# The kernel on simulated warps


def check(shape: Shape, tiles: DecodeTiles | None = None, *, seed=0, programs=3, dtype=torch.float16):
    batch = ragged(shape, seed=seed, dtype=dtype)
    o, lse = simulate_decode(
        batch.q, batch.key_pages, batch.value_pages, **batch.step, seed=seed, programs=programs, tiles=tiles
    )  # fmt: skip
    exact, exact_lse = batch.expected()
    torch.testing.assert_close(o.double(), exact, atol=4e-3, rtol=4e-3)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-3, rtol=1e-3)


TILES = [
    DecodeTiles(64, 2), DecodeTiles(128, 3), DecodeTiles(64, 2, together=True), DecodeTiles(128, 2, together=True),
    DecodeTiles(64, 1, unit=32), DecodeTiles(64, 3, unit=64),
]  # fmt: skip


@settings(max_examples=examples(12), deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 15, 16, 17, 63, 64, 100, 129, 520]), min_size=1, max_size=5),
    brings=st.lists(st.sampled_from([0, 1, 1, 1]), min_size=5, max_size=5), page=st.sampled_from([64, 128]),
    G=st.integers(1, 4), Hkv=st.integers(1, 3), D=st.sampled_from([64, 128]), pad=st.sampled_from([0, 3]),
    tiles=st.sampled_from(TILES), programs=st.integers(1, 9), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_simulated_results_agree_with_the_definition_wherever_the_line_is_cut(
    lengths, brings, page, G, Hkv, D, pad, tiles, programs, seed
):
    sequences = tuple(zip(brings, lengths, strict=False))
    if not sum(brings[: len(lengths)]) + pad:
        return
    check(Shape(sequences, page, G, Hkv, D, D, pad=pad), tiles, seed=seed, programs=programs)


@pytest.mark.parametrize("page", [16, 32, 256])
def test_pages_of_any_size_hold_whole_units(page):
    check(Shape(((1, 70), (1, 0), (0, 20), (1, 300)), page, 3, 3, 64, 64), DecodeTiles(128, 2, together=True))
    check(Shape(((1, 70), (1, 0), (0, 20), (1, 300)), page, 2, 2, 128, 128), DecodeTiles(64, 2))


def test_a_sequence_may_bring_more_tokens_than_was_said():
    check(Shape(((3, 40), (1, 17), (5, 3)), 16, 2, 2, 64, 64, pad=1), DecodeTiles(64, 2), programs=4)


def test_one_head_shared_by_many_programs_is_added_up_from_all_parts():
    check(Shape(((1, 1500),), 16, 1, 1, 64, 64), DecodeTiles(64, 2), programs=11)


@pytest.mark.parametrize(("programs", "parts"), [(5, 0), (8, 0), (3, 4)])
def test_heads_of_one_length_are_cut_only_where_runs_of_whole_ones_would_be_much_longer(programs, parts):
    shape, left = Shape(((1, 250), (1, 241)), 16, 1, 2, 64, 64), []  # four heads of 16 units each
    kernel = decode_kernel_here()
    consume = kernel.__globals__["consume"].__globals__
    leave = consume["leave"]
    consume["leave"] = lambda *a: [left.append(a[4]), leave(*a)]
    batch = ragged(shape, dtype=torch.float16)
    o, _ = simulate_decode(
        batch.q, batch.key_pages, batch.value_pages, **batch.step, programs=programs, tiles=DecodeTiles(64, 2),
        kernel=kernel,
    )  # fmt: skip
    torch.testing.assert_close(o.double(), batch.expected()[0], atol=4e-3, rtol=4e-3)
    assert len(left) == parts


def outcomes(kernel, seeds=12):
    """What running a wrong kernel leads to, in words."""
    for seed in range(seeds):
        batch = ragged(Shape(((1, 400), (1, 90)), 16, 2, 1, 64, 64), seed=seed, dtype=torch.float16)
        try:
            o, _ = simulate_decode(
                batch.q, batch.key_pages, batch.value_pages, **batch.step, tiles=DecodeTiles(64, 2), seed=seed,
                kernel=kernel,
            )  # fmt: skip
            yield "right" if (o.double() - batch.expected()[0]).abs().max() < 4e-3 else "wrong"
        except (Race, Deadlock) as error:
            yield f"{type(error).__name__}: {error}"


def ring_of(kernel):
    return kernel.__globals__["new_page_ring"].__globals__["PageRing"]


def test_a_tile_that_is_not_given_back_ends_in_a_deadlock():
    kernel = decode_kernel_here()
    ring_of(kernel).give_back = lambda self, i: None
    assert re.match(r"Deadlock: .*produce 1 waits for PageRing.empty\[\d\] to end", next(outcomes(kernel)))


def test_a_tile_that_is_given_back_before_it_is_read_is_found_out():
    kernel = decode_kernel_here()
    ring = ring_of(kernel)
    take, give_back = ring.take, ring.give_back

    def hasty(self, i):
        tiles = take(self, i)
        give_back(self, i)
        return tiles

    ring.take, ring.give_back = hasty, lambda self, i: None
    found = set(outcomes(kernel))
    assert any(each == "wrong" or "a copy is started into a tile that a product" in each for each in found), found


def test_what_nobody_wrote_spoils_results_unless_it_is_cleared():
    kernel = decode_kernel_here()
    ring_of(kernel).clear = lambda self, i, end, unit: None
    assert "wrong" in set(outcomes(kernel))


@pytest.mark.parametrize(
    ("language", "message"),
    [("cuda", 'must be "auto", "triton" or "gluon", got'), ("gluon", "decode steps on a Hopper")],
)
def test_a_language_that_there_is_not_or_not_for_this_step_is_refused(language, message):
    batch = ragged(Shape(((2, 5),), 16, 1, 1, 64, 64), dtype=torch.float16)
    with pytest.raises(ValueError, match=f"language .*{message}"):
        paged_attention(batch.q, batch.key_pages, batch.value_pages, **batch.step, language=language)


# On the GPU


def call(batch, **options):
    return paged_attention(batch.q, batch.key_pages, batch.value_pages, **batch.step, **options)


MANY = tuple((1, n) for n in (1, 4000, 0, 16, 17, 127, 128, 129, 3001, 64, 1000)) + ((0, 50), (0, 0), (1, 2))


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("page", [16, 64, 256])
@pytest.mark.parametrize(
    ("D", "G", "Hkv"), [(64, 3, 3), (128, 4, 8), (128, 1, 4), (64, 1, 8), (128, 16, 1), (64, 17, 2), (128, 32, 1)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_decoding_errs_no_more_than_rounding_explains_and_gives_the_same_bits_again(dtype, D, G, Hkv, page):
    batch = ragged(Shape(MANY, page, G, Hkv, D, D, pad=3), dtype=dtype, device="cuda")
    o, lse = call(batch, return_lse=True, language="gluon")
    exact, exact_lse = paged_attention_reference(
        batch.q.double(), batch.key_pages.double(), batch.value_pages.double(), **batch.step, return_lse=True
    )
    worst = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]  # of a sequence of one key, whose o is v
    torch.testing.assert_close(o.double(), exact, atol=worst, rtol=worst)
    torch.testing.assert_close(lse.double(), exact_lse.double(), atol=1e-3, rtol=1e-3)
    for _ in range(3):
        again, again_lse = call(batch, return_lse=True, language="gluon")
        assert torch.equal(o, again) and torch.equal(lse, again_lse)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize(("B", "length"), [(1, 1), (1, 3001), (3, 100), (132, 3001), (1500, 100)])
def test_any_number_of_sequences_is_decoded(B, length):
    sequences = tuple((1, max(length - 13 * i % (length + 5), 0)) for i in range(B))
    for shape in (Shape(sequences, 16, 3, 3, 64, 64), Shape(sequences, 16, 4, 1, 128, 128)):
        batch = ragged(shape, dtype=torch.bfloat16, device="cuda")
        torch.testing.assert_close(
            call(batch, language="gluon"), call(batch, language="triton"), atol=2e-2, rtol=2e-2
        )  # fmt: skip


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("tiles", TILES)
def test_all_tiles_give_right_results(tiles):
    shape = Shape(MANY, 64, 3, 3, 64, 64)
    batch = ragged(shape, dtype=torch.bfloat16, device="cuda")
    o, lse = torch.empty_like(batch.q), torch.empty(batch.q.shape[:2], device="cuda")
    step = (batch.step[name] for name in ("query_start_loc", "seq_lens", "block_table"))
    hopper_decode(batch.q, batch.key_pages, batch.value_pages, o, lse, *step, 0.125, 132, tiles)
    torch.testing.assert_close(o.double(), batch.expected()[0], atol=1.6e-2, rtol=1.6e-2)


@pytest.mark.gpu
@on_hopper
def test_one_graph_serves_other_lengths_on_any_stream_and_two_graphs_do_not_meet():
    batches = [
        ragged(Shape(tuple((1, n) for n in lengths), 16, 4, 2, 128, 128), dtype=torch.bfloat16, device="cuda", width=70)
        for lengths in ([1000, 5, 300], [900, 1100, 7])
    ]
    graphs, results = [], []
    for batch in batches:
        call(batch)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results.append([call(batch) for _ in range(5)])
        graphs.append(graph)
    streams = [torch.cuda.Stream() for _ in graphs]
    for lengths in ([16, 16, 16], [400, 5, 300], [1, 1, 0]):
        for batch, its_lengths in zip(batches, ([min(a, b) for a, b in zip(lengths, each.step["seq_lens"].tolist(),
                                                strict=True)] for each in batches), strict=True):  # fmt: skip
            batch.step["seq_lens"].copy_(torch.tensor(its_lengths))
        torch.cuda.synchronize()
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        torch.cuda.synchronize()
        for batch, found in zip(batches, results, strict=True):
            expected = paged_attention_reference(
                batch.q.float(), batch.key_pages.float(), batch.value_pages.float(), **batch.step
            )  # fmt: skip
            for o in found:
                torch.testing.assert_close(o.float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@on_hopper
def test_decode_steps_go_to_the_kernel_and_others_do_not():
    batch = ragged(Shape(((1, 30), (1, 20)), 16, 2, 2, 64, 64), dtype=torch.bfloat16, device="cuda")
    q, k, v, table = batch.q, batch.key_pages, batch.value_pages, batch.step["block_table"]
    assert hopper_takes(q, k, v, table, 1, False)
    assert not hopper_takes(q, k, v, table, 2, False) and not hopper_takes(q, k, v, table, 1, True)
    assert not hopper_takes(q.float(), k.float(), v.float(), table, 1, False)
    assert not hopper_takes(q, k.transpose(1, 2).contiguous().transpose(1, 2), v, table, 1, False)
    assert math.isfinite(call(batch).float().sum().item())


@pytest.mark.gpu
@on_hopper
def test_launches_that_may_meet_have_counters_of_their_own():
    device = torch.device("cuda")
    mine = counters_for(device, 132)
    assert counters_for(device, 132).data_ptr() == mine.data_ptr() and not mine.any()
    with torch.cuda.stream(torch.cuda.Stream()):
        assert counters_for(device, 132).data_ptr() != mine.data_ptr()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        captured = [counters_for(device, 132).data_ptr() for _ in range(3)]
        torch.zeros(1, device=device)  # a graph of nothing is warned of
    assert len({*captured, mine.data_ptr()}) == 4
