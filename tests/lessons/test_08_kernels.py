"""Lesson 08's kernels, (c) and (d): what their checks expect is right, and answers that they have not seen are judged
rightly."""

import pytest
import torch

from llmsys.attention.paged import paged_attention_reference
from llmsys.attention.paged.pieces import split_kv
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import get_check, run_check
from llmsys.course.checking.mistakes import edited
from llmsys.course.checking.runner import LocalRunner
from llmsys.hardware import sanitizer
from llmsys.hardware.tier import load_triton
from llmsys.lessons.lesson_08_paged_kv_cache.decoding import draw, in_a_larger_cache, in_longer_rows, with_kernel
from llmsys.lessons.lesson_08_paged_kv_cache.plain_attend import Noting
from tests.support.size import drawn
from tests.support.verdicts import assert_rejected, assert_taken, fresh, verdict

if not sanitizer.available():
    pytest.skip("the sanitizer watches the interpreter, and is not here", allow_module_level=True)
load_triton()
from llmsys.attention.paged.one_token_kernel import one_token_kernel  # noqa: E402

WALK, SPLIT = "08.paged_walk", "08.split_kv"


def answer(seed=0):
    return Answer(LocalRunner(lambda: None), seed=seed)


# What is expected


@pytest.mark.parametrize(
    "lengths, options",
    [
        ([1], {}),
        ([31, 0, 32, 33], {"page": 8, "G": 3, "Hkv": 2, "D": 10}),
        ([0, 0], {"page": 5, "spare": 0}),
        ([7, 128], {"page": 64, "G": 2, "half": True, "scale": 0.3}),
        ([50, 3], {"page": 7, "Hkv": 3, "in_order": True}),
    ],
)
def test_what_a_drawn_step_expects_is_what_the_library_gives(lengths, options):
    for seed in range(2):
        step = draw(answer(seed), lengths, **options)
        q, key_pages, value_pages, seq_lens, table = step.given
        found = paged_attention_reference(
            q.float(), key_pages.float(), value_pages.float(), query_start_loc=torch.arange(len(lengths) + 1).int(),
            seq_lens=seq_lens, block_table=table, scale=options.get("scale"), return_lse=True,
        )  # fmt: skip
        near = {"atol": 2e-3, "rtol": 2e-3} if options.get("half") else {}
        for got, expected in zip(found, step.expected, strict=True):
            torch.testing.assert_close(got.to(expected.dtype), expected, **near)


def test_what_no_length_reaches_is_nan_and_what_no_entry_names_is_no_page():
    step = draw(answer(), [5, 0, 17], page=4, spare=2)
    _, key_pages, _, _, table = step.given
    blocks = len(key_pages)
    named = [page for page in table.flatten().tolist() if 0 <= page < blocks]
    assert len(named) == len(set(named)) == 2 + 5 and 0 not in named
    assert int((~key_pages[..., 0].isnan()).sum()) == 5 + 17
    assert (table < 0).any() and (table >= blocks).any()


def test_a_larger_cache_and_longer_rows_have_the_same_pages_in_other_places():
    _, key_pages, value_pages, _, table = draw(answer(), [9, 20], Hkv=2, page=6).given
    for pages, moved in zip((key_pages, value_pages), in_a_larger_cache(key_pages, value_pages), strict=True):
        assert torch.equal(pages.nan_to_num(9.0), moved.nan_to_num(9.0)) and moved.stride(3) == 1
        assert moved.stride()[:2] != pages.stride()[:2]
    keys, values = in_a_larger_cache(key_pages, value_pages)
    assert all(a != b for a, b in zip(keys.stride()[:3], values.stride()[:3], strict=True))
    assert torch.equal(in_longer_rows(table), table) and not in_longer_rows(table).is_contiguous()


