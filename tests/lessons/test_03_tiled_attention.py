"""Lesson 03: the byte leaderboard ranks what is right, fits and is counted, and keeps the best; and the check's right
answers."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

from llmsys.attention import naive_attention, tiled_attention
from llmsys.attention.cost import tiled_bytes
from llmsys.course.checking.mistakes import edited
from llmsys.course.workspace import progress
from llmsys.hardware.memory import DIRECT, KIB
from llmsys.lessons.lesson_03_tiled_attention import leaderboard, mistakes
from llmsys.lessons.lesson_03_tiled_attention.leaderboard import BEST, YOURS, Board, Entry, byte_leaderboard
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.verdicts import assert_rejected, assert_taken, fresh, verdict

GAME = {"sram": 12 * KIB, "T": 96, "D": 16}


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch):
    """No workspace, and no memory of other tests."""
    monkeypatch.setenv("LLMSYS_WORKSPACE", "")
    monkeypatch.setattr(progress, "find", lambda: None)
    monkeypatch.setattr(progress, "_in_memory", progress.Progress())


def frugal(q, k, v, *, block_q, block_k, hbm):
    """Tiled attention that holds q, o and one more tile: everything in place, nothing longer than needed."""
    o, lse = hbm.empty(q.shape, name="o"), hbm.empty(q.shape[:3], name="lse")
    for i in range(0, q.shape[2], block_q):
        Q = hbm.load(q[:, :, i : i + block_q]).mul_(1 / math.sqrt(q.shape[-1]))[0]
        m, l, O = Q.new_full((1, Q.shape[1], 1), -math.inf), Q.new_zeros(1, Q.shape[1], 1), torch.zeros_like(Q)
        for j in range(0, k.shape[2], block_k):
            S = Q @ hbm.load(k[:, :, j : j + block_k])[0].mT
            m_new = torch.maximum(m, S.amax(-1, keepdim=True))
            shrink = m.sub_(m_new).exp_()
            S.sub_(m_new).exp_()
            l.mul_(shrink).add_(S.sum(-1, keepdim=True))
            O.mul_(shrink).baddbmm_(S, hbm.load(v[:, :, j : j + block_k])[0])
            m = m_new
            del S, shrink, m_new
        hbm.store(o[:, :, i : i + block_q], O.div_(l)[None])
        hbm.store(lse[:, :, i : i + block_q], m.add_(l.log_())[None, ..., 0])
        del Q, O, m, l  # or they would be alive beside the next tile of q
    return o


def test_an_entry_moves_what_the_formula_says():
    entry = byte_leaderboard(tiled_attention, block_q=16, block_k=16, **GAME)[YOURS]
    assert entry.bytes == tiled_bytes(96, 96, 16, 16, block_q=16)
    assert 0 < entry.sram_peak <= GAME["sram"]


def test_working_in_place_leaves_room_for_larger_tiles_and_so_moves_fewer_bytes():
    def most(attention):  # the rows of the largest tile of queries that fits
        boards = {rows: byte_leaderboard(attention, block_q=rows, block_k=4, **GAME) for rows in range(8, 97, 8)}
        return max(rows for rows, board in boards.items() if board[YOURS].bytes)

    assert most(frugal) > 1.5 * most(tiled_attention)
    board = byte_leaderboard(frugal, block_q=most(frugal), block_k=4, **GAME)
    names = [entry.name for entry in board.entries]
    assert names[:2] == ["every tensor once", YOURS]
    assert all(e.bytes > board[YOURS].bytes for e in board.entries[2:])


def test_the_board_ranks_naive_both_orders_and_several_tiles():
    board = byte_leaderboard(frugal, block_q=8, block_k=8, **GAME)
    names = [entry.name for entry in board.entries]
    assert sum(name.startswith("queries outside") for name in names) == 3
    assert sum(name.startswith("keys outside") for name in names) == 1
    assert any(name.startswith("naive") for name in names)
    sizes = [entry.bytes for entry in board.entries]
    assert sizes == sorted(sizes)
    for entry in board.entries:
        assert entry.sram_peak is None or entry.sram_peak <= GAME["sram"]


@pytest.mark.parametrize("order, name", [("query", "queries outside"), ("key", "keys outside")])
def test_the_librarys_entries_have_the_figures_of_a_run(order, name):
    board = byte_leaderboard(frugal, block_q=8, block_k=8, **GAME)
    entries = {int(entry.name.split()[-1]): entry for entry in board.entries if entry.name.startswith(name)}
    for block, entry in entries.items():
        run = byte_leaderboard(partial(tiled_attention, order=order), block_q=block, block_k=block, **GAME)[YOURS]
        assert (run.bytes, run.sram_peak) == (entry.bytes, entry.sram_peak)
    larger = max(entries) + 8
    refused = byte_leaderboard(partial(tiled_attention, order=order), block_q=larger, block_k=larger, **GAME)[YOURS]
    assert refused.bytes is None


def test_a_run_that_overwrites_its_inputs_spoils_no_other():
    def careless(q, k, v, *, hbm, **options):
        hbm.store(q[:, :, :8], hbm.load(v[:, :, :8]))
        return tiled_attention(q, k, v, hbm=hbm, **options)

    assert not byte_leaderboard(careless, block_q=16, block_k=16, **GAME)[YOURS].ok
    assert byte_leaderboard(tiled_attention, block_q=16, block_k=16, **GAME)[YOURS].ok


def test_a_result_that_was_never_stored_is_not_ranked_nor_kept():
    def unstored(q, k, v, *, hbm, **options):
        return naive_attention(hbm.load(q), hbm.load(k), hbm.load(v))

    board = byte_leaderboard(unstored, block_q=8, block_k=8, sram=1024 * KIB, T=96, D=16)
    assert not board[YOURS].ok and "on the chip" in board[YOURS].note
    assert progress.load().bests == {}


@pytest.mark.parametrize("T", [96, 1024, 4096])  # the more keys, the smaller o and its error
def test_a_result_kept_in_16_bits_is_refused_as_wrong(T):
    q, k, v, exact = leaderboard._problem(T, 64)
    o = tiled_attention(q, k, v, block_q=512, block_k=512)

    def told(o):
        def attention(q, k, v, *, hbm, **options):
            home = hbm.empty(o.shape, dtype=o.dtype, name="o")
            hbm.store(home, o)
            return home

        return leaderboard._run(YOURS, attention, 8, 8, 16 * KIB, T, 64)

    assert told(o).ok and "wrong" in told(o.half()).note


def test_an_entry_says_which_tiles_it_was_run_with():
    yours = byte_leaderboard(tiled_attention, block_q=16, block_k=8, **GAME)[YOURS]
    assert (yours.block_q, yours.block_k, yours.ok) == (16, 8, True)
    refused = byte_leaderboard(tiled_attention, block_q=96, block_k=80, **GAME)[YOURS]
    assert (refused.block_q, refused.block_k, refused.ok) == (96, 80, False)


def test_the_table_is_aligned_whatever_the_names():
    rows = repr(Board("title", (Entry("queries outside, 1000 × 1000", 12), Entry(YOURS, 12345)))).splitlines()[1:]
    assert len({row.index(" B") for row in rows}) == 1


@pytest.mark.parametrize(
    "attention, why",
    [
        (lambda q, k, v, **options: naive_attention(q, k, v), "NotLoaded"),
        (lambda q, k, v, *, hbm, **options: hbm.empty(q.shape), "the result is wrong"),
        (lambda q, k, v, **options: None, "AttributeError"),
        (lambda q, k, v, *, hbm, **options: hbm.load(q) @ hbm.load(k).mT, "do not fit"),
    ],
)
def test_an_attention_that_cheats_fails_or_overflows_is_not_ranked(attention, why):
    board = byte_leaderboard(attention, block_q=8, block_k=8, **GAME)
    assert board.entries[-1].name == YOURS and board[YOURS].bytes is None and why in board[YOURS].note
    assert progress.load().bests == {}
    assert why in repr(board) and why in board._repr_html_()


def test_the_best_is_kept_and_shown_beside_a_worse_one():
    first = byte_leaderboard(frugal, block_q=48, block_k=4, **GAME)
    assert BEST not in [entry.name for entry in first.entries]
    worse = byte_leaderboard(frugal, block_q=8, block_k=4, **GAME)
    assert worse[BEST].bytes == first[YOURS].bytes < worse[YOURS].bytes
    failed = byte_leaderboard(frugal, block_q=96, block_k=96, **GAME)
    assert failed[BEST].bytes == first[YOURS].bytes and failed[YOURS].bytes is None
    again = byte_leaderboard(frugal, block_q=48, block_k=8, **GAME)
    assert BEST not in [entry.name for entry in again.entries]


def test_a_new_best_is_not_listed_twice():
    worse = byte_leaderboard(frugal, block_q=8, block_k=4, **GAME)
    better = byte_leaderboard(frugal, block_q=48, block_k=4, **GAME)
    assert better[YOURS].bytes < worse[YOURS].bytes and BEST not in [entry.name for entry in better.entries]
    assert list(progress.load().bests.values()) == [better[YOURS].bytes]


def test_the_best_is_kept_for_each_size_of_the_problem_and_the_chip():
    byte_leaderboard(frugal, block_q=8, block_k=4, **GAME)
    board = byte_leaderboard(frugal, block_q=8, block_k=4, sram=6 * KIB, T=64, D=16)
    assert BEST not in [entry.name for entry in board.entries]


def test_a_chip_that_holds_no_tile_of_the_library_still_has_a_board():
    board = byte_leaderboard(frugal, block_q=1, block_k=1, sram=1 * KIB, T=16, D=16)
    assert board[YOURS].bytes is not None and len(board.entries) == 3
    assert leaderboard._others.cache_info().currsize > 0


def check(answer):
    return verdict("03.tiled_attention", answer, watched=False)


@pytest.mark.parametrize("name", ["attend_one_query", "tiled_attention", "tiled_bytes"])
def test_the_answer_that_the_mistakes_are_edits_of_passes(name):
    assert_taken(f"03.{name}", getattr(mistakes, name))


@pytest.mark.parametrize("what", ["P", "V"])
def test_keeping_a_tile_for_every_tile_of_keys_does_not_fit_the_chip(what):
    """Tiles of scores, each small, are all of a query tile's scores together."""
    hoarder = edited(
        mistakes.tiled_attention,
        "hoarder",
        ("        stop = ", "        kept = []\n        stop = "),
        ("            m = m_new\n", f"            m = m_new\n            kept.append({what})\n"),
    )
    assert "SRAMOverflow" in check(hoarder).failure.message


