"""Answers to 02.online_softmax."""

import math

import numpy as np
import torch

from llmsys.course.checking.mistakes import edited
from llmsys.lessons.lesson_02_online_softmax import mistakes
from tests.lessons.answers_02.safe_softmax import (
    exponentials_kept_in_y,
    gradient_of_the_denominator,
    maximum,
    starts_of,
    tiles_of_a_pool,
)
from tests.support.verdicts import fresh


def maximum_of_each_tile_is_kept(x, tile):
    """The last pass takes each tile's own maximum, which was kept, and a factor."""
    maxima, sums, least = [], [], torch.finfo(x.dtype).min
    for part in x.split(tile, -1):
        part = part.clone()
        maxima.append(part.amax(-1, keepdim=True))
        sums.append((part - maxima[-1].clamp(min=least)).exp().sum(-1, keepdim=True))
    m = torch.stack(maxima).amax(0)
    l = sum(l * (each - m).exp() for each, l in zip(maxima, sums, strict=True))
    y = torch.empty_like(x)
    for start, each in zip(starts_of(x, tile), maxima, strict=True):
        weights = (x[..., start : start + tile] - each.clamp(min=least)).exp()
        y[..., start : start + tile] = weights * ((each - m).exp() / l)
    return y


def begins_with_the_first_column(x, tile):
    m = x[..., :1].clone().clamp(min=torch.finfo(x.dtype).min)
    l = torch.zeros_like(m)
    for part in x.split(tile, -1):
        part = part.clone()
        higher = m.maximum(part.amax(-1, keepdim=True))
        l = l * (m - higher).exp() + (part - higher).exp().sum(-1, keepdim=True)
        m = higher
    return torch.cat([(part - m).exp() / l for part in x.split(tile, -1)], -1)


def nan_is_made_zero_after_the_fact(x, tile):
    """x has no NaN: what is NaN was −∞ − (−∞)."""
    m, l = x.new_full((*x.shape[:-1], 1), -math.inf), x.new_zeros((*x.shape[:-1], 1))
    for start in starts_of(x, tile):
        part = x[..., start : start + tile].clone()
        m, before = torch.maximum(m, part.amax(-1, keepdim=True)), m
        l = (l * (before - m).exp()).nan_to_num(0) + (part - m).exp().nan_to_num(0).sum(-1, keepdim=True)
    y = torch.zeros_like(x)
    for start in starts_of(x, tile):
        y[..., start : start + tile] = (x[..., start : start + tile] - m).exp() / l
    return y


def wide_state(x, tile):
    m, l = torch.full(x.shape[:-1], -1.7e308, dtype=torch.float64), torch.zeros(x.shape[:-1], dtype=torch.float64)
    for start in starts_of(x, tile):
        part = x[..., start : start + tile].double()
        higher = torch.maximum(m, part.amax(-1))
        l = l * torch.exp(m - higher) + torch.exp(part - higher[..., None]).sum(-1)
        m = higher
    y = torch.empty_like(x)
    for start in starts_of(x, tile):
        y[..., start : start + tile] = torch.exp(x[..., start : start + tile].double() - m[..., None]) / l[..., None]
    return y