def test_the_attend_of_exercise_d_computes_by_the_definition():
    for seed, options in enumerate(({"G": 3, "Hkv": 2}, {"page": 5, "D": 7, "half": True})):
        step = draw(answer(seed), [0, 9, 33], **options)
        o, lse = Noting(*step.given[:3])(*step.given)
        assert o.dtype == lse.dtype == torch.float32
        torch.testing.assert_close(o.to(step.expected[0].dtype), step.expected[0])
        torch.testing.assert_close(lse, step.expected[1])


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda q, k, v, lengths, table: (q, k.clone(), v, lengths, table), "key_pages must be the very memory"),
        (lambda q, k, v, lengths, table: (q.double(), k, v, lengths, table), "q must be"),
        (lambda q, k, v, lengths, table: (q, k, v, lengths[:1], table), "seq_lens must be"),
        (lambda q, k, v, lengths, table: (q, k, v, lengths - 100, table), "seq_lens must be from 0"),
        (lambda q, k, v, lengths, table: (q, k, v, lengths.float(), table), "whole numbers"),
        (lambda q, k, v, lengths, table: (q, k, v, lengths + 16, table), "names page"),
    ],
)
def test_the_attend_of_exercise_d_refuses_what_a_kernel_would_not_notice(change, says):
    step = draw(answer(), [16, 5])
    with pytest.raises(ValueError, match=says):
        Noting(*step.given[:3])(*change(*step.given))


# Kernels


def judged(name, *changes):
    """What the check of (c) makes of the library's kernel with these changes, called `name`."""
    check = get_check(WALK)
    return run_check(check, check.local_runner(edited(one_token_kernel, name, *changes)))


PAGE = "tl.load(table_ptr + sequence * table_stride + keys // PAGE, mask=written, other=0).to(tl.int64)"
K_LOAD = "k = tl.load(k_ptr + k_at[:, None] + d[None, :], mask=there, other=0.0)"
S = 's = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2'
LOOP = "for start in range(0, length, BLOCK_N):"
UNNAMED = [  # wrong, each in a way of its own: what is said of others would not be true of it
    ("pages_of_sixteen", (("keys // PAGE", "keys // 16"), ("keys % PAGE", "keys % 16"))),
    ("page_of_the_first_key_in_pages_of_16",
     ((PAGE, "tl.load(table_ptr + sequence * table_stride + (keys // PAGE if PAGE < 32 else start // PAGE + 0 * keys), "
       "mask=written, other=0).to(tl.int64)"),)),
    ("row_after_row_of_the_longest",
     (("sequence * table_stride", "sequence * tl.cdiv(length, PAGE)"),)),
    ("one_key_too_many", (("written = keys < length", "written = keys <= length"),)),
    ("a_multiple_of_sixteen", (("length = tl.load(lengths_ptr + sequence)",
     "length = tl.load(lengths_ptr + sequence)\n    length = (length + 15) // 16 * 16 if length > 0 else length"),)),
    ("heads_of_the_next", (("head * v_stride_head", "((head + 1) % tl.num_programs(1)) * v_stride_head"),)),
    ("slots_by_the_pages_stride", (("slot * v_stride_slot", "slot * (v_stride_page // PAGE)"),)),
    ("lengths_of_one_at_least",
     (("length = tl.load(lengths_ptr + sequence)", "length = tl.maximum(tl.load(lengths_ptr + sequence), 1)"),)),
    ("an_epsilon", (("o / some[:, None]", "o / (l + 1e-3)[:, None]"),)),
    ("one_maximum_for_the_group", (("tl.max(s, axis=1)", "tl.max(s) + tl.zeros((BLOCK_G,), tl.float32)"),)),
    ("zero_scores_hidden", (("tl.where(written[None, :], s", "tl.where(s != 0.0, s"),)),
    ("m_begins_at_minus_100000", (('m = tl.full((BLOCK_G,), float("-inf"), tl.float32)',
                                 "m = tl.full((BLOCK_G,), -100000.0, tl.float32)"),)),
    ("scores_in_half_precision", ((S, S + "\n        s = s.to(q.dtype).to(tl.float32)"),)),
    ("l_in_half_precision", (("l = l * shrink + tl.sum(p, axis=1)",
                              "l = (l * shrink + tl.sum(p, axis=1)).to(v_ptr.dtype.element_ty).to(tl.float32)"),)),
    ("sixty_four_columns", (("(d < D)[None, :]\n        k_at", "((d < D) & (d < 64))[None, :]\n        k_at"),)),
    ("products_of_single_elements",
     (('tl.dot(q, tl.trans(k), input_precision="ieee")', "tl.sum(q[:, None, :] * k[None, :, :], axis=2)"),)),
    ("thirty_two_keys_at_most", (
        (LOOP, "for start in range(0, length, BLOCK_N if BLOCK_N < 32 else 32):"),
        ("start + tl.arange(0, BLOCK_N)", "start + tl.arange(0, BLOCK_N if BLOCK_N < 32 else 32)"))),
    ("values_loaded_twice", (
        ("        m = m_new\n", "        v = tl.load(v_ptr + v_at[:, None] + d[None, :], mask=there, other=0.0)\n"
         "        m = m_new\n"),)),
    ("a_program_for_each_query_head", (  # the rows of a group, one after the other
        (S, "s = tl.zeros((BLOCK_G, BLOCK_N), tl.float32)\n        for one in range(G):\n            " + K_LOAD +
         '\n            s += tl.where((g == one)[:, None], tl.dot(q, tl.trans(k), input_precision="ieee"), 0.0)\n'
         "        s = s * scale_log2"),)),
    ("lse_without_the_scale", (("(m + tl.log2(some)) * 0.6931471805599453", "(m + tl.log2(some)) / scale_log2"),)),
    ("groups_of_powers_of_two", (("tl.num_programs(1) + head) * G + g", "tl.num_programs(1) + head) * BLOCK_G + g"),)),
    ("finite_and_nan_washed", (("tl.trans(k), input", "tl.trans(tl.where(k == k, k, 0.0)), input"),
                               (K_LOAD, K_LOAD.replace("mask=there", "mask=(d < D)[None, :]")))),
]  # fmt: skip


