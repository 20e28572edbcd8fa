"""Answers to the exercises of lesson 11: right ones by other ways, wrong ones that have no name among its mistakes, and
others that have one though they ask otherwise than the solution."""

import math

import numpy as np

from tests.support.verdicts import fresh

# (a)


def by_the_arithmetic_middle(attained, *, gpus, low, high, share=0.9, within=0.02):
    good, bad = low, high
    if attained(bad) >= share:
        return bad / gpus
    if attained(good) < share:
        return 0
    while bad > good * (1 + within):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if attained(middle) >= share else (good, middle)
    return good / gpus


def low_first_and_by_itself_again(attained, *, gpus, low, high, share=0.9, within=0.02):
    if attained(low) < share:
        return 0.0
    if attained(high) >= share:
        return high / gpus

    def between(good, bad):
        if bad / good <= 1 + within:
            return good
        middle = math.exp((math.log(good) + math.log(bad)) / 2)
        return between(middle, bad) if attained(middle) >= share else between(good, middle)

    return between(low, high) / gpus


def by_doubling(attained, *, gpus, low, high, share=0.9, within=0.02):
    """Twice as much until it is too much, then halved."""
    if attained(high) >= share:
        return high / gpus
    good, bad = None, low
    while bad < high and attained(bad) >= share:
        good, bad = bad, min(2 * bad, high)
    if good is None:
        return 0.0
    while bad / good > 1 + within:
        middle = math.sqrt(good * bad)
        good, bad = (middle, bad) if attained(middle) >= share else (good, middle)
    return good / gpus


def with_a_fixed_number_of_tries(attained, *, gpus, low, high, share=0.9, within=0.02):
    if attained(high) >= share:
        return high / gpus
    if attained(low) < share:
        return 0.0
    for _ in range(8):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if attained(middle) >= share else (low, middle)
    return low / gpus


def mean_of_both_ends(attained, *, gpus, low, high, share=0.9, within=0.02):
    rate = by_the_arithmetic_middle(attained, gpus=1, low=low, high=high, share=share, within=within)
    return rate * (1 + within / 2) / gpus


def shares_as_percent(attained, *, gpus, low, high, share=0.9, within=0.02):
    return by_the_arithmetic_middle(lambda rate: 100 * attained(rate), gpus=gpus, low=low, high=high, share=share,
                                    within=within)  # fmt: skip


def divided_twice(attained, **given):
    return by_the_arithmetic_middle(attained, **given) / given["gpus"]


# (b)


def with_a_queue(layers, buffers):
    """A buffer is taken when somebody needs it."""
    order, under_way = [], []
    for layer in range(layers):
        if len(under_way) == buffers:
            order.append(("wait", under_way.pop(0)))
        order += [("compute", layer), ("send", layer)]
        under_way.append(layer)
    return order + [("wait", layer) for layer in under_way]


def the_last_ones_backwards(layers, buffers):
    """At the end in any order; pairs as lists."""
    order = with_a_queue(layers, buffers)
    left = min(layers, buffers)
    return [list(each) for each in order[:-left] + order[:-left - 1 : -1]]


