"""The goodput explorer of lesson 10: one service, as fast as you like, by any policy and budget.

It shows the moments around the longest stall of the run, step by step, and below them the waits of all requests, with
the limits that they were promised. What is chosen is simulated when it is chosen.
"""

import math

from llmsys.serving.goodput import Limits
from llmsys.serving.policies import POLICIES
from llmsys.viz.chunked_prefill.explored import Frame, frames_of
from llmsys.viz.chunked_prefill.explorer_frame import draw, head, share, tail
from llmsys.viz.chunked_prefill.service import Service
from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.numbers import seconds_in_words
from llmsys.viz.kit.stepper import Stepper

RATES = (5, 10, 15, 20, 25, 30)
BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
LIMITS = {
    "0.5 s, 30 ms, no gap above 100 ms": Limits(ttft=0.5, tpot=0.03, gap=0.1),
    "0.5 s, 30 ms": Limits(ttft=0.5, tpot=0.03),
    "2 s, 50 ms": Limits(ttft=2.0, tpot=0.05),
    "0.2 s, 15 ms": Limits(ttft=0.2, tpot=0.015),
}
"""To the first token, a token after it on average, and the longest gap, where there is a limit to it."""


def stepper(service: Service, *, policy: str = "orca", budget: int = 8192, rate: float = 20) -> Stepper:
    """Step through the longest stall of a service, and see who is within the limits.

    service    who is served, on what device; its own policies can be chosen, too
    policy, budget, rate    what is chosen at first, of POLICIES or the service's own, of BUDGETS and of RATES
    """

    def frames(policy: str, budget: int, rate: float, limits: str) -> list[Frame]:
        result, witness = service.witnessed(float(rate), policy=policy, budget=budget)
        return frames_of(result, witness, policy=policy, budget=budget, rate=rate, limits=LIMITS[limits])

    shown = Stepper(
        frames,
        draw,
        title="The goodput explorer",
        describe=describe,
        controls=[
            Choice("policy", "Policy", {name: name for name in (*service.policies, *POLICIES)}, start=policy),
            Choice("budget", "Tokens of a step", {f"{each:,}": each for each in BUDGETS}, start=budget),
            Choice("rate", "Requests a second", {str(each): each for each in RATES}, start=rate, slider=True),
            Choice("limits", "Limits", {name: name for name in LIMITS}),
        ],
        static=-1,
        keep_place=True,
    )
    shown.go(len(shown.frames) - 1)
    return shown


def describe(frame: Frame) -> str:
    """The caption of a frame: the run, its longest stall, and what its last step did."""
    limits = frame.limits
    shares = [
        f"{share(sum(value > limit for value in values) / max(1, len(values)))} are beyond {seconds_in_words(limit)} "
        f"{what}"
        for values, limit, what in (
            (frame.latencies.ttft, limits.ttft, "to the first token"),
            (frame.latencies.tpot, limits.tpot, "a token"),
            (frame.latencies.gap, limits.gap, "in their longest gap"),
        )
        if limit < math.inf
    ]
    stall = f"Request {frame.gap.request} waits {seconds_in_words(frame.gap.seconds)} from one token to the next."
    return f"{head(frame)}. {', '.join(shares)}. {stall} {tail(frame)}"