LOOKED_UP = "mask=written, other=0).to(tl.int64)"


@pytest.mark.parametrize("widened", ["never", "after the product"])
def test_an_address_of_32_bits_is_rejected(widened):
    changes = [(LOOKED_UP, LOOKED_UP.removesuffix(".to(tl.int64)"))]
    if widened == "after the product":
        changes += [(f"page * {x}_stride_page", f"(page * {x}_stride_page).to(tl.int64)") for x in "kv"]
    result = verdict(WALK, edited(one_token_kernel, "narrow", *changes))
    assert not result and "✗ page numbers whose address needs more than 32 bits" in str(result)


def test_a_kernel_finds_the_same_under_page_numbers_that_are_far_away():
    attend, step = with_kernel(one_token_kernel), draw(answer(), [20, 0, 33], Hkv=2)
    for near, far in zip(attend(*step.given), attend(*step.given, far=True), strict=True):
        assert torch.equal(near, far)


@pytest.mark.parametrize("name, changes", drawn(UNNAMED, 2), ids=lambda x: x if isinstance(x, str) else "")
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
def test_a_kernel_that_is_wrong_in_a_way_of_its_own_is_rejected_and_taken_for_no_other(name, changes):
    result = judged(name, *changes)
    assert not result and (result.misconception and result.misconception.name) == KNOWN.get(name), result


KNOWN = {  # what is said of that one is true of these
    "finite_and_nan_washed": "keys_not_masked",
    "one_key_too_many": "values_not_masked",
    "a_multiple_of_sixteen": "values_not_masked",
    "an_if_about_lengths": "asks_for_the_longest",
    "rows_picked_by_a_mask": "asks_for_the_longest",
}

