"""Answers to the exercises of lesson 20 that have no name among its mistakes: right ones by other ways, wrong ones."""

import heapq
from collections import deque

import numpy as np
import torch

from llmsys.parallel import pipeline
from llmsys.parallel.pipeline import Action, B, Exchange, F, I, Kind, Schedule, Transfer, W, pair, v_shaped
from tests.support.verdicts import fresh

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


# (e)


def by_einsum(dy, x, weight):
    """A lambda, and letters for the dimensions."""
    return torch.einsum("...m,mn->...n", dy, weight), lambda: torch.einsum("...m,...n->mn", dy, x)


def sequence_by_sequence(dy, x, weight):
    """A product for each sequence, and their sum; what is kept is laid out for it. A list, and an object's method."""
    rows, columns = dy.reshape(-1, *dy.shape[-2:]), x.reshape(-1, *x.shape[-2:])

    class Kept:
        def gradient(self):
            return sum(one.T @ other for one, other in zip(rows, columns, strict=True))

    return [torch.matmul(weight.T, dy.mT).mT, Kept().gradient]


@fresh
def newest_first():
    """A stack: right as long as each W comes right after its I."""
    kept = []

    def split(dy, x, weight):
        kept.append((dy, x))

        def later():
            dy, x = kept.pop()
            return dy.flatten(0, -2).T @ x.flatten(0, -2)

        return dy @ weight, later

    return split


def by_views(dy, x, weight):
    """Right where rows lie one after the other."""
    return dy @ weight, lambda: dy.view(-1, dy.shape[-1]).T @ x.view(-1, x.shape[-1])


def in_float32(dy, x, weight):
    return dy @ weight, lambda: dy.flatten(0, -2).float().T @ x.flatten(0, -2).float()


def rounded(dy, x, weight):
    """In float32, whatever is given."""
    later = in_float32(dy, x, weight)[1]
    return dy @ weight, lambda: later().to(weight.dtype)


def as_outer_products(dy, x, weight):
    """Without a matrix product."""
    return dy @ weight, lambda: (dy[..., None] * x[..., None, :]).flatten(0, -3).sum(0)


def by_autograd(dy, x, weight):
    leaf = weight.clone().requires_grad_()
    return dy @ weight, lambda: torch.autograd.grad(torch.nn.functional.linear(x, leaf), leaf, dy)[0]


def one_half(dy, x, weight):
    return dy @ weight


def both_halves(dy, x, weight):
    return dy @ weight, dy.flatten(0, -2).T @ x.flatten(0, -2)


def puts_it_into_the_weight(dy, x, weight):
    def later():
        weight.grad = dy.flatten(0, -2).T @ x.flatten(0, -2)

    return dy @ weight, later


def changes_its_argument(dy, x, weight):
    dx = dy @ weight

    def later():
        return dy.flatten(0, -2).T @ x.mul_(1.5).flatten(0, -2) / 1.5

    return dx, later


# (f)


def from_the_other_half(schedule):
    """The ranks from the end, whose first direction is the other one; generators, and a name that is none."""
    half, share = schedule.num_ranks // 2, schedule.num_microbatches // 2

    def mapped(action):
        if action.backward is not None:
            return pair(mapped(action.forward), mapped(action.backward))
        return Action(action.kind, action.stage, action.microbatch % share)

    return Schedule("", v_shaped(half), share, [map(mapped, order) for order in schedule.orders[: half - 1 : -1]])


def with_backwards_in_halves(schedule):
    """B as I and W, one after the other, where it is in no pair."""
    folded = from_the_other_half(schedule)
    for rank, order in enumerate(folded.orders):
        halves = (action.parts if action.kind is Kind.B else (action,) for action in order)
        folded = folded.with_order(rank, [part for some in halves for part in some])
    return folded