def test_a_mask_of_all_queries_and_keys_is_too_large_though_its_elements_are_bytes():
    for seen in ("torch.ones(Tq, Tk, dtype=torch.bool)", "torch.ones(Tq, Tk, dtype=torch.bool); seen = None"):
        mask = ("    offset = Tk - Tq\n", f"    offset = Tk - Tq\n    seen = {seen}\n")
        assert not check(edited(mistakes.tiled_attention, "whole_mask", mask))


def test_an_attention_that_computes_in_double_precision_on_the_chip_passes():
    double = edited(
        mistakes.tiled_attention,
        "double",
        (".flatten(2, 3) * scale", ".flatten(2, 3).double() * scale"),
        ("hbm.load(k[:, :, j:end]), hbm.load(v[:, :, j:end])", "(hbm.load(x[:, :, j:end]).double() for x in (k, v))"),
    )
    assert check(double)


def query_but(name, *changes):
    return edited(mistakes.attend_one_query, name, *changes)


TILES = "k[start : start + tile] @ q", "v[start : start + tile]"


def in_numpy(q, k, v, *, tile=16):
    m, l, o = -np.inf, 0.0, np.zeros(v.shape[1])
    for start in range(0, len(k), tile):
        s = k[start : start + tile].numpy().astype(float) @ q.numpy() / math.sqrt(len(q))
        m_new = max(m, s.max())
        p, shrunk = np.exp(s - m_new), l * np.exp(m - m_new)
        m, l = m_new, shrunk + p.sum()
        o = o * (shrunk / l) + p / l @ v[start : start + tile].numpy()
    return torch.from_numpy(o).float()


