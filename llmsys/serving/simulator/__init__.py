"""A simulator of serving: the scheduler that an engine has, and a model of the device's time in place of the device.

    times = fit(recorder.steps)                                  or llmsys.bench.goodput.recorded_times(), of an H200
    workload = synthetic("azure-conversation", 1000, rate=8.0, seed=0)
    simulate(workload, times=times, num_blocks=40_000).goodput(Limits(ttft=1.0, tpot=0.05))
    simulate(workload, times=times, num_blocks=40_000, placement=Placement(prefill=2, decode=1), transfer=Transfer(…))

The chapter, in the order in which to read it:

    load            what a step has to do, in four numbers; steps of an engine, written down
    step_times      how long it takes: a price for each of these, fitted to what was written down
    instance        an engine: a scheduler, and a clock
    runs            runs of equal steps, skipped in closed form, and written down
    known_tokens    a request whose tokens nobody writes down
    pool            block pools for these, and one that looks for no prefixes
    lockstep        requests that decode, as one
    kinds           what the named policies do with all that decodes
    stretch         steps planned without a look at each request
    transfer        how long a cache is on its way from one engine to another
    phases          an engine that computes prompts, and one that goes on from there
    tally           what is remembered of each request
    engines         how many there are of which kind, and how each is made
    agenda          whose turn it is among several engines
    door            what a route is told of them
    failures        engines that die, and others that come in their place
    cluster         several engines, and where requests go
    simulate        a workload, and what came of it; the highest rate within limits
    placement       how many engines of which kind give most goodput per GPU
    leaderboard     policies compared
"""

from llmsys.serving.simulator.cluster import Cluster
from llmsys.serving.simulator.engines import Placement
from llmsys.serving.simulator.failures import Failure, Failures
from llmsys.serving.simulator.instance import Instance
from llmsys.serving.simulator.leaderboard import Score, leaderboard
from llmsys.serving.simulator.load import StepLoad, StepRecorder, TimedStep
from llmsys.serving.simulator.placement import Placed, placements, search
from llmsys.serving.simulator.simulate import Result, capacity, simulate
from llmsys.serving.simulator.step_times import Prices, StepTimes, fit, relative_errors
from llmsys.serving.simulator.transfer import Transfer

__all__ = [
    "Cluster", "Failure", "Failures", "Instance", "Placed", "Placement", "Prices", "Result", "Score", "StepLoad",
    "StepRecorder", "StepTimes", "TimedStep", "Transfer", "capacity", "fit", "leaderboard", "placements",
    "relative_errors", "search", "simulate",
]  # fmt: skip
