"""Answers to the exercises of lesson 10 that its checks were not written for: right ones by other ways, wrong ones that
look right."""

import math
from collections import defaultdict

from llmsys.serving.simulator import StepLoad

# (a)


def by_lists(events, limits):
    """All times of each kind by request, and sums at the end."""
    seen = defaultdict(lambda: defaultdict(list))
    for event in events:
        if hasattr(event, "request"):
            seen[event.request][type(event).__name__].append(event.time)
    ttft, tpot, met, ends = {}, {}, 0, []
    for name, kinds in seen.items():
        tokens = kinds["Token"]
        if tokens:
            ttft[name] = tokens[0] - kinds["Arrived"][0]
        if len(tokens) >= 2:
            pauses = [b - a for a, b in zip(tokens, tokens[1:], strict=False)]
            tpot[name] = sum(pauses) / len(pauses)
        ends += kinds["Finished"] + kinds["Failed"] + kinds["Aborted"]
        in_time = kinds["Finished"] and ttft[name] <= limits.ttft
        met += bool(in_time and (name not in tpot or tpot[name] <= limits.tpot))
    return ttft, tpot, met / (max(ends) - min(time for kinds in seen.values() for time in kinds["Arrived"]))


def as_a_list(events, limits):
    return list(by_lists(events, limits))


def last_event_ends(events, limits):
    events = list(events)
    ttft, tpot, rate = by_lists(events, limits)
    ends = [each.time for each in events if type(each).__name__ in ("Finished", "Failed", "Aborted")]
    start = min(each.time for each in events if type(each).__name__ == "Arrived")
    return ttft, tpot, rate * (max(ends) - start) / (events[-1].time + 1e-3 - start)


def last_event_of_a_request(events, limits):
    """Whoever has not ended is taken to end with the last that is heard of it."""
    events = list(events)
    ttft, tpot, rate = by_lists(events, limits)
    ends = [each.time for each in events if type(each).__name__ in ("Finished", "Failed", "Aborted")]
    start = min(each.time for each in events if type(each).__name__ == "Arrived")
    heard = max(each.time for each in events if hasattr(each, "request"))
    return ttft, tpot, rate * (max(ends) - start) / (heard - start)