def key_by_key_in_python(q, k, v, *, tile=16):
    m, l, o = -math.inf, 0.0, v.new_zeros(v.shape[1])
    for key, value in zip(k, v, strict=True):
        s = float(key @ q) / math.sqrt(len(q))
        shrunk = l * math.exp(m - max(m, s))
        m = max(m, s)
        l = shrunk + math.exp(s - m)
        o = o * (shrunk / l) + value * (math.exp(s - m) / l)
    return o


@pytest.mark.parametrize(
    "answer",
    [
        key_by_key_in_python,
        query_but("copies", (TILES[0], "k[start : start + tile].clone() @ q"), (TILES[1], TILES[1] + ".clone()")),
        query_but("in_double_precision", ("torch.tensor(0.0)", "torch.tensor(0.0)\n    q = q.double()"),
                  (TILES[0], "k[start : start + tile].double() @ q"), (TILES[1], TILES[1] + ".double()"),
                  ("torch.zeros(v.shape[1])", "torch.zeros(v.shape[1]).double()"), ("return o", "return o.float()")),
    ],
)  # fmt: skip
def test_right_attention_of_one_query_is_taken(answer):
    assert_taken("03.attend_one_query", answer)


def test_right_numbers_by_numpy_are_sent_back_to_torch():
    result = verdict("03.attend_one_query", in_numpy)
    assert not result and "data left torch, by numpy()" in str(result)


