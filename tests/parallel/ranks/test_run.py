"""A function on ranks: what it gets, what comes back, what it printed; and that warm ranks are like fresh ones."""

import os
import random
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
import torch
import torch.distributed as dist

from llmsys.parallel.ranks import NotPicklable, close, device, pool, run, team
from tests.parallel.ranks.conftest import processes


def test_each_rank_gets_the_arguments_and_its_result_stands_in_its_place():
    weights = {"w": 2.0}

    def scaled(x, more):
        dist.all_reduce(x)
        return dist.get_rank(), dist.get_world_size(), x * weights["w"] + more

    results = run(scaled, 3, torch.tensor([1.0, 5.0]), 1)
    assert [each[:2] for each in results] == [(0, 3), (1, 3), (2, 3)]
    for _, _, x in results:
        torch.testing.assert_close(x, torch.tensor([7.0, 31.0]))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_sums_over_ranks_are_those_of_one_process(ranks):
    whole = torch.arange(24.0).reshape(8, 3)

    def mean_of_a_part(x):
        part = x.chunk(dist.get_world_size())[dist.get_rank()].sum(dim=0)
        dist.all_reduce(part)
        return part / len(x)

    for part in run(mean_of_a_part, ranks, whole):
        torch.testing.assert_close(part, whole.mean(dim=0))


def test_a_warm_call_takes_well_under_a_second():
    run(dist.get_rank, 2)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        run(dist.get_rank, 2)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.5


def test_warm_processes_are_used_again_and_close_ends_them():
    first, second = run(os.getpid, 2), run(os.getpid, 3)
    assert second[:2] == first and len(set(second)) == 3
    assert set(second) < processes()
    close()
    assert not set(second) & processes()
    assert not set(run(os.getpid, 2)) & set(second)


def test_torch_is_imported_once_for_all_ranks_by_a_process_that_has_no_threads():
    run(dist.get_rank, 2)
    server = pool.current()._server
    assert server.threads == 1
    assert {os.getpgid(each) for each in run(os.getpid, 2)} == set(run(os.getpid, 2)), "each in a group of its own"
    assert set(run(os.getppid, 2)) == {server._popen.pid}


def test_a_warm_rank_begins_like_a_fresh_one(tmp_path, monkeypatch):
    def spoil():
        torch.manual_seed(7)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        os.environ["SPOILT"] = "1"
        os.chdir("/")
        sys.path.clear()

    def look():
        x = torch.ones(1, requires_grad=True) * 2
        return torch.rand(2), x.dtype, x.requires_grad, os.environ.get("SPOILT"), os.environ["OURS"], os.getcwd()

    monkeypatch.setenv("OURS", "1")
    monkeypatch.chdir(tmp_path)
    before = run(look, 2)
    run(spoil, 2)
    for (rand, *rest), (again, *rest_again) in zip(before, run(look, 2), strict=True):
        assert torch.equal(rand, again)
        assert rest == rest_again == [torch.float32, True, None, "1", str(tmp_path)]


def test_ranks_have_random_numbers_of_their_own_in_numpy_and_python():
    assert len(set(run(lambda: (random.random(), np.random.random()), 2))) == 2


def test_a_module_that_was_edited_is_imported_anew(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "edited_by_a_test.py").write_text("answer = 1")

    def ask():
        import edited_by_a_test

        return edited_by_a_test.answer

    assert run(ask, 2) == [1, 1]
    pids = run(os.getpid, 2)
    (tmp_path / "edited_by_a_test.py").write_text("answer = 22")
    assert run(ask, 2) == [22, 22]
    assert not set(run(os.getpid, 2)) & set(pids)


