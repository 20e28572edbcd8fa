"""A leaderboard of scheduling policies, fair on any machine: the same seeded requests, the same simulated device.

    for score in leaderboard({**POLICIES, "mine": MyPolicy}, limits=Limits(ttft=1.0, tpot=0.03), times=times):
        print(score)
    Score(name='stall-free', goodput=11.3, ttft=0.61, tpot=0.029, error=None)

A policy's score is its goodput as DistServe means it: the highest rate at which 90% of the requests meet the limits
(`capacity`). All are asked the same requests in the same order, which come faster or slower; nothing is drawn but from
the seed, so a policy has one score, on every machine.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llmsys.serving.goodput import Limits
from llmsys.serving.policies import POLICIES
from llmsys.serving.simulator.simulate import capacity, simulate
from llmsys.serving.simulator.step_times import StepTimes
from llmsys.serving.workload.arrivals import Arrival, synthetic


@dataclass(frozen=True)
class Score:
    """What a policy reached."""

    name: str
    goodput: float
    """Requests a second: the highest rate within the limits. 0 where the lowest is too high, or the policy failed."""
    ttft: float | None = None
    tpot: float | None = None
    """At that rate, the seconds that 90% of the requests do not exceed."""
    error: str | None = None


def leaderboard(
    policies: Mapping[str, object] = POLICIES,
    *,
    limits: Limits,
    times: StepTimes,
    trace: str = "azure-conversation",
    count: int = 400,
    seed: int = 0,
    cv: float = 1.0,
    num_blocks: int = 40_000,
    low: float = 0.25,
    high: float = 64.0,
    share: float = 0.9,
    within: float = 0.02,
    **settings,
) -> list[Score]:
    """The policies' scores, the best one first.

    Parameters
    ----------
    policies
        By name; each what makes one (its class), or the name of one in POLICIES.
    trace, count, seed, cv
        The workload's: see `synthetic`.
    low, high, share, within
        Between which rates the highest one is looked for, which share of the requests must meet the limits, and how
        near the answer is (`highest_rate`).
    settings
        The engine's: see `Instance`.

    A policy that raises, or lets nobody compute, has the score 0 and an `error`.
    """

    def workload(rate: float) -> list[Arrival]:
        return synthetic(trace, count, rate=rate, seed=seed, cv=cv)

    workload(high)  # what is wrong with it is not a policy's fault
    engine = dict(times=times, num_blocks=num_blocks, **settings)
    gaps = limits.gap < math.inf
    scores = []
    for name, policy in policies.items():
        try:
            lowest = simulate(workload(low), policy=policy, gaps=gaps, **engine)
            if lowest.attainment(limits) < share:
                scores.append(Score(name, 0.0, lowest.ttft(90), lowest.tpot(90)))
                continue
            search = dict(low=low, high=high, share=share, within=within)
            rate = capacity(workload, limits, policy=policy, **search, **engine)
            there = simulate(workload(rate), policy=policy, **engine)
            scores.append(Score(name, rate, there.ttft(90), there.tpot(90)))
        except Exception as error:  # of a policy of one's own
            scores.append(Score(name, 0.0, error=f"{type(error).__name__}: {error}"))
    return sorted(scores, key=lambda score: (-score.goodput, score.name))