RIGHT = [
    (),
    (("tl.where(l > 0, l, 1.0)", "tl.where(l == 0, 1.0, l)"),),
    ((LOOP, "n = tl.cdiv(length, BLOCK_N)\n    for i in range(0, n):\n        start = (n - 1 - i) * BLOCK_N"),),
    (("(m + tl.log2(some)) * 0.6931471805599453", "m * 0.6931471805599453 + tl.log(some)"),),
    (('s = tl.where(written[None, :], s, float("-inf"))', 's = s + tl.where(written, 0.0, float("-inf"))[None, :]'),),
    ((K_LOAD, "k = tl.load(k_ptr + k_at[None, :] + d[:, None], mask=written[None, :] & (d < D)[:, None], other=0.0)"),
     ("tl.trans(k)", "k")),
    (("        v_at =", f"        page = {PAGE}\n        v_at ="),),
    (("o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=\"ieee\")",
      'o = tl.dot(p.to(v.dtype), v, o * shrink[:, None], input_precision="ieee")'),),
    (("slot = keys % PAGE", "slot = keys - keys // PAGE * PAGE"),),
    (("        p = tl.exp2(s - m_new[:, None])", '        shift = tl.where(m_new == float("-inf"), 0.0, m_new)\n'
      "        p = tl.exp2(s - shift[:, None])"), ("tl.exp2(m - m_new)", "tl.exp2(m - shift)")),
    ((", mask=written, other=0).to(tl.int64)", ", mask=written).to(tl.int64)"),),
    ((LOOP, "start = 0\n    while start < length:"),
     ("        m = m_new\n", "        m = m_new\n        start += BLOCK_N\n")),
    (("    some = tl.where(l > 0, l, 1.0)", "    some = tl.where(length > 0, l, 1.0)"),),
    (("mask=there, other=0.0)  # (BLOCK_N, BLOCK_D)\n        o =", "mask=there, other=0.0)\n        o ="),),
    (("page * k_stride_page + slot * k_stride_slot + head * k_stride_head",
      "head * k_stride_head + slot.to(tl.int64) * k_stride_slot + k_stride_page * page"),),
]  # fmt: skip


@pytest.mark.parametrize("changes", drawn(RIGHT, 1))
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
def test_a_right_kernel_in_another_form_passes(changes):
    result = judged("another", *changes)
    assert result, result


REFUSED = [
    (("l = tl.zeros((BLOCK_G,), tl.float32)", "l = 0"), "Loop-carried variable l"),
    (("        keys = start", "        if start >= length:\n            break\n        keys = start"), "Break"),
    (("p.to(v.dtype), v", "p, v"), "must have the same dtype"),
]  # fmt: skip


@pytest.mark.parametrize("change, says", drawn(REFUSED, 1))
def test_a_kernel_that_only_the_interpreter_runs_is_refused(change, says):
    result = judged("interpreted_only", change)
    assert not result, result
    assert result.failure.kind != "compile" or says.lower() in result.failure.message.lower(), result


# Pieces


