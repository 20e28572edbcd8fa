"""The hopper kernel with a consumer's step in other orders: the kernels that `hopper_orders` times.

A step of `llmsys.attention.hopper.consumer` adds P V of tile i to O and computes the scores of tile i + 1 and their
softmax. The steps here do the same in other orders, with the same numbers for a result. `KERNELS` are the kernels that
have them, by name. They are for attention without a mask: with one, consumers pass turns on outside of steps, too.
"""

from collections.abc import Callable

from llmsys.attention.hopper.consumer import softmax, start_scores
from llmsys.attention.hopper.fresh_modules import FORWARD, fresh_modules
from llmsys.attention.hopper.gluon import gl, gluon, warpgroup_mma, warpgroup_mma_wait


def kernel_with(**changes: Callable) -> Callable:
    """The hopper kernel with these functions in the place of those of the same name in its modules."""
    return fresh_modules(*FORWARD, functions=changes).hopper_forward_kernel


@gluon.jit
def step_one_at_a_time(
    J: gl.constexpr, q, keys, values, turns, i, turn, p, m, l, o, seen, key, scale_log2,
    S: gl.constexpr, P: gl.constexpr, o_desc, MASKED: gl.constexpr,
):  # fmt: skip
    """As it is written nothing overlaps: one consumer after the other, and in each one thing after the other. As it is
    compiled something does: the assembler may move exponentials, which only touch registers, past the barrier."""
    k = keys.take(i + 1)
    v = values.take(i)
    turns.wait(J, turn)
    o = warpgroup_mma_wait(0, [warpgroup_mma(p, v, o, is_async=True)])
    values.give_back(i)
    s = warpgroup_mma_wait(0, [start_scores(q, k, S)])
    keys.give_back(i + 1)
    p, m, l, shrink = softmax(s, m, l, seen, key, scale_log2, MASKED)
    p = gl.convert_layout(p.to(o_desc.dtype), P)
    o = o * gl.convert_layout(shrink, gl.SliceLayout(1, o.type.layout))[:, None]
    turns.pass_on(J)
    return p, m, l, o


@gluon.jit
def step_independent(
    J: gl.constexpr, q, keys, values, turns, i, turn, p, m, l, o, seen, key, scale_log2,
    S: gl.constexpr, P: gl.constexpr, o_desc, MASKED: gl.constexpr,
):  # fmt: skip
    """Each consumer does one thing after the other, and takes no notice of the other consumers."""
    o = warpgroup_mma_wait(0, [warpgroup_mma(p, values.take(i), o, is_async=True)])
    values.give_back(i)
    s = warpgroup_mma_wait(0, [start_scores(q, keys.take(i + 1), S)])
    keys.give_back(i + 1)
    p, m, l, shrink = softmax(s, m, l, seen, key, scale_log2, MASKED)
    p = gl.convert_layout(p.to(o_desc.dtype), P)
    return p, m, l, o * gl.convert_layout(shrink, gl.SliceLayout(1, o.type.layout))[:, None]


@gluon.jit
def step_ping_pong(
    J: gl.constexpr, q, keys, values, turns, i, turn, p, m, l, o, seen, key, scale_log2,
    S: gl.constexpr, P: gl.constexpr, o_desc, MASKED: gl.constexpr,
):  # fmt: skip
    """Both products in the consumer's turn, which ends when they do; then its softmax."""
    k = keys.take(i + 1)
    v = values.take(i)
    turns.wait(J, turn)
    s = start_scores(q, k, S)
    o = warpgroup_mma(p, v, o, is_async=True)
    s, o = warpgroup_mma_wait(0, [s, o])
    turns.pass_on(J)
    keys.give_back(i + 1)
    values.give_back(i)
    p, m, l, shrink = softmax(s, m, l, seen, key, scale_log2, MASKED)
    p = gl.convert_layout(p.to(o_desc.dtype), P)
    return p, m, l, o * gl.convert_layout(shrink, gl.SliceLayout(1, o.type.layout))[:, None]


@gluon.jit
def step_overlapped_alone(
    J: gl.constexpr, q, keys, values, turns, i, turn, p, m, l, o, seen, key, scale_log2,
    S: gl.constexpr, P: gl.constexpr, o_desc, MASKED: gl.constexpr,
):  # fmt: skip
    """Softmax while P V runs, as in the hopper kernel, but without turns."""
    s = start_scores(q, keys.take(i + 1), S)
    o = warpgroup_mma(p, values.take(i), o, is_async=True)
    s = warpgroup_mma_wait(1, [s])
    keys.give_back(i + 1)
    p, m, l, shrink = softmax(s, m, l, seen, key, scale_log2, MASKED)
    o = warpgroup_mma_wait(0, [o])
    p = gl.convert_layout(p.to(o_desc.dtype), P)
    values.give_back(i)
    return p, m, l, o * gl.convert_layout(shrink, gl.SliceLayout(1, o.type.layout))[:, None]


@gluon.jit
def step_overlapped_held(
    J: gl.constexpr, q, keys, values, turns, i, turn, p, m, l, o, seen, key, scale_log2,
    S: gl.constexpr, P: gl.constexpr, o_desc, MASKED: gl.constexpr,
):  # fmt: skip
    """The hopper kernel's own step, but the turn is held until the scores are there, and not passed on before."""
    k = keys.take(i + 1)
    turns.wait(J, turn)
    s = start_scores(q, k, S)
    o = warpgroup_mma(p, values.take(i), o, is_async=True)
    s = warpgroup_mma_wait(1, [s])
    turns.pass_on(J)
    keys.give_back(i + 1)
    p, m, l, shrink = softmax(s, m, l, seen, key, scale_log2, MASKED)
    o = warpgroup_mma_wait(0, [o])
    p = gl.convert_layout(p.to(o_desc.dtype), P)
    values.give_back(i)
    return p, m, l, o * gl.convert_layout(shrink, gl.SliceLayout(1, o.type.layout))[:, None]


one_at_a_time = kernel_with(step=step_one_at_a_time)
independent = kernel_with(step=step_independent)
ping_pong = kernel_with(step=step_ping_pong)
overlapped_alone = kernel_with(step=step_overlapped_alone)
overlapped_held = kernel_with(step=step_overlapped_held)
overlapped = kernel_with()

KERNELS = {
    "one_at_a_time": one_at_a_time,
    "independent": independent,
    "ping_pong": ping_pong,
    "overlapped_alone": overlapped_alone,
    "overlapped_held": overlapped_held,
    "overlapped": overlapped,
}
"""The last is `llmsys.attention.hopper.forward`'s own."""
