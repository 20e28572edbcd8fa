"""Decoding over pages in its first form, and keys in pieces: right on any step, launched alike whatever the lengths."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention.paged import paged_attention_reference
from llmsys.attention.paged.one_token import attend_one_token, for_model
from llmsys.attention.paged.pieces import split_kv
from llmsys.cache import PagedCache
from llmsys.hardware import sanitizer
from llmsys.hardware.compiler import compile_kernels
from llmsys.hardware.launches import Recorder
from llmsys.hardware.tier import interpreting, load_triton, triton_device, triton_installed
from llmsys.models import Llama, LlamaConfig, generate
from tests.attention.sample import examples
from tests.hardware.fresh import run_fresh
from tests.support.ragged import Shape, ragged, shapes

if not triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)
load_triton()
from llmsys.attention.paged.one_token_kernel import one_token_kernel  # noqa: E402

DEVICE = triton_device()
in_full = partial(attend_one_token, dtype=torch.float32, block_n=16)


def in_pieces(attend, pieces):
    return lambda *given: split_kv(attend, *given, pieces)


def by_definition(q, key_pages, value_pages, seq_lens, block_table):
    """attend in plain PyTorch: o in fp32, and lse."""
    S = len(q)
    return paged_attention_reference(
        q.float(), key_pages.float(), value_pages.float(), query_start_loc=torch.arange(S + 1).int(),
        seq_lens=seq_lens.int(), block_table=block_table.int(), return_lse=True,
    )  # fmt: skip


def decoding(lengths, *, width=0, seed=0, dtype=torch.float32, **sizes):
    """What `attend_one_token` is handed for one token of each sequence, and (o, lse) as expected, in float64."""
    batch = ragged(
        Shape(tuple((1, n) for n in lengths), **sizes), width=width, seed=seed, dtype=dtype, device=DEVICE
    )  # fmt: skip
    given = batch.q, batch.key_pages, batch.value_pages, batch.step["seq_lens"], batch.step["block_table"]
    return given, batch.expected()


def check(found, expected, atol=2e-5):
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, atol=atol, rtol=atol)


lengths_of_steps = st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 31, 32, 33, 64]), min_size=1, max_size=4)


@settings(max_examples=examples(12), deadline=None)
@given(
    lengths=lengths_of_steps, page=st.sampled_from([1, 5, 16, 24, 64]), G=st.sampled_from([1, 3, 4, 17]),
    Hkv=st.integers(1, 2), D=st.sampled_from([1, 8, 20, 33]), block_n=st.sampled_from([16, 32, 64]),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_it_agrees_with_the_definition_whatever_the_sizes(lengths, page, G, Hkv, D, block_n, seed):
    given, expected = decoding(lengths, page=page, G=G, Hkv=Hkv, Dk=D, Dv=D, seed=seed)
    check(attend_one_token(*given, block_n=block_n), expected)


def test_half_precision_and_a_scale_of_ones_own():
    given, expected = decoding([40, 0, 17], dtype=torch.float16, G=3, Dk=24, Dv=24, page=16)
    o, lse = attend_one_token(*given)
    assert o.dtype == torch.float16 and lse.dtype == torch.float32
    check((o, lse), expected, atol=2e-3)
    in_full_o, _ = attend_one_token(*given, dtype=torch.float32)
    assert in_full_o.dtype == torch.float32
    again, _ = attend_one_token(given[0] * 3, *given[1:], scale=24**-0.5 / 3)
    check((again,), expected[:1], atol=2e-3)


@settings(max_examples=examples(60), deadline=None)
@given(
    lengths=lengths_of_steps, page=st.sampled_from([1, 5, 16]), pieces=st.integers(1, 9), width=st.integers(0, 20),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_keys_in_pieces_are_as_the_whole(lengths, page, pieces, width, seed):
    given, expected = decoding(lengths, page=page, G=2, width=width, seed=seed)
    given = [x.cpu() for x in given]
    check(split_kv(by_definition, *given, pieces), [x.cpu() for x in expected])


def test_keys_in_pieces_by_the_kernel():
    given, expected = decoding([75, 0, 16, 17], page=16, G=3, Dk=16, Dv=16, width=9)
    for pieces in (2, 5):
        check(in_pieces(in_full, pieces)(*given), expected)


@pytest.mark.skipif(not interpreting(), reason="the sanitizer watches the interpreter")
def test_the_keys_of_a_group_are_read_once_and_no_lane_leaves_its_tensor():
    given, _ = decoding([32, 9, 0], page=16, G=3, Hkv=2, Dk=8, Dv=8)
    with sanitizer.watch(k=given[1], v=given[2], table=given[4]) as report:
        o, lse = attend_one_token(*given)
    assert report.ok and not report.undecided, report
    assert report.bytes_loaded["k"] == report.bytes_loaded["v"] == 41 * 2 * 8 * 4
    assert report.bytes_stored["o_ptr"] == o.nbytes and report.bytes_stored["lse_ptr"] == lse.nbytes


@pytest.mark.skipif(not interpreting(), reason="on a GPU, the memory between the pages would have to be there")
def test_pages_that_lie_2_to_the_31_elements_apart_are_found():
    run_fresh(  # a wrapped address is before the tensor, and would end this process: so it is another one
        """
import torch
from llmsys.attention.paged.one_token import attend_one_token