def half_the_buffers(layers, buffers):
    return with_a_queue(layers, max(1, buffers // 2))


def waits_before_the_send(layers, buffers):
    """Right, but that the next wait comes between computing and sending."""
    order = []
    for layer in range(layers):
        order.append(("compute", layer))
        if layer + 1 >= buffers and layer + 1 < layers and layer + 1 - buffers < layer:
            order.append(("wait", layer + 1 - buffers))
        order.append(("send", layer))
        if buffers == 1 and layer + 1 < layers:
            order.append(("wait", layer))
    return order + [("wait", layer) for layer in range(max(layers - buffers, 0), layers)]


def from_the_last_layer(layers, buffers):
    return [(what, layers - 1 - layer) for what, layer in with_a_queue(layers, buffers)]


def for_two_buffers(layers, buffers):
    return with_a_queue(layers, 2)


# (c)


def by_golden_steps(gpus, prefill_rate, decode_rate):
    """Two neighbours are compared: the better side goes on."""
    rates = {}

    def rate(p):
        if p not in rates:
            rates[p] = min(prefill_rate(p), decode_rate(gpus - p))
        return rates[p]

    first, last = 1, gpus - 1
    while last - first > 2:
        middle = (first + last) // 2
        if prefill_rate(middle) < decode_rate(gpus - middle):
            first = middle
        else:
            last = middle
    best = max(range(first, last + 1), key=rate)
    return best, gpus - best


def from_the_decoders(gpus, prefill_rate, decode_rate):
    """The same search from the other end; a list."""
    few, many = 1, gpus - 1
    while few < many:
        d = (few + many) // 2
        if decode_rate(d) >= prefill_rate(gpus - d):
            many = d
        else:
            few = d + 1
    if few > 1 and decode_rate(few - 1) > min(decode_rate(few), prefill_rate(gpus - few)):
        few -= 1
    return [gpus - few, few]


def a_hill_of_eight(gpus, prefill_rate, decode_rate):
    """Tries the first eight divisions."""
    best = max(range(1, min(gpus, 9)), key=lambda p: min(prefill_rate(p), decode_rate(gpus - p)))
    return best, gpus - best


def one_left_over(gpus, prefill_rate, decode_rate):
    p, d = by_golden_steps(gpus, prefill_rate, decode_rate)
    return p, max(1, d - 1)


@fresh
def remembers_the_number_of_gpus():
    known = {}

    def answer(gpus, prefill_rate, decode_rate):
        if gpus not in known:
            known[gpus] = by_golden_steps(gpus, prefill_rate, decode_rate)
        return known[gpus]

    return answer


# (d)


def with_a_loop(request, engines, weight=1.0):
    best, lowest = 0, None
    for i, (hit, held) in enumerate(zip(engines.hits, engines.held, strict=True)):
        cost = held - weight * hit  # the prompt is as long for all
        if lowest is None or cost < lowest:
            best, lowest = i, cost
    return best


def by_arrays(request, engines, weight=1.0):
    left = len(request.tokens) - np.array(engines.hits)
    return int(np.argmin(weight * left + np.array(engines.held)))


def by_pairs(request, engines, weight=1.0):
    left = (len(request.tokens) - hit for hit in engines.hits)
    return min((weight * each + held, i) for i, (each, held) in enumerate(zip(left, engines.held, strict=True)))[1]


def whoever_is_named(request, engines, weight=1.0):
    return engines.names[with_a_loop(request, engines, weight)]


def takes_note(request, engines, weight=1.0):
    """Right, and changes what it is told."""
    i = with_a_loop(request, engines, weight)
    engines.held[i] += len(request.tokens)
    return i


def squares(request, engines, weight=1.0):
    return min(range(len(engines)), key=lambda i: (len(request.tokens) - engines.hits[i]) ** 2 + engines.held[i])


def the_fullest_of_the_three_with_most(request, engines, weight=1.0):
    some = sorted(range(len(engines)), key=lambda i: -engines.hits[i])[:3]
    return min(some, key=lambda i: weight * -engines.hits[i] + engines.held[i])


RIGHT = {
    "11.goodput": [by_the_arithmetic_middle, low_first_and_by_itself_again, by_doubling],
    "11.transfer_order": [with_a_queue, the_last_ones_backwards],
    "11.divide": [by_golden_steps, from_the_decoders],
    "11.route": [with_a_loop, by_arrays, by_pairs],
}
WRONG = {
    "11.goodput": [with_a_fixed_number_of_tries, mean_of_both_ends, shares_as_percent, divided_twice],
    "11.transfer_order": [half_the_buffers, waits_before_the_send, from_the_last_layer, for_two_buffers],
    "11.divide": [a_hill_of_eight, one_left_over, remembers_the_number_of_gpus],
    "11.route": [whoever_is_named, takes_note, squares, the_fullest_of_the_three_with_most],
}


# Wrong ones with a name, though they ask otherwise than the solution


def low_first(attained, *, gpus, low, high, share=0.9, within=0.02, divided=True, upper=False):
    if attained(low) < share:
        return 0.0
    if attained(high) >= share:
        low = high
    while high / low > 1 + within:
        middle = math.sqrt(low * high)
        if attained(middle) >= share:
            low = middle
        else:
            high = middle
    return (high if upper else low) / (gpus if divided else 1)


def low_first_and_never_divided(attained, **given):
    return low_first(attained, **given, divided=False)


def low_first_and_the_upper_one(attained, **given):
    return low_first(attained, **given, upper=True)


def low_first_with_rates_of_one(attained, *, gpus, **given):
    return low_first(lambda rate: attained(rate / gpus), gpus=gpus, **given)


def sums_that_ask_once(gpus, prefill_rate, decode_rate):
    prefill, decode = ([rate(n) for n in range(1, gpus)] for rate in (prefill_rate, decode_rate))
    best = max(range(1, gpus), key=lambda p: prefill[p - 1] + decode[gpus - p - 1])
    return best, gpus - best


def the_first_from_below(gpus, prefill_rate, decode_rate):
    p = next((p for p in range(1, gpus) if prefill_rate(p) >= decode_rate(gpus - p)), gpus - 1)
    return p, gpus - p


def rates_exchanged(gpus, prefill_rate, decode_rate):
    return tuple(reversed(from_the_decoders(gpus, prefill_rate, decode_rate)))


def as_a_loop_with_the_last(request, engines, weight=1.0):
    best, lowest = 0, float("inf")
    for i in range(len(engines)):
        cost = engines.held[i] + weight * (len(request.tokens) - engines.hits[i])
        if cost <= lowest:
            best, lowest = i, cost
    return best


def fullest_hit(request, engines, weight=1.0):
    best = 0
    for i in range(len(engines)):
        if engines.hits[i] > engines.hits[best]:
            best = i
    return best


def engine_nought(request, engines, weight=1.0):
    return min(0, len(engines))


NAMED = [
    ("11.goodput", low_first_and_never_divided, "You return the rate of all GPUs together."),
    ("11.goodput", low_first_and_the_upper_one, "You return the upper rate"),
    ("11.goodput", low_first_with_rates_of_one, "You give attained the rate of one GPU."),
    ("11.divide", sums_that_ask_once, "You add the two rates up."),
    ("11.divide", the_first_from_below, "You take the first division"),
    ("11.divide", rates_exchanged, "You give the decoders what the prefillers should have."),
    ("11.route", as_a_loop_with_the_last, "Of engines with the same cost you take the last."),
    ("11.route", fullest_hit, "You look at hits alone"),
    ("11.route", engine_nought, "You always take the first engine."),
]