def test_other_settings_of_the_libraries_get_other_processes(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pids = run(os.getpid, 1)
    assert run(torch.get_num_threads, 1) == [1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert run(os.environ.get, 1, "OMP_NUM_THREADS") == ["2"]
    assert not set(pids) & processes()


def test_a_rank_finds_its_number_in_the_environment_as_under_torchrun():
    def told():
        return [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")], str(device())

    assert run(told, 2, backend="gloo") == [(["0", "2", "0", "2"], "cpu"), (["1", "2", "1", "2"], "cpu")]


def test_tensors_come_back_without_graph_and_without_the_rest_of_their_storage():
    parameter = torch.nn.Parameter(torch.ones(3))

    def view(p):
        whole = torch.zeros(1000, 1000)
        return (whole[0, :5], (p * 2).sum(), p, whole.to(torch.bfloat16).t()[:2, :3], torch.zeros(0))

    row, total, same, strided, empty = run(view, 1, parameter)[0]
    assert row.untyped_storage().nbytes() == 20 and strided.shape == (2, 3) and empty.shape == (0,)
    assert total.item() == 6 and total.grad_fn is None and not total.requires_grad
    assert isinstance(same, torch.nn.Parameter) and same.requires_grad


def test_a_function_whose_ranks_use_two_groups_leaves_nothing_for_the_next_call():
    def groups():
        pair = dist.new_group([0, 1])
        x = torch.ones(1)
        if dist.get_rank() < 2:
            dist.all_reduce(x, group=pair)
        return x.item()

    for _ in range(2):
        assert run(groups, 3) == [2, 2, 1]


def leaves_late(seconds, told=None):
    """On a rank: it needs so long to leave the process group, and notes whether the others could still be found."""
    leave, store = dist.destroy_process_group, dist.distributed_c10d._get_default_store().underlying_store.path

    def late():
        dist.destroy_process_group = leave
        time.sleep(seconds)
        if told:
            told.with_name(f"{dist.get_rank()}").write_text(str(os.path.exists(store)))
        leave()

    dist.destroy_process_group = late
    return os.getpid(), store


def test_the_file_by_which_ranks_have_met_is_there_until_all_have_left(tmp_path):
    first, stores = zip(*run(leaves_late, 2, 0.3, tmp_path / "told"), strict=True)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["True", "True"]
    assert run(os.getpid, 2) == [*first]
    assert len(set(stores)) == 1 and not os.path.exists(stores[0])


def test_ranks_that_do_not_leave_are_ended_and_their_results_are_kept(monkeypatch):
    monkeypatch.setattr(team, "LEAVING", 0.3)
    first = run(leaves_late, 2, 600.0)
    assert not {process for process, _ in first} & set(run(os.getpid, 2))


def test_runs_of_two_threads_do_not_meet():
    def both(n):
        x = torch.tensor([float(n)])
        dist.all_reduce(x)
        return x.item()

    results = {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: run(both, 2, n)})) for n in (1, 10)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert results == {1: [2, 2], 10: [20, 20]}


# What they print


def test_what_each_rank_prints_is_kept_apart_and_merged_in_the_order_of_messages():
    def talk():
        rank, x = dist.get_rank(), torch.zeros(1)
        for step in range(5):
            if rank == step % 2:
                print(f"step {step}", end="")
                print(" sends")
                dist.send(x, 1 - rank)
            else:
                dist.recv(x, 1 - rank)
        print("no end", end="", file=sys.stderr)

    results = run(talk, 2)
    assert results.outputs[0].stdout == "step 0 sends\nstep 2 sends\nstep 4 sends\n"
    assert results.outputs[1].stderr == "no end\n"
    said = [line for line in results.log.splitlines() if "sends" in line]
    assert said == [f"rank {step % 2} | step {step} sends" for step in range(5)]
    assert sorted(line for line in results.log.splitlines() if "!" in line) == ["rank 0!| no end", "rank 1!| no end"]


def test_what_other_programs_and_c_code_print_is_caught_too_and_in_its_own_run():
    def others():
        subprocess.run(["echo", "from a program"], check=True)
        os.write(2, b"\xff raw\n")
        __import__("ctypes").CDLL(None).puts(b"from C")

    results = run(others, 1)
    assert sorted(results.outputs[0].stdout.splitlines()) == ["from C", "from a program"]
    assert results.outputs[0].stderr == "\ufffd raw\n"
    assert run(dist.get_rank, 1).log == ""


def test_shown_lines_come_while_the_ranks_run(capsys):
    seen = []

    def slow():
        print("first")
        time.sleep(0.4)
        print("second")

    class Watching:
        def write(self, text):
            seen.append((text, time.monotonic()))

        def flush(self):
            pass

    before, sys.stdout = sys.stdout, Watching()
    try:
        run(slow, 1, show=True)
    finally:
        sys.stdout = before
    times = {text.strip(): at for text, at in seen if text.strip()}
    assert list(times) == ["rank 0 | first", "rank 0 | second"]
    assert times["rank 0 | second"] - times["rank 0 | first"] > 0.2


def test_a_function_that_closes_its_output_does_not_end_the_rank():
    def close_both() -> str:
        with sys.stdout, sys.stderr:
            print("said")
        return "done"

    results = run(close_both, 2)
    assert results == ["done", "done"] and results.outputs[1].stdout == "said\n"
    assert run(lambda: print("heard"), 2).outputs[1].stdout == "heard\n"


def test_a_flood_of_output_neither_blocks_nor_fills_the_memory():
    def flood():
        for _ in range(200):
            print("x" * 100_000)
        return "done"

    results = run(flood, 1)
    assert results == ["done"]
    assert len(results.outputs[0].stdout) < 9 << 20
    assert results.outputs[0].stdout.endswith("(more than 8 MiB: what follows is not kept)\n")


# What cannot be


class Holder:
    def __init__(self):
        self.inner = {"door": threading.Lock()}


def test_a_flood_without_a_line_end_is_read_in_time_in_proportion_and_leaves_the_next_run_its_output():
    def flood() -> None:
        for _ in range(64):
            os.write(1, b"x" * (1 << 20))

    began = time.monotonic()
    log = run(flood, 1).log
    assert time.monotonic() - began < 20, "each piece costs its own length, not that of all before it"
    assert log == "rank 0 | (more than 8 MiB: what follows is not kept)\n"
    assert run(lambda: print("heard"), 1).log == "rank 0 | heard\n"
    assert len(run(lambda: print("x" * 3_000_000), 1).log) > 3_000_000, "a long line in one piece"


def test_a_function_may_say_config_of_its_model_beside_torch_distributed():
    """`torch.distributed.config` is a module of a class of its own, and goes along with both names."""
    namespace = {"__name__": "cells", "dist": dist}
    exec("def told(model):\n    return dist.get_rank(), model.config", namespace)
    assert run(namespace["told"], 2, types.SimpleNamespace(config=3), backend="gloo") == [(0, 3), (1, 3)]


def test_a_module_that_no_file_makes_is_said_not_to_travel():
    class Own(types.ModuleType):
        """A module's class."""

    sys.modules["made_here"] = made = Own("made_here")
    try:
        with pytest.raises(NotPicklable, match="argument 0 of the function cannot be sent"):
            run(type, 1, made, backend="gloo")
    finally:
        del sys.modules["made_here"]


def test_what_cannot_be_pickled_is_named():
    holder = Holder()
    with pytest.raises(NotPicklable, match=r"`holder`, a variable that the function .* closes over,.inner\['door'\]"):
        run(lambda: holder, 2)
    with pytest.raises(NotPicklable, match=r"argument 1 of the function\[0\] cannot be sent .* it is a _thread.lock"):
        run(lambda a, b: None, 2, 1, [threading.Lock()])


def test_a_result_that_cannot_be_pickled_is_named_with_its_rank():
    def result():
        return {"lock": threading.Lock()} if dist.get_rank() == 1 else None

    with pytest.raises(RuntimeError, match=r"the result of rank 1\['lock'\] cannot be sent"):
        run(result, 2)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"ranks": 0}, "ranks must be how many"),
        ({"ranks": 2.0}, "ranks must be how many"),
        ({"ranks": True}, "ranks must be how many"),
        ({"backend": "mpi"}, 'backend must be "gloo", "nccl" or None'),
        ({"timeout": True}, "timeout must be seconds"),
        ({"timeout": 0}, "timeout must be seconds"),
        ({"stalled_after": "1"}, "stalled_after must be seconds"),
        ({"on_death": "ignore"}, "on_death must be"),
    ],
)
def test_wrong_arguments_are_named_before_anything_starts(wrong, says):
    with pytest.raises(ValueError, match=says):
        run(dist.get_rank, **{"ranks": 2} | wrong)


def test_what_is_no_function_is_refused():
    async def later():
        pass

    for wrong in ("f", later):
        with pytest.raises(TypeError, match="function must be"):
            run(wrong, 2)


@pytest.mark.skipif(torch.cuda.device_count() >= 8, reason="there are GPUs enough")
def test_nccl_without_a_gpu_for_each_rank_is_refused():
    with pytest.raises(ValueError, match='needs a GPU for each of 8 ranks.*use "gloo"'):
        run(dist.get_rank, 8, backend="nccl")


@pytest.mark.gpu
def test_nccl_is_taken_where_there_are_gpus_and_tensors_come_back_on_the_cpu():
    def on_gpu(x):
        x = x.to(device())
        dist.all_reduce(x)
        small = torch.ones(1)
        dist.all_reduce(small)  # in CPU memory, through gloo
        return str(x.device), x * 2, small

    for _ in range(2):
        [(where, x, small)] = run(on_gpu, 1, torch.ones(3))
        assert where == "cuda:0" and x.device.type == "cpu" and x.tolist() == [2, 2, 2] and small.tolist() == [1]