torch.manual_seed(0)
memory = torch.empty(2**31 + 2**28, dtype=torch.float16)  # 5 GB of addresses, of which little is ever touched
near = [torch.randn(9, 4, 1, 16).half() for _ in "kv"]
q, lengths, table = torch.randn(1, 2, 16).half(), torch.tensor([16]), torch.tensor([[8, 3, 7, 5]])
o, lse = attend_one_token(q, *near, lengths, table)
for which in (0, 1):
    pages = list(near)
    pages[which] = memory.as_strided(near[which].shape, (2**28, 16, 16, 1)).copy_(near[which])
    far_o, far_lse = attend_one_token(q, *pages, lengths, table)
    assert torch.equal(far_o, o) and torch.equal(far_lse, lse)
""",
        TRITON_INTERPRET="1",
    )


# In a model


@given(shape=shapes(trees=False), seed=st.integers(0, 2**16))
def test_a_step_of_a_model_is_attended_to_whoever_brings_how_many_tokens(shape, seed):
    if seed % 4:  # a step that decodes; some sequences bring no token
        shape = replace(shape, sequences=tuple((min(Tq, 1), Tk) for Tq, Tk in shape.sequences), Dv=shape.Dk)
    batch = ragged(shape, seed=seed)
    attention = for_model(in_pieces(by_definition, 2))
    found = attention(batch.q, batch.key_pages, batch.value_pages, **batch.step, return_lse=True)
    check(found, batch.expected())
    if shape.N:
        scaled = attention(batch.q * 4, batch.key_pages, batch.value_pages, **batch.step, scale=shape.Dk**-0.5 / 4)
        check((scaled,), batch.expected()[:1])


def test_a_model_with_the_kernel_and_with_pieces_says_what_it_says_with_torchs_attention():
    torch.manual_seed(0)
    model = Llama(
        LlamaConfig(
            name="tiny", vocab_size=61, hidden_size=32, layers=1, heads=6, kv_heads=2, head_size=16, mlp_size=48,
            context_length=64, tied_embeddings=False,
        )
    ).to(DEVICE)  # fmt: skip
    for prompt in ([3, 1, 4, 1, 5], [9, 2]):
        expected = generate(model, prompt, attention="sdpa", max_new_tokens=4).tokens
        for attend in (attend_one_token, in_pieces(in_full, 2)):
            cache = PagedCache(for_model(attend), capacity=16, block_size=4)
            assert generate(model, prompt, attention=cache, max_new_tokens=4).tokens == expected


# Launches


class Counted:
    """In a kernel's place: keeps the grid, launches nothing."""

    def __init__(self):
        self.grids = []

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.grids.append(grid)


def test_what_is_launched_depends_on_shapes_and_nothing_is_read():
    kernel = Counted()
    step = ((8, 12, 64), (100, 16, 4, 64), (100, 16, 4, 64))
    given = [torch.empty(shape, dtype=torch.float16, device="meta") for shape in step]
    given += [torch.empty(shape, dtype=torch.int32, device="meta") for shape in ((8,), (8, 30))]
    attend_one_token(*given, kernel=kernel)
    in_pieces(partial(attend_one_token, kernel=kernel), 5)(*given)
    assert kernel.grids == [(8, 4), (40, 4)]


def test_it_is_compiled_for_hopper_in_every_type_without_spills():
    recorder = Recorder(one_token_kernel)
    sizes = {torch.bfloat16: (128, 4), torch.float16: (80, 3), torch.float32: (64, 1)}
    for dtype, (D, G) in sizes.items():
        pages = torch.empty(9, 16, 2, D, dtype=dtype, device="meta")
        numbers = [torch.empty(shape, dtype=torch.int32, device="meta") for shape in ((5,), (5, 7))]
        q = torch.empty(5, 2 * G, D, dtype=dtype, device="meta")
        attend_one_token(q, pages, pages, *numbers, kernel=recorder, block_n=32 if dtype == torch.float32 else 64)
    for found in compile_kernels(recorder.builds):
        assert not isinstance(found, Exception), found
        assert found.spill_bytes == 0, found


@pytest.mark.parametrize(
    "change, says",
    [
        ({"value_pages": torch.zeros(3, 16, 1, 8)}, "value_pages must have heads of 16"),
        ({"seq_lens": torch.zeros(2, dtype=torch.int32)}, "seq_lens must be whole numbers"),
        ({"seq_lens": torch.zeros(1)}, "seq_lens must be whole numbers"),
        ({"block_table": torch.zeros(1, dtype=torch.int32)}, "block_table must be whole numbers"),
        ({"key_pages": torch.zeros(3, 16, 1, 32)[..., ::2]}, "key_pages must have a stride of 1"),
        ({"q": torch.zeros(1, 2, 8)}, "key_pages must have q's head size"),
        ({"block_n": 24}, "block_n must be a power of two"),
        ({"scale": -1.0}, "scale must be a positive number"),
    ],
)
def test_bad_input_is_refused_before_anything_is_launched(change, says):
    given = {
        "q": torch.zeros(1, 2, 16), "key_pages": torch.zeros(3, 16, 1, 16), "value_pages": torch.zeros(3, 16, 1, 16),
        "seq_lens": torch.zeros(1, dtype=torch.int32), "block_table": torch.zeros(1, 4, dtype=torch.int32),
    }  # fmt: skip
    kernel = Counted()
    with pytest.raises(ValueError, match=says):
        attend_one_token(**given | change, kernel=kernel)
    assert not kernel.grids
