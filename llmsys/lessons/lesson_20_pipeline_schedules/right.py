"""A right answer to each exercise, as short as a reader's: what the mistakes are edits of."""

from itertools import groupby

from llmsys.parallel.pipeline.actions import Action, B, F, I, Kind, W, pair
from llmsys.parallel.pipeline.communication import Exchange
from llmsys.parallel.pipeline.placement import v_shaped
from llmsys.parallel.pipeline.schedule import Schedule


def dependencies(action, num_stages):
    """The elementary actions that must be done before this one."""
    needed = []
    for part in action.parts:
        stage, microbatch, replica = part.stage, part.microbatch, part.replica
        if part.kind is Kind.F and stage > 0:
            needed.append(F(stage - 1, microbatch, replica))
        if part.kind is Kind.I:
            needed.append(F(stage, microbatch, replica))
            if stage < num_stages - 1:
                needed.append(I(stage + 1, microbatch, replica))
        if part.kind is Kind.W:
            needed.append(I(stage, microbatch, replica))
    return [each for each in needed if each not in action.parts]


def one_f_one_b(rank, num_ranks, num_microbatches):
    """What this rank does, in order."""
    ahead = min(num_ranks - 1 - rank, num_microbatches)
    order = [F(rank, n) for n in range(ahead)]
    for n in range(num_microbatches):
        if ahead + n < num_microbatches:
            order.append(F(rank, ahead + n))
        order.append(B(rank, n))
    return order


def simulate_step(todo, free, done, needs, costs):
    """The next action of each rank that can run now: a list of (rank, action, start, end)."""
    ran = []
    for rank, order in enumerate(todo):
        if not order:
            continue
        action = order[0]
        needed = needs(action)
        if any(each not in done for each in needed):
            continue
        start = free[rank]
        for each in needed:
            end, by = done[each]
            start = max(start, end + costs.transfer_time(by, rank))
        ran.append((rank, action, start, start + costs.time(action)))
    return ran


def fill_with_w(order, rank):
    """1F1B's order of this rank, with each B in two, and its W later."""
    filled, waiting = [], []
    for action in order:
        if action.kind is Kind.F:
            filled.append(action)
        else:
            filled.append(I(action.stage, action.microbatch))
            waiting.append(W(action.stage, action.microbatch))
            if len(waiting) > rank:
                filled.append(waiting.pop(0))
    return filled + waiting


def fold(schedule):
    """DualPipe's schedule on half of its ranks, as one replica on a V."""
    half, share = schedule.num_ranks // 2, schedule.num_microbatches // 2

    def one_replica(action):
        if action.kind is Kind.FB:
            return pair(one_replica(action.forward), one_replica(action.backward))
        return Action(action.kind, action.stage, action.microbatch - action.replica * share)

    orders = [[one_replica(action) for action in order] for order in schedule.orders[:half]]
    return Schedule("folded", v_shaped(half), share, orders)


def unblock(programs):
    """The programs, with the receives between two actions first on every second rank."""
    repaired = []
    for rank, program in enumerate(programs):
        mended = []
        for moves, steps in groupby(program, key=lambda step: isinstance(step, Exchange)):
            steps = list(steps)
            if moves and rank % 2:
                steps.sort(key=lambda step: step.transfers[0].source == rank)
            mended += steps
        repaired.append(mended)
    return repaired


def split_backward(dy, x, weight):
    """dx, and a function that computes dW when it is called."""
    dx = dy @ weight

    def later():
        return dy.flatten(0, -2).T @ x.flatten(0, -2)

    return dx, later
