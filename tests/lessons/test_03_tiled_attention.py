"""Lesson 03: the byte leaderboard ranks what is right, fits and is counted, and keeps the best; and the check's right
answers."""

import math
from functools import partial

import pytest
import torch

from llmsys.attention import naive_attention, tiled_attention
from llmsys.attention.cost import tiled_bytes
from llmsys.course.checking.checks import get_check, run_check
from llmsys.course.checking.mistakes import edited
from llmsys.course.workspace import progress
from llmsys.hardware.memory import KIB
from llmsys.lessons.lesson_03_tiled_attention import leaderboard, mistakes
from llmsys.lessons.lesson_03_tiled_attention.leaderboard import BEST, YOURS, Board, Entry, byte_leaderboard
from tests.support.self_tests import assert_check_stands, exercises_of

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


def check(answer, seed=0):
    tiled = get_check("03.tiled_attention")
    return run_check(tiled, tiled.local_runner(answer), seed=seed, name_mistakes=False)


@pytest.mark.parametrize("name", ["attend_one_query", "tiled_attention", "tiled_bytes"])
def test_the_answer_that_the_mistakes_are_edits_of_passes(name):
    exercise = get_check(f"03.{name}")
    for seed in range(3):
        result = run_check(exercise, exercise.local_runner(getattr(mistakes, name)), seed=seed)
        assert result, result


@pytest.mark.parametrize("what", ["S", "P", "K", "V"])
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
    mask = ("    offset = Tk - Tq\n", "    offset = Tk - Tq\n    seen = torch.ones(Tq, Tk, dtype=torch.bool)\n")
    assert check(edited(mistakes.tiled_attention, "whole_mask", mask)).failure.kind == "allocation"


def test_an_attention_that_computes_in_double_precision_on_the_chip_passes():
    double = edited(
        mistakes.tiled_attention,
        "double",
        (".flatten(2, 3) * scale", ".flatten(2, 3).double() * scale"),
        ("hbm.load(k[:, :, j:end]), hbm.load(v[:, :, j:end])", "(hbm.load(x[:, :, j:end]).double() for x in (k, v))"),
    )
    assert check(double)


@pytest.mark.parametrize("exercise", exercises_of("03"))
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)
