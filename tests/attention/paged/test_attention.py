"""Attention over pages, the reference and the kernels, against attention from the definition on dense K and V."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention.flash.tiles import TileConfig
from llmsys.attention.paged import gather_pages, paged_attention, paged_attention_reference
from llmsys.attention.paged.forward import Kernels
from llmsys.attention.paged.plans import Plan, plan_for
from llmsys.hardware import sanitizer
from llmsys.hardware.tier import interpreting, load_triton, triton_device, triton_installed
from tests.attention.sample import examples
from tests.support.ragged import Shape, ragged, shapes

if not triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)
load_triton()
DEVICE = triton_device()
TILE = TileConfig(16, 16, 4, 1)
SPLIT = Plan(TILE, programs=5)  # every sequence by the split kernel, whose runs are cut anywhere
BOTH = Plan(TILE, programs=3, ragged=TILE, few=6)  # each kernel takes its own


def check(batch, attention, atol=2e-5, **options):
    o, lse = attention(batch.q, batch.key_pages, batch.value_pages, **batch.step, return_lse=True, **options)
    exact, exact_lse = batch.expected()
    torch.testing.assert_close(o.double(), exact, atol=atol, rtol=atol)
    torch.testing.assert_close(lse.double(), exact_lse, atol=atol, rtol=atol)
    assert o.dtype == batch.q.dtype and lse.dtype == torch.float32


@given(shape=shapes(), seed=st.integers(0, 2**16))
def test_the_reference_agrees_with_the_definition_on_any_ragged_batch(shape, seed):
    check(ragged(shape, seed=seed), paged_attention_reference)


@settings(max_examples=examples(20), deadline=None)
@given(shape=shapes(most=3), seed=st.integers(0, 2**16), plan=st.sampled_from([None, SPLIT, BOTH]))
def test_the_kernels_agree_with_the_definition_on_any_ragged_batch(shape, seed, plan):
    check(ragged(shape, seed=seed, device=DEVICE), paged_attention, plan=plan)


PREFILL_AND_DECODE = Shape(
    ((1, 37), (9, 9), (0, 0), (5, 21), (1, 1), (3, 18), (4, 2)), page=5, G=3, Hkv=2, Dk=8, Dv=4, pad=3,
    trees=(False, False, False, True, False, True, False),
)  # fmt: skip


@pytest.mark.parametrize("plan", [SPLIT, BOTH], ids=["split", "both"])
def test_one_step_has_prompts_chunks_decodes_trees_padding_and_sequences_of_length_zero(plan):
    batch = ragged(PREFILL_AND_DECODE, device=DEVICE)
    assert batch.key_pages.isnan().any() and (batch.step["block_table"] < 0).any()
    check(batch, paged_attention, plan=plan)


@pytest.mark.parametrize("programs", [1, 2, 7, 16])
def test_wherever_the_line_is_cut_the_parts_add_up(programs):
    shape = Shape(((1, 75), (0, 0), (1, 0), (2, 16), (1, 33)), page=16, G=2, Hkv=2)
    check(ragged(shape, device=DEVICE), paged_attention, plan=Plan(TILE, programs))


def test_max_query_len_is_advice_and_changes_nothing():
    for plan in (SPLIT, None):
        batch = ragged(Shape(((19, 30), (1, 17)), G=1, Hkv=1), device=DEVICE)
        batch.step["max_query_len"] = batch.step["max_seq_len"] = 1
        check(batch, paged_attention, plan=plan)


@pytest.mark.skipif(not interpreting(), reason="the sanitizer watches the interpreter")
@pytest.mark.parametrize("plan", [SPLIT, BOTH], ids=["split", "both"])
def test_no_lane_leaves_its_tensor_and_every_element_of_o_is_stored_once(plan):
    batch = ragged(PREFILL_AND_DECODE)
    table = batch.step["block_table"]
    with sanitizer.watch(key_pages=batch.key_pages, value_pages=batch.value_pages, block_table=table) as report:
        o, lse = paged_attention(
            batch.q, batch.key_pages, batch.value_pages, **batch.step, plan=plan, return_lse=True
        )  # fmt: skip
    assert report.ok, report
    assert not report.undecided, report
    assert report.bytes_stored["o_ptr"] == o.nbytes and report.bytes_stored["lse_ptr"] == lse.nbytes


@pytest.mark.skipif(not interpreting(), reason="the sanitizer watches the interpreter")
def test_the_keys_of_a_group_are_read_once_and_no_others():
    batch = ragged(Shape(((1, 32), (1, 16)), page=16, G=3, Hkv=2, Dk=8, Dv=16))
    with sanitizer.watch(k=batch.key_pages, v=batch.value_pages) as report:
        paged_attention(batch.q, batch.key_pages, batch.value_pages, **batch.step, plan=SPLIT)
    assert report.ok, report
    assert report.bytes_loaded["k"] == 48 * 2 * 8 * 4 and report.bytes_loaded["v"] == 48 * 2 * 16 * 4


class Counted:
    """In a kernel's place: keeps the grid, launches nothing."""

    def __init__(self):
        self.grids = []

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.grids.append((grid, options["BLOCK_M"]))


