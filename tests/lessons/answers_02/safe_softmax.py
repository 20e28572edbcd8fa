"""Answers to 02.safe_softmax."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from llmsys.course.checking.mistakes import edited
from llmsys.lessons.lesson_02_online_softmax import mistakes
from tests.support.verdicts import fresh


def starts_of(x, tile):
    return range(0, x.shape[-1], tile)


def begins_with_a_column(x, tile):
    """The maximum begins with the row's first number, which is read once more."""
    m = x[..., 0].clone()
    for start in starts_of(x, tile):
        m = torch.maximum(m, x[..., start : start + tile].amax(-1))
    l = torch.zeros_like(m)
    for start in starts_of(x, tile):
        l += (x[..., start : start + tile] - m[..., None]).exp().sum(-1)
    y = torch.empty_like(x)
    for start in starts_of(x, tile):
        y[..., start : start + tile] = (x[..., start : start + tile] - m[..., None]).exp() / l[..., None]
    return y


def begins_with_a_tile(x, tile):
    m = x[..., :tile].amax(-1, keepdim=True)
    for start in starts_of(x, tile)[1:]:
        m = m.maximum(x[..., start : start + tile].amax(-1, keepdim=True))
    l = sum((part - m).exp().sum(-1, keepdim=True) for part in x.split(tile, -1))
    y = torch.zeros_like(x)
    for start in starts_of(x, tile):
        part = x.narrow(-1, start, min(tile, x.shape[-1] - start))
        y.narrow(-1, start, part.shape[-1]).copy_((part - m).exp().mul_(1 / l))
    return y


def begins_with_the_least_number(x, tile):
    m = torch.full((*x.shape[:-1], 1), torch.finfo(x.dtype).min, dtype=x.dtype)
    l, y = torch.zeros_like(m), torch.zeros(x.shape, dtype=x.dtype)
    for start in starts_of(x, tile):
        m = torch.max(m, x[..., start : start + tile].clone().max(dim=-1, keepdim=True).values)
    for start in starts_of(x, tile):
        l = l + torch.exp(x[..., start : start + tile].clone() - m).sum(-1, keepdim=True)
    for start in starts_of(x, tile):
        y[..., start : start + tile] = torch.exp(x[..., start : start + tile].clone() - m) / l
    return y


def tiles_are_filled_up(x, tile):
    """Each tile, and not the row, is filled up to its full length."""

    def load(start):
        part = x[..., start : start + tile]
        return torch.nn.functional.pad(part.double(), (0, tile - part.shape[-1]), value=-math.inf)

    m = torch.full((*x.shape[:-1], 1), -math.inf, dtype=torch.float64)
    for start in starts_of(x, tile):
        m = torch.maximum(m, load(start).amax(-1, keepdim=True))
    l = sum(torch.exp2((load(start) - m) * math.log2(math.e)).sum(-1, keepdim=True) for start in starts_of(x, tile))
    y = torch.empty_like(x)
    for start in starts_of(x, tile):
        stop = min(start + tile, x.shape[-1])
        y[..., start:stop] = (torch.exp(load(start) - m) / l)[..., : stop - start]
    return y


def row_after_row(x, tile):
    y = torch.empty_like(x)
    for index in np.ndindex(x.shape[:-1]):
        row, m, l = x[index], -math.inf, 0.0
        for part in row.split(tile):
            m = max(m, part.max().item())
        for part in row.split(tile):
            l += (part - m).exp().sum().item()
        for start in starts_of(x, tile):
            y[index][start : start + tile] = (row[start : start + tile] - m).exp() / l
    return y


def through_other_views(x, tile):
    """Rows and columns have changed places, and the last steps are made in y."""
    turned, y = x.movedim(-1, 0), torch.empty_like(x)
    m = torch.full(x.shape[:-1], -math.inf, dtype=x.dtype)
    for part in turned.split(tile):
        m = torch.maximum(m, part.amax(0))
    l = sum((part - m).exp().sum(0) for part in turned.split(tile))
    for part, into in zip(turned.split(tile), y.movedim(-1, 0).split(tile), strict=True):
        torch.sub(part, m, out=into)
        into.exp_().div_(l)
    return y


RIGHT = [
    begins_with_a_column,
    begins_with_a_tile,
    begins_with_the_least_number,
    tiles_are_filled_up,
    row_after_row,
    through_other_views,
]


def maximum(x, tile):
    return torch.stack([part.amax(-1, keepdim=True) for part in x.split(tile, -1)]).amax(0)


@fresh
def maximum_of_the_same_shape():
    """The maximum of the first row of a shape serves all others: softmax does not mind, until e^ overflows."""
    known = {}

    def safe_softmax(x, tile):
        m = known.setdefault((x.shape, x.dtype), maximum(x, tile))
        maximum(x, tile) if m is not known[x.shape, x.dtype] else None
        l = sum(torch.exp(part - m).sum(-1, keepdim=True) for part in x.split(tile, -1))
        return torch.cat([torch.exp(part - m) / l for part in x.split(tile, -1)], -1)

    return safe_softmax


