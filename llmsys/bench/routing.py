"""Routing: goodput per GPU of more and more engines, by who is asked. Simulated, on Mooncake's traces.

Each engine has one GPU and computes prompts and answers, in steps as long as an H200's with a model of Mistral-7B's
shape (the record of `goodput`); its cache is as large as there, and finds prefixes. The requests of a trace come in
their order, at random moments (in the trace they come by dozens at once, which few engines could never take). For each
number of engines and each route (`llmsys.serving.routing`) the highest rate is looked for at which 90% of them meet
both limits. No request is cut: a prompt of 120,000 tokens comes as it came.

Rows, by `sweep`, the trace's name:

    name, weight    the route; of prefix-aware, the weight of a token that is to be computed
    engines         how many
    rate            requests a second, of all engines; `goodput` of each
    hit_share       of prompt tokens, that were found in a cache, at that rate
    ttft_p90_ms, tpot_p90_ms      at that rate

The traces are read from where `llmsys data` keeps them; of each the first `REQUESTS` are taken.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from llmsys.bench.goodput import engine_blocks, recorded_times
from llmsys.bench.record import Record, new_record, recorded
from llmsys.serving.goodput import Limits
from llmsys.serving.routing import PrefixAware
from llmsys.serving.simulator import Placement, Result, StepTimes, simulate
from llmsys.serving.workload import Arrival, load_trace
from llmsys.serving.workload.arrivals import BLOCK

LIMITS = Limits(ttft=5.0, tpot=0.05)
"""Seconds. Mooncake's prompts have 12,000 tokens on average, and one alone takes 0.4 s here."""
SHARE, WITHIN = 0.9, 0.05
TRACES = ("mooncake-conversation", "mooncake-synthetic")
REQUESTS = 3000
"""The first ones of a trace, at most."""
ENGINES = (1, 2, 4, 8, 16, 32)
ROUTES = (("random", None), ("fewest-tokens", None), ("prefix-aware", 1.0), ("prefix-aware", 4.0))
DEVICE = "H200"


def measure(quick: bool = False) -> Record:
    """Look for all of these rates; `quick`: of two and four engines, for requests that are made up.

    FileNotFoundError, which names the command that fetches it, where a trace is not there.
    """
    times, blocks = recorded_times(DEVICE), engine_blocks(recorded("goodput", DEVICE))
    rows = []
    workloads = {"made up": made_up()} if quick else {trace: load_trace(trace)[:REQUESTS] for trace in TRACES}
    for trace, asked in workloads.items():
        before: dict[tuple, float] = {}  # each engine's rate with fewer engines: where to begin
        for engines in (2, 4) if quick else ENGINES:
            for name, weight in ROUTES:
                if engines == 1 and before:  # there is no choice, so it is the same by all routes
                    rows.append(rows[-1] | {"name": name} | ({} if weight is None else {"weight": weight}))
                    before[name, weight] = rows[-1]["rate"]
                    continue
                rate, result = highest(
                    partial(_at, asked=asked, engines=engines, name=name, weight=weight, times=times, blocks=blocks),
                    guess=engines * before.get((name, weight), 0.5),
                )
                before[name, weight] = rate / engines
                row = {"sweep": trace, "name": name, "engines": engines, "requests": len(asked), "rate": rate,
                       "goodput": rate / engines, "hit_share": result.hit_share, "ttft_p90_ms": 1e3 * result.ttft(90),
                       "tpot_p90_ms": 1e3 * result.tpot(90)}  # fmt: skip
                row = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
                rows.append(row | ({} if weight is None else {"weight": weight}))
    return replace(new_record("routing", rows, {}), device=f"simulated {recorded('goodput', DEVICE).device}")


def made_up() -> list[Arrival]:
    """A few requests of 40 blocks and a bit, of which four each begin alike."""
    begins = [range(40 * n, 40 * n + 40) for n in range(15)]
    return [Arrival(0.0, 40 * BLOCK + 100, 20, (*begins[n % 15], 1000 + n)) for n in range(60)]


def at_random(asked: list[Arrival], rate: float) -> list[Arrival]:
    """The same requests as a Poisson process: always the same moments, at twice the rate after half the pauses."""
    draw, at, found = random.Random("pauses 0"), 0.0, []
    for each in asked:
        found.append(each._replace(at=at / rate))
        at += draw.expovariate(1.0)
    return found


def _at(rate: float, *, asked: list[Arrival], **how) -> Result:
    return served(at_random(asked, rate), **how)


def served(
    asked: list[Arrival], *, engines: int, name: str, weight: float | None, times: StepTimes, blocks: int
) -> Result:
    """What came of a workload. Blocks are as long as a trace's own, which is all that its prompts say of themselves."""
    route = name if weight is None else PrefixAware(weight)
    settings = dict(times=times, num_blocks=blocks * 16 // BLOCK, block_size=BLOCK, ahead=True, route=route)
    return simulate(asked, placement=Placement(colocated=engines), **settings)


def highest(simulated: Callable[[float], Result], *, guess: float) -> tuple[float, Result]:
    """The highest rate within LIMITS, and what came of it: from a guess on by factors of 1.2 to where it lies between
    two, and then by halves."""
    good: tuple[float, Result] | None = None
    bad, rate = None, guess
    while good is None or bad is None or bad / good[0] > 1 + WITHIN:
        result = simulated(rate)
        if result.attainment(LIMITS) >= SHARE:
            good = rate, result
        else:
            bad = rate
        if rate < 1e-3:
            raise ValueError(f"no rate is within {LIMITS}: at one in 1000 s {result.attainment(LIMITS):.0%} are")
        if rate > 1e3 and good is not None and bad is None:
            raise ValueError(f"every rate is within {LIMITS}, as far as 1,000 a second: these requests are too few")
        if good is None or bad is None:
            rate = rate / 1.2 if good is None else rate * 1.2
        else:
            rate = (good[0] * bad) ** 0.5
    return good


def table(record: Record):
    """The record as a rich table: goodput per GPU, and the share of tokens that were hit, by engines and route."""
    from rich.table import Table

    routes = list(dict.fromkeys((row["name"], row.get("weight")) for row in record.rows))
    heads = [name if weight is None else f"{name}, weight {weight:g}" for name, weight in routes]
    shown = Table("trace", "engines", *heads, title=f"requests a second and GPU (tokens hit), {record.device}")
    cells: dict[tuple[str, int], dict] = {}
    for row in record.rows:
        cell = f"{row['goodput']:.3g} ({row['hit_share']:.0%})"
        cells.setdefault((row["sweep"], row["engines"]), {})[row["name"], row.get("weight")] = cell
    for (trace, engines), found in cells.items():
        shown.add_row(trace, str(engines), *(found.get(route, "") for route in routes))
    return shown
