"""Right answers to lesson 11, whose edits are its mistakes."""

import math


def goodput_per_gpu(attained, *, gpus, low, high, share=0.9, within=0.02):
    """(a): bisection, by equal factors."""
    if attained(high) >= share:
        return high / gpus
    if attained(low) < share:
        return 0.0
    while high / low > 1 + within:
        middle = math.sqrt(low * high)
        if attained(middle) >= share:
            low = middle
        else:
            high = middle
    return low / gpus


def transfer_order(layers, buffers):
    """(b): a send as soon as there is something to send, a wait as late as it can be."""
    order = []
    for layer in range(layers):
        if layer >= buffers:
            order.append(("wait", layer - buffers))
        order.append(("compute", layer))
        order.append(("send", layer))
    for layer in range(max(layers - buffers, 0), layers):
        order.append(("wait", layer))
    return order


def divide(gpus, prefill_rate, decode_rate):
    """(c): the first division whose prompts are no longer what bounds it, or the one before."""
    first, last = 1, gpus - 1
    while first < last:
        middle = (first + last) // 2
        if prefill_rate(middle) >= decode_rate(gpus - middle):
            last = middle
        else:
            first = middle + 1
    rate = min(prefill_rate(first), decode_rate(gpus - first))
    if first > 1 and prefill_rate(first - 1) > rate:
        first -= 1
    return first, gpus - first


def route(request, engines, weight=1.0):
    """(d): the lowest cost, in tokens; of equal ones, the first."""
    tokens = len(request.tokens)
    costs = [weight * (tokens - engines.hits[i]) + engines.held[i] for i in range(len(engines))]
    return costs.index(min(costs))