def gradient_of_the_denominator(x, tile):
    """∂ ln ℓ / ∂x is softmax."""
    x = x.detach().requires_grad_()
    m = maximum(x.detach(), tile)
    l = sum((part - m).exp().sum(-1) for part in x.split(tile, -1))
    return torch.autograd.grad(l.log().sum(), x)[0]


def exponentials_kept_in_y(x, tile):
    """Two passes over x, and a third one over y."""
    m, y = maximum(x, tile), torch.empty_like(x)
    for start in starts_of(x, tile):
        y[..., start : start + tile] = torch.exp(x[..., start : start + tile] - m)
    l = sum(part.sum(-1, keepdim=True) for part in y.split(tile, -1))
    for start in starts_of(x, tile):
        y[..., start : start + tile] /= l
    return y


def tiles_of_a_pool(x, tile):
    """All tiles at once: the pool's threads hold a copy of the row."""
    with ThreadPoolExecutor(128) as pool:
        held = list(pool.map(torch.clone, x.split(tile, -1)))
    m = torch.stack([part.amax(-1, keepdim=True) for part in held]).amax(0)
    del held
    l = sum((part - m).exp().sum(-1, keepdim=True) for part in x.split(tile, -1))
    return torch.cat([(part - m).exp() / l for part in x.split(tile, -1)], -1)


def of(name, *changes):
    return edited(mistakes.safe_softmax, name, *changes)


TILE = "x[..., start : start + tile]"
MAXIMUM = "m = torch.maximum(m, x[..., start : start + tile].amax(dim=-1))"
STARTS = "starts = range(0, x.shape[-1], tile)"
OVER_ALL = f"{MAXIMUM}\n        m = m.amax(0, keepdim=True).expand_as(m) if m.dim() > 1 else m"
MOVED = "for start in [min(start, max(x.shape[-1] - tile, 0)) for start in starts]:"

WRONG = [
    maximum_of_the_same_shape,
    gradient_of_the_denominator,
    exponentials_kept_in_y,
    tiles_of_a_pool,
    of("begins_at_a_thousand_million_below", ('float("-inf")', "-1e9 if x.itemsize > 2 else -6e4")),
    of("begins_at_ten_to_the_thirty_below", ('float("-inf")', "-1e30 if x.itemsize > 2 else -6e4")),
    of("no_number_above_a_million", (MAXIMUM, f"{MAXIMUM}.clamp(max=1e6 if x.itemsize > 2 else 6e4)")),
    of("maximum_of_the_last_tile", (MAXIMUM, f"m = {TILE}.amax(dim=-1)")),
    of("maximum_of_the_first_tile", (MAXIMUM, f"m = {TILE}.amax(dim=-1) if start == 0 else m")),
    of("maximum_of_every_other_column", (MAXIMUM, MAXIMUM.replace("+ tile]", "+ tile : 2]"))),
    of("maximum_in_half", (MAXIMUM, MAXIMUM.replace("].amax", "].half().amax"))),
    of("one_maximum_over_the_first_dimension", (MAXIMUM, OVER_ALL)),
    of("tiles_of_sixteen", (STARTS, f"tile = 16\n    {STARTS}")),
    of("sixteen_at_least", (STARTS, f"tile = max(tile, 16)\n    {STARTS}")),
    of("number_of_tiles", (STARTS, f"tile = -(-x.shape[-1] // tile)\n    {STARTS}")),
    of("last_tile_moved_back", ("for start in starts:", MOVED, 3)),
    of("asks_whether_it_is_finite", (STARTS, f"{STARTS}\n    assert x.isfinite().any()")),
    of("in_float32_whatever_x_is", (STARTS, f"x, given = x.float(), x\n    {STARTS}"),
       ("return y", "return y.to(given.dtype)")),
    of("tiles_in_float32", (f"{TILE} -", f"{TILE}.float() -", 2)),
    of("sums_in_float32", (".sum(dim=-1)", ".float().sum(dim=-1)"), ("zeros_like(m)", "zeros_like(m).float()")),
    of("sums_in_half", (".sum(dim=-1)", ".sum(dim=-1).half()"), ("zeros_like(m)", "zeros_like(m).half()")),
    of("a_little_is_added", ("/ l[..., None]", "/ (l[..., None] + 1e-6)")),
    of("no_weight_below_a_millionth", ("return y", "return y.clamp(min=1e-6)")),
    of("one_number_too_many", ("return y", "return y, l")),
    of("without_dimensions_of_one", ("return y", "return y.squeeze()")),
]  # fmt: skip
