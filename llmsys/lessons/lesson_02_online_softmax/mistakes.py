"""Wrong answers to lesson 02, as people write them: a right one with an edit (`llmsys.course.checking.mistakes`)."""

import torch

from llmsys.course.checking.diagnosis import misconception
from llmsys.course.checking.mistakes import Mistakes

# 02.safe_softmax


def safe_softmax(x, tile):
    """A right answer."""
    starts = range(0, x.shape[-1], tile)
    m = x.new_full(x.shape[:-1], float("-inf"))
    for start in starts:
        m = torch.maximum(m, x[..., start : start + tile].amax(dim=-1))
    l = torch.zeros_like(m)
    for start in starts:
        l = l + torch.exp(x[..., start : start + tile] - m[..., None]).sum(dim=-1)
    y = torch.empty_like(x)
    for start in starts:
        y[..., start : start + tile] = torch.exp(x[..., start : start + tile] - m[..., None]) / l[..., None]
    return y


wrong_safe = Mistakes("02.safe_softmax", safe_softmax)

wrong_safe(
    "no_maximum",
    "You exponentiate without subtracting the maximum.",
    (" - m[..., None]", "", 2),
    why="Equation (1) overflows where equation (3) does not: e^(x − m) is what must be summed and written.",
)
wrong_safe(
    "one_maximum_for_all",
    "You take one maximum over all the rows.",
    (".amax(dim=-1)", ".max()"),
    why="Each row is a softmax of its own: under another row's maximum a small row vanishes, and is 0/0.",
)
wrong_safe(
    "begins_at_zero",
    "Your maximum begins at 0 instead of −∞.",
    ('float("-inf")', "0.0"),
    why="A row of large negative numbers never gets above 0: every term vanishes under it, and 0/0 is left.",
)
wrong_safe(
    "begins_at_ten_thousand_below",
    "Your maximum begins at a large negative number instead of −∞.",
    ('float("-inf")', "-10000.0"),
    why="A row may be below any number that you choose: every term vanishes under it then, and 0/0 is left.",
)
wrong_safe(
    "result_of_the_default_dtype",
    "Your y has torch's default dtype, and not x's.",
    ("torch.empty_like(x)", "torch.empty(x.shape)"),
    why="torch.empty_like(x) has the shape and the dtype of x; torch.empty(x.shape) has its shape.",
)
wrong_safe(
    "last_dimension_dropped",
    "Your m has one dimension fewer than a tile, and so it meets the tile's columns instead of its rows.",
    ("m[..., None]", "m", 2),
    ("l[..., None]", "l"),
    why="m[..., None] gives it a last dimension of 1, for all columns; or keep it: amax(dim=-1, keepdim=True).",
)
wrong_safe(
    "no_ragged_end",
    "You leave out the last tile where it is not full.",
    ("range(0, x.shape[-1], tile)", "range(0, x.shape[-1] // tile * tile, tile)"),
    ("empty_like", "zeros_like"),
    why="N // tile counts the full tiles only. range(0, N, tile) begins the short one, too, and a "
    "slice ends with the row.",
)


@misconception(
    "02.safe_softmax",
    "Each tile is normalised by itself: its weights sum to 1, and those of the row to the number of tiles.",
    why="m and ℓ belong to the row. They are carried from tile to tile, and complete only after the last one.",
)
def each_tile_by_itself(x, tile):
    y = torch.empty_like(x)
    for start in range(0, x.shape[-1], tile):
        part = x[..., start : start + tile].clone()
        weights = torch.exp(part - part.amax(dim=-1, keepdim=True))
        y[..., start : start + tile] = weights / weights.sum(dim=-1, keepdim=True)
    return y


@misconception(
    "02.safe_softmax",
    "You work on whole rows: `tile` is never looked at.",
    why="The row does not fit on the chip. x[..., start : start + tile] is what an operation may be given of it.",
)
def whole_rows(x, tile):
    m = x.amax(-1, keepdim=True)
    e = torch.exp(x - m)
    return e / e.sum(-1, keepdim=True)


