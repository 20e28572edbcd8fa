"""Steps of an engine that nobody follows token by token: one, or as many as are alike, planned without a look at those
that decode.

A **stretch** is steps in which the same requests compute equally many tokens each: all that decode, in `Lockstep`, and
a few others, whose prompts are computed. It has more than one step in two cases:

    all decode                 until somebody has all tokens, or the blocks do not last
    all decode, and one        the same, and while more is left of the prompt than a step computes: what comes and waits
    prompt fills the step      changes nothing meanwhile, for there is no room for it in the step

In both a step takes as much longer than the one before as that one did, so their time has a closed form (`Steps`); that
a prompt's pieces attend to ever more is in it. A stretch is **open** if somebody who comes may be admitted in its next
step: then it ends with the step that runs. Where others wait already, for blocks or for a place, who comes waits behind
them, and it goes on.

Who is admitted is decided by the scheduler itself, in every step that is planned (`Scheduler._admit`); what is not done
here is all that it does for each request that decodes. Where blocks are short and somebody must be preempted, that is
the scheduler's, too: there is no stretch then, and the step is planned as ever.
"""

from collections.abc import Callable, Sequence

from llmsys.serving.request import Request
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.simulator.kinds import KindTurn, kind_turns
from llmsys.serving.simulator.known_tokens import SAID
from llmsys.serving.simulator.load import StepLoad
from llmsys.serving.simulator.lockstep import Lockstep
from llmsys.serving.simulator.runs import Steps
from llmsys.serving.simulator.step_times import StepTimes
from llmsys.serving.telemetry.events import Progress


class Stretch(Steps):
    """Steps in which `sequences` decode, if `decodes`, and each of `rows` computes (start, tokens) in the first one."""

    def __init__(
        self, now: int, steps: int, times: StepTimes, lockstep: Lockstep, turn: KindTurn,
        rows: Sequence[tuple[Request, int, int]], *, is_open: bool,
    ):  # fmt: skip
        self.turn, self.rows, self.open = turn, rows, is_open
        sequences = len(lockstep) if turn.decodes else 0
        attended = lockstep.attended if turn.decodes else 0
        load = StepLoad(sequences, sequences, attended, attended)
        grown = load.after(1)
        if rows:
            load = _sum(load, rows)
            grown = _sum(grown, [(each, start + n, n) for each, start, n in rows])
        self.tokens = load.tokens
        first = times.ticks(load)
        super().__init__(now, steps, first, times.ticks(grown) - first if steps > 1 else 0)


class Share:
    """The tokens of one step that are left, and who gets them: what `Scheduler._admit` wants of a step.

    Attributes
    ----------
    rows : list
        (request, start, tokens) each.
    """

    preempted = False

    def __init__(self, number: int, left: int):
        self.number, self.left = number, left
        self.rows: list[tuple[Request, int, int]] = []

    def add(self, request: Request, n: int) -> None:
        self.rows.append((request, request.computed, n))
        self.left -= n

    def copy(self, copies: Sequence) -> None:
        """Of blocks: there is nothing in them."""


def plan_stretch(
    scheduler: Scheduler, lockstep: Lockstep, prompts: Sequence[Request], times: StepTimes, now: int, *, several: bool
) -> Stretch | None:
    """The stretch that begins now, and its blocks are taken. None where the scheduler has to plan the next step itself:
    somebody must be preempted, or nobody can compute.

    prompts      the running requests that do not decode, in the order of admission
    several      whether it may have more than one step if there are such
    """
    policy, waiting, budget, tried = scheduler.policy, scheduler.waiting, scheduler.max_tokens_per_step, False
    remembered = dict(vars(policy))
    head = waiting[0] if waiting else None
    for turn in kind_turns(policy, len(lockstep), prompts, head, budget):
        share = Share(scheduler.steps_done, budget)
        decodes = turn.decodes and len(lockstep) > 0
        if decodes:
            if not lockstep.pay(1):
                vars(policy).update(remembered)  # it will be asked again
                return None
            share.left -= len(lockstep)
        behind = len(turn.prompts)
        for each in turn.prompts:
            behind -= 1  # each of whom must have a token
            n = turn.as_turn().tokens(each.remaining, share.left - behind, budget)
            if n > 0:
                share.add(each, n)
        if turn.admit:
            scheduler._admit(turn.as_turn(), share)
            tried = True
        if decodes or share.rows:
            break
    else:
        vars(policy).update(remembered)
        return None
    turn = turn._replace(decodes=decodes)
    steps, is_open = _how_many(scheduler, lockstep, turn, share)
    others_are_next = not share.rows and (prompts or (waiting and not tried and getattr(policy, "joins", True)))
    if others_are_next or (share.rows and not several):
        steps = 1
    return Stretch(now, steps, times, lockstep, turn, share.rows, is_open=is_open)


def take_in(
    stretch: Stretch, n: int, scheduler: Scheduler, *, lockstep: Lockstep, prompts: list[Request],
    before: Callable[[Request], object], end: Callable[[Request], object],
) -> None:  # fmt: skip
    """The next n of its steps are done: what the rows have computed, and the tokens that were said of it. Some of them
    decode from now on; `end` is called with each that has all tokens, and `before` with each row when it is its turn:
    a step's requests end one after the other, and what is cached when one ends is what those before it computed."""
    said, rows, size = [], [], scheduler.pool.block_size
    for request, start, tokens in stretch.rows:
        if request.ended:  # aborted
            continue
        before(request)
        known = len(request.tokens)
        request.computed = start + n * tokens
        if request.computed < known:
            rows.append((request, request.computed, tokens))  # of the next step
        if request.in_prefill and request.computed < known:
            if request not in prompts:
                prompts.append(request)
            continue
        if request in prompts:
            prompts.remove(request)
        if request.computed < known:  # it was preempted, and has but its newest token to compute
            lockstep.join(request)
            continue
        token = SAID + request.order
        request.tokens.append(token)
        said.append((request.id, start, tokens, 0, (token,)))
        if known // size > len(request.table.prefixes):
            scheduler.pool.register(request.table, request.tokens, known)
        if known + 1 == request.limit:
            scheduler.events.add_progress(Progress(scheduler.steps_done, scheduler.clock(), said))
            said = []
            end(request)
        else:
            lockstep.join(request)
    if said:
        scheduler.events.add_progress(Progress(scheduler.steps_done, scheduler.clock(), said))
    stretch.rows = rows


def _how_many(scheduler: Scheduler, lockstep: Lockstep, turn: KindTurn, share: Share) -> tuple[int, bool]:
    """Steps of a stretch at most, and whether it is open."""
    if not share.rows:
        full = not share.left or len(scheduler.running) == scheduler.max_sequences
        is_open = getattr(scheduler.policy, "joins", True) and not scheduler.waiting and not full
        return lockstep.steps_with_room(lockstep.left), is_open
    if len(share.rows) > 1 or share.left or not turn.decodes_first:
        return 1, False
    request, start, n = share.rows[0]
    steps = (len(request.tokens) - start - 1) // n  # in the last one it must not get to its end
    if steps > 1 and len(lockstep):
        steps = lockstep.steps_with_room(min(steps, lockstep.left))
    return max(steps, 1), False


def _sum(load: StepLoad, rows: Sequence[tuple[Request, int, int]]) -> StepLoad:
    more = StepLoad.of((start, n) for _, start, n in rows)
    return StepLoad(*(a + b for a, b in zip(load, more, strict=True)))
