"""Wrong answers to lesson 02, as people write them."""

import torch

from llmsys.attention.online import merge as library_merge
from llmsys.course.checking.diagnosis import misconception

# 02.safe_softmax


@misconception(
    "02.safe_softmax",
    "You exponentiate without subtracting the maximum.",
    why="Equation (1) overflows where equation (3) does not: e^(x − m) is what must be summed and written.",
)
def no_maximum(x, tile):
    starts = range(0, x.shape[-1], tile)
    l = sum(torch.exp(_load(x, start, tile)).sum(-1) for start in starts)
    _ = [_load(x, start, tile) for start in starts]
    return _write(x, tile, lambda part: torch.exp(part) / l[..., None])


@misconception(
    "02.safe_softmax",
    "You take one maximum over all the rows.",
    why="Each row is a softmax of its own: under another row's maximum a small row vanishes, and is 0/0.",
)
def one_maximum_for_all(x, tile):
    starts = range(0, x.shape[-1], tile)
    m = max(_load(x, start, tile).max() for start in starts)
    l = sum(torch.exp(_load(x, start, tile) - m).sum(-1) for start in starts)
    return _write(x, tile, lambda part: torch.exp(part - m) / l[..., None])


@misconception(
    "02.safe_softmax",
    "Your maximum begins at 0 instead of −∞.",
    why="A row of large negative numbers never gets above 0: every term vanishes under it, and 0/0 is left.",
)
def begins_at_zero(x, tile):
    starts = range(0, x.shape[-1], tile)
    m, l = torch.zeros(x.shape[:-1]), torch.zeros(x.shape[:-1])
    for start in starts:
        m = torch.maximum(m, _load(x, start, tile).amax(-1))
    for start in starts:
        l = l + torch.exp(_load(x, start, tile) - m[..., None]).sum(-1)
    return _write(x, tile, lambda part: torch.exp(part - m[..., None]) / l[..., None])


@misconception(
    "02.safe_softmax",
    "Your m has one dimension fewer than a tile, and so it meets the tile's columns instead of its rows.",
    why="m[..., None] gives it a last dimension of 1, for all columns; or keep it: amax(dim=-1, keepdim=True).",
)
def last_dimension_dropped(x, tile):
    starts = range(0, x.shape[-1], tile)
    m, l = torch.full(x.shape[:-1], float("-inf")), torch.zeros(x.shape[:-1])
    for start in starts:
        m = torch.maximum(m, _load(x, start, tile).amax(-1))
    for start in starts:
        l = l + torch.exp(_load(x, start, tile) - m).sum(-1)
    return _write(x, tile, lambda part: torch.exp(part - m) / l)


