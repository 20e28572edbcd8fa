"""Answers to 02.merge."""

import math

import numpy as np
import torch

from llmsys.course.checking.mistakes import edited
from llmsys.lessons.lesson_02_online_softmax import mistakes


def by_exp2(a, b):
    (m1, l1), (m2, l2) = a, b
    m = torch.stack([m1, m2]).amax(0)
    first, second = (torch.exp2((each - m) * math.log2(math.e)).masked_fill(m == -math.inf, 0) for each in (m1, m2))
    return m, torch.addcmul(l1 * first, l2, second)


def larger_first(a, b):
    (m1, l1), (m2, l2) = a, b
    swap = (m2 > m1) | m2.isnan()
    high, low = torch.where(swap, m2, m1), torch.where(swap, m1, m2)
    l_high, l_low = torch.where(swap, l2, l1), torch.where(swap, l1, l2)
    return high, l_high + torch.where(low == -math.inf, 0, l_low * torch.exp(low - high))


def wider(a, b):
    (m1, l1), (m2, l2) = (tuple(x.double() for x in pair) for pair in (a, b))
    m = torch.maximum(m1, m2)
    finite = m.nan_to_num(nan=math.nan, neginf=0)
    return m.to(a[0].dtype), (l1 * (m1 - finite).exp() + l2 * (m2 - finite).exp()).to(a[1].dtype)


def by_numpy(a, b):
    (m1, l1), (m2, l2) = (tuple(x.double().numpy() for x in pair) for pair in (a, b))
    m = np.maximum(m1, m2)
    with np.errstate(invalid="ignore"):
        first, second = (np.where(each == -np.inf, 0, np.exp(each - m)) for each in (m1, m2))
    return tuple(torch.as_tensor(np.asarray(x)).to(a[0].dtype) for x in (m, l1 * first + l2 * second))


def sums_as_exponents(a, b):
    """ln ℓ is small, and m is taken off before it is added."""
    (m1, l1), (m2, l2) = a, b
    m = torch.maximum(m1, m2)
    finite = torch.where(m == -math.inf, 0, m)
    return m, torch.exp((m1 - finite) + l1.log()) + torch.exp((m2 - finite) + l2.log())


def into_copies(a, b):
    m, l = a[0].clone(), a[1].clone()
    higher = m.maximum(b[0])
    shift = torch.where(higher.isneginf(), 0.0, higher)
    l.mul_(m.sub(shift).exp_()).add_(b[1] * (b[0] - shift).exp())
    return [m.copy_(higher), l]


RIGHT = [by_exp2, larger_first, wider, by_numpy, sums_as_exponents, into_copies]


def of(name, *changes):
    return edited(mistakes.merge, name, *changes)


PAIRS = "(m1, l1), (m2, l2) = a, b"
M = "torch.maximum(m1, m2)"
FINITE = 'torch.where(m == float("-inf"), torch.zeros_like(m), m)'
SUM = "l1 * torch.exp(m1 - finite) + l2 * torch.exp(m2 - finite)"
RETURN = f"return m, {SUM}"
FIRST, SECOND = "torch.exp(m1 - finite)", "torch.exp(m2 - finite)"


def factors(text):
    """Both factors, as that text has them of an exponent."""
    return tuple((each, text.format(each[10:-1])) for each in (FIRST, SECOND))


WRONG = [
    of("nothing_below_a_thousand_million", (FINITE, "m.clamp(min=-1e9)")),
    of("nothing_below_ten_to_the_thirty", (FINITE, "torch.where(m < -1e30, 0.0, m)")),
    of("mean_and_distance", (M, "torch.where(m1 == m2, m1, (m1 + m2 + (m1 - m2).abs()) / 2)")),
    of("finite_of_the_default_dtype", (FINITE, 'torch.where(m == float("-inf"), torch.zeros(m.shape), m)')),
    of("through_float32", (PAIRS, f"{PAIRS}\n    m1, l1, m2, l2 = m1.float(), l1.float(), m2.float(), l2.float()"),
       (RETURN, f"return m.to(a[0].dtype), ({SUM}).to(a[0].dtype)")),
    of("factors_in_float32", *factors("torch.exp(({}).float())")),
    of("factors_not_below_a_millionth", *factors("torch.exp(({}).clamp(min=-14))")),
    of("small_factors_are_zero", *factors("torch.where({0} < -8, 0.0, torch.exp({0}))")),
    of("nan_on_the_right_of_nothing_is_lost",
       (RETURN, f"l = torch.where(m1 == float('-inf'), l2.nan_to_num(0), {SUM})\n    return m, l")),
    of("nan_on_the_left_of_nothing_is_lost",
       (RETURN, f"l = torch.where(m2 == float('-inf'), l1.nan_to_num(0), {SUM})\n    return m, l")),
    of("larger_by_comparison", (M, "torch.where(m2 >= m1, m2, m1)")),
    of("nan_everywhere", (RETURN, f"l = {SUM}\n    return m + 0 * l.sum(), l + 0 * l.sum()")),
    of("sum_at_least_one", (RETURN, f"return m, ({SUM}).clamp(min=1.0)")),
    of("a_little_is_added", (RETURN, f"{RETURN} + 1e-6")),
    of("asks_the_first_row", (FINITE, 'torch.where(m.flatten()[0] == float("-inf"), torch.zeros_like(m), m)')),
    of("an_if_for_all_rows", (M, f"m1 if bool((m1 >= m2).all()) else m2 if bool((m2 >= m1).all()) else {M}"),
       (FINITE, "m")),
    of("two_dimensions_at_most", (PAIRS, f"{PAIRS}\n    assert m1.dim() < 3")),
    of("one_dimension_at_least", (M, "torch.cat([m1[None], m2[None]]).amax(0) if m1.dim() else m1")),
    of("one_tensor_of_both", (RETURN, f"return torch.stack([m, {SUM}], -1)")),
    of("changes_the_maximum_of_a", (M, "torch.maximum(m1, m2, out=m1)")),
    of("normalised", (RETURN, f"l = {SUM}\n    return m, l / l.clamp(min=1)")),
    of("softplus_of_the_distance", (RETURN, "d = (m2 - m1) + l2.log() - l1.log()\n"
       "    return m, torch.exp(m1 - finite + l1.log() + torch.nn.functional.softplus(d))")),
    of("softmax_of_two", (RETURN, "w = torch.softmax(torch.stack([m1, m2]), 0)\n"
       "    return m, (w[0] * l1 + w[1] * l2) / w.amax(0)")),
]  # fmt: skip
