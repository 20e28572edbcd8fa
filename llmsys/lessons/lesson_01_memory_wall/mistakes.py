"""Wrong answers to lesson 01, as people write them. Each is the right one but for one line, which `wrong` names."""

import math

import torch

from llmsys.course.checking.diagnosis import misconception

# 01.naive_cost


def _cost(B, H, T, D, itemsize, wrong=""):
    scores, rows = B * H * T * T, B * H * T * D
    if wrong == "one matrix for all heads":
        scores = B * T * T
    flops = {
        "linear": 4 * B * H * T * D,
        "half": 2 * scores * D,
        "width": 4 * scores * H * D,
        "softmax too": 4 * scores * D + 5 * scores,
    }.get(wrong, 4 * scores * D)
    elements = {
        "not read back": 4 * rows + 2 * scores,
        "scores only": 4 * scores,
        "scale too": 4 * rows + 6 * scores,
        "o not written": 3 * rows + 4 * scores,
        "one kernel": 4 * rows,
    }.get(wrong, 4 * rows + 4 * scores)
    saved = {"saves S": 2 * scores, "saves q, k, v": scores + 3 * rows}.get(wrong, scores)
    size = 1 if wrong == "elements" else 2 if wrong == "always 2" else itemsize
    return flops, scores, size * elements, size * saved


@misconception(
    "01.naive_cost",
    "Your operations grow with T, not with T².",
    why="Every query meets every key: T · T dot products of length D, and that twice.",
)
def linear_in_T(B, H, T, D, *, itemsize=2):
    return _cost(B, H, T, D, itemsize, "linear")


@misconception(
    "01.naive_cost",
    "You count half of the operations: one of the two products, or a multiply-add as one.",
    why="q kᵀ and P v are as large as each other, and a multiply-add is two operations: 2 · 2 · T² · D.",
)
def half_of_the_operations(B, H, T, D, *, itemsize=2):
    return _cost(B, H, T, D, itemsize, "half")


@misconception(
    "01.naive_cost",
    "You take the model's width for the size of a head.",
    why="A head's dot products have length D. Over all heads that makes H · D, the width, once and not twice.",
)
def width_for_head_size(B, H, T, D, *, itemsize=2):
    return _cost(B, H, T, D, itemsize, "width")


@misconception(
    "01.naive_cost",
    "You count one score matrix for all the heads of a sequence.",
    why="Each head has queries and keys of its own, and so scores of its own: B · H matrices of T · T.",
)
def one_matrix_for_all_heads(B, H, T, D, *, itemsize=2):
    return _cost(B, H, T, D, itemsize, "one matrix for all heads")


@misconception(
    "01.naive_cost",
    "You write S and P to memory, but do not read them back.",
    why="What one kernel has written, the next one has to read: S and P cross twice each.",
)
def not_read_back(B, H, T, D, *, itemsize=2):
    return _cost(B, H, T, D, itemsize, "not read back")


@misconception(
    "01.naive_cost",
    "You leave out q, k, v and o.",
    why="They are little beside S and P where T is much larger than D. Where it is not, they are most of it.",
)
def scores_only(B, H, T, D, *, itemsize=2):
    return _cost(B, H, T, D, itemsize, "scores only")


@misconception(
    "01.naive_cost",
    "You count the softmax's operations, too.",
    why="Five a score, say, where the products take 4 · D: the exercise leaves them out.",
)
def counts_the_softmax(B, H, T, D, *, itemsize=2):
    return _cost(B, H, T, D, itemsize, "softmax too")


@misconception(
    "01.naive_cost",
    "You count a kernel for the scale.",
    why="Written as S / √D it is one, and you will see it below. The exercise counts three: q kᵀ, softmax, P v.",
)
def counts_the_scale(B, H, T, D, *, itemsize=2):
    return _cost(B, H, T, D, itemsize, "scale too")