def tpot_is_the_median(events, limits):
    ttft, tpot, rate = by_lists(events, limits)
    seen = defaultdict(list)
    for event in events:
        if type(event).__name__ == "Token":
            seen[event.request].append(event.time)
    for name in tpot:
        pauses = sorted(b - a for a, b in zip(seen[name], seen[name][1:], strict=False))
        tpot[name] = pauses[len(pauses) // 2]
    return ttft, tpot, rate


def once_only(events, limits):
    """Events can be gone through once, it thinks."""
    ttft, tpot, rate = by_lists(events, limits)
    return {name: round(each, 2) for name, each in ttft.items()}, tpot, rate


# (b)


def recursive(prompt, contexts, *, budget, times, computed=0):
    piece = min(prompt - computed, budget - len(contexts))
    seconds = times.seconds(StepLoad.of([*((c, 1) for c in contexts), (computed, piece)]))
    if computed + piece == prompt:
        return [(piece, seconds)]
    more = [c + 1 for c in contexts]
    return [(piece, seconds), *recursive(prompt, more, budget=budget, times=times, computed=computed + piece)]


def by_its_own_sums(prompt, contexts, *, budget, times):
    room, found = budget - len(contexts), []
    for k in range(-(-prompt // room)):
        n = min(room, prompt - k * room)
        before, D = k * room, len(contexts)
        cached = sum(contexts) + k * D
        load = StepLoad(n + D, D + 1, cached + D + before + n, cached + D + n * before + n * (n + 1) // 2)
        found.append([n, times.seconds(load)])
    return found


def first_piece_is_short(prompt, contexts, *, budget, times):
    """What is left over comes first."""
    room = budget - len(contexts)
    pieces = [prompt % room] * (prompt % room > 0) + [room] * (prompt // room)
    found, computed = [], 0
    for k, n in enumerate(pieces):
        found.append((n, times.seconds(StepLoad.of([*((c + k, 1) for c in contexts), (computed, n)]))))
        computed += n
    return found


def one_context_for_all(prompt, contexts, *, budget, times):
    mean = sum(contexts) // len(contexts) if contexts else 0
    return by_its_own_sums(prompt, [mean] * len(contexts), budget=budget, times=times)


# (c)


def by_the_best_of_all(attained, budgets, *, low, high, share=0.9, within=0.02):
    found = []
    for budget in budgets:
        if attained(budget, low) >= share:
            good, bad = (high, high) if attained(budget, high) >= share else (low, high)
            while bad > good * (1 + within):
                middle = (good * bad) ** 0.5
                good, bad = (middle, bad) if attained(budget, middle) >= share else (good, middle)
            found.append((good, budget))
    if not found:
        raise ValueError("budgets: none is good")
    rate, budget = max(found)
    return [budget, rate]


def with_a_head_start(attained, budgets, *, low, high, share=0.9, within=0.02):
    """A budget that is not good at the best rate so far is not searched."""
    best = None
    for budget in budgets:
        good = low if best is None else best[1]
        if attained(budget, good) < share:
            continue
        if best is None or good > best[1]:
            best = budget, good
        bad = high
        if attained(budget, high) >= share:
            return budget, high
        while bad / good > 1 + within:
            middle = math.exp((math.log(good) + math.log(bad)) / 2)
            good, bad = (middle, bad) if attained(budget, middle) >= share else (good, middle)
        best = budget, good
    if best is None:
        raise ValueError("budgets: none is good")
    return best


def twice_over(attained, budgets, **options):
    """The whole search, and once more to be sure."""
    by_the_best_of_all(attained, budgets, **options)
    return by_the_best_of_all(attained, budgets, **options)


def high_of_all_first(attained, budgets, *, low, high, share=0.9, within=0.02):
    """One budget that is good at `high` would be the answer."""
    for budget in budgets:
        if attained(budget, high) >= share:
            return budget, high
    return with_a_head_start(attained, budgets, low=low, high=high, share=share, within=within)


def a_grid(attained, budgets, *, low, high, share=0.9, within=0.02):
    """Every rate of a fine grid."""
    found = []
    for budget in budgets:
        rates = [low]
        while rates[-1] < high:
            rates.append(min(high, rates[-1] * (1 + within)))
        good = [rate for rate in rates if attained(budget, rate) >= share]
        if good:
            found.append((max(good), budget))
    if not found:
        raise ValueError("budgets: none is good")
    rate, budget = max(found)
    return budget, rate


def more_than_the_share(attained, budgets, **options):
    return with_a_head_start(lambda budget, rate: attained(budget, rate) * 0.97, budgets, **options)


def ten_halvings(attained, budgets, *, low, high, share=0.9, within=0.02):
    best = (None, 0.0)
    for budget in budgets:
        good, bad = low, high
        if attained(budget, low) < share:
            continue
        for _ in range(4):
            middle = math.sqrt(good * bad)
            good, bad = (middle, bad) if attained(budget, middle) >= share else (good, middle)
        best = max(best, (budget, good), key=lambda each: each[1])
    if best[0] is None:
        raise ValueError("none")
    return best


def never_ends(attained, budgets, *, low, high, share, within):
    while True:
        attained(budgets[0], low)


RIGHT = {
    "10.read_log": (by_lists, as_a_list),
    "10.prefill_steps": (recursive, by_its_own_sums),
    "10.choose_budget": (by_the_best_of_all, with_a_head_start),
}
WRONG = {
    "10.read_log": (last_event_ends, last_event_of_a_request, tpot_is_the_median, once_only),
    "10.prefill_steps": (first_piece_is_short, one_context_for_all),
    "10.choose_budget": (a_grid, more_than_the_share, ten_halvings, twice_over, high_of_all_first),
}
NOTHING_OF_THE_KIND = {
    "10.read_log": (lambda events, limits: 3, "read_log must return three things"),
    "10.prefill_steps": (lambda *args, **more: [3, 4], "must return a list of pairs (piece, seconds)"),
    "10.choose_budget": (lambda *args, **more: 512, "choose_budget must return a pair, (budget, rate)"),
}