wrong_safe(
    "keeps_the_row",
    "You kept the row: every tile of it, from one loop to the next.",
    (
        "    for start in starts:\n        m = torch.maximum(m, x[..., start : start + tile].amax(dim=-1))\n",
        "    kept = [x[..., start : start + tile].clone() for start in starts]\n"
        "    for part in kept:\n        m = torch.maximum(m, part.amax(dim=-1))\n",
    ),
    ("torch.exp(x[..., start : start + tile] - m", "torch.exp(kept[start // tile] - m", 2),
    why="There is no room for a second row, in one piece or in many: each of the three loops reads x.",
)
wrong_safe(
    "keeps_the_exponentials",
    "You kept e^(x − m) from the second loop for the third: it is as long as the row.",
    ("l = torch.zeros_like(m)", "l, kept = torch.zeros_like(m), []"),
    (
        "        l = l + torch.exp(x[..., start : start + tile] - m[..., None]).sum(dim=-1)\n",
        "        kept.append(torch.exp(x[..., start : start + tile] - m[..., None]))\n"
        "        l = l + kept[-1].sum(dim=-1)\n",
    ),
    ("= torch.exp(x[..., start : start + tile] - m[..., None]) /", "= kept[start // tile] /"),
    why="There is no room for it. The third loop reads x again, and takes the exponential again.",
)
wrong_safe(
    "keeps_a_copy_of_the_row",
    "You read x as you should, and keep a copy of it all the same.",
    (
        "        m = torch.maximum(m, x[..., start : start + tile].amax(dim=-1))\n",
        "        kept.append(x[..., start : start + tile].clone())\n"
        "        m = torch.maximum(m, kept[-1].amax(dim=-1))\n",
    ),
    ("    for start in starts:\n        kept", "    kept = []\n    for start in starts:\n        kept"),
    why="What a loop has read is gone when the next tile comes: there is no room for a second row.",
)


@misconception(
    "02.safe_softmax",
    "You have made one loop of two already, which is exercise (c).",
    why="Here the maximum is known before anything is summed: three loops, and each of them reads x.",
)
def two_loops(x, tile):
    return online_softmax(x, tile)


# 02.merge


def merge(a, b):
    """A right answer."""
    (m1, l1), (m2, l2) = a, b
    m = torch.maximum(m1, m2)
    finite = torch.where(m == float("-inf"), torch.zeros_like(m), m)
    return m, l1 * torch.exp(m1 - finite) + l2 * torch.exp(m2 - finite)


wrong_merge = Mistakes("02.merge", merge)

