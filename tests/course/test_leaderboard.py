"""The byte leaderboard: ranks what ran, says why something did not, and keeps the best."""

import pytest

from llmsys.attention import tiled_attention
from llmsys.attention.cost import tiled_bytes
from llmsys.course import progress
from llmsys.course.leaderboard import byte_leaderboard
from llmsys.hardware.memory import KIB

SMALL = {"sram": 16 * KIB, "T": 64, "D": 16}


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch):
    monkeypatch.setattr(progress, "find", lambda: None)
    monkeypatch.setattr(progress, "_in_memory", progress.Progress())


def entry(board, name):
    return next(each for each in board.entries if each.name == name)


def test_an_entry_is_ranked_by_the_bytes_it_moved():
    board = byte_leaderboard(tiled_attention, block_q=16, block_k=8, **SMALL)
    assert entry(board, "yours").bytes == tiled_bytes(64, 64, 16, 16, block_q=16)
    ranked = [each.bytes for each in board.entries]
    assert ranked == sorted(ranked) and board.entries[0].name == "every tensor once"
    assert "yours" in repr(board) and "yours" in board._repr_html_()


def test_what_does_not_fit_or_is_wrong_is_not_ranked_and_says_why():
    board = byte_leaderboard(tiled_attention, block_q=64, block_k=64, **SMALL)
    assert entry(board, "yours").bytes is None and "do not fit" in repr(board)
    board = byte_leaderboard(lambda q, k, v, **options: v, block_q=8, block_k=8, **SMALL)
    assert "the result is wrong" in entry(board, "yours").note
    board = byte_leaderboard(lambda *args, **options: 1 / 0, block_q=8, block_k=8, **SMALL)
    assert "ZeroDivisionError" in board._repr_html_()


def test_the_best_is_kept():
    byte_leaderboard(tiled_attention, block_q=16, block_k=8, **SMALL)
    board = byte_leaderboard(tiled_attention, block_q=8, block_k=8, **SMALL)
    assert entry(board, "your best").bytes == tiled_bytes(64, 64, 16, 16, block_q=16)
    assert entry(board, "yours").bytes == tiled_bytes(64, 64, 16, 16, block_q=8)