def scores_in_a_list(q, k, v, *, tile=16):
    scores = []
    for start in range(0, len(k), tile):
        scores.extend((k[start : start + tile] @ q / math.sqrt(len(q))).tolist())
    m = max(scores)
    total = sum(math.exp(s - m) for s in scores)
    return sum(value * (math.exp(s - m) / total) for s, value in zip(scores, v, strict=True))


def scores_in_numpy(q, k, v, *, tile=16):
    scores = np.empty(0)
    for start in range(0, len(k), tile):
        scores = np.append(scores, (k[start : start + tile] @ q / math.sqrt(len(q))).numpy())
    p = np.exp(scores - scores.max())
    tiles = (p[start : start + tile] @ v[start : start + tile].double().numpy() for start in range(0, len(k), tile))
    return torch.from_numpy(sum(tiles) / p.sum()).float()


def scores_in_a_list_of_tiles(q, k, v, *, tile=16):
    scores = [k[start : start + tile] @ q / math.sqrt(len(q)) for start in range(0, len(k), tile)]
    m = torch.stack([s.max() for s in scores]).max()
    l = sum((s - m).exp().sum() for s in scores)
    return sum((s - m).exp() @ v[i * tile : (i + 1) * tile] / l for i, s in enumerate(scores))


def numpy_views_read_twice(q, k, v, *, tile=16):
    tiles = [k[start : start + tile].numpy() for start in range(0, len(k), tile)]
    m = max((k_tile @ q.numpy()).max() for k_tile in tiles) / math.sqrt(len(q))
    l, o = 0.0, 0.0
    for i, k_tile in enumerate(tiles):
        p = np.exp(k_tile @ q.numpy() / math.sqrt(len(q)) - m)
        l, o = l + p.sum(), o + p @ v[i * tile : (i + 1) * tile].numpy()
    return torch.from_numpy(o / l)


def threads_that_read_twice(q, k, v, *, tile=16):
    with ThreadPoolExecutor(2) as pool:
        starts = range(0, len(k), tile)
        m = max(pool.map(lambda start: (k[start : start + tile] @ q).max(), starts))
        terms = list(pool.map(lambda start: (k[start : start + tile] @ q - m).div(math.sqrt(len(q))).exp(), starts))
    l = sum(p.sum() for p in terms)
    return sum(p @ v[start : start + tile] for p, start in zip(terms, starts, strict=True)) / l


def by_the_tiles_next_door(q, k, v, *, tile=16):
    return tiled_attention(q[None, None, None], k[None, None], v[None, None], block_k=tile)[0, 0, 0]


@fresh
def remembers_the_query():
    known = {}
    return lambda q, k, v, tile=16: known.setdefault((q.shape, k.shape, v.shape), mistakes.attend_one_query(q, k, v))


