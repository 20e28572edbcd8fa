"""Answers to the exercises of lesson 14 that have no name among its mistakes: right ones by other ways, wrong ones."""

import torch
import torch.nn.functional as F

from llmsys.moe import Routing
from llmsys.moe.experts.reference import one_expert
from tests.support.verdicts import fresh

# (a)


def token_by_token(logits, k, *, bias=None, groups=1, kept_groups=1, normalise=True, scale=1.0):
    """A loop over tokens and groups, with the sigmoid by its other name."""
    N, E = logits.shape
    scores = torch.special.expit(logits.float())
    size, experts, weights = E // groups, [], []
    for row in scores:
        choice = (row if bias is None else row + bias).tolist()
        worth = [sum(sorted(choice[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        best = sorted(range(groups), key=lambda g, worth=worth: -worth[g])[:kept_groups]
        allowed = [e for g in best for e in range(g * size, (g + 1) * size)]
        those = sorted(allowed, key=lambda e, choice=choice: choice[e])[-k:]
        found = torch.stack([row[e] for e in those])
        if normalise:
            found = found / (found.sum() + 1e-20)
        experts.append(those)
        weights.append(scale * found)
    return Routing(torch.tensor(experts), torch.stack(weights), scores)


def by_argsort(logits, k, *, bias=None, groups=1, kept_groups=1, normalise=True, scale=1.0):
    """Everything by argsort, groups masked by a repeated mask of large negative numbers."""
    N, E = logits.shape
    scores = logits.to(torch.float32).sigmoid()
    choice = scores.detach().clone()
    if bias is not None:
        choice += bias
    of_group = choice.reshape(N, groups, -1).sort(dim=-1, descending=True).values[..., :2].sum(-1)
    rank = of_group.argsort(dim=-1, descending=True).argsort(dim=-1)
    out = (rank >= kept_groups).repeat_interleave(E // groups, dim=1)
    choice[out] = -1e30
    experts = choice.argsort(dim=-1, descending=True)[:, :k]
    weights = torch.gather(scores, 1, experts)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)
    return Routing(experts, scale * weights, scores)


def unsorted_and_masked(logits, k, *, bias=None, groups=1, kept_groups=1, normalise=True, scale=1.0):
    """An additive mask of 0 and −∞, topk that does not sort, and weights by a mask over all experts."""
    N, E = logits.shape
    scores = torch.sigmoid(logits.float())
    choice = scores + (0 if bias is None else bias)
    two = choice.unflatten(1, (groups, -1)).topk(min(E // groups, 2), sorted=False).values.sum(-1)
    mask = torch.full((N, groups), -torch.inf)
    mask[torch.arange(N)[:, None], two.topk(kept_groups, sorted=False).indices] = 0
    experts = (choice.unflatten(1, (groups, -1)) + mask[..., None]).flatten(1).topk(k, sorted=False).indices
    kept = scores * torch.zeros_like(scores).scatter(1, experts, 1.0)
    if normalise:
        kept = kept / (kept.sum(-1, keepdim=True) + 1e-20)
    return Routing(experts, scale * kept.gather(1, experts), scores)


def bias_on_the_logits(logits, k, *, bias=None, **options):
    """Right without a bias."""
    return by_argsort(logits if bias is None else logits + bias, k, **options)


def mask_that_is_not_low_enough(logits, k, *, bias=None, groups=1, kept_groups=1, normalise=True, scale=1.0):
    """−10 beats a bias of −40."""
    N, E = logits.shape
    scores = torch.sigmoid(logits.float())
    choice = (scores if bias is None else scores + bias).view(N, groups, -1)
    best = choice.topk(min(2, E // groups)).values.sum(-1).topk(kept_groups).indices
    kept = torch.zeros(N, groups, dtype=torch.bool).scatter(1, best, True)
    experts = torch.where(kept[..., None], choice, -10.0).view(N, E).topk(k).indices
    weights = scores.gather(1, experts)
    if normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing(experts, scale * weights, scores)


def one_group_for_all_tokens(logits, k, *, bias=None, groups=1, kept_groups=1, **options):
    """The groups that are best for the batch."""
    scores = torch.sigmoid(logits.float())
    choice = (scores if bias is None else scores + bias).unflatten(1, (groups, -1)).sum(0)
    best = choice.topk(min(2, choice.shape[1])).values.sum(-1).topk(kept_groups).indices
    mask = torch.full((groups,), -1e30).index_fill(0, best, 0.0).repeat_interleave(choice.shape[1])
    return by_argsort(logits, k, bias=mask if bias is None else bias + mask, **options)


def all_that_are_as_good(logits, k, *, bias=None, groups=1, kept_groups=1, **options):
    """Groups above a threshold: more than kept_groups, where several are equal."""
    scores = torch.sigmoid(logits.float())
    choice = (scores if bias is None else scores + bias).unflatten(1, (groups, -1))
    two = choice.topk(min(2, choice.shape[2])).values.sum(-1)
    kept = two >= two.topk(kept_groups).values[:, -1:]
    experts = choice.masked_fill(~kept[..., None], -torch.inf).flatten(1).topk(k).indices
    if options.pop("normalise", True):
        weights = F.normalize(scores.gather(1, experts), p=1, eps=1e-20)
    else:
        weights = scores.gather(1, experts)
    return Routing(experts, options.get("scale", 1.0) * weights, scores)


def sigmoid_written_out(logits, k, **options):
    """Whose gradient is NaN where its exponential overflows."""
    x = logits.float()
    own = 1 / (1 + torch.exp(-x))
    found = by_argsort(logits, k, **options)
    weights = own.gather(1, found.experts)
    if options.get("normalise", True):
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing(found.experts, options.get("scale", 1.0) * weights, own)


def experts_in_int32(logits, k, **options):
    found = by_argsort(logits, k, **options)
    return Routing(found.experts.int(), found.weights, found.scores)


def a_tuple(logits, k, **options):
    found = by_argsort(logits, k, **options)
    return found.experts, found.weights, found.scores


def in_half(logits, k, **options):
    """Scores as exact as the logits' type."""
    found = by_argsort(logits.half(), k, **options)
    return Routing(found.experts, found.weights.half().float(), found.scores)


def masks_what_it_returns(logits, k, *, groups=1, **options):
    """The scores of groups of which no expert was chosen are 0."""
    found = by_argsort(logits, k, groups=groups, **options)
    size = logits.shape[1] // groups
    there = torch.zeros(len(logits), groups).scatter(1, found.experts // size, 1.0).repeat_interleave(size, dim=1)
    return Routing(found.experts, found.weights, found.scores * there)


# (b)


def back_by_the_inverse(x, experts, weights, gate_up, down):
    """Sorted by a stable sort, back by the inverse of the order, summed over K."""
    N, K = experts.shape
    numbers, order = experts.flatten().sort()
    out = []
    bounds = torch.searchsorted(numbers, torch.arange(len(gate_up) + 1)).tolist()
    out.append(x.new_zeros(bounds[0], x.shape[1]))  # nowhere
    for e, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        out.append(one_expert(x[order[start:stop] // K], gate_up[e], down[e]))
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    rows = torch.cat(out)[inverse].view(N, K, -1).float()
    return (rows * weights[..., None]).sum(1).to(x.dtype)


def by_a_routing_map(x, experts, weights, gate_up, down):
    """Megatron's way: a map of tokens by experts, whose places are sorted by expert when it is read the other way."""
    N, E = len(x), len(gate_up)
    here = experts.clamp(min=0)
    ones = (experts >= 0).float()
    asked = torch.zeros(N, E).scatter_add(1, here, ones)
    shares = torch.zeros(N, E).scatter_add(1, here, weights * ones)
    expert, token = asked.T.nonzero(as_tuple=True)
    sizes = asked.sum(0).long().tolist()
    out = torch.zeros(x.shape)
    parts = zip(x[token].split(sizes), token.split(sizes), expert.split(sizes), strict=True)
    for e, (rows, those, _) in enumerate(parts):
        if len(rows):
            done = one_expert(rows, gate_up[e], down[e]).float() * shares[those, e, None]
            out = out.scatter_add(0, those[:, None].expand(-1, x.shape[1]), done)
    return out.to(x.dtype)


def puts_with_accumulate(x, experts, weights, gate_up, down):
    """Unstable order, index_put that accumulates, gate and up as two products."""
    K, E = experts.shape[1], len(gate_up)
    numbers = torch.where(experts < 0, E, experts).flatten()
    order = torch.argsort(numbers)
    counts = numbers.bincount(minlength=E + 1)[:E].tolist()
    out, at = torch.zeros(x.shape), 0
    for e, count in enumerate(counts):
        rows = order[at : at + count]
        gate, up = gate_up[e].chunk(2)
        inner = F.silu(F.linear(x[rows // K], gate)) * F.linear(x[rows // K], up)
        done = F.linear(inner, down[e]).float() * weights.flatten()[rows, None]
        out = out.index_put((rows // K,), done, accumulate=True)
        at += count
    return out.to(x.dtype)


def drops_what_is_too_much(x, experts, weights, gate_up, down):
    """A capacity of twice the mean: GShard's."""
    N, K = experts.shape
    capacity = 2 * -(-N * K // len(gate_up))
    kept = experts.clone()
    for e in range(len(gate_up)):
        places = (kept.flatten() == e).nonzero()[capacity:, 0]
        kept.view(-1)[places] = -1
    return back_by_the_inverse(x, kept, weights, gate_up, down)


def through_both_products_at_once(x, experts, weights, gate_up, down):
    """All experts' products as one einsum, and a mask."""
    N, E = len(x), len(gate_up)
    asked = torch.zeros(N, E).scatter_add(1, experts.clamp(min=0), weights * (experts >= 0))
    gate, up = torch.einsum("nc,eic->eni", x, gate_up).chunk(2, dim=-1)
    done = torch.einsum("eni,eci->enc", F.silu(gate) * up, down)
    return torch.einsum("enc,ne->nc", done.float(), asked).to(x.dtype)


def matrices_for_each_assignment(x, experts, weights, gate_up, down):
    """gate_up[experts]: a copy of the matrices for each assignment."""
    there = (experts >= 0).float() * weights
    wide = gate_up[experts.clamp(min=0)]  # (N, K, 2 I, C)
    gate, up = torch.einsum("nc,nkic->nki", x, wide).chunk(2, dim=-1)
    done = torch.einsum("nki,nkci->nkc", F.silu(gate) * up, down[experts.clamp(min=0)])
    return (done.float() * there[..., None]).sum(1).to(x.dtype)


def marks_in_the_argument(x, experts, weights, gate_up, down):
    """Changes `experts` on the way."""
    experts[experts < 0] = len(gate_up)
    numbers = torch.where(experts == len(gate_up), -1, experts)
    return back_by_the_inverse(x, numbers, weights, gate_up, down)


def weights_by_columns(x, experts, weights, gate_up, down):
    """The weights of a batch that lies the other way."""
    return back_by_the_inverse(x, experts, weights.t().reshape(weights.shape), gate_up, down)


@fresh
def remembers_the_order():
    orders = {}

    def answer(x, experts, weights, gate_up, down):
        known = orders.setdefault((experts.shape, len(gate_up)), experts)
        return back_by_the_inverse(x, known, weights, gate_up, down)

    return answer


# (c)


def by_comparing(bias, loads, rate):
    total = int(loads.sum())
    for e, load in enumerate(loads.tolist()):
        if load * len(loads) < total:
            bias[e] += rate
        elif load * len(loads) > total:
            bias[e] -= rate


def in_float64(bias, loads, rate):
    loads = loads.double()
    bias.add_(torch.sign(loads.mean() - loads).float(), alpha=rate)


def by_where(bias, loads, rate):
    few, many = len(loads) * loads < loads.sum(), len(loads) * loads > loads.sum()
    bias[few] += rate
    bias[many] -= rate


def copies_back(bias, loads, rate):
    bias.copy_(bias + rate * (loads.sum() - len(loads) * loads).sign())


def busiest_and_idlest(bias, loads, rate):
    bias[loads.argmax()] -= rate
    bias[loads.argmin()] += rate


def stays_centred(bias, loads, rate):
    in_float64(bias, loads, rate)
    bias -= bias.mean()


def softly(bias, loads, rate):
    bias += rate * torch.tanh((loads.sum() - len(loads) * loads).float())


def the_mean_as_an_int(bias, loads, rate):
    bias += rate * (loads.sum() // len(loads) - loads).sign()


def to_the_middle(bias, loads, rate):
    bias += rate * ((loads.max() + loads.min()).double() / 2 - loads).sign().float()


def through_data(bias, loads, rate):
    """A new tensor under the old name, with the old one's memory untouched."""
    bias.data = bias.data + rate
    bias = bias - rate


# (d)


def by_sequence(routing, *, sequences=1):
    """A loop over sequences, counts by bincount."""
    losses = []
    E, K = routing.scores.shape[1], routing.experts.shape[1]
    for experts, scores in zip(routing.experts.chunk(sequences), routing.scores.chunk(sequences), strict=True):
        f = torch.bincount(experts.flatten(), minlength=E) * (E / (K * len(experts)))
        P = torch.stack([row / (row.sum() + 1e-20) for row in scores]).mean(0)
        losses.append(f @ P)
    return torch.stack(losses).mean()


def by_one_hot(routing, *, sequences=1):
    """An einsum of one-hot counts and scores."""
    E, K = routing.scores.shape[1], routing.experts.shape[1]
    counts = F.one_hot(routing.experts, E).sum(1).float().unflatten(0, (sequences, -1)).mean(1)
    shares = F.normalize(routing.scores, p=1, dim=-1, eps=1e-20).unflatten(0, (sequences, -1)).mean(1)
    return torch.einsum("se,se->", counts, shares) * E / K / sequences


def by_the_chosen(routing, *, sequences=1):
    """Σ over assignments of P at their expert."""
    N, E = routing.scores.shape
    K = routing.experts.shape[1]
    P = (routing.scores / (routing.scores.sum(1, keepdim=True) + 1e-20)).reshape(sequences, -1, E).mean(1)
    return P.gather(1, routing.experts.reshape(sequences, -1)).sum() * E / (K * N)


def with_the_weights(routing, *, sequences=1):
    """P of the normalised weights of the chosen experts."""
    spread = torch.zeros_like(routing.scores).scatter(1, routing.experts, routing.weights)
    return by_the_chosen(Routing(routing.experts, routing.weights, spread), sequences=sequences)


def variance(routing, *, sequences=1):
    """1 where all is even, and more elsewhere, too."""
    E, K = routing.scores.shape[1], routing.experts.shape[1]
    counts = F.one_hot(routing.experts, E).sum(1).float().reshape(sequences, -1, E).mean(1)
    return (counts**2).sum(1).mean() * E / K**2 + 0 * routing.scores.sum()


def over_sequences_first(routing, *, sequences=1):
    """f of the batch, P of each sequence."""
    E = routing.scores.shape[1]
    f = F.one_hot(routing.experts, E).sum(1).float().mean(0) * E / routing.experts.shape[1]
    P = F.normalize(routing.scores, p=1, dim=-1, eps=1e-20).reshape(sequences, -1, E).mean(1)
    return (f * P).sum(1).mean()


def with_a_large_epsilon(routing, *, sequences=1):
    """1e-6 beside scores of 1e-7."""
    E, K = routing.scores.shape[1], routing.experts.shape[1]
    counts = F.one_hot(routing.experts, E).sum(1).float().unflatten(0, (sequences, -1)).mean(1)
    shares = routing.scores / (routing.scores.sum(-1, keepdim=True) + 1e-6)
    return torch.einsum("se,se->", counts, shares.unflatten(0, (sequences, -1)).mean(1)) * E / K / sequences


def softmaxed_again(routing, *, sequences=1):
    """P by a softmax of the scores."""
    return by_one_hot(Routing(routing.experts, routing.weights, routing.scores.softmax(-1)), sequences=sequences)


RIGHT = {
    "14.router": (token_by_token, by_argsort, unsorted_and_masked),
    "14.dispatch": (back_by_the_inverse, by_a_routing_map, puts_with_accumulate),
    "14.bias": (by_comparing, in_float64, by_where, copies_back),
    "14.sequence_loss": (by_sequence, by_one_hot, by_the_chosen),
}
WRONG = {
    "14.router": (
        bias_on_the_logits, mask_that_is_not_low_enough, one_group_for_all_tokens, experts_in_int32,
        all_that_are_as_good, sigmoid_written_out, a_tuple, in_half, masks_what_it_returns,
    ),
    "14.dispatch": (
        drops_what_is_too_much, through_both_products_at_once, matrices_for_each_assignment, marks_in_the_argument,
        remembers_the_order, weights_by_columns,
    ),
    "14.bias": (busiest_and_idlest, stays_centred, softly, the_mean_as_an_int, to_the_middle, through_data),
    "14.sequence_loss": (with_the_weights, variance, over_sequences_first, softmaxed_again, with_a_large_epsilon),
}  # fmt: skip