@misconception(
    "01.naive_cost",
    "You leave out one of q, k, v and o.",
    why="The first kernel reads q and k. The last one reads v, and writes o.",
)
def forgets_the_output(B, H, T, D, *, itemsize=2):
    return _cost(B, H, T, D, itemsize, "o not written")


@misconception(
    "01.naive_cost",
    "You let S and P stay on the chip.",
    why="That takes one kernel for all three steps. Here are three, and between two of them there is only the memory.",
)
def one_kernel(B, H, T, D, *, itemsize=2):
    return _cost(B, H, T, D, itemsize, "one kernel")


@misconception(
    "01.naive_cost",
    "You count elements where bytes are asked for.",
    why='An element of bf16 has two bytes, one of fp32 four. (That is how a tebibyte becomes "512 GB".)',
)
def elements_for_bytes(B, H, T, D, *, itemsize=2):
    return _cost(B, H, T, D, itemsize, "elements")


@misconception(
    "01.naive_cost",
    "You count two bytes an element whatever `itemsize` says.",
    why="In fp32 everything that moves is twice as large.",
)
def always_two_bytes(B, H, T, D, *, itemsize=2):
    return _cost(B, H, T, D, itemsize, "always 2")


@misconception(
    "01.naive_cost",
    "You keep S as well as P for the backward pass.",
    why="The derivative of softmax can be written with its output alone, dS = P ∘ (dP − Σ dP ∘ P): S is dropped.",
)
def saves_the_scores(B, H, T, D, *, itemsize=2):
    return _cost(B, H, T, D, itemsize, "saves S")


@misconception(
    "01.naive_cost",
    "You count q, k and v as saved.",
    why="They are kept, but they were there before: the figure is what attention adds to them.",
)
def saves_the_inputs(B, H, T, D, *, itemsize=2):
    return _cost(B, H, T, D, itemsize, "saves q, k, v")


# 01.naive_attention