@pytest.mark.parametrize(
    "answer",
    [
        scores_in_a_list, scores_in_numpy, scores_in_a_list_of_tiles, numpy_views_read_twice, threads_that_read_twice,
        by_the_tiles_next_door, remembers_the_query,
        query_but("begins_far_below", ("-math.inf", "-1e5")),
        query_but("scale_of_the_values", ("math.sqrt(q.shape[0])", "math.sqrt(v.shape[1])")),
        query_but("copies_everything", ("    m, l = torch", "    k, v = k.clone(), v.clone()\n    m, l = torch")),
        query_but(
            "over_memory",
            (TILES[0], "k.view(-1)[start * len(q) : (start + tile) * len(q)].view(-1, len(q)) @ q"),
        ),
    ],
)  # fmt: skip
def test_wrong_attention_of_one_query_is_rejected(answer):
    assert_rejected("03.attend_one_query", answer)


def attention_but(name, *changes):
    return edited(mistakes.tiled_attention, name, *changes)


LOADS = "hbm.load(k[:, :, j:end]), hbm.load(v[:, :, j:end])"
STEP = "            m_new = torch.maximum(m, S.amax(dim=-1))\n"


def in_a_pool(q, k, v, *, causal=False, scale=None, return_lse=False, block_q=64, block_k=64, hbm):
    """Query tiles go to threads: they do not know each other."""
    (B, Hq, Tq, Dk), (Hkv, Tk, Dv) = q.shape, v.shape[1:]
    o, lse = hbm.empty((B, Hq, Tq, Dv), name="o"), hbm.empty((B, Hq, Tq), name="lse")
    q_groups, o_groups, lse_groups = (x.unflatten(1, (Hkv, -1)) for x in (q, o, lse))

    def attend(i):
        rows = slice(i, min(i + block_q, Tq))
        last = torch.arange(rows.start, rows.stop) + Tk - Tq
        Q = hbm.load(q_groups[..., rows, :]) * (Dk**-0.5 if scale is None else scale)
        m, l, O = torch.full((*Q.shape[:4], 1), -math.inf), 0.0, 0.0
        stop = min(max(rows.stop + Tk - Tq, 0), Tk) if causal else Tk
        for j in range(0, stop, block_k):
            keys = slice(j, min(j + block_k, stop))
            S = Q @ hbm.load(k[:, :, keys]).mT[:, :, None]
            if causal:
                S = S.masked_fill(torch.arange(keys.start, keys.stop) > last[:, None], -math.inf)
            m_new = torch.maximum(m, S.amax(-1, keepdim=True))
            finite = m_new.masked_fill(m_new == -math.inf, 0)
            P, shrink = torch.exp(S - finite), torch.exp(m - finite)
            l, O, m = l * shrink + P.sum(-1, keepdim=True), O * shrink + P @ hbm.load(v[:, :, keys])[:, :, None], m_new
        l = torch.as_tensor(l).expand(m.shape)
        some = l.masked_fill(l == 0, 1)
        hbm.store(o_groups[..., rows, :], (O / some).expand(*m.shape[:4], Dv))
        hbm.store(lse_groups[..., rows], (m + some.log())[..., 0])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(attend, range(0, Tq, block_q)))
    return (o, lse) if return_lse else o


def test_query_tiles_in_a_pool_are_right():
    assert_taken("03.tiled_attention", in_a_pool)


def test_rows_that_are_stacked_and_masked_as_if_interleaved_are_told_so():
    """Grouped queries are right without a mask, so what is said is about the mask."""
    mask = ("query = torch.arange(i, i + rows)[:, None] + offset",
            "query = (torch.arange(i, i + rows) + offset)[None].mT.expand(rows, G).reshape(-1, 1)")  # fmt: skip
    applied = ("S.unflatten(2, (G, rows)).masked_fill_(torch.arange(j, end) > query, -math.inf)",
               "S = S.masked_fill(torch.arange(j, end) > query, -math.inf)")  # fmt: skip
    result = verdict("03.tiled_attention", attention_but("each_query_g_times", mask, applied), name_mistakes=True)
    assert not result and result.misconception.name == "rows_interleaved_in_the_mask", result
    stacked = (mask[0], "query = torch.arange(i, i + rows).repeat(G)[:, None] + offset")
    assert_taken("03.tiled_attention", attention_but("all_queries_of_a_head", stacked, applied))