@misconception(
    "02.safe_softmax",
    "You leave out the last tile where it is not full.",
    why=(
        "N // tile counts the full tiles only. range(0, N, tile) begins the short one, too, and a "
        "slice ends with the row."
    ),
)
def no_ragged_end(x, tile):
    starts = range(0, x.shape[-1] // tile * tile, tile)
    m = torch.full(x.shape[:-1], float("-inf"))
    for start in starts:
        m = torch.maximum(m, _load(x, start, tile).amax(-1))
    l = torch.zeros(x.shape[:-1])
    for start in starts:
        l = l + torch.exp(_load(x, start, tile) - m[..., None]).sum(-1)
    y = torch.zeros_like(x)
    for start in starts:
        y[..., start : start + tile] = torch.exp(_load(x, start, tile) - m[..., None]) / l[..., None]
    return y


@misconception(
    "02.safe_softmax",
    "Each tile is normalised by itself: its weights sum to 1, and those of the row to the number of tiles.",
    why="m and ℓ belong to the row. They are carried from tile to tile, and complete only after the last one.",
)
def each_tile_by_itself(x, tile):
    return _write(x, tile, lambda part: _softmax(part))


@misconception(
    "02.safe_softmax",
    "You kept the row, or something as long as it; or you have made one loop of two already, which is exercise (c).",
    why="There is no room for a second row, which is the reason for this exercise: each of the three loops reads x.",
)
def keeps_the_row(x, tile):
    m = x.amax(-1, keepdim=True)
    e = torch.exp(x - m)
    return e / e.sum(-1, keepdim=True)


# 02.merge


@misconception(
    "02.merge",
    "You added the two sums without rescaling them.",
    why="Each ℓ was taken under its own maximum; only under a common one can they be added.",
)
def no_rescaling(a, b):
    return torch.maximum(a[0], b[0]), a[1] + b[1]


@misconception(
    "02.merge",
    "You rescale only the first sum.",
    why="That is enough if the second maximum is the larger one. In a tree, either of them may be.",
)
def rescales_the_first_only(a, b):
    (m1, l1), (m2, l2) = a, b
    m = torch.maximum(m1, m2)
    return m, l1 * torch.exp(m1 - _finite(m)) + l2


@misconception(
    "02.merge",
    "Your rescaling is upside down: e^(m − m₁) grows where e^(m₁ − m) shrinks.",
    why="A sum that was taken under a smaller maximum is too large; and no exponent may be positive, or it overflows.",
)
def upside_down(a, b):
    (m1, l1), (m2, l2) = a, b
    m = torch.maximum(m1, m2)
    return m, l1 * torch.exp(m - m1) + l2 * torch.exp(m - m2)


@misconception(
    "02.merge",
    "Two identities give NaN in your merge.",
    why="−∞ − (−∞) is NaN, and 0 · NaN is NaN, too. Where m is −∞, subtract any finite number instead.",
)
def nan_for_two_identities(a, b):
    (m1, l1), (m2, l2) = a, b
    m = torch.maximum(m1, m2)
    return m, l1 * torch.exp(m1 - m) + l2 * torch.exp(m2 - m)


@misconception(
    "02.merge",
    "You replace NaN by a number after the fact.",
    why="Two identities come out right, but a NaN that came in is gone as well, and with it the sign of an error.",
)
def hides_nan(a, b):
    (m1, l1), (m2, l2) = a, b
    m = torch.maximum(m1, m2)
    return m, torch.nan_to_num(l1 * torch.exp(m1 - m) + l2 * torch.exp(m2 - m))


@misconception(
    "02.merge",
    "You return the finite number that you subtract in the place of −∞ as the maximum.",
    why="It is only there to keep the exponents from NaN. The maximum of nothing is −∞, also when it is handed on.",
)
def maximum_becomes_zero(a, b):
    (m1, l1), (m2, l2) = a, b
    m = _finite(torch.maximum(m1, m2))
    return m, l1 * torch.exp(m1 - m) + l2 * torch.exp(m2 - m)


@misconception(
    "02.merge",
    "You choose one maximum for all the rows (with .max(), or an `if`).",
    why="Each row decides for itself which side has the larger maximum: torch.maximum compares element by element.",
)
def one_maximum_for_all_rows(a, b):
    (m1, l1), (m2, l2) = a, b
    m = torch.maximum(m1, m2).max() + torch.zeros_like(m1)
    return m, l1 * torch.exp(m1 - _finite(m)) + l2 * torch.exp(m2 - _finite(m))


# 02.online_softmax


@misconception(
    "02.online_softmax",
    "You do not rescale the running sum when the maximum rises.",
    why="What was summed before was summed under the old maximum. `merge` shrinks it; a plain addition does not.",
)
def running_sum_not_rescaled(x, tile):
    m, l = _nothing(x)
    for start in range(0, x.shape[-1], tile):
        part = _load(x, start, tile)
        m = torch.maximum(m, part.amax(-1))
        l = l + torch.exp(part - _finite(m)[..., None]).sum(-1)
    return _write(x, tile, lambda part: torch.exp(part - m[..., None]) / l[..., None])


@misconception(
    "02.online_softmax",
    "You write the weights in the first pass, with the m and ℓ of that moment.",
    why="Until the last tile has been seen, ℓ is too small and m may still rise: the weights come out too large.",
)
def writes_too_early(x, tile):
    m, l = _nothing(x)
    y = torch.empty_like(x)
    for start in range(0, x.shape[-1], tile):
        part = _load(x, start, tile)
        m, l = library_merge((m, l), _summary(part))
        y[..., start : start + tile] = torch.exp(part - _finite(m)[..., None]) / l[..., None]
    return y


@misconception(
    "02.online_softmax",
    "Your running maximum begins at 0 instead of −∞.",
    why="A row of large negative numbers never gets above 0: every term vanishes, and 0/0 is left.",
)
def maximum_begins_at_zero(x, tile):
    m, l = torch.zeros(x.shape[:-1]), torch.zeros(x.shape[:-1])
    for start in range(0, x.shape[-1], tile):
        m, l = library_merge((m, l), _summary(_load(x, start, tile)))
    return _write(x, tile, lambda part: torch.exp(part - m[..., None]) / l[..., None])


@misconception(
    "02.online_softmax",
    "A tile of nothing but −∞ gives NaN in your summary.",
    why="Its maximum is −∞, and −∞ − (−∞) is NaN before `merge` ever sees it. Subtract a finite number there.",
)
def nan_from_a_masked_tile(x, tile):
    m, l = _nothing(x)
    for start in range(0, x.shape[-1], tile):
        part = _load(x, start, tile)
        m_part = part.amax(-1)
        m, l = library_merge((m, l), (m_part, torch.exp(part - m_part[..., None]).sum(-1)))
    return _write(x, tile, lambda part: torch.exp(part - m[..., None]) / l[..., None])


@misconception(
    "02.online_softmax",
    "You read each tile from x twice in the first pass: once for its maximum, once for its sum.",
    why=(
        "Load the tile once, part = x[..., start : start + tile].clone(), and compute both from "
        "the copy, which is on the chip."
    ),
)
def reads_the_tile_twice(x, tile):
    m, l = _nothing(x)
    for start in range(0, x.shape[-1], tile):
        m, l = library_merge((m, l), _summary(x[..., start : start + tile]))
    return _write(x, tile, lambda part: torch.exp(part - m[..., None]) / l[..., None])


@misconception(
    "02.online_softmax",
    "You kept the row, or something as long as it, from one loop to the other.",
    why="There is no room for it: of the first pass only m and ℓ remain, and the second one reads x again.",
)
def keeps_the_tiles(x, tile):
    m, l = _nothing(x)
    parts = []
    for start in range(0, x.shape[-1], tile):
        parts.append(_load(x, start, tile))
        m, l = library_merge((m, l), _summary(parts[-1]))
    return torch.cat([torch.exp(part - m[..., None]) / l[..., None] for part in parts], dim=-1)


def _load(x, start, tile):
    return x[..., start : start + tile].clone()


def _finite(m):
    return torch.where(m == float("-inf"), torch.zeros_like(m), m)


def _nothing(x):
    return torch.full(x.shape[:-1], float("-inf")), torch.zeros(x.shape[:-1])


def _summary(part):
    m = part.amax(-1)
    return m, torch.exp(part - _finite(m)[..., None]).sum(-1)


def _softmax(part):
    m, l = _summary(part)
    return torch.exp(part - m[..., None]) / l[..., None]


def _write(x, tile, weights):
    y = torch.empty_like(x)
    for start in range(0, x.shape[-1], tile):
        y[..., start : start + tile] = weights(_load(x, start, tile))
    return y
