"""Wrong answers to lesson 01, as people write them: a right one with an edit (`llmsys.course.checking.mistakes`)."""

import math

import torch

from llmsys.attention.cost import naive_cost
from llmsys.course.checking.diagnosis import misconception
from llmsys.course.checking.mistakes import Mistakes
from llmsys.hardware.roofline import roofline_seconds

# 01.naive_cost

wrong_cost = Mistakes("01.naive_cost", naive_cost)

wrong_cost(
    "linear_in_T",
    "Your operations grow with T, not with T².",
    ("4 * scores * D", "4 * rows"),
    why="Every query meets every key: T · T dot products of length D, and that twice.",
)
wrong_cost(
    "half_of_the_operations",
    "You count half of the operations: one of the two products, or a multiply-add as one.",
    ("4 * scores * D", "2 * scores * D"),
    why="q kᵀ and P v are as large as each other, and a multiply-add is two operations: 2 · 2 · T² · D.",
)
wrong_cost(
    "width_for_head_size",
    "You take the model's width for the size of a head.",
    ("4 * scores * D", "4 * scores * H * D"),
    why="A head's dot products have length D. Over all heads that makes H · D, the width, once and not twice.",
)
wrong_cost(
    "one_matrix_for_all_heads",
    "You count one score matrix for all the heads of a sequence.",
    ("B * H * T * T", "B * T * T"),
    why="Each head has queries and keys of its own, and so scores of its own: B · H matrices of T · T.",
)
wrong_cost(
    "not_read_back",
    "You let S and P cross only once each, as if what is written were not read back.",
    ("4 * rows + 4 * scores", "4 * rows + 2 * scores"),
    why="What one kernel has written, the next one has to read: S and P cross twice each.",
)
wrong_cost(
    "one_of_them_once",
    "One crossing is missing: of S and P, you let one cross twice, and the other only once.",
    ("4 * rows + 4 * scores", "4 * rows + 3 * scores"),
    why="q kᵀ writes S, the softmax reads S and writes P, and P v reads P: four crossings of T² elements.",
)
wrong_cost(
    "scores_only",
    "You leave out q, k, v and o.",
    ("4 * rows + 4 * scores", "4 * scores"),
    why="They are little beside S and P where T is much larger than D. Where it is not, they are most of it.",
)
wrong_cost(
    "counts_the_softmax",
    "You count the softmax's operations, too.",
    ("4 * scores * D", "4 * scores * D + 5 * scores"),
    why="Five a score, say, where the products take 4 · D: the exercise leaves them out.",
)
wrong_cost(
    "counts_the_scale",
    "You count a kernel for the scale.",
    ("4 * rows + 4 * scores", "4 * rows + 6 * scores"),
    why="Written as S / √D it is one, and you will see it below. The exercise counts three: q kᵀ, softmax, P v.",
)
wrong_cost(
    "forgets_the_output",
    "You leave out one of q, k, v and o.",
    ("4 * rows + 4 * scores", "3 * rows + 4 * scores"),
    why="The first kernel reads q and k. The last one reads v, and writes o.",
)
wrong_cost(
    "one_kernel",
    "You let S and P stay on the chip.",
    ("4 * rows + 4 * scores", "4 * rows"),
    why="That takes one kernel for all three steps. Here are three, and between two of them there is only the memory.",
)
wrong_cost(
    "elements_for_bytes",
    "You count elements where bytes are asked for.",
    ("itemsize * (", "("),
    ("itemsize * scores", "scores"),
    why="An element of bf16 has two bytes, one of fp32 four.",
)
wrong_cost(
    "always_two_bytes",
    "You count two bytes an element whatever `itemsize` says.",
    ("itemsize * (", "2 * ("),
    ("itemsize * scores", "2 * scores"),
    why="In fp32 everything that moves is twice as large.",
)
wrong_cost(
    "saves_the_scores",
    "You keep S as well as P for the backward pass.",
    ("itemsize * scores", "itemsize * 2 * scores"),
    why="The derivative of softmax can be written with its output alone, dS = P ∘ (dP − Σ dP ∘ P): S is dropped.",
)
wrong_cost(
    "saves_the_inputs",
    "You count q, k and v as saved.",
    ("itemsize * scores", "itemsize * (scores + 3 * rows)"),
    why="They are kept, but they were there before: the figure is what attention adds to them.",
)
wrong_cost(
    "saves_the_output",
    "You count o as kept, beside P.",
    ("itemsize * scores", "itemsize * (scores + rows)"),
    why="o is nobody's operand here: the gradients of P v need P and v, and the softmax's needs P.",
)
wrong_cost(
    "scores_in_bytes",
    "You count S in bytes, and it is its elements that are asked for.",
    ("4 * scores * D, scores,", "4 * scores * D, itemsize * scores,"),
    why="Elements, times the bytes of one, are bytes. The other two figures are those.",
)

