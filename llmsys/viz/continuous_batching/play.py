"""A scheduler at work without a model: requests of given lengths, and what its event log says of them.

    log = play([Asked("A", prompt=(5, 9, 2), output=4), Asked("B", (5, 9, 7, 7), 2, step=3)], max_tokens_per_step=8, …)

Which requests compute in which step depends on how long prompts and answers are, and not on what they say. So the next
token is made up here, of the last one and its place, and a service of an hour is played in seconds. Any scheduler with
the library's contract can be played, the reader's own too.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llmsys.cache.block_pool import BlockPool
from llmsys.serving.plan import Output, StepPlan, StepResult
from llmsys.serving.policies import Policy
from llmsys.serving.request import Request
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.events import EventLog
from llmsys.serving.workload import RequestLength


@dataclass(frozen=True)
class Asked:
    """A request: its prompt in tokens, how many tokens the answer will have, and before which step it arrives."""

    id: str
    prompt: tuple[int, ...]
    output: int
    step: int = 0


def asked(lengths: Iterable[RequestLength]) -> list[Asked]:
    """Requests of such lengths, numbered, all there at the beginning; no two of them begin alike."""
    return [Asked(str(n), (n, *[0] * (each.prompt - 1)), each.output) for n, each in enumerate(lengths)]


def made_up(plan: StepPlan) -> StepResult:
    """A result of the plan, as if a model had computed it: each next token follows from the last one and its place."""
    outputs = ((work.request, (31 * work.tokens[-1] + work.end) % 997) for work in plan.work if work.logits)
    return StepResult(plan.step, tuple(Output(request, (token,)) for request, token in outputs))


def play(
    requests: Iterable[Asked],
    *,
    max_tokens_per_step: int,
    max_sequences: int,
    policy: str | Policy = "stall-free",
    num_blocks: int = 100_000,
    block_size: int = 16,
    watermark: float = 0.01,
    scheduler: Callable[..., Scheduler] = Scheduler,
) -> EventLog:
    """Serve all of them, and return what happened. Times in the log are numbers of steps.

    The arguments are the scheduler's (`llmsys.serving.scheduler`); num_blocks and block_size are the pool's, which is
    so large by default that nobody ever waits for a block.

    Raises
    ------
    ValueError
        The scheduler refuses a request or an argument.
    RuntimeError
        Requests are waiting and the scheduler, one of the reader's own, plans nothing.
    """
    served = scheduler(
        BlockPool(num_blocks, block_size), max_tokens_per_step=max_tokens_per_step, max_sequences=max_sequences,
        policy=policy, watermark=watermark, clock=lambda: float(served.steps_done),
    )  # fmt: skip
    coming = sorted(requests, key=lambda each: each.step)
    while coming or served.has_unfinished:
        while coming and (coming[0].step <= served.steps_done or not served.has_unfinished):
            each = coming.pop(0)
            params = SamplingParams(max_tokens=each.output, ignore_eos=True)
            served.add(Request(each.id, each.prompt, params))
        plan = served.plan()
        if plan is None:
            raise RuntimeError(f"{len(served.requests)} requests are unfinished, and the scheduler planned nothing")
        served.update(plan, made_up(plan))
    return served.events
