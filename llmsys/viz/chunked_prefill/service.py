"""The service of lesson 10: the same conversations, faster or slower, on a simulated engine.

    service = Service(recorded_times())
    service.run(20.0, policy="orca", budget=8192)                              Result, see `llmsys.serving.simulator`
    service.attained(Limits(ttft=0.5, tpot=0.03), 20.0, budget=512)            the share of requests within the limits

A run has one outcome, so each is done once, and asked for again it is there.
"""

from llmsys.serving.goodput import Limits
from llmsys.serving.simulator import Result, StepTimes, simulate
from llmsys.serving.simulator.simulate import new_policy
from llmsys.serving.workload import synthetic
from llmsys.viz.chunked_prefill.witness import Witness


class Service:
    """Conversations of one length distribution on an engine with these step times.

    times          how long steps take
    count, seed    how many requests, of `trace`: the same ones at every rate
    num_blocks, max_sequences    the engine's
    policies       of the reader's own, by name: classes with `turns`, beside the library's four
    """

    def __init__(
        self,
        times: StepTimes,
        *,
        count: int = 200,
        seed: int = 0,
        trace: str = "azure-conversation",
        num_blocks: int = 55_680,
        max_sequences: int = 256,
        policies: dict[str, type] | None = None,
    ):
        self.times, self.count, self.seed, self.trace = times, count, seed, trace
        self.policies = dict(policies or {})
        self._engine = dict(times=times, num_blocks=num_blocks, max_sequences=max_sequences, ahead=True, gaps=True)
        self._results: dict[tuple, Result] = {}
        self._witnessed: dict[tuple, tuple[Result, Witness]] = {}

    def run(self, rate: float, *, policy: str = "stall-free", budget: int = 2048) -> Result:
        """All conversations, `rate` a second on average, in steps of at most `budget` tokens."""
        key = (rate, policy, budget)
        if key not in self._results:
            self._results[key] = self._simulate(key)
        return self._results[key]

    def witnessed(self, rate: float, *, policy: str, budget: int) -> tuple[Result, Witness]:
        """The same, and what each of its steps computed."""
        key = (rate, policy, budget)
        if key not in self._witnessed:
            witness = Witness()
            self._witnessed[key] = self._simulate(key, witness), witness
            self._results[key] = self._witnessed[key][0]
        return self._witnessed[key]

    def attained(self, limits: Limits, rate: float, *, policy: str = "stall-free", budget: int = 2048) -> float:
        """The share of the requests that met the limits, from 0 to 1."""
        return self.run(rate, policy=policy, budget=budget).attainment(limits)

    def _simulate(self, key: tuple, witness: Witness | None = None) -> Result:
        rate, policy, budget = key
        asked = synthetic(self.trace, self.count, rate=rate, seed=self.seed)
        events = {} if witness is None else {"events": witness.events}
        return simulate(
            asked, policy=new_policy(self.policies.get(policy, policy)), max_tokens_per_step=budget, **events,
            **self._engine,
        )  # fmt: skip