wrong_merge(
    "no_rescaling",
    "You added the two sums without rescaling them.",
    (" * torch.exp(m1 - finite)", ""),
    (" * torch.exp(m2 - finite)", ""),
    why="Each ℓ was taken under its own maximum; only under a common one can they be added.",
)
wrong_merge(
    "rescales_the_first_only",
    "You rescale only the first sum.",
    (" * torch.exp(m2 - finite)", ""),
    why="That is enough if the second maximum is the larger one. In a tree, either of them may be.",
)
wrong_merge(
    "factors_swapped",
    "You have the two factors the wrong way round: each sum shrinks by the other one's.",
    ("l1 * torch.exp(m1 - finite) + l2 * torch.exp(m2 - finite)",
     "l1 * torch.exp(m2 - finite) + l2 * torch.exp(m1 - finite)"),
    why="ℓ₁ was taken under m₁, and goes under m by e^(m₁ − m). The larger maximum's sum stays as it is.",
)  # fmt: skip
wrong_merge(
    "back_to_plain_exponentials",
    "You bring both sums back to plain exponentials, Σ e^x, before you add them.",
    ("l1 * torch.exp(m1 - finite) + l2 * torch.exp(m2 - finite)",
     "(l1 * torch.exp(m1) + l2 * torch.exp(m2)) * torch.exp(-finite)"),
    why="Those overflow from 88.8 on. Only differences of maxima may be exponents, and none of them positive.",
)  # fmt: skip
wrong_merge(
    "upside_down",
    "Your rescaling is upside down: e^(m − m₁) grows where e^(m₁ − m) shrinks.",
    ("m1 - finite", "finite - m1"),
    ("m2 - finite", "finite - m2"),
    why="A sum that was taken under a smaller maximum is too large; and no exponent may be positive, or it overflows.",
)
wrong_merge(
    "nan_for_two_identities",
    "Two identities give NaN in your merge.",
    ('torch.where(m == float("-inf"), torch.zeros_like(m), m)', "m"),
    why="−∞ − (−∞) is NaN, and 0 · NaN is NaN, too. Where m is −∞, subtract any finite number instead.",
)
wrong_merge(
    "hides_nan",
    "You replace NaN by a number after the fact.",
    ('torch.where(m == float("-inf"), torch.zeros_like(m), m)', "m"),
    (
        "l1 * torch.exp(m1 - finite) + l2 * torch.exp(m2 - finite)",
        "torch.nan_to_num(l1 * torch.exp(m1 - finite) + l2 * torch.exp(m2 - finite))",
    ),
    why="Two identities come out right, but a NaN that came in is gone as well, and with it the sign of an error.",
)
wrong_merge(
    "asks_once_for_nothing",
    "You ask once whether a side is nothing, and not row by row.",
    (
        "    m = torch.maximum(m1, m2)\n",
        "    if bool((m1 == float('-inf')).all()):\n        return b\n"
        "    if bool((m2 == float('-inf')).all()):\n        return a\n    m = torch.maximum(m1, m2)\n",
    ),
    ('torch.where(m == float("-inf"), torch.zeros_like(m), m)', "m"),
    why="In one call, one row may be nothing on both sides, and its neighbour on neither.",
)
wrong_merge(
    "nan_is_not_the_maximum",
    "Your maximum lets a NaN go: fmax, or where(m1 > m2, m1, m2), takes the number instead.",
    ("torch.maximum(m1, m2)", "torch.fmax(m1, m2)"),
    why="A broken row then looks healthy. torch.maximum gives NaN where either side is.",
)
wrong_merge(
    "maximum_becomes_zero",
    "You return the finite number that you subtract in the place of −∞ as the maximum.",
    ("return m,", "return finite,"),
    why="It is only there to keep the exponents from NaN. The maximum of nothing is −∞, also when it is handed on.",
)
wrong_merge(
    "pythons_maximum",
    "You compare whole tensors in Python: max(a[0], b[0]), or an `if`, wants one answer for all the rows.",
    ("torch.maximum(m1, m2)", "max(m1, m2)"),
    why="It works for a single row, and raises for two. torch.maximum(m1, m2) and torch.where decide row by row.",
)
wrong_merge(
    "one_maximum_for_all_rows",
    "You choose one maximum for all the rows (with .max(), say).",
    ("torch.maximum(m1, m2)", "torch.maximum(m1, m2).max().expand_as(m1)"),
    why="Each row decides for itself which side has the larger maximum: torch.maximum compares element by element.",
)

# 02.online_softmax


def online_softmax(x, tile):
    """A right answer."""
    starts = range(0, x.shape[-1], tile)
    m = x.new_full(x.shape[:-1], float("-inf"))
    l, y = torch.zeros_like(m), torch.empty_like(x)
    for start in starts:  # pass 1
        part = x[..., start : start + tile].clone()
        m_part = part.amax(dim=-1)
        finite = torch.where(m_part == float("-inf"), torch.zeros_like(m_part), m_part)
        m, l = merge((m, l), (m_part, torch.exp(part - finite[..., None]).sum(dim=-1)))
    for start in starts:  # pass 2
        y[..., start : start + tile] = torch.exp(x[..., start : start + tile] - m[..., None]) / l[..., None]
    return y


wrong_online = Mistakes("02.online_softmax", online_softmax)