def another_v(schedule):
    """ZB-V: faster for equal times, and without pairs."""
    return pipeline.zb_v(schedule.num_ranks // 2, schedule.num_microbatches // 2)


def weights_last(schedule):
    """All W at the end that are in no pair: as DualPipe, with more activations."""
    folded = from_the_other_half(schedule)
    for rank, order in enumerate(folded.orders):
        now, late = [], []
        for action in order:
            parts = action.parts if action.kind is Kind.B else (action,)
            for part in parts:
                (late if part.kind is Kind.W else now).append(part)
        folded = folded.with_order(rank, now + late)
    return folded


def of_twenty_microbatches(schedule):
    """Right for the picture's size."""
    folded = from_the_other_half(schedule)
    return folded if schedule.num_microbatches == 20 else folded.with_order(0, folded.orders[0][1:])


def in_rounds(schedule):
    """Forwards and backwards of a rank in the order of stages: everybody waits."""
    folded = from_the_other_half(schedule)
    for rank, order in enumerate(folded.orders):
        folded = folded.with_order(rank, sorted(order, key=lambda action: action.stage))
    return folded


# (g)


def even_ranks_receive_first(programs):
    """The two kinds of ranks exchanged; a generator."""
    for rank, program in enumerate(programs):
        yield program if rank % 2 else _receiving_first(program, rank)


def by_playing_it(programs):
    """Every transfer follows its action at once, on both of its ranks: all ranks agree on one order."""
    todo = [deque(step for step in program if isinstance(step, Action)) for program in programs]
    ends = {step.transfers[0] for program in programs for step in program if isinstance(step, Exchange)}
    leaves = {}
    for transfer in ends:
        leaves.setdefault(transfer.of, []).append(transfer)
    there, played = set(), [[] for _ in programs]
    while any(todo):
        for rank, actions in enumerate(todo):
            if actions and there.issuperset(pipeline.dependencies(actions[0], len(programs))):
                action = actions.popleft()
                played[rank].append(action)
                for part in action.parts:
                    there.add(part)
                    for transfer in leaves.get(part, ()):
                        for end in (transfer.source, transfer.destination):
                            played[end].append(Exchange((transfer,)))
    return played


def in_pairs_of_ranks(programs):
    """Ranks 1 and 2 of every four receive first: those two hang."""
    return [_receiving_first(program, rank) if rank % 4 in (1, 2) else program for rank, program in enumerate(programs)]


def all_receives_at_the_start(programs):
    """Nothing is late, and nobody ever sends."""
    return [sorted(program, key=lambda step: not (isinstance(step, Exchange) and step.transfers[0].destination == rank))
            for rank, program in enumerate(programs)]  # fmt: skip


def sends_before_computing(programs):
    def receives(step, rank):
        return isinstance(step, Exchange) and step.transfers[0].destination == rank

    return [
        [step for step in program if receives(step, rank)]
        + [step for step in program if isinstance(step, Exchange) and not receives(step, rank)]
        + [step for step in program if isinstance(step, Action)]
        for rank, program in enumerate(programs)
    ]


def without_transfers(programs):
    """Nobody who does not send can hang."""
    return [[step for step in program if isinstance(step, Action)] for program in programs]


def other_transfers(programs):
    """To itself, which nobody waits for."""
    return [[Exchange((Transfer(step.transfers[0].of, rank, rank),)) if isinstance(step, Exchange) else step
             for step in program] for rank, program in enumerate(programs)]  # fmt: skip


def _receiving_first(program, rank):
    """A rank's program, with the receives of each pause first."""
    repaired, pause = [], []
    for step in [*program, None]:
        if isinstance(step, Exchange):
            pause.append(step)
        else:
            repaired += sorted(pause, key=lambda each: each.transfers[0].source == rank)
            repaired += [step] if step else []
            pause = []
    return repaired


RIGHT = {
    "20.dependencies": [by_a_table, all_of_it],
    "20.one_f_one_b": [by_counting, by_slices],
    "20.simulate": [by_arrivals, by_a_heap, with_numpy],
    "20.fill_with_w": [with_a_queue, by_numbers],
    "20.split_backward": [by_einsum, sequence_by_sequence],
    "20.fold": [from_the_other_half, with_backwards_in_halves],
    "20.unblock": [even_ranks_receive_first, by_playing_it],
}
WRONG = {
    "20.dependencies": [forward_of_the_next_too, of_a_fixed_pipeline, nothing, as_strings],
    "20.one_f_one_b": [of_an_even_batch, one_ahead],
    "20.simulate": [sum_of_transfers, pops_what_ran, rounds, one_transfer_for_all],
    "20.fill_with_w": [none_in_the_middle, of_four_ranks],
    "20.split_backward": [
        newest_first,
        by_views,
        in_float32,
        rounded,
        as_outer_products,
        by_autograd,
        one_half,
        both_halves,
        puts_it_into_the_weight,
        changes_its_argument,
    ],
    "20.fold": [another_v, weights_last, of_twenty_microbatches, in_rounds],
    "20.unblock": [
        in_pairs_of_ranks,
        all_receives_at_the_start,
        sends_before_computing,
        without_transfers,
        other_transfers,
    ],
}