def _attention(q, k, v, *, causal=False, scale=None, return_lse=False, wrong=""):
    (Hq, Tq, Dk), (Hkv, Tk) = q.shape[1:], k.shape[1:3]
    if scale is None:
        scale = {"no scale": 1.0, "1/Dk": 1 / Dk, "width": 1 / math.sqrt(Hq * Dk)}.get(wrong, 1 / math.sqrt(Dk))
    elif wrong == "own scale ignored":
        scale = 1 / math.sqrt(Dk)
    if wrong == "repeat":
        k, v = (x.repeat(1, Hq // Hkv, 1, 1) for x in (k, v))
    else:
        k, v = (x.repeat_interleave(Hq // Hkv, dim=1) for x in (k, v))
    s = (q @ k.mT).float() * scale
    lse = torch.logsumexp(s / scale if wrong == "lse without scale" else s, dim=-1)
    visible = torch.ones(Tq, Tk, dtype=torch.bool)
    if causal:
        offset = {"top-left": 0, "strict": Tk - Tq - 1, "next": Tk - Tq + 1}.get(wrong, Tk - Tq)
        visible = torch.arange(Tk) <= torch.arange(Tq)[:, None] + offset
        if wrong == "upside down":
            visible = torch.arange(Tk) >= torch.arange(Tq)[:, None] + offset
        hidden = {"zero": 0.0, "finite": -1e9}.get(wrong, -math.inf)
        if wrong != "after":
            s = s.masked_fill(~visible, hidden)
        if wrong not in ("lse without mask", "after"):  # after the softmax, there are no masked scores
            lse = torch.logsumexp(s.masked_fill(~visible, hidden), dim=-1)
    p = torch.softmax(s, dim=-2 if wrong == "over queries" else -1)
    if wrong == "after":
        p = p * visible
    if wrong not in ("nan", "finite"):
        p = p.masked_fill(~visible.any(-1, keepdim=True), 0.0)
    if wrong == "no maximum":
        e = torch.exp(s)
        p, lse = e / e.sum(-1, keepdim=True), torch.log(e.sum(-1))
        p = p.masked_fill(~visible.any(-1, keepdim=True), 0.0)
    o = p.to(v.dtype) @ v
    if wrong == "bf16 lse":
        lse = lse.to(q.dtype)
    if wrong == "rounded lse":
        lse = torch.logsumexp(s.to(q.dtype), dim=-1).float()
    if wrong == "lse to base 2":
        lse = lse / math.log(2)
    if wrong == "lse without maximum":
        lse = lse - s.amax(-1)
    return (o, lse) if return_lse else o


@misconception(
    "01.naive_attention",
    "You leave out the scale 1/√Dk.",
    why="Scores of random vectors grow like √Dk; unscaled, the softmax puts nearly everything on one key.",
)
def no_scale(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="no scale")


@misconception(
    "01.naive_attention",
    "You scale by 1/Dk instead of 1/√Dk.",
    why="The deviation of a sum of Dk products grows like √Dk, and that is what has to go.",
)
def divided_by_head_size(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="1/Dk")


@misconception(
    "01.naive_attention",
    "You scale by the model's width, 1/√(H·Dk).",
    why="A head's dot products have length Dk, however many heads there are.",
)
def scaled_by_the_width(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="width")


@misconception(
    "01.naive_attention",
    "You ignore the scale that is passed.",
    why="1/√Dk is the default, for scale=None.",
)
def own_scale_ignored(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="own scale ignored")


@misconception(
    "01.naive_attention",
    "Your softmax runs over the queries.",
    why="A query spreads its weight over the keys: that is the last dimension of (B, H, Tq, Tk).",
)
def over_the_queries(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="over queries")


@misconception(
    "01.naive_attention",
    "Your log-sum-exp is of the unscaled scores.",
    why="It is the logarithm of the softmax's denominator, and the softmax is taken of the scaled ones.",
)
def lse_without_scale(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="lse without scale")


@misconception(
    "01.naive_attention",
    "Your groups are interleaved: query head h reads key head h % Hkv.",
    why="repeat strings whole copies together, 0 1 0 1 0 1. The heads of a group are neighbours, 0 0 0 1 1 1: "
    "repeat_interleave.",
)
def repeat_for_repeat_interleave(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="repeat")


@misconception(
    "01.naive_attention",
    "You mask after the softmax: the weights that are left do not sum to one.",
    why="The denominator has counted the keys that must not be seen. Put −∞ in the scores, before it.",
)
def mask_after_the_softmax(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="after")


@misconception(
    "01.naive_attention",
    "You put 0 where a score is masked.",
    why="e⁰ = 1 is a weight like any other. Only e^(−∞) is none.",
)
def masked_with_zero(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="zero")


@misconception(
    "01.naive_attention",
    "Your mask is the wrong way round: queries see the future.",
    why="A query sees the keys before it, and its own: key ≤ query. masked_fill wants True where it is to fill.",
)
def sees_the_future(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="upside down")


@misconception(
    "01.naive_attention",
    "A query does not see its own key.",
    why="Causal means up to and including itself: key ≤ query + Tk − Tq.",
)
def strictly_before(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="strict")


@misconception(
    "01.naive_attention",
    "A query sees one key too many, the one after its own.",
    why="triu(d) keeps the diagonal d itself. The first key to hide is the one after key = query + Tk − Tq.",
)
def one_key_too_many(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="next")


@misconception(
    "01.naive_attention",
    "Your log-sum-exp is to the base 2.",
    why="It is the natural logarithm here; kernels that work with exp2 convert at the end.",
)
def lse_to_base_two(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="lse to base 2")


@misconception(
    "01.naive_attention",
    "Your log-sum-exp lacks the maximum that you took out before the exponential.",
    why="ln Σ e^s = m + ln Σ e^(s − m).",
)
def lse_without_maximum(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="lse without maximum")


@misconception(
    "01.naive_attention",
    "Your log-sum-exp was computed in the inputs' precision, and widened afterwards.",
    why="What a logarithm has lost in bfloat16 does not come back: widen the scores, then take it.",
)
def lse_widened_too_late(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="rounded lse")


@misconception(
    "01.naive_attention",
    "Your log-sum-exp counts the keys that the mask hides.",
    why="It is the logarithm of the denominator that the weights are divided by: mask first.",
)
def lse_without_mask(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="lse without mask")


@misconception(
    "01.naive_attention",
    "Your mask is aligned top-left: query i sees the keys up to i.",
    why="So does torch's is_causal, and a new token with a cache then sees the first key only. The last query is the "
    "last token: query i stands at i + Tk − Tq.",
)
def top_left(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="top-left")


@misconception(
    "01.naive_attention",
    "A query that sees no key gets NaN.",
    why="A softmax over nothing but −∞ is 0/0. Give such a row weights of 0.",
)
def nan_for_blind_queries(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="nan")


@misconception(
    "01.naive_attention",
    "You mask with a large negative number: a query that sees no key averages all of them.",
    why="Where all scores are −10⁹, they are equal, and the softmax is uniform. −∞ says what is meant.",
)
def masked_with_a_large_number(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="finite")


@misconception(
    "01.naive_attention",
    "Your own softmax overflows: it exponentiates before it subtracts the maximum.",
    why="e^88.8 is infinite in float32. torch.softmax and torch.logsumexp take the maximum out first.",
)
def no_maximum(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="no maximum")


@misconception(
    "01.naive_attention",
    "Your log-sum-exp is in the inputs' precision.",
    why="In bfloat16, 8.03 and 8.00 are the same number: results merged by it are off by percents.",
)
def lse_in_low_precision(q, k, v, **options):
    return _attention(q, k, v, **options, wrong="bf16 lse")


# 01.roofline_seconds


@misconception(
    "01.roofline_seconds",
    "You take the maximum of sums: all the arithmetic against all the traffic.",
    why="Then one kernel's traffic would hide behind another one's arithmetic. It cannot: they run one after another.",
)
def maximum_of_sums(operations, *, peak_flops, bandwidth):
    operations = list(operations)
    return max(sum(f for f, _ in operations) / peak_flops, sum(b for _, b in operations) / bandwidth)


@misconception(
    "01.roofline_seconds",
    "You add a kernel's arithmetic and its traffic.",
    why="A chip computes on one tile while it loads the next: within a kernel the longer of the two hides the other.",
)
def no_overlap(operations, *, peak_flops, bandwidth):
    return sum((f / peak_flops + b / bandwidth for f, b in operations), 0.0)


@misconception(
    "01.roofline_seconds",
    "You take the shorter of the two times.",
    why="A kernel is finished when both are done.",
)
def the_shorter(operations, *, peak_flops, bandwidth):
    return sum((min(f / peak_flops, b / bandwidth) for f, b in operations), 0.0)


@misconception(
    "01.roofline_seconds",
    "You have the pairs the wrong way round: they are (FLOP, bytes).",
    why="Peak goes with operations, bandwidth with bytes.",
)
def swapped(operations, *, peak_flops, bandwidth):
    return sum((max(f / peak_flops, b / bandwidth) for b, f in operations), 0.0)


@misconception(
    "01.roofline_seconds",
    "You count the arithmetic only.",
    why="Below the ridge, a kernel's time is that of its bytes, and a copy has no arithmetic at all.",
)
def arithmetic_only(operations, *, peak_flops, bandwidth):
    return sum((f / peak_flops for f, _ in operations), 0.0)


@misconception(
    "01.roofline_seconds",
    "You count the traffic only.",
    why="Above the ridge, the bytes have long arrived while the chip still computes.",
)
def traffic_only(operations, *, peak_flops, bandwidth):
    return sum((b / bandwidth for _, b in operations), 0.0)


@misconception(
    "01.roofline_seconds",
    "You take the slowest kernel for the whole.",
    why="They run one after another, each on the result of the one before.",
)
def slowest_kernel(operations, *, peak_flops, bandwidth):
    return max((max(f / peak_flops, b / bandwidth) for f, b in operations), default=0.0)
