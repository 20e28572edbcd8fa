"""Answers to the exercises of lesson 20 that have no name among its mistakes: right ones by other ways, wrong ones."""

import heapq
from collections import deque

import numpy as np
import torch

from llmsys.parallel.pipeline import Action, B, F, I, Kind, W

# (a)


def by_a_table(action, num_stages):
    """A table of steps, without what follows from the rest: I needs its own F at the last stage only. A generator."""
    own = set(action.parts)
    for part in action.parts:
        last = part.stage == num_stages - 1
        kind, step = {Kind.F: (Kind.F, -1), Kind.W: (Kind.I, 0), Kind.I: (Kind.F, 0) if last else (Kind.I, 1)}[
            part.kind
        ]
        stage = part.stage + step
        needed = Action(kind, stage, part.microbatch, part.replica)
        if stage >= 0 and needed not in own:
            yield needed


def all_of_it(action, num_stages):
    """Everything further up, too."""
    found = set()
    todo = list(action.parts)
    while todo:
        part = todo.pop()
        m, r = part.microbatch, part.replica
        if part.kind is Kind.F:
            before = {F(part.stage - 1, m, r)} if part.stage else set()
        elif part.kind is Kind.I:
            before = {F(part.stage, m, r)} | ({I(part.stage + 1, m, r)} if part.stage + 1 < num_stages else set())
        else:
            before = {I(part.stage, m, r)}
        todo += before - found
        found |= before
    return found - set(action.parts)


def forward_of_the_next_too(action, num_stages):
    """I waits for the next stage's W as well as its I, in a pair only."""
    needed = list(by_a_table(action, num_stages))
    if action.kind is Kind.FB and action.backward.stage < num_stages - 1:
        needed.append(W(action.backward.stage + 1, action.backward.microbatch, action.backward.replica))
    return needed


def of_a_fixed_pipeline(action, num_stages):
    """Right for eight stages, the number of the pictures."""
    return list(by_a_table(action, 8))


def nothing(action, num_stages):
    return []


def as_strings(action, num_stages):
    return [str(each) for each in by_a_table(action, num_stages)]


# (b)


def by_counting(rank, num_ranks, num_microbatches):
    """Whoever has fewer under way than may be does a forward."""
    forwards = backwards = 0
    order = []
    while backwards < num_microbatches:
        if forwards < num_microbatches and forwards - backwards < num_ranks - rank:
            order.append(F(rank, forwards))
            forwards += 1
        else:
            order.append(B(rank, backwards))
            backwards += 1
    return order


