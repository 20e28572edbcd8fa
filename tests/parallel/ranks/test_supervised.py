"""Ranks that may die while the others go on, and pairs of ranks that are broken off and made anew."""

import contextlib
import os
import signal
import threading
import time

import pytest
import torch
import torch.distributed as dist

from llmsys.parallel.ranks import Ending, PairBroken, RanksFailed, dead, device, pair_group, run, when_dead
from tests.parallel.ranks.conftest import processes


def until(condition, seconds=5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(condition())


def test_the_others_are_told_of_a_rank_that_dies_and_of_one_that_raises():
    def supervised():
        rank, told = dist.get_rank(), []
        when_dead(told.append)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 3:
            raise KeyError("lost")
        assert until(lambda: len(told) == 2)
        late = []
        when_dead(late.append)
        assert until(lambda: len(late) == 2)
        return sorted(told), sorted(late), sorted(dead())

    results = run(supervised, 4, on_death="report")
    assert results[0] == results[2] == ([1, 3], [1, 3], [1, 3])
    assert isinstance(results[1], Ending) and (results[1].kind, results[1].status) == ("died", -signal.SIGKILL)
    assert results[3].kind == "raised" and isinstance(results[3].exception, KeyError)
    assert len(processes()) == 1, "the fork server: what a run with dead ranks used is not kept"


def test_nobody_is_dead_in_the_next_run_and_one_without_deaths_stays_warm():
    pids = run(os.getpid, 2, on_death="report")
    assert run(lambda: (dead(), os.getpid()), 2, on_death="report") == [(frozenset(), pid) for pid in pids]


def test_who_waits_for_a_dead_rank_hears_of_it_and_goes_on_with_another():
    def served():
        rank, x = dist.get_rank(), torch.zeros(3)
        if rank == 2:
            pair_group(0, 2)
            os._exit(1)
        if rank == 1:
            pair_group(0, 1).send(torch.ones(3))
            return
        pair = pair_group(2, 0)
        with pytest.raises(PairBroken) as broken:
            pair.recv(x)
        assert broken.value.peer == 2
        assert until(lambda: dead() == {2}) and pair.aborted
        with pytest.raises(PairBroken, match="rank 2 is dead"):
            pair_group(0, 2)
        pair_group(0, 1).recv(x)
        return x

    assert run(served, 3, on_death="report")[0].tolist() == [1, 1, 1]


def test_a_run_whose_ranks_may_die_can_still_hang():
    with pytest.raises(RanksFailed, match="rank 0 waits for rank 1"):
        run(lambda: dist.recv(torch.zeros(1), 1 - dist.get_rank()), 2, on_death="report", stalled_after=0.5)


def test_a_pair_that_is_aborted_wakes_both_sides_and_is_made_anew():
    def pairs():
        rank, heard = dist.get_rank(), []
        for turn in range(3):
            pair = pair_group(0, 1)
            x = torch.full((2,), float(rank + turn))
            if rank == 0:
                pair.send(x)
                pair.recv(x)
            else:
                y = x.clone()
                pair.recv(x)
                pair.send(y)
            heard.append(x[0].item())
            if rank == 0:
                threading.Timer(0.1, pair.abort).start()
            begin = time.monotonic()
            with pytest.raises(PairBroken, match="ranks 0 and 1 is broken"):
                pair.recv(torch.zeros(1))
            assert time.monotonic() - begin < 5
            with pytest.raises(PairBroken, match=r"pair_group\(0, 1\) for a new one"):
                pair.send(x)
        dist.barrier()  # all else goes on
        return heard

    assert run(pairs, 2, stalled_after=5) == [[1, 2, 3], [0, 1, 2]]


def test_a_pair_that_one_side_aborts_at_once_is_broken_for_the_other_and_nothing_else_is():
    def again_and_again() -> list[str]:
        heard = []
        for _ in range(20):
            try:
                pair = pair_group(0, 1)
                if dist.get_rank() == 0:
                    pair.abort()
                pair.recv(torch.zeros(1))
            except PairBroken:
                heard.append("broken")
        dist.barrier()
        return heard

    assert run(again_and_again, 2) == [["broken"] * 20] * 2


def test_transfers_of_a_pair_overlap_and_keep_their_tags_apart():
    def overlapped():
        pair = pair_group(0, 1)
        x = [torch.full((1000,), float(n)) if dist.get_rank() == 0 else torch.zeros(1000) for n in range(4)]
        if dist.get_rank() == 0:
            transfers = [pair.isend(x[n], tag=n) for n in (3, 1, 0, 2)]
        else:
            transfers = [pair.irecv(x[n], tag=n) for n in (0, 1, 2, 3)]
        for each in transfers:
            each.wait()
        return [each.unique().tolist() for each in x]

    assert run(overlapped, 2)[1] == [[0], [1], [2], [3]]


def test_a_broken_off_pair_leaves_other_pairs_and_the_group_of_all_alone():
    def three():
        rank, x = dist.get_rank(), torch.zeros(1)
        if rank == 0:
            first, second = pair_group(0, 1), pair_group(0, 2)
            first.abort()
            second.send(torch.ones(1))
        elif rank == 1:
            with pytest.raises(PairBroken):
                pair_group(0, 1).recv(x)
        else:
            pair_group(0, 2).recv(x)
        dist.all_reduce(x)
        return x.item()

    assert run(three, 3) == [1, 1, 1]


def test_who_comes_to_no_pair_is_waited_for_no_longer_than_said():
    def alone():
        if dist.get_rank() == 0:
            with pytest.raises(PairBroken, match="rank 1 has not called pair_group within 0.2 s"):
                pair_group(0, 1, timeout=0.2)
        dist.barrier()
        pair = pair_group(0, 1)  # the old offer does not confuse a later one
        x = torch.ones(1)
        (pair.send if dist.get_rank() == 0 else pair.recv)(x)

    run(alone, 2)


def test_wrong_pairs_are_named():
    def wrong():
        said = []
        for a, b in ((0, 0), (0, 5), (1 - dist.get_rank(), 2)):
            with pytest.raises(ValueError) as caught:
                pair_group(a, b)
            said.append(str(caught.value))
        return said

    for rank, said in enumerate(run(wrong, 2)):
        assert all(each.startswith(f"a and b must be two of 2 ranks, one of them this one, {rank};") for each in said)
    with pytest.raises(ValueError, match="call it inside run"):
        pair_group(0, 1)


def test_a_hang_inside_a_pair_says_so():
    def hangs():
        pair_group(0, 1).recv(torch.zeros(6))

    with pytest.raises(RanksFailed) as caught:
        run(hangs, 2, stalled_after=0.5)
    assert caught.value.circle == [0, 1] and "recv from rank 1 of float32 (6,), at" in str(caught.value)
    assert "in hangs" in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_pair_of_gpus_is_aborted_by_who_does_not_wait_and_made_anew():
    def pairs():
        rank, heard = dist.get_rank(), []
        for turn in range(2):
            pair, x = pair_group(0, 1), torch.full((1000,), float(rank + turn), device=device())
            (pair.send if rank == 0 else pair.recv)(x)
            heard.append(x.mean().item())
            dist.barrier()
            if rank == 0:  # it waits on the GPU for what never comes, until another thread aborts the pair
                threading.Timer(0.2, pair.abort).start()
                with contextlib.suppress(PairBroken):
                    pair.recv(x)
            else:
                pair.abort()
            torch.cuda.synchronize()
        return heard

    assert run(pairs, 2, backend="nccl", stalled_after=None, timeout=60) == [[0, 1], [0, 1]]