wrong_online(
    "running_sum_not_rescaled",
    "You do not rescale the running sum when the maximum rises.",
    ("m_part = part.amax(dim=-1)", "m_part = torch.maximum(m, part.amax(dim=-1))"),
    (
        "merge((m, l), (m_part, torch.exp(part - finite[..., None]).sum(dim=-1)))",
        "m_part, l + torch.exp(part - finite[..., None]).sum(dim=-1)",
    ),
    why="What was summed before was summed under the old maximum. `merge` shrinks it; a plain addition does not.",
)
wrong_online(
    "tiles_sums_added",
    "You add the tiles' sums, each under its own maximum.",
    (
        "merge((m, l), (m_part, torch.exp(part - finite[..., None]).sum(dim=-1)))",
        "torch.maximum(m, m_part), l + torch.exp(part - finite[..., None]).sum(dim=-1)",
    ),
    why="Sums under different maxima do not add up. `merge` brings both under the larger one first.",
)
wrong_online(
    "writes_under_the_tiles_maximum",
    "Your second pass subtracts the tile's own maximum.",
    (
        "        y[..., start : start + tile] = torch.exp(x[..., start : start + tile] - m[..., None])",
        "        part = x[..., start : start + tile].clone()\n"
        "        y[..., start : start + tile] = torch.exp(part - part.amax(dim=-1)[..., None])",
    ),
    why="ℓ was brought under the row's m, and so must be every weight: the m of the whole first pass.",
)
wrong_online(
    "writes_too_early",
    "You write the weights in the first pass, with the m and ℓ of that moment.",
    ("    for start in starts:  # pass 2\n", ""),
    why="Until the last tile has been seen, ℓ is too small and m may still rise: the weights come out too large.",
)
wrong_online(
    "maximum_begins_at_zero",
    "Your running maximum begins at 0 instead of −∞.",
    ('x.new_full(x.shape[:-1], float("-inf"))', "x.new_zeros(x.shape[:-1])"),
    why="A row of large negative numbers never gets above 0: every term vanishes, and 0/0 is left.",
)
wrong_online(
    "nan_from_a_masked_tile",
    "A tile of nothing but −∞ gives NaN in your summary.",
    ('torch.where(m_part == float("-inf"), torch.zeros_like(m_part), m_part)', "m_part"),
    why="Its maximum is −∞, and −∞ − (−∞) is NaN before `merge` ever sees it. Subtract a finite number there.",
)
wrong_online(
    "reads_the_tile_twice",
    "You read x three times: for the maximum, for the sum, and for the weights.",
    (".clone()", ""),
    why="The first two are one pass. Load the tile once, part = x[..., start : start + tile].clone(), and compute both "
    "from the copy, which is on the chip.",
)
wrong_online(
    "finite_for_minus_infinity",
    "Your running maximum begins at a large negative number instead of −∞.",
    ('x.new_full(x.shape[:-1], float("-inf"))', "x.new_full(x.shape[:-1], -10000.0)"),
    why="A row may be below any number that you choose: every term vanishes then, and 0/0 is left.",
)
wrong_online(
    "result_of_the_default_dtype",
    "Your y has torch's default dtype, and not x's.",
    ("torch.empty_like(x)", "torch.empty(x.shape)"),
    why="torch.empty_like(x) has the shape and the dtype of x; torch.empty(x.shape) has its shape.",
)


@misconception(
    "02.online_softmax",
    "You work on whole rows: `tile` is never looked at.",
    why="The row does not fit on the chip. Two reads of it are not two passes over its tiles.",
)
def whole_rows_twice(x, tile):
    row = x.clone()
    m = row.amax(-1, keepdim=True)
    m = torch.where(m == float("-inf"), torch.zeros_like(m), m)
    return torch.exp(x - m) / torch.exp(row - m).sum(-1, keepdim=True)


@misconception(
    "02.online_softmax",
    "You divide y in the end, when all of it has been written.",
    why="Then the first pass needs no ℓ, and y is read and written once more instead: a third pass, over y. The "
    "first loop finds m and ℓ together, so that a weight is finished as it is written.",
)
def divides_in_the_end(x, tile):
    starts = range(0, x.shape[-1], tile)
    m = x.new_full(x.shape[:-1], float("-inf"))
    for start in starts:
        m = torch.maximum(m, x[..., start : start + tile].amax(dim=-1))
    l, y = torch.zeros_like(m), torch.empty_like(x)
    for start in starts:
        e = torch.exp(x[..., start : start + tile] - m[..., None])
        y[..., start : start + tile] = e
        l = l + e.sum(dim=-1)
    for start in starts:
        y[..., start : start + tile] /= l[..., None]
    return y


wrong_online(
    "keeps_the_tiles",
    "You kept the row, or something as long as it, from one loop to the other.",
    ("l, y = torch.zeros_like(m), torch.empty_like(x)", "l, y, kept = torch.zeros_like(m), torch.empty_like(x), {}"),
    ("part = x[..., start : start + tile].clone()", "part = kept[start] = x[..., start : start + tile].clone()"),
    ("exp(x[..., start : start + tile] -", "exp(kept[start] -"),
    why="There is no room for it: of the first pass only m and ℓ remain, and the second one reads x again.",
)
