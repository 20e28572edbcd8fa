"""Runs that fail: one report that names the ranks, who waits for whom and where, and no process that is left behind."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
import torch.distributed as dist

from llmsys.parallel.ranks import RanksFailed, calls, close, pool, run
from llmsys.parallel.ranks.processes import Server
from tests.parallel.ranks.conftest import all_gone, processes


def failure(function, *args, ranks=2, **options) -> RanksFailed:
    """What a run raises, after a look that no process of it is left, nor any other but the fork server."""
    run(os.getpid, ranks)
    before = processes()
    assert len(before) > ranks
    with pytest.raises(RanksFailed) as caught:
        run(function, ranks, *args, **options)
    assert len(processes()) == 1
    assert all_gone(before - processes())
    return caught.value


def test_more_requests_than_the_fork_server_reads_at_once_are_understood():
    pid = run(os.getpid, 1)
    server = pool.current()._server
    for _ in range(1000):
        server.tell({"kill": 10**9})  # nobody
    assert run(dist.get_rank, 3) == [0, 1, 2]
    assert pool.current()._server is server and run(os.getpid, 1) == pid
    close()


def test_where_the_directory_of_the_ranks_was_tidied_away_others_are_started():
    for ranks in (2, 3):
        run(os.getpid, 2)
        shutil.rmtree(pool.current()._server.directory)
        assert run(dist.get_rank, ranks) == list(range(ranks))
    close()


# A rank raises


def test_the_report_of_an_exception_has_its_rank_traceback_and_who_waits_for_it():
    def divide(by):
        dist.barrier()
        if dist.get_rank() == 1:
            print("about to", file=sys.stderr)
            time.sleep(0.2)  # until the others wait
            return 1 / by
        dist.recv(torch.zeros(2, 3), 1)

    error = failure(divide, 0, ranks=3)
    report = str(error)
    assert report.startswith("rank 1 of 3 raised.") and (error.reason, error.rank) == ("raised", 1)
    assert "ZeroDivisionError: division by zero" in report and "return 1 / by" in report
    assert "worker.py" not in report
    for rank in (0, 2):
        line = next(line for line in report.splitlines() if line.startswith(f"rank {rank} "))
        assert "waits for rank 1 (which has raised)" in line and "recv from rank 1 of float32 (2, 3), at " in line
        assert "test_failures.py" in line and line.endswith("in divide")
    assert isinstance(error.endings[1].exception, ZeroDivisionError) and error.__cause__ is error.endings[1].exception
    assert error.endings[0].kind == "waited" and error.endings[0].call.peer == 1
    assert error.outputs[1].stderr == "about to\n" and error.log == "rank 1!| about to\n"


def test_what_all_ranks_raise_is_shown_once():
    def divide() -> float:
        return 1 / 0

    report = str(failure(divide, ranks=3))
    assert report.count("ZeroDivisionError: division by zero") == 1
    assert report.count(", just as rank ") == 2


def test_an_exception_that_cannot_be_sent_is_reported_all_the_same():
    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__("odd")
            self.lock = threading.Lock()

    def raises():
        raise Odd(1, 2)

    error = failure(raises)
    assert "Odd: odd" in str(error) and error.endings[error.rank].exception is None


def test_sys_exit_ends_a_run_like_an_exception():
    error = failure(lambda: sys.exit(4) if dist.get_rank() else dist.barrier())
    assert (error.reason, error.rank) == ("raised", 1) and "SystemExit: 4" in str(error)


# A rank dies


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL"),
        (lambda: ctypes.string_at(0), "was killed by SIGSEGV"),
        (lambda: os._exit(3), "ended with exit code 3"),
    ],
    ids=["killed", "crashed", "left"],
)
def test_a_process_that_dies_is_named_with_its_end_and_its_last_call(ends, says):
    def dies():
        dist.all_reduce(torch.ones(5))
        if dist.get_rank() == 0:
            print("my last words", flush=True)
            ends()
        dist.broadcast(torch.ones(7), 0)

    error = failure(dies)
    assert (error.reason, error.rank) == ("died", 0) and f"it {says}" in str(error)
    assert "its last communication call was all_reduce of float32 (5,)" in str(error)
    assert error.outputs[0].stdout == "my last words\n"
    if "SEGV" in says:
        assert "Fatal Python error: Segmentation fault" in str(error) and "in dies" in str(error)


def test_what_a_rank_has_started_ends_with_it(tmp_path):
    def starts():
        child = subprocess.Popen(["sleep", "60"])
        (tmp_path / str(dist.get_rank())).write_text(str(child.pid))
        dist.barrier()
        raise ValueError

    failure(starts)
    assert all_gone({int((tmp_path / str(rank)).read_text()) for rank in range(2)})


def test_where_the_fork_server_is_killed_its_ranks_end_and_the_next_run_has_another():
    def kills():
        dist.barrier()
        if dist.get_rank() == 0:
            os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    before = set(run(os.getpid, 2))
    with pytest.raises(RanksFailed, match="was killed by SIGKILL"):
        run(kills, 2)
    assert all_gone(before) and not processes()
    assert len(set(run(os.getpid, 2))) == 2


# Ranks hang


def test_a_circle_of_receives_is_named_long_before_the_time_is_over():
    def ring():
        rank = dist.get_rank()
        if rank < 3:
            dist.recv(torch.zeros(4), (rank + 1) % 3, tag=5)

    error = failure(ring, ranks=4, stalled_after=0.5)
    assert error.reason == "hung" and error.circle == [0, 1, 2]
    report = str(error)
    assert "3 of 4 ranks had not ended (0, 1, 2), and nothing had moved for 0.5 s" in report
    assert "They wait in a circle: rank 0 → rank 1 → rank 2 → rank 0." in report
    assert "rank 1 waits for rank 2, since " in report and "recv from rank 2 of float32 (4,)" in report
    assert "rank 3 has returned" in report
    assert report.count("dist.recv(torch.zeros(4), (rank + 1) % 3, tag=5)") == 3, "the line of each, from its stack"


def test_sends_that_nobody_receives_wait_for_each_other():
    def both():
        big = torch.zeros(4_000_000)
        dist.send(big, 1 - dist.get_rank())
        dist.recv(big, 1 - dist.get_rank())

    error = failure(both, stalled_after=0.5)
    assert error.circle == [0, 1] and "send to rank 1 of float32 (4000000,)" in str(error)


def test_a_collective_waits_for_those_who_have_not_come_and_an_odd_one_is_named():
    def collectives():
        rank = dist.get_rank()
        dist.barrier()
        if rank == 0:
            dist.all_reduce(torch.ones(3))
        elif rank == 1:
            dist.all_reduce(torch.ones(5))
        else:
            dist.recv(torch.ones(1), 0)

    report = str(failure(collectives, ranks=3, stalled_after=0.5))
    first = next(line for line in report.splitlines() if line.startswith("rank 0 "))
    assert "waits for rank 2, since" in first and "all_reduce of float32 (3,)" in first
    assert "rank 1 calls all_reduce of float32 (5,) instead, at" in first


def test_an_asynchronous_receive_counts_from_when_somebody_waits_for_it():
    def later():
        if dist.get_rank() == 0:
            one, two = dist.irecv(torch.zeros(1), 1), dist.irecv(torch.zeros(2), 1)
            two.wait()
            one.wait()
        else:
            dist.recv(torch.zeros(9), 0)

    error = failure(later, stalled_after=0.5)
    assert error.endings[0].call.tensor == "float32 (2,)" and error.circle == [0, 1]


def test_a_rank_that_holds_pythons_lock_is_found_by_its_stack_when_the_time_is_over():
    def stuck():
        if dist.get_rank() == 1:
            ctypes.PyDLL(None).sleep(100)  # no other thread of this process can run
        dist.barrier()

    begin = time.monotonic()
    error = failure(stuck, timeout=1.2)
    assert time.monotonic() - begin < 10 and error.reason == "hung" and error.rank == 0
    assert "2 of 2 ranks had not ended (0, 1) when the 1.2 s of `timeout` were over." in str(error)
    assert "rank 1 is in no communication call; it has made none" in str(error)
    assert "ctypes.PyDLL(None).sleep(100)" in str(error) and "rank 0 waits for rank 1" in str(error)


def test_every_kind_of_communication_is_recorded_under_the_name_by_which_users_know_it():
    def all_kinds():
        rank, x, record, seen = dist.get_rank(), torch.ones(2), calls.watching(), []
        parts = [torch.ones(2), torch.ones(2)]
        for name, arguments in {
            "all_reduce": (x,), "broadcast": (x, 0), "reduce": (x, 1), "barrier": (),
            "all_gather": (parts, x), "all_gather_into_tensor": (torch.ones(4), x),
            "gather": (x, parts if rank == 0 else None), "scatter": (x, parts if rank == 0 else None),
            "all_to_all_single": (x, torch.ones(2)), "all_to_all": (parts, [torch.ones(2), torch.ones(2)]),
            "reduce_scatter": (x, parts), "reduce_scatter_tensor": (x, torch.ones(4)), "monitored_barrier": (),
            "recv" if rank else "send": (x, 1 - rank),
        }.items():  # fmt: skip
            getattr(dist, name)(*arguments)
            call = record.current()
            seen.append((name, call.name, call.members, call.waiting, call.peer))
        receive, send = dist.irecv(x, 1 - rank), dist.isend(torch.ones(2), 1 - rank)
        unfinished = record.unfinished()
        receive.wait(), send.wait()
        both = [dist.P2POp(dist.isend, torch.ones(2), 1 - rank), dist.P2POp(dist.irecv, x, 1 - rank)]
        batched = len([each.wait() for each in dist.batch_isend_irecv(both)])
        return seen, unfinished, batched, record.unfinished()

    for rank, (seen, unfinished, batched, left) in enumerate(run(all_kinds, 2)):
        assert len(seen) == 14
        for name, known_as, members, waiting, peer in seen:
            assert known_as == name and members == [0, 1] and not waiting
            assert peer == (1 - rank if name in ("send", "recv") else None)
        assert (unfinished, batched, left) == (2, 2, 0)


def test_what_moves_slowly_is_no_hang():
    def slowly():
        for _ in range(6):
            if dist.get_rank() == 0:
                time.sleep(0.2)
            dist.barrier()
        return True

    assert run(slowly, 2, stalled_after=0.5) == [True, True]


def test_ctrl_c_ends_the_ranks(tmp_path):
    def endless():
        (tmp_path / "runs").touch()
        while True:
            time.sleep(0.01)

    def interrupt():
        while not (tmp_path / "runs").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    pids = set(run(os.getpid, 2))
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run(endless, 2)
    assert all_gone(pids)


def test_ctrl_c_while_a_rank_is_started_leaves_nothing_for_the_next_run(monkeypatch):
    close()
    run(os.getpid, 1)  # the server is there
    answer = Server._answer

    def interrupted(server, name, *args):
        monkeypatch.setattr(Server, "_answer", answer)
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(os.getpid, 2)
    assert run(dist.get_rank, 3) == [0, 1, 2]
    close()


def test_a_copy_that_a_function_makes_of_its_rank_does_not_go_on_as_the_rank():
    def fork(fails: bool) -> int:
        copy = os.fork()
        if copy == 0 and fails:
            raise ValueError("in the copy")
        return copy and os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])

    for fails, says in ((False, "it returned from the function"), (True, "ValueError: in the copy")):
        results = run(fork, 1, fails)
        assert results == [1] and says in results.outputs[0].stderr
    assert run(os.getpid, 1) == run(os.getpid, 1), "and the rank stays warm"


def test_a_rank_that_is_stopped_is_said_to_be():
    def stop() -> None:
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGSTOP)

    report = str(failure(stop, timeout=0.5))
    assert "rank 0 has returned" in report and "it may be stopped (SIGSTOP" in report