def in_turn(attend, q, key_pages, value_pages, seq_lens, block_table, pieces):
    """Every `pieces`-th page to the same piece, and the parts merged two at a time."""
    S, M, P = q.shape[0], block_table.shape[1], key_pages.shape[1]
    width = -(-M // pieces)
    table = torch.nn.functional.pad(block_table, (0, width * pieces - M)).view(S, width, pieces).transpose(1, 2)
    pages = -(-seq_lens // P)
    number = torch.arange(pieces, device=q.device)
    own = (pages[:, None] - number + pieces - 1).clamp(min=0) // pieces
    last = (pages[:, None] - 1) % pieces == number
    lengths = own * P - torch.where(last & (own > 0), (pages * P - seq_lens)[:, None], 0)
    o, lse = attend(q.repeat_interleave(pieces, dim=0), key_pages, value_pages, lengths.flatten(), table.flatten(0, 1))
    o, lse = o.view(S, pieces, *o.shape[1:]), lse.view(S, pieces, -1)
    sum_o, sum_lse = o[:, 0], lse[:, 0]
    for p in range(1, pieces):
        both = torch.logaddexp(sum_lse, lse[:, p])
        shift = torch.nan_to_num(both, neginf=0.0)
        sum_o = sum_o * (sum_lse - shift).exp()[..., None] + o[:, p] * (lse[:, p] - shift).exp()[..., None]
        sum_lse = both
    return sum_o.to(q.dtype), sum_lse


def by_softmax(attend, q, key_pages, value_pages, seq_lens, block_table, pieces):
    """The pieces side by side first, then the sequences; weights by softmax; rows of the table as wide as it is."""
    S, M, P = *block_table.shape, key_pages.shape[1]
    share = torch.div(torch.div(seq_lens + P - 1, P, rounding_mode="floor") + pieces - 1, pieces, rounding_mode="floor")
    tables, lengths = [], []
    columns = torch.arange(M, device=q.device)
    for p in range(pieces):
        tables.append(torch.take_along_dim(block_table, ((columns + p * share[:, None]) % M).long(), 1))
        lengths.append((seq_lens - p * share * P).clamp(min=0).minimum(share * P))
    o, lse = attend(q.repeat(pieces, 1, 1), key_pages, value_pages, torch.cat(lengths), torch.cat(tables))
    o, lse = o.unflatten(0, (pieces, S)).double(), lse.unflatten(0, (pieces, S))
    weight = torch.nan_to_num(torch.softmax(lse, 0).double())
    return (o * weight[..., None]).sum(0).to(q.dtype), torch.logsumexp(lse, 0)


def fair_shares(attend, q, key_pages, value_pages, seq_lens, block_table, pieces):
    """Pieces that differ by one page at most: the first ones have one more."""
    S, M, P = q.shape[0], block_table.shape[1], key_pages.shape[1]
    pages = (seq_lens + P - 1) // P
    cuts = (pages[:, None] * torch.arange(pieces + 1, device=q.device) + pieces - 1) // pieces
    begin, end = cuts[:, :-1], cuts[:, 1:]
    lengths = torch.minimum(end * P, seq_lens[:, None]) - torch.minimum(begin * P, seq_lens[:, None])
    index = begin[:, :, None] + torch.arange((M + pieces - 1) // pieces, device=q.device)
    table = block_table[torch.arange(S, device=q.device)[:, None, None], index.clamp(max=M - 1)]
    many = q[:, None].expand(-1, pieces, -1, -1).reshape(S * pieces, *q.shape[1:])
    o, lse = attend(many, key_pages, value_pages, lengths.reshape(-1), table.reshape(S * pieces, -1))
    o, lse = o.view(S, pieces, *q.shape[1:]), lse.view(S, pieces, q.shape[1])
    whole = torch.logsumexp(lse, 1)
    weight = torch.exp(lse - torch.where(whole.isneginf(), torch.zeros_like(whole), whole)[:, None])
    return torch.einsum("sphd,sph->shd", o, weight).to(q.dtype), whole


@pytest.mark.parametrize("split", drawn([in_turn, by_softmax, fair_shares], 1), ids=lambda x: x.__name__)
def test_pieces_cut_and_combined_in_another_way_pass(split):
    assert_taken(SPLIT, split)


def test_the_librarys_own_function_is_right_and_forbidden():
    assert verdict(SPLIT, split_kv, watched=False)
    assert verdict(SPLIT, split_kv).failure.kind == "forbidden"


SAME = [
    (("    number =", "    pieces = min(pieces, M)\n    number ="),),
    (("    m = lse.amax(1)", "    o[lengths == 0] = 0.0\n    m = lse.amax(1)"),),
    (("lengths.flatten(), table", "lengths.flatten().int(), table"),),
]


@pytest.mark.parametrize("changes", drawn(SAME, 1))
def test_a_right_answer_with_a_line_more_passes(changes):
    assert verdict(SPLIT, edit("another", *changes), watched=False)


def edit(name, *changes):
    return edited(split_kv, name, *changes)


CALL = "attend(q.repeat_interleave(pieces, 0), key_pages, value_pages, lengths.flatten(), table.flatten(0, 1))"
WRONG = [
    ("two_pieces_always", (("    S, _, _ = q.shape\n", "    S, _, _ = q.shape\n    pieces = 2\n"),)),
    ("pages_of_four", (("block_table.shape[1], key_pages.shape[1]", "block_table.shape[1], 4"),)),
    ("pages_of_sixteen", (("block_table.shape[1], key_pages.shape[1]", "block_table.shape[1], 16"),)),
    ("the_longest_sequence_decides",
     (("    first = number", "    each = each.max().expand(S, 1)\n    first = number"),)),
    ("keys_of_the_first_head", (("m = lse.amax(1)", "lse = lse[:, :, :1].expand_as(lse)\n    m = lse.amax(1)"),)),
    ("weights_in_half", (("    l = weight.sum(1)", "    weight = weight.half().float()\n    l = weight.sum(1)"),)),
    ("small_weights_dropped",
     (("    l = weight.sum(1)", "    weight = weight * (weight > 1e-2)\n    l = weight.sum(1)"),)),
    ("lse_of_minus_1e30", (("m + torch.log(l)", "(m + torch.log(l)).clamp(min=-1e30)"),)),
    ("nan_washed_away", (('torch.where(m == float("-inf"), 0, m)', "m"),
     ("return o.to(q.dtype), m + torch.log(l)", "return o.nan_to_num().to(q.dtype), (m + torch.log(l)).nan_to_num()"))),
    ("cache_in_full", (("key_pages, value_pages, lengths", "key_pages.float(), value_pages.float(), lengths"),)),
    ("queries_in_full", (("q.repeat_interleave(pieces, 0)", "q.float().repeat_interleave(pieces, 0)"),)),
    ("pages_gathered", (
        ("key_pages, value_pages, lengths.flatten(), table.flatten(0, 1)",
         "key_pages[table.flatten().long()], value_pages[table.flatten().long()], lengths.flatten(), "
         "torch.arange(table.numel()).view(S * pieces, -1)"),)),
    ("nothing_is_split", ((f"parts = {CALL}\n    o, lse = (x.unflatten(0, (S, pieces)) for x in parts)",
     "o, lse = (x[:, None] for x in attend(q, key_pages, value_pages, seq_lens, block_table))"),)),
    ("all_in_piece_0", (("each = ((pages + pieces - 1) // pieces)", "each = pages"), ("-(-M // pieces)", "M"))),
    ("called_for_each_sequence", ((f"parts = {CALL}",
     "own = [q[s : s + 1].repeat(pieces, 1, 1) for s in range(S)]\n"
     "    each = [attend(own[s], key_pages, value_pages, lengths[s], table[s]) for s in range(S)]\n"
     "    parts = [torch.cat(x) for x in zip(*each, strict=True)]"),)),
    ("an_if_about_lengths",
     (("    m = lse.amax(1)", "    if seq_lens.max() == 0:\n        return q * 0, lse[:, 0]\n    m = lse.amax(1)"),)),
    ("rows_picked_by_a_mask",
     (("    m = lse.amax(1)", "    none = lengths == 0\n    o[none] = o[none] * 0\n    m = lse.amax(1)"),)),
    ("wider_and_wider", (("-(-M // pieces), device", "M * pieces, device"),)),
]  # fmt: skip


@pytest.mark.parametrize("name, changes", drawn(WRONG, 3), ids=lambda x: x if isinstance(x, str) else "")
def test_pieces_that_are_wrong_in_a_way_of_their_own_are_rejected_and_taken_for_no_others(name, changes):
    assert_rejected(SPLIT, edit(name, *changes))
    named = verdict(SPLIT, edit(name, *changes), watched=False, name_mistakes=True).misconception
    assert (named and named.name) == KNOWN.get(name), named


@fresh
def remembered():
    """Right the first time for each shape, and then it answers with what it has."""
    known = {}

    def split(attend, q, key_pages, value_pages, seq_lens, block_table, pieces):
        key = q.shape, q.dtype, key_pages.shape, block_table.shape, pieces, q.device.type
        if key in known:
            attend(q, key_pages, value_pages, seq_lens, block_table)
            return known[key]
        known[key] = split_kv(attend, q, key_pages, value_pages, seq_lens, block_table, pieces)
        return known[key]

    return split


def test_who_remembers_the_last_call_by_its_shape_is_rejected():
    assert_rejected(SPLIT, remembered)


def test_who_asks_on_the_host_or_mixes_devices_is_told_so_and_where():
    for change, says in (
        (("    m = lse.amax(1)", "    longest = int(seq_lens.max())\n    m = lse.amax(1)"), "on the host"),
        (("    m = lse.amax(1)", "    longest = q[lengths[:, 0] > 0]\n    m = lse.amax(1)"), "on the host"),
        (("    m = lse.amax(1)", "    longest = seq_lens + torch.ones(S)\n    m = lse.amax(1)"), "device=q.device"),
    ):
        result = verdict(SPLIT, edit("asking", change), watched=False)
        line = change[1].strip().splitlines()[0]
        assert says in result.failure.message and line in result.failure.message, result
