"""The lives of the same requests under two designs, up to a moment: what a frame of the stepper shows."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmsys.serving.goodput import Limits
from llmsys.serving.simulator import Placement, StepTimes, Transfer, simulate
from llmsys.serving.telemetry.metrics import RequestMetrics
from llmsys.serving.workload import Arrival

TWO = {"colocated": Placement(colocated=2), "disaggregated": Placement(prefill=1, decode=1)}


@dataclass(frozen=True)
class Frame:
    """Both designs at a moment."""

    now: float  #  seconds
    end: float  #  when all have ended, in the slower design
    limits: Limits
    lives: dict[str, list[RequestMetrics]]
    sent: dict[str, list[float]]
    """Seconds from each request's first token until its cache is where its answer is written; 0 if nothing is sent."""

    def late(self, request: RequestMetrics) -> str:
        """Which limit a request has missed by now: "TTFT", "TPOT", both, or none."""
        missed = []
        if min(request.first_token, self.now) - request.arrival > self.limits.ttft:
            missed.append("TTFT")
        if request.ended <= self.now and (request.time_per_output_token or 0) > self.limits.tpot:
            missed.append("TPOT")
        return ", ".join(missed)

    def met(self, design: str) -> tuple[int, int]:
        """How many requests have ended, and how many of them within both limits."""
        ended = [each for each in self.lives[design] if each.ended <= self.now]
        return len(ended), sum(self.limits.met(each) for each in ended)


def stream(count: int, *, rate: float, prompt: int, output: int) -> list[Arrival]:
    """Requests that come evenly."""
    return [Arrival(n / rate, prompt, output) for n in range(count)]


def frames_of(
    workload: Sequence[Arrival], limits: Limits, *, times: StepTimes, transfer: Transfer, steps: int = 24
) -> list[Frame]:
    """Moments from the first arrival to the last token."""
    results = {
        name: simulate(workload, placement=placement, times=times, transfer=transfer, num_blocks=20_000, ahead=True)
        for name, placement in TWO.items()
    }
    lives = {name: result.requests for name, result in results.items()}
    sent = {name: result.transfers or [0.0] * len(result.requests) for name, result in results.items()}
    end = max(each.ended for requests in lives.values() for each in requests)
    return [Frame(end * n / steps, end, limits, lives, sent) for n in range(1, steps + 1)]
