"""Exercises (a) and (b) on plain data: requests come and go, and what each step did is handed back, a line a step.

    play = played(Steps)
    play(script=[[0, "add", "a", [5, 9, 2], 2]], budget=8, sequences=4)
    ["step 0: a comes in; a 0+3 says 0; 999 blocks free",
     "step 1: a 3+1 says 3, ends after 2; 1000 blocks free"]

A script's lines are lists: [turn, "add", name, prompt, tokens of the answer], [turn, "abort", name], both before the
step of that turn. "3+1" is: three tokens were computed before, one more is now. "ends after 2": so many were generated.

**What a request says** depends on all tokens before it, and is made up here. There is no model, and no memory.
"""

import zlib
from collections.abc import Callable

from llmsys.cache import BlockPool
from llmsys.lessons.lesson_09_continuous_batching.bookkeeping import Bookkeeping
from llmsys.lessons.lesson_09_continuous_batching.scheduler_parts import SchedulerParts
from llmsys.serving.plan import Output, StepPlan, StepResult
from llmsys.serving.request import Request
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.events import Admitted, Finished, Preempted, Token

LONGEST = 400
"""Steps after which a script is stopped."""


def played(make: Callable) -> Callable:
    """`make`, a class of schedulers, as a function of plain data.

    budget, sequences    max_tokens_per_step and max_sequences
    blocks, block_size   of the pool, block 0 left out
    watermark            the share of the blocks that stays free beside others
    told                 "all" of a step; or "work", who computes how many tokens, and nothing else
    """

    def run(*, script, budget, sequences, blocks=1000, block_size=4, watermark=0.0, told="all"):
        served = whole(make)(
            BlockPool(blocks + 1, block_size), max_tokens_per_step=budget, max_sequences=sequences,
            watermark=watermark, clock=lambda: 0.0,
        )  # fmt: skip
        coming, lines = sorted(script, key=lambda each: each[0]), []
        for turn in range(LONGEST):
            while coming and coming[0][0] <= turn:
                _, verb, name, *given = coming.pop(0)
                if verb == "add":
                    served.add(Request(name, given[0], SamplingParams(max_tokens=given[1], ignore_eos=True)))
                else:
                    served.abort(name)
            if served.has_unfinished:
                line, goes_on = _step(served, turn, told)
                lines.append(line)
                if not goes_on:
                    break
            elif not coming:
                break
        return lines

    return run


def whole(make: type) -> type:
    """The class with what it does not write itself. TypeError where it is not built on `SchedulerParts`."""
    if not isinstance(make, type) or not issubclass(make, Bookkeeping | Scheduler):
        name = getattr(make, "__name__", repr(make))
        raise TypeError(f"{name} must be a class that is built on SchedulerParts: class {name}(SchedulerParts)")
    if issubclass(make, Bookkeeping) and not issubclass(make, SchedulerParts):
        return type(make.__name__, (make, SchedulerParts), {})
    return make


def next_token(tokens: tuple[int, ...]) -> int:
    """What comes after these: from 0 to 49."""
    return zlib.crc32(repr(tokens).encode()) % 50


def _step(served, number: int, told: str) -> tuple[str, bool]:
    """A step, in a line, and whether there can be another one."""
    seen = len(served.events)
    known = {name: tuple(request.tokens) for name, request in served.requests.items()}
    try:
        plan = served.plan()
        if plan is None:
            waits = ", ".join(each.id for each in served.waiting) or "nobody"
            return f"step {number}: nobody computes; {len(served.running)} are running, {waits} waiting", False
        served.update(plan, _result(plan, known))
    except ValueError as error:
        return f"step {number}: ValueError: {error}", False
    if told == "work":
        parts = (f"{each.request} {each.computed}+{len(each.tokens)}" for each in plan.work)
        return f"step {number}: {'; '.join(parts)}", True
    events = list(served.events)[seen:]
    said = {each.request: f" says {each.token}" for each in events if isinstance(each, Token)}
    ends = {each.request: f", ends after {each.generated}" for each in events if isinstance(each, Finished)}
    parts = [f"{each.request} preempted" for each in events if isinstance(each, Preempted)]
    for each in events:
        if isinstance(each, Admitted):
            parts.append(f"{each.request} comes in" + (f" with {each.hit_tokens} hit" if each.hit_tokens else ""))
    for work in sorted(plan.work, key=lambda work: work.request):
        name = work.request
        parts.append(f"{name} {work.computed}+{len(work.tokens)}{said.get(name, '')}{ends.get(name, '')}")
    if served.waiting:
        computed = {each.id: f" with {each.computed} computed" if each.computed else "" for each in served.waiting}
        parts.append(f"{', '.join(name + words for name, words in computed.items())} waiting")
    parts.append(f"{served.pool.free_blocks} blocks free")
    return f"step {number}: {'; '.join(parts)}", True


def _result(plan: StepPlan, known: dict[str, tuple[int, ...]]) -> StepResult:
    """What a model would say, one token a request whose logits are wanted."""
    outputs = []
    for work in plan.work:
        if work.logits:
            tokens = (*known[work.request][: work.computed], *work.tokens)
            outputs.append(Output(work.request, (next_token(tokens),)))
    return StepResult(plan.step, tuple(outputs))