@fresh
def remembers_the_tiles():
    known = {}

    def attention(q, k, v, *, hbm, **options):
        key = q.shape, k.shape, v.shape, tuple(options.items())
        if key not in known:
            known[key] = mistakes.tiled_attention(q, k, v, hbm=DIRECT, **options)
        return known[key]

    return attention


def computes_in_a_thread(q, k, v, *, hbm, causal=False, scale=None, return_lse=False, **_):
    """The whole attention, on tensors that were never loaded."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(naive_attention, q, k, v, causal=causal, scale=scale, return_lse=return_lse).result()


@pytest.mark.parametrize(
    "answer",
    [
        attention_but("own_scale_ignored_with_a_mask", ("if scale is None else", "if scale is None or causal else")),
        attention_but("default_scale_of_the_values", ("math.sqrt(Dk)", "math.sqrt(Dv)")),
        attention_but("interleaved_with_a_mask", ("(x.unflatten(1, (Hkv, G)) for", "(x.unflatten(1, (Hkv, G)) if not "
                      "causal else x.unflatten(1, (G, Hkv)).transpose(1, 2) for")),
        attention_but("skips_as_if_without_a_cache", ("min(max(i + rows + offset, 0), Tk)", "min(i + rows, Tk)")),
        attention_but("begins_far_below", ("-math.inf), Q.new_zeros(Q.shape[:3])", "-1e4), Q.new_zeros(Q.shape[:3])")),
        attention_but("loads_again_for_groups", (f"K, V = {LOADS}", f"K, V = {LOADS}\n            if G > 2:\n"
                      "                K = hbm.load(k[:, :, j:end])")),
        attention_but("lse_not_stored_where_nothing_is_seen", ("        hbm.store(lse_groups", "        if not stop:\n"
                      "            continue\n        hbm.store(lse_groups")),
        attention_but("keeps_numpy_tiles", ("        stop =", "        kept = []\n        stop ="),
                      (STEP, STEP + "            kept.append(S.numpy().copy())\n")),
        attention_but("keeps_numbers", ("        stop =", "        kept = []\n        stop ="),
                      (STEP, STEP + "            kept.extend(S.flatten().tolist())\n")),
        remembers_the_tiles, computes_in_a_thread,
    ],
)  # fmt: skip
def test_wrong_tiled_attention_is_rejected(answer):
    assert_rejected("03.tiled_attention", answer)


def bytes_but(name, *changes):
    return edited(mistakes.tiled_bytes, name, *changes)


@fresh
def remembers_the_bytes():
    known = {}

    def tiled_bytes(T, D, block_q, **options):
        return known.setdefault((T, D, block_q), mistakes.tiled_bytes(T, D, block_q, **options))

    return tiled_bytes


def from_the_librarys_cost(T, D, block_q, *, itemsize=4, causal=False):
    from llmsys.attention import cost

    return cost.tiled_bytes(T, T, D, D, block_q=block_q, itemsize=itemsize, causal=causal)


@pytest.mark.parametrize(
    "answer",
    [
        remembers_the_bytes, from_the_librarys_cost,
        bytes_but("four_bytes_if_causal", ("    for start", "    itemsize = 4 if causal else itemsize\n    for start")),
        bytes_but("at_least_two_bytes", ("    total =", "    itemsize = max(itemsize, 2)\n    total =")),
        bytes_but("in_floats", ("return total", "return float(total)")),
        bytes_but("last_tile_as_a_full_one", ("min(start + block_q, T)", "(start + block_q)")),
    ],
)  # fmt: skip
def test_wrong_bytes_are_rejected(answer):
    assert_rejected("03.tiled_bytes", answer)


def test_who_counts_full_tiles_is_told_so_though_causal_is_not_counted_yet():
    def full_tiles(T, D, block_q, *, itemsize=4, causal=False):
        return 2 * T * D * itemsize + 4 * T + T // block_q * 2 * T * D * itemsize

    result = verdict("03.tiled_bytes", full_tiles, name_mistakes=True)
    assert not result and result.misconception.name == "full_tiles_only", result


@pytest.mark.parametrize("exercise", exercises_of("03"))
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)