# 01.naive_attention


def attention(q, k, v, *, causal=False, scale=None, return_lse=False):
    """A right answer."""
    Hq, Tq, Dk = q.shape[1:]
    Hkv, Tk = k.shape[1:3]
    scale = 1 / math.sqrt(Dk) if scale is None else scale
    k, v = (x.repeat_interleave(Hq // Hkv, dim=1) for x in (k, v))
    s = (q @ k.mT).float() * scale
    visible = torch.ones(Tq, Tk, dtype=torch.bool)
    if causal:
        visible = torch.arange(Tk) <= torch.arange(Tq)[:, None] + Tk - Tq
    s = s.masked_fill(~visible, -math.inf)
    p = torch.softmax(s, dim=-1)
    p = p.masked_fill(~visible.any(dim=-1, keepdim=True), 0)
    o, lse = p.to(v.dtype) @ v, torch.logsumexp(s, dim=-1)
    return (o, lse) if return_lse else o


wrong_attention = Mistakes("01.naive_attention", attention)

wrong_attention(
    "no_scale",
    "You leave out the scale 1/√Dk.",
    ("1 / math.sqrt(Dk)", "1.0"),
    why="Scores of random vectors grow like √Dk; unscaled, the softmax puts nearly everything on one key.",
)
wrong_attention(
    "divided_by_head_size",
    "You scale by 1/Dk instead of 1/√Dk.",
    ("math.sqrt(Dk)", "Dk"),
    why="The deviation of a sum of Dk products grows like √Dk, and that is what has to go.",
)
wrong_attention(
    "scaled_by_the_width",
    "You scale by the model's width, 1/√(H·Dk).",
    ("math.sqrt(Dk)", "math.sqrt(Hq * Dk)"),
    why="A head's dot products have length Dk, however many heads there are.",
)
wrong_attention(
    "scaled_by_the_values_size",
    "You scale by 1/√Dv, the size of a value.",
    ("math.sqrt(Dk)", "math.sqrt(v.shape[-1])"),
    why="A score is a dot product of a query and a key, of Dk terms. Dv may differ.",
)
wrong_attention(
    "needs_contiguous_inputs",
    "Your function works only for tensors that lie in memory in order: view() refuses the others.",
    ("(q @ k.mT)", "(q.view(-1, *q.shape[2:]) @ k.view(-1, *k.shape[2:]).mT).view(*q.shape[:3], Tk)"),
    why="A model hands over views, of shape (B, T, H, D) in memory: flatten(), reshape(), or no new shape at all.",
)
wrong_attention(
    "own_scale_ignored_with_a_mask",
    "With causal, you ignore the scale that is passed.",
    ("if scale is None else", "if scale is None or causal else"),
    why="The options do not know each other: a mask changes which keys are seen, and nothing else.",
)
wrong_attention(
    "result_in_float32",
    "Your o stays float32.",
    ("p.to(v.dtype) @ v", "p @ v.float()"),
    why="What comes in 16 bits goes out in 16 bits: the next layer has weights of that type.",
)
wrong_attention(
    "own_scale_ignored",
    "You ignore the scale that is passed.",
    (" if scale is None else scale", ""),
    why="1/√Dk is the default, for scale=None.",
)
wrong_attention(
    "over_the_queries",
    "Your softmax runs over the queries.",
    ("softmax(s, dim=-1)", "softmax(s, dim=-2)"),
    why="A query spreads its weight over the keys: that is the last dimension of (B, H, Tq, Tk).",
)
wrong_attention(
    "lse_without_scale",
    "Your log-sum-exp is of the unscaled scores.",
    ("logsumexp(s,", "logsumexp(s / scale,"),
    why="It is the logarithm of the softmax's denominator, and the softmax is taken of the scaled ones.",
)
wrong_attention(
    "repeat_for_repeat_interleave",
    "Your groups are interleaved: query head h reads key head h % Hkv.",
    ("x.repeat_interleave(Hq // Hkv, dim=1)", "x.repeat(1, Hq // Hkv, 1, 1)"),
    why="repeat strings whole copies together, 0 1 0 1 0 1. The heads of a group are neighbours, 0 0 0 1 1 1: "
    "repeat_interleave.",
)
wrong_attention(
    "mask_after_the_softmax",
    "You mask after the softmax: the weights that are left do not sum to one.",
    ("    s = s.masked_fill(~visible, -math.inf)\n", ""),
    ("torch.softmax(s, dim=-1)", "torch.softmax(s, dim=-1) * visible"),
    why="The denominator has counted the keys that must not be seen. Put −∞ in the scores, before it.",
)
wrong_attention(
    "masked_with_zero",
    "You put 0 where a score is masked.",
    ("-math.inf", "0.0"),
    why="e⁰ = 1 is a weight like any other. Only e^(−∞) is none.",
)
wrong_attention(
    "sees_the_future",
    "Your mask is the wrong way round: queries see the future.",
    ("<=", ">="),
    why="A query sees the keys before it, and its own: key ≤ query. masked_fill wants True where it is to fill.",
)
wrong_attention(
    "strictly_before",
    "A query does not see its own key.",
    ("<=", "<"),
    why="Causal means up to and including itself: key ≤ query + Tk − Tq.",
)
wrong_attention(
    "strictly_before_and_nan",
    "A query does not see its own key, and the first one sees none: 0/0.",
    ("<=", "<"),
    ("    p = p.masked_fill(~visible.any(dim=-1, keepdim=True), 0)\n", ""),
    why="Causal means up to and including itself: key ≤ query + Tk − Tq.",
)
wrong_attention(
    "one_key_too_many",
    "A query sees one key too many, the one after its own.",
    ("+ Tk - Tq", "+ Tk - Tq + 1"),
    why="triu(d) keeps the diagonal d itself. The first key to hide is the one after key = query + Tk − Tq.",
)
wrong_attention(
    "lse_to_base_two",
    "Your log-sum-exp is to the base 2.",
    ("torch.logsumexp(s, dim=-1)", "torch.logsumexp(s, dim=-1) / math.log(2)"),
    why="It is the natural logarithm here; kernels that work with exp2 convert at the end.",
)
wrong_attention(
    "lse_without_maximum",
    "Your log-sum-exp lacks the maximum that you took out before the exponential.",
    ("torch.logsumexp(s, dim=-1)", "torch.logsumexp(s, dim=-1) - s.amax(dim=-1)"),
    why="ln Σ e^s = m + ln Σ e^(s − m).",
)
wrong_attention(
    "lse_widened_too_late",
    "Your log-sum-exp was computed in the inputs' precision, and widened afterwards.",
    ("torch.logsumexp(s, dim=-1)", "torch.logsumexp(s.to(q.dtype), dim=-1).float()"),
    why="What a logarithm has lost in bfloat16 does not come back: widen the scores, then take it.",
)
wrong_attention(
    "lse_without_mask",
    "Your log-sum-exp counts the keys that the mask hides.",
    ("    s = s.masked_fill(~visible, -math.inf)\n", ""),
    ("softmax(s,", "softmax(s.masked_fill(~visible, -math.inf),"),
    why="It is the logarithm of the denominator that the weights are divided by: mask first.",
)
wrong_attention(
    "top_left",
    "Your mask is aligned top-left: query i sees the keys up to i.",
    (" + Tk - Tq", ""),
    why="So does torch's is_causal, and a new token with a cache then sees the first key only. The last query is the "
    "last token: query i stands at i + Tk − Tq.",
)
wrong_attention(
    "nan_for_blind_queries",
    "A query that sees no key gets NaN.",
    ("    p = p.masked_fill(~visible.any(dim=-1, keepdim=True), 0)\n", ""),
    why="A softmax over nothing but −∞ is 0/0. Give such a row weights of 0.",
)
wrong_attention(
    "masked_with_a_large_number",
    "You mask with a large negative number: a query that sees no key averages all of them.",
    ("-math.inf", "-1e9"),
    ("    p = p.masked_fill(~visible.any(dim=-1, keepdim=True), 0)\n", ""),
    why="Where all scores are −10⁹, they are equal, and the softmax is uniform. −∞ says what is meant.",
)
wrong_attention(
    "no_maximum",
    "Your own softmax overflows: it exponentiates before it subtracts the maximum.",
    ("torch.softmax(s, dim=-1)", "torch.exp(s) / torch.exp(s).sum(dim=-1, keepdim=True)"),
    ("torch.logsumexp(s, dim=-1)", "torch.log(torch.exp(s).sum(dim=-1))"),
    why="e^88.8 is infinite in float32. torch.softmax and torch.logsumexp take the maximum out first.",
)
wrong_attention(
    "lse_in_low_precision",
    "Your log-sum-exp is in the inputs' precision.",
    ("torch.logsumexp(s, dim=-1)", "torch.logsumexp(s, dim=-1).to(q.dtype)"),
    why="In bfloat16, 8.03 and 8.00 are the same number: results merged by it are off by percents.",
)

# 01.roofline_seconds

wrong_seconds = Mistakes("01.roofline_seconds", roofline_seconds)


@misconception(
    "01.roofline_seconds",
    "You take the maximum of sums: all the arithmetic against all the traffic.",
    why="Then one kernel's traffic would hide behind another one's arithmetic. It cannot: they run one after another.",
)
def maximum_of_sums(operations, *, peak_flops, bandwidth):
    operations = list(operations)
    return max(sum(f for f, _ in operations) / peak_flops, sum(b for _, b in operations) / bandwidth)


wrong_seconds(
    "no_overlap",
    "You add a kernel's arithmetic and its traffic.",
    ("max(flops / peak_flops, size / bandwidth)", "flops / peak_flops + size / bandwidth"),
    why="A chip computes on one tile while it loads the next: within a kernel the longer of the two hides the other.",
)
wrong_seconds(
    "the_shorter",
    "You take the shorter of the two times.",
    ("max(", "min("),
    why="A kernel is finished when both are done.",
)
wrong_seconds(
    "swapped",
    "You have the pairs the wrong way round: they are (FLOP, bytes).",
    ("for flops, size", "for size, flops"),
    why="Peak goes with operations, bandwidth with bytes.",
)
wrong_seconds(
    "arithmetic_only",
    "You count the arithmetic only.",
    ("max(flops / peak_flops, size / bandwidth)", "flops / peak_flops"),
    why="Below the ridge, a kernel's time is that of its bytes, and a copy has no arithmetic at all.",
)
wrong_seconds(
    "traffic_only",
    "You count the traffic only.",
    ("max(flops / peak_flops, size / bandwidth)", "size / bandwidth"),
    why="Above the ridge, the bytes have long arrived while the chip still computes.",
)
wrong_seconds(
    "slowest_kernel",
    "You take the slowest kernel for the whole.",
    ("sum(max(", "max((max("),
    ("in operations)", "in operations), default=0.0)"),
    why="They run one after another, each on the result of the one before.",
)
