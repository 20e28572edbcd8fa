"""Right answers to the exercises of lesson 10. Mistakes are edits of them, and they stand in until a reader has one."""

import math

from llmsys.serving.simulator.load import StepLoad
from llmsys.serving.telemetry.events import Aborted, Arrived, Failed, Finished, Token


def read_log(events, limits):
    """(a): TTFT, TPOT and goodput."""
    arrived, first, last, count, ended, finished = {}, {}, {}, {}, {}, set()
    for event in events:
        if isinstance(event, Arrived):
            arrived[event.request] = event.time
        elif isinstance(event, Token):
            first.setdefault(event.request, event.time)
            last[event.request] = event.time
            count[event.request] = count.get(event.request, 0) + 1
        elif isinstance(event, Finished | Failed | Aborted):
            ended[event.request] = event.time
            if isinstance(event, Finished):
                finished.add(event.request)
    ttft = {name: first[name] - arrived[name] for name in first}
    tpot = {name: (last[name] - first[name]) / (count[name] - 1) for name in first if count[name] > 1}
    met = [name for name in finished if ttft[name] <= limits.ttft and tpot.get(name, 0) <= limits.tpot]
    return ttft, tpot, len(met) / (max(ended.values()) - min(arrived.values()))


def prefill_steps(prompt, contexts, *, budget, times):
    """(b): a prompt in pieces, beside those that decode."""
    steps, computed, cached = [], 0, list(contexts)
    while computed < prompt:
        piece = min(prompt - computed, budget - len(cached))
        load = StepLoad.of([(tokens, 1) for tokens in cached] + [(computed, piece)])
        steps.append((piece, times.seconds(load)))
        computed += piece
        cached = [tokens + 1 for tokens in cached]
    return steps


def choose_budget(attained, budgets, *, low, high, share=0.9, within=0.02):
    """(c): the budget that allows the highest rate, and that rate."""
    best = None
    for budget in budgets:
        if attained(budget, low) < share:
            continue
        good, bad = low, high
        if attained(budget, high) >= share:
            good = high
        while bad / good > 1 + within:
            middle = math.sqrt(good * bad)
            if attained(budget, middle) >= share:
                good = middle
            else:
                bad = middle
        if best is None or good > best[1]:
            best = budget, good
    if best is None:
        raise ValueError(f"budgets must have one at which {share:.0%} are in time at {low:g} requests a second")
    return best