def test_no_grid_depends_on_a_length():
    grids = []
    for sequences in (((9, 9), (1, 30), (0, 0)), ((2, 30), (3, 3), (5, 25)), ((10, 10), (0, 0), (0, 0))):
        batch = ragged(Shape(sequences), width=9)
        batch.step["max_query_len"] = 10
        counted = Kernels(Counted(), Counted(), Counted())
        paged_attention(batch.q, batch.key_pages, batch.value_pages, **batch.step, kernels=counted, plan=BOTH)
        grids.append([each.grids for each in (counted.ragged, counted.split, counted.merge)])
    assert grids[0] == grids[1] == grids[2]
    assert grids[0][0] == [((10 // 16 + 3, 2), 16)] and grids[0][1] == grids[0][2] == [((3,), 16)]


def test_a_plan_leaves_decoding_to_the_split_kernel_and_long_prompts_to_the_other():
    def plan(S, T, G=4, Hkv=8, D=128):
        return plan_for(S * T, S, G, Hkv, D, 2, T, False, "sm_90", 132)

    assert plan(64, 1).ragged is None and plan(64, 1).split.block_m == 16 and plan(64, 1).few == 0
    assert plan(64, 5).ragged is None and plan(64, 5).split.block_m == 32
    assert plan(1, 64).ragged is None  # too few tiles to fill the GPU
    assert plan(8, 512).ragged and plan(8, 512).few == 16
    assert plan(512, 1, G=71, Hkv=1).split.block_m == 64


@pytest.mark.skipif(not interpreting(), reason="on a GPU, memory between the pages would have to be there")
def test_pages_2_to_the_31_elements_from_the_first_are_read():
    memory = torch.empty(2**31 + 2**29, dtype=torch.float16)  # 5 GB of addresses, of which a few are ever touched
    batch = ragged(Shape(((1, 33), (17, 30)), page=4, G=2), dtype=torch.float16)

    def far(pages):
        view = memory.as_strided(pages.shape, (2**27, *pages.stride()[1:]))
        return view.copy_(pages)

    near = paged_attention(batch.q, batch.key_pages, batch.value_pages, **batch.step, plan=BOTH)
    assert len(batch.key_pages) * 2**27 > 2**31 and near.isfinite().all()
    assert torch.equal(paged_attention(batch.q, far(batch.key_pages), batch.value_pages, **batch.step, plan=BOTH), near)
    assert torch.equal(paged_attention(batch.q, batch.key_pages, far(batch.value_pages), **batch.step, plan=BOTH), near)


def test_pages_and_queries_may_lie_in_any_order_of_dimensions():
    batch = ragged(Shape(((1, 19), (5, 9)), page=4, G=2), device=DEVICE)
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (batch.key_pages, batch.value_pages)]
    q = batch.q.transpose(0, 1).contiguous().transpose(0, 1)
    expected = paged_attention(batch.q, batch.key_pages, batch.value_pages, **batch.step, plan=BOTH)
    assert torch.equal(paged_attention(q, *heads_first, **batch.step, plan=BOTH), expected)
    # Latent attention keeps the values in the keys.
    inside = batch.key_pages[..., :5]
    expected = paged_attention_reference(batch.q, batch.key_pages, inside, **batch.step)
    got = paged_attention(batch.q, batch.key_pages, inside, **batch.step, plan=BOTH)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


def test_no_token_and_no_sequence_are_no_error():
    for shape in (Shape(((0, 5),)), Shape(((0, 0), (0, 3)), pad=2)):
        batch = ragged(shape, device=DEVICE)
        for attention in (paged_attention, paged_attention_reference):
            o, lse = attention(batch.q, batch.key_pages, batch.value_pages, **batch.step, return_lse=True)
            assert not o.any() and (lse == float("-inf")).all() and o.shape[0] == shape.N


@pytest.mark.parametrize("attention", [paged_attention, paged_attention_reference])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"q": a["q"][0]}, r"q must be a torch.Tensor \(N, Hq, Dk\), got shape"),
        (lambda a: a | {"key_pages": a["key_pages"].double()}, "key_pages must be torch.float32 on"),
        (lambda a: a | {"key_pages": a["key_pages"][..., :3]}, "key_pages must have q's head size"),
        (lambda a: a | {"value_pages": a["value_pages"][1:]}, "value_pages must have the keys' blocks"),
        (lambda a: a | {"q": a["q"][:, :3]}, "q must have a multiple of the keys' 2 heads"),
        (lambda a: a | {"seq_lens": a["seq_lens"].long()}, "seq_lens must be int32"),
        (lambda a: a | {"query_start_loc": a["query_start_loc"][1:]}, r"query_start_loc must have S \+ 1 = 3"),
        (lambda a: a | {"block_table": a["block_table"][:1]}, "block_table must have a row for each of the 2"),
        (lambda a: a | {"tree_mask": a["q"][:, 0] > 0} | {"q": a["q"][1:]}, "tree_mask must be bool"),
        (lambda a: a | {"scale": -1.0}, "scale must be a positive number"),
    ],
)  # fmt: skip
def test_refusals_name_the_argument(attention, change, message):
    batch = ragged(Shape(((1, 5), (2, 9)), G=2), device=DEVICE)
    arguments = {"q": batch.q, "key_pages": batch.key_pages, "value_pages": batch.value_pages, **batch.step}
    with pytest.raises(ValueError, match=message):
        attention(**change(arguments))


