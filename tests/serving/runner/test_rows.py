"""Rows: what the device has of each request's blocks is always what the last plan said, and nothing is sent twice."""

import random

import numpy as np
import pytest
import torch

from llmsys.serving.plan import StepPlan, Work
from llmsys.serving.runner.packed import Packing, Sender
from llmsys.serving.runner.rows import Rows
from llmsys.serving.sampling.sampling_params import SamplingParams

CPU = torch.device("cpu")
GREEDY = SamplingParams()


def plan(tables, *, step=0, ended=(), sampling=GREEDY) -> StepPlan:
    works = (Work(name, (3,), 0, tuple(blocks), 1, sampling) for name, blocks in tables.items())
    return StepPlan(step, tuple(works), ended=tuple(ended))


@torch.inference_mode()
def send(rows: Rows, sender: Sender) -> int:
    cells, entries = rows.changes()
    if len(cells):
        rows.send(cells, entries, sender)
    return len(cells)


@pytest.mark.parametrize("seed", range(3))
def test_the_device_has_what_the_plans_say_whoever_comes_goes_and_is_preempted(seed):
    gen = random.Random(seed)
    rows, sender = Rows(50, CPU, rows=4, width=3), Sender(CPU)
    tables: dict[str, list[int]] = {}
    for step in range(300):
        ended = [name for name in tables if gen.random() < 0.05]
        for name in ended:
            del tables[name]
        for name in gen.sample("abcdefghijkl", 3):
            tables.setdefault(name, [gen.randrange(50)])
        for blocks in tables.values():
            match gen.randrange(12):
                case 0:
                    blocks.append(gen.randrange(50))
                case 1:  # copied on write
                    blocks[gen.randrange(len(blocks))] = gen.randrange(50)
                case 2:  # preempted, and back
                    blocks[:] = [gen.randrange(50) for _ in range(gen.randint(1, 9))]
        some = {name: tables[name] for name in gen.sample(sorted(tables), gen.randint(1, len(tables)))}
        found = rows.take(plan(some, step=step, ended=ended))
        send(rows, sender)
        assert len(set(found)) == len(found) and 0 not in found
        assert np.array_equal(rows.on_device.numpy(), rows.host)
        for row, blocks in zip(found, some.values(), strict=True):
            held = rows.host[row]
            assert held[: len(blocks)].tolist() == blocks and (held[len(blocks) :] == -1).all()
    assert (rows.host[0] == -1).all() and rows.version > 0


def test_only_what_is_new_is_sent():
    rows, sender = Rows(50, CPU, rows=4, width=8), Sender(CPU)
    a, b = [1, 2, 3], [4, 5]
    rows.take(plan(dict(a=a, b=b)))
    assert send(rows, sender) == 5
    rows.take(plan(dict(b=b, a=a)))
    assert send(rows, sender) == 0
    rows.take(plan(dict(a=[*a, 9], b=b)))
    assert send(rows, sender) == 1
    rows.take(plan(dict(a=[1, 7, 3, 9])))
    assert send(rows, sender) == 4
    rows.lose()  # a step failed
    rows.take(plan(dict(b=b)))
    assert send(rows, sender) == 8


def test_a_request_that_ended_leaves_its_row_to_another_of_its_name():
    rows = Rows(50, CPU, rows=1)
    (row,) = rows.take(plan(dict(a=[1])))
    rows.known[row] = True
    (again,) = rows.take(plan(dict(a=[2]), ended=["a"]))
    assert again == row and not rows.known[row]


def test_requests_that_are_not_said_to_have_ended_give_up_their_rows_in_time():
    rows = Rows(50, CPU, rows=4)
    for step in range(30):
        rows.take(plan({f"{step}": [1]}, step=step))
    assert rows.version == 0 and len(rows.host) == 5


def test_how_tokens_are_drawn_is_kept_by_row():
    rows = Rows(50, CPU)
    kinds = [{}, dict(temperature=0.5, seed=-1), dict(temperature=1.0, top_p=1.0), dict(temperature=1.0, top_k=3)]
    kinds += [dict(temperature=1.0, min_p=0.1), dict(temperature=1.0, top_p=0.9), dict(logprobs=0), dict(seed=7)]
    works = (Work(str(i), (3,), 0, (1,), 1, SamplingParams(**kind)) for i, kind in enumerate(kinds))
    found = rows.take(StepPlan(0, tuple(works)))
    assert rows.temperature[found].tolist() == [kind.get("temperature", 0) for kind in kinds]
    assert rows.special[found].tolist() == [False, False, False, True, True, True, True, False]
    assert rows.seed[found[1]] == 2**64 - 1


def test_a_plan_that_cannot_be_is_refused():
    rows = Rows(50, CPU)
    with pytest.raises(ValueError, match="from 0 to 49, got 50"):
        rows.take(plan(dict(a=[3, 50])))
    twice = plan(dict(a=[1]))
    with pytest.raises(ValueError, match="one request each"):
        rows.take(StepPlan(0, twice.work * 2))


def test_arrays_arrive_as_they_were_and_the_rest_is_as_said():
    sender = Sender(CPU)
    packing = Packing(a=(np.int32, 5), b=(np.float64, 3), c=(np.int64, 0), d=(np.int64, 2))
    kept = []
    for i in range(7):  # more often than there are pieces
        values = dict(a=(np.array([i, 2]), -1), b=np.array([0.1, i]), c=np.zeros(0), d=np.array([2**40, i]))
        kept.append(packing.tensors(sender.send(packing, values)))
    for i, found in enumerate(kept):
        assert found["a"].tolist() == [i, 2, -1, -1, -1] and found["b"].tolist() == [0.1, i, 0]
        assert found["d"].tolist() == [2**40, i] and found["c"].numel() == 0
        assert all(each.data_ptr() % 64 == found["a"].data_ptr() % 64 for each in found.values() if each.numel())