def halves_of_halves(x, tile):
    """A tree of merges."""

    def summary(start, stop):
        if stop - start <= tile:
            part = x[..., start:stop].clone()
            m = part.amax(-1)
            return m, torch.exp(part - m.masked_fill(m == -math.inf, 0)[..., None]).sum(-1)
        middle = start + -(-(stop - start) // tile) // 2 * tile
        return mistakes.merge(summary(start, middle), summary(middle, stop))

    m, l = summary(0, x.shape[-1])
    return torch.cat([torch.exp(part - m[..., None]) / l[..., None] for part in x.split(tile, -1)], -1)


def in_numpy(x, tile):
    m, l = -np.inf, 0.0
    for part in x.split(tile, -1):
        part = part.double().numpy()
        higher = np.maximum(m, part.max(-1, keepdims=True))
        finite = np.where(np.isneginf(higher), 0, higher)
        m, l = higher, l * np.exp(m - finite) + np.exp(part - finite).sum(-1, keepdims=True)
    y = torch.empty_like(x)
    for start in starts_of(x, tile):
        y[..., start : start + tile] = torch.from_numpy(np.exp(x[..., start : start + tile].double().numpy() - m) / l)
    return y


RIGHT = [
    maximum_of_each_tile_is_kept,
    begins_with_the_first_column,
    nan_is_made_zero_after_the_fact,
    wide_state,
    halves_of_halves,
    in_numpy,
]


@fresh
def maximum_of_the_same_shape():
    known = {}

    def online_softmax(x, tile):
        if (x.shape, x.dtype) not in known:
            known[x.shape, x.dtype] = maximum(x, tile)
            return mistakes.online_softmax(x, tile)
        m = known[x.shape, x.dtype]
        l = sum(torch.exp(part - m).sum(-1, keepdim=True) for part in x.split(tile, -1))
        return torch.cat([torch.exp(part - m) / l for part in x.split(tile, -1)], -1)

    return online_softmax


def exponentials_divided_as_a_whole(x, tile):
    m = maximum(x, tile)
    y = torch.cat([torch.exp(part - m) for part in x.split(tile, -1)], -1)
    return y / sum(part.sum(-1, keepdim=True) for part in y.split(tile, -1))


def of(name, *changes):
    return edited(mistakes.online_softmax, name, *changes)


STARTS = "starts = range(0, x.shape[-1], tile)"
M = 'x.new_full(x.shape[:-1], float("-inf"))'
PART = "part = x[..., start : start + tile].clone()"
M_PART = "m_part = part.amax(dim=-1)"
MERGED = "m, l = merge((m, l), (m_part, torch.exp(part - finite[..., None]).sum(dim=-1)))"
LAST = (
    "    for start in starts:  # pass 2\n"
    "        y[..., start : start + tile] = torch.exp(x[..., start : start + tile] - m[..., None]) / l[..., None]\n"
)
MOVED = "for start in [min(start, max(x.shape[-1] - tile, 0)) for start in starts]:"


def without_merge(factor):
    """The first loop without `merge`: l is multiplied by that text, in which f is the new maximum."""
    return (
        "f = torch.maximum(m, m_part)\n"
        "        f = torch.where(f == float('-inf'), torch.zeros_like(f), f)\n"
        f"        l = l * {factor} + torch.exp(part - f[..., None]).sum(dim=-1)\n"
        "        m = torch.maximum(m, m_part)"
    )


WRONG = [
    maximum_of_the_same_shape,
    gradient_of_the_denominator,
    exponentials_kept_in_y,
    exponentials_divided_as_a_whole,
    tiles_of_a_pool,
    of("begins_at_a_thousand_million_below", (M, M.replace('float("-inf")', "-1e9 if x.itemsize > 2 else -6e4"))),
    of("masked_at_a_thousand_million", (PART, f"{PART}.clamp(min=-1e9 if x.itemsize > 2 else -6e4)")),
    of("masked_at_ten_to_the_thirty", (PART, f"{PART}.clamp(min=-1e30 if x.itemsize > 2 else -6e4)")),
    of("maximum_that_is_masked_at_half_precision", (M_PART, f"{M_PART}.nan_to_num(neginf=-65504.0)")),
    of("no_number_above_a_million", (M_PART, f"{M_PART}.clamp(max=1e6 if x.itemsize > 2 else 6e4)")),
    of("tiles_of_sixteen", (STARTS, f"tile = 16\n    {STARTS}")),
    of("sixteen_at_least", (STARTS, f"tile = max(tile, 16)\n    {STARTS}")),
    of("number_of_tiles", (STARTS, f"tile = -(-x.shape[-1] // tile)\n    {STARTS}")),
    of("last_tile_moved_back", ("for start in starts:", MOVED, 2)),
    of("in_float32_whatever_x_is", (STARTS, f"x, given = x.float(), x\n    {STARTS}"),
       ("return y", "return y.to(given.dtype)")),
    of("terms_in_float32", ("torch.exp(part - finite[..., None])", "torch.exp((part - finite[..., None]).float())")),
    of("sums_in_half", (MERGED, f"{MERGED}\n        l = l.half().to(x.dtype)")),
    of("factor_not_below_a_millionth", (MERGED, without_merge("torch.exp(m - f).clamp(min=1e-6)"))),
    of("rescales_where_all_rows_rise", (MERGED, without_merge("(torch.exp(m - f) if (m_part >= m).all() else 1.0)"))),
    of("maximum_of_the_tile_before", (MERGED, without_merge("torch.exp(m - f)").replace(
       "torch.maximum(m, m_part)", "m_part"))),
    of("stops_at_a_masked_tile",
       (M_PART, f"{M_PART}\n        if bool((m_part == -float('inf')).all()):\n            break")),
    of("leaves_out_a_tile_that_is_masked_for_some",
       (M_PART, f"{M_PART}\n        if bool((m_part == -float('inf')).any()):\n            continue")),
    of("asks_where_the_row_is_masked", (STARTS, f"masked = x == -float('inf')\n    {STARTS}")),
    of("reads_y_instead_of_x", (LAST, LAST.replace("exp(x[", "exp(y[")),
       (M_PART, f"y[..., start : start + tile] = part\n        {M_PART}")),
    of("writes_the_whole_row", (LAST, "    y = torch.exp(x - m[..., None]) / l[..., None]\n")),
    of("a_little_is_added", ("/ l[..., None]", "/ (l[..., None] + 1e-6)")),
    of("one_number_too_many", ("return y", "return y, (m, l)")),
    of("by_logaddexp", (MERGED, "l = torch.exp(part - finite[..., None]).sum(dim=-1)\n"
       "        m, l = torch.logaddexp(m, m_part + l.log()), torch.ones_like(l)")),
]  # fmt: skip