def test_the_kernels_refuse_what_they_cannot_do():
    batch = ragged(Shape(((1, 3),), Dk=257, Dv=8), device=DEVICE)
    with pytest.raises(ValueError, match="key_pages must have heads of at most 256"):
        paged_attention(batch.q, batch.key_pages, batch.value_pages, **batch.step)
    batch = ragged(Shape(((1, 3),)), device=DEVICE)
    with pytest.raises(ValueError, match="value_pages must have a stride of 1"):
        paged_attention(batch.q, batch.key_pages, batch.value_pages[..., ::2], **batch.step)
    with pytest.raises(ValueError, match="q must be float32, float16 or bfloat16"):
        q, *pages = (x.double() for x in (batch.q, batch.key_pages, batch.value_pages))
        paged_attention(q, *pages, **batch.step)
    with pytest.raises(ValueError, match="interpreter" if interpreting() else "on a GPU"):
        wrong = (lambda x: x.bfloat16()) if interpreting() else (lambda x: x.cpu())
        q, *pages = (wrong(x) for x in (batch.q, batch.key_pages, batch.value_pages))
        step = {name: x.to(q.device) if isinstance(x, torch.Tensor) else x for name, x in batch.step.items()}
        paged_attention(q, *pages, **step)


def test_gathering_refuses_blocks_that_are_not_there():
    pages = torch.arange(24.0).view(4, 2, 1, 3)
    blocks = torch.tensor([2, 0, -1], dtype=torch.int32)
    assert torch.equal(gather_pages(pages, blocks, 3), torch.cat((pages[2], pages[0]))[:3])
    for length, message in ((5, "must be from 0 to 3"), (7, "must be 4 at least for 7 tokens in pages of 2")):
        with pytest.raises(ValueError, match=message):
            gather_pages(pages, blocks, length)
