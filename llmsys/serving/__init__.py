"""Serving: many requests on one model.

    scheduler = Scheduler(BlockPool(1000), max_tokens_per_step=512, policy="stall-free")
    scheduler.add(Request("a", prompt=[…], sampling=SamplingParams(max_tokens=20)))
    while plan := scheduler.plan():
        scheduler.update(plan, runner(plan))

`Request`         a prompt in tokens, and how far it has come
`SamplingParams`  how its tokens are chosen, and when it has enough
`Scheduler`       which requests compute how many tokens in the next step, in which blocks
`StepPlan`        that, in plain values: what a runner is given
`StepResult`      what came of it
`POLICIES`        four ways to fill a step
`EventLog`        all that happened, in order
`LENGTHS`         how long prompts and outputs are in real services, as quantiles (`workload`)
`draw_lengths`    requests of such lengths
"""

from llmsys.serving.events import EventLog
from llmsys.serving.plan import Output, StepPlan, StepResult, TokenLogprobs, Work
from llmsys.serving.policies import POLICIES, Policy, Turn, as_policy
from llmsys.serving.request import Request, Status
from llmsys.serving.sampling_params import SamplingParams
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.workload import LENGTHS, Lengths, RequestLength, draw_lengths

__all__ = [
    "LENGTHS",
    "POLICIES",
    "EventLog",
    "Lengths",
    "Output",
    "Policy",
    "Request",
    "RequestLength",
    "SamplingParams",
    "Scheduler",
    "Status",
    "StepPlan",
    "StepResult",
    "TokenLogprobs",
    "Turn",
    "Work",
    "as_policy",
    "draw_lengths",
]
