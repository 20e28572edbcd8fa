"""A right answer to each exercise, as short as a reader's: what the mistakes are edits of."""

from llmsys.parallel.pipeline.actions import B, F, I, Kind, W


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