def by_slices(rank, num_ranks, num_microbatches):
    """Two lists, woven: a tuple."""
    forwards, backwards = ([make(rank, n) for n in range(num_microbatches)] for make in (F, B))
    ahead = num_ranks - rank - 1
    woven = [each for both in zip(forwards[ahead:], backwards, strict=False) for each in both]
    return tuple(forwards[:ahead] + woven + backwards[len(woven) // 2 :])


def of_an_even_batch(rank, num_ranks, num_microbatches):
    """Right where there are at least twice as many microbatches as ranks."""
    if num_microbatches >= 2 * num_ranks:
        return by_counting(rank, num_ranks, num_microbatches)
    return [F(rank, n) for n in range(num_microbatches)] + [B(rank, n) for n in range(num_microbatches)]


def one_ahead(rank, num_ranks, num_microbatches):
    """Twice as far ahead as is needed."""
    return by_counting(2 * rank - num_ranks, num_ranks, num_microbatches)


# (c)


def by_arrivals(todo, free, done, needs, costs):
    """A comprehension over what has arrived; lists, and no tuples."""
    ran = []
    for rank in reversed(range(len(todo))):
        action = next(iter(todo[rank]), None)
        if action is None or not set(needs(action)) <= done.keys():
            continue
        arrived = [when + costs.transfer_time(by, rank) for when, by in map(done.get, needs(action))]
        begin = max([free[rank], *arrived])
        ran.append([rank, action, begin, begin + costs.time(action)])
    return ran


def by_a_heap(todo, free, done, needs, costs):
    """A generator."""
    heap = [(free[rank], rank) for rank, order in enumerate(todo) if order]
    heapq.heapify(heap)
    while heap:
        start, rank = heapq.heappop(heap)
        action = todo[rank][0]
        if all(each in done for each in needs(action)):
            for each in needs(action):
                start = max(start, done[each][0] + costs.transfer_time(done[each][1], rank))
            yield rank, action, start, start + costs.time(action)


def with_numpy(todo, free, done, needs, costs):
    """NumPy's numbers, whole and not."""
    for rank, action, start, end in by_arrivals(todo, free, done, needs, costs):
        yield np.int64(rank), action, np.max([start]), torch.tensor(end)


def sum_of_transfers(todo, free, done, needs, costs):
    """The transfers of all that an action needs, after the latest of their ends."""
    ran = []
    for rank, action, *_ in by_arrivals(todo, free, done, needs, costs):
        latest = max((done[each][0] for each in needs(action)), default=0)
        begin = max(free[rank], latest + sum(costs.transfer_time(done[each][1], rank) for each in needs(action)))
        ran.append((rank, action, begin, begin + costs.time(action)))
    return ran


def pops_what_ran(todo, free, done, needs, costs):
    ran = by_arrivals(todo, free, done, needs, costs)
    for rank, _, _, end in ran:
        free[rank] = end
    return ran


def rounds(todo, free, done, needs, costs):
    """Times are whole numbers."""
    return [(rank, action, round(start), round(end)) for rank, action, start, end in
            by_arrivals(todo, free, done, needs, costs)]  # fmt: skip


def one_transfer_for_all(todo, free, done, needs, costs):
    """Every transfer takes as long as that between ranks 0 and 1."""
    ran = []
    for rank, action, *_ in by_arrivals(todo, free, done, needs, costs):
        slow = costs.transfer_time(0, 1) if len(todo) > 1 else 0
        arrived = [done[each][0] + (slow if done[each][1] != rank else 0) for each in needs(action)]
        begin = max([free[rank], *arrived])
        ran.append((rank, action, begin, begin + costs.time(action)))
    return ran


# (d)


def with_a_queue(order, rank):
    """A W just before the I that is one too many."""
    waiting, filled = deque(), []
    for action in order:
        if action.kind is Kind.B:
            filled.append(I(rank, action.microbatch))
            waiting.append(W(rank, action.microbatch))
        else:
            filled.append(action)
        while len(waiting) > rank:
            filled.append(waiting.popleft())
    filled.extend(waiting)
    return filled


def by_numbers(order, rank):
    """W of n − rank after I of n."""
    filled = []
    for action in order:
        filled += [action] if action.kind is Kind.F else [I(rank, action.microbatch)]
        if action.kind is Kind.B and action.microbatch >= rank:
            filled.append(W(rank, action.microbatch - rank))
    n = sum(action.kind is Kind.B for action in order)
    return tuple(filled + [W(rank, m) for m in range(max(n - rank, 0), n)])


def none_in_the_middle(order, rank):
    """W only after the last forward, one after each I that is left, and then the others."""
    n = sum(action.kind is Kind.F for action in order)
    last = max(place for place, action in enumerate(order) if action.kind is Kind.F)
    waiting, filled = deque(), []
    for place, action in enumerate(order):
        filled.append(action if action.kind is Kind.F else I(rank, action.microbatch))
        if action.kind is Kind.B:
            waiting.append(W(rank, action.microbatch))
            if place > last and n > 1:
                filled.append(waiting.popleft())
    return [*filled, *waiting]


def of_four_ranks(order, rank):
    """Right up to rank 3."""
    return with_a_queue(order, rank) if rank < 4 else [*order]


RIGHT = {
    "20.dependencies": [by_a_table, all_of_it],
    "20.one_f_one_b": [by_counting, by_slices],
    "20.simulate": [by_arrivals, by_a_heap, with_numpy],
    "20.fill_with_w": [with_a_queue, by_numbers],
}
WRONG = {
    "20.dependencies": [forward_of_the_next_too, of_a_fixed_pipeline, nothing, as_strings],
    "20.one_f_one_b": [of_an_even_batch, one_ahead],
    "20.simulate": [sum_of_transfers, pops_what_ran, rounds, one_transfer_for_all],
    "20.fill_with_w": [none_in_the_middle, of_four_ranks],
}
