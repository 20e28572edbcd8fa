"""How many GPUs for prompts and how many for decoding: the placement with most goodput, found by trying all.

    search(workload, Limits(ttft=0.4, tpot=0.02), gpus=4, times=times, num_blocks=40_000, transfer=transfer)
    [Placed(3 prefill, 1 decode: 9.1 a second and GPU), …]

Of G GPUs, p compute prompts and G − p decode, or all do both. That is G candidates, so each is tried: the highest rate
at which 90% of its requests meet both limits is found by the same bisection for all (`capacity`), and divided by G. The
limit to TTFT bounds the rate of the prefillers and the limit to TPOT that of the decoders, and the lower rate counts.
So the best division is one at which both are nearly reached. Which that is depends on the lengths of prompts and
answers, on the limits, and on the link; and whether it is better than none does, too.

DistServe's search, https://arxiv.org/abs/2401.09670, section 4, finds the best parallelism of one prefiller and of one
decoder each, and then as many of both as their rates ask for; it simulates no transfers. Here each engine has one GPU,
they are simulated together, and transfers with them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmsys.models.sampling import whole_number
from llmsys.serving.goodput import Limits
from llmsys.serving.simulator.cluster import Placement
from llmsys.serving.simulator.simulate import capacity, simulate
from llmsys.serving.workload.arrivals import Arrival


@dataclass(frozen=True)
class Placed:
    """What a placement reached."""

    placement: Placement
    rate: float
    """Requests a second, of all GPUs together: the highest within the limits. 0 where the lowest is too high."""
    ttft: float
    tpot: float | None
    """At that rate (the lowest, where that is 0) the seconds that so large a share of the requests as must meet the
    limits do not exceed; None where all answers have one token."""

    @property
    def goodput(self) -> float:
        """Requests a second and GPU."""
        return self.rate / self.placement.gpus

    def __str__(self) -> str:
        return f"{self.placement}: {self.goodput:.3g} a second and GPU"


def placements(gpus: int) -> list[Placement]:
    """Every placement that has so many GPUs: all colocated, and each way to divide them."""
    whole_number("gpus", gpus, at_least=1)
    divided = [Placement(prefill=each, decode=gpus - each) for each in range(1, gpus)]
    return [Placement(colocated=gpus), *divided]


def search(
    workload: Callable[[float], Sequence[Arrival]],
    limits: Limits,
    *,
    gpus: int | None = None,
    candidates: Sequence[Placement] | None = None,
    low: float = 0.1,
    high: float = 100.0,
    share: float = 0.9,
    within: float = 0.02,
    **settings,
) -> list[Placed]:
    """Placements by their goodput per GPU, the best one first.

    Parameters
    ----------
    workload
        Rate, of all requests together → what is asked at that rate.
    gpus, candidates
        How many GPUs to place, or which placements to try.
    low, high
        Between which rates the highest is looked for, requests a second **and GPU**.
    share, within, settings
        See `capacity` and `simulate`.

    ValueError where neither gpus nor candidates are given, or both.
    """
    if (gpus is None) == (candidates is None):
        raise ValueError("give either gpus, how many to place, or candidates, which placements to try")
    found = []
    for placement in placements(gpus) if candidates is None else candidates:
        least = low * placement.gpus
        at = simulate(workload(least), placement=placement, gaps=limits.gap < float("inf"), **settings)
        rate = 0.0
        if at.attainment(limits) >= share:
            most = high * placement.gpus
            bounds = dict(low=least, high=most, share=share, within=within)
            rate = capacity(workload, limits, placement=placement, **bounds, **settings)
            at = simulate(workload(rate), placement=placement, **settings)
        several = any(each.output_tokens > 1 for each in at.requests)
        found.append(Placed(placement, rate, at.ttft(100 * share), at.tpot(100 * share) if several else None))
    return sorted(found, key=lambda each: -each.goodput)
