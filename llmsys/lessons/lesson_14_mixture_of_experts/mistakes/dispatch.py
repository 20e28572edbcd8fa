"""Wrong answers to 14.dispatch: a right one with an edit, and three by another way."""

import torch
import torch.nn.functional as F

from llmsys.course.checking.diagnosis import misconception
from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_14_mixture_of_experts.right import run_grouped
from llmsys.moe.experts.reference import one_expert

wrong = Mistakes("14.dispatch", run_grouped)

WEIGHTED = "weights.flatten()[order, None]"
ADDED = "torch.zeros(x.shape).index_add(0, token, weighted)"
COUNTS = "torch.bincount(numbers[numbers >= 0], minlength=E)"
CUT = "order = order[len(order) - int(counts.sum()) :]"

wrong(
    "stays_sorted",
    "You leave the results in the order of the experts, and take row n for token n's.",
    (ADDED, "(weighted.view(len(x), -1, x.shape[1]).sum(1) if len(weighted) == experts.numel() else weighted)"),
    why="Sorting has moved them: row r belongs to token order[r] // K.",
)
wrong(
    "weights_stay",
    "You sort the rows, and not their weights.",
    (WEIGHTED, "weights.flatten()[: len(order), None]"),
    why="The weight of row r is that of its assignment, order[r].",
)
wrong(
    "weights_of_the_transpose",
    "You take the weights in another order than the experts: all tokens' first weights, then all second ones.",
    (WEIGHTED, "weights.t().flatten()[order, None]"),
    why="experts.flatten() has token 0's K assignments first. Flatten the weights in the same way.",
)
wrong(
    "no_weights",
    "You add up what the experts say, without the weights.",
    (" * " + WEIGHTED, ""),
    why="How much each of a token's experts counts is what the router has to say of it, and by what it learns.",
)
wrong(
    "divides_by_the_tokens",
    "You take assignment a for one of token a // N: it is a // K.",
    ("token = order // K", "token = (order // len(x)) % len(x)"),
    why="A token has K assignments, one after the other: 0 to K − 1 are token 0's.",
)
wrong(
    "assignment_is_token",
    "You take assignment a for one of token a % N, as if all tokens' first experts came first.",
    ("token = order // K", "token = order % len(x)"),
    why="experts.flatten() has token 0's K experts first: assignment a is of token a // K.",
)
wrong(
    "empty_experts_left_out",
    "You count only the experts that are there, so the matrices of those behind an empty one are the wrong ones.",
    (COUNTS, "torch.unique(numbers[numbers >= 0], return_counts=True)[1]"),
    ("strict=True", "strict=False"),
    why="unique has no place for an expert without a token. Counts need one for each of the E experts.",
)
wrong(
    "counts_end_with_the_last_in_use",
    "You have counts up to the last expert with a row, and none at all where nobody has one.",
    (COUNTS, "torch.bincount(numbers[numbers >= 0])"),
    ("strict=True", "strict=False"),
    why="bincount has as many numbers as the largest one needs: minlength=E gives one to each expert.",
)
wrong(
    "nowhere_is_the_last",
    "You take −1 for the last expert.",
    ("numbers = experts.flatten()", "numbers = experts.flatten() % E"),
    why="−1 marks an expert that is not here. Python's indices count from the end, and say nothing.",
)
wrong(
    "nowhere_comes_first",
    "You count the −1 nowhere, but their rows are still at the beginning, and all experts get somebody else's.",
    (CUT, "order = order[: int(counts.sum())]"),
    why="A sort puts −1 before 0: rows of expert 0 begin behind them.",
)
wrong(
    "sums_in_half",
    "You weigh and add up in x's dtype.",
    ("torch.cat(done).float() * " + WEIGHTED, "torch.cat(done) * " + WEIGHTED + ".to(x.dtype)"),
    ("torch.zeros(x.shape)", "torch.zeros_like(x)"),
    why="float16 has eleven bits: what is small beside a large term is lost, and does not come back.",
)
wrong(
    "added_in_half",
    "You add up in x's dtype.",
    (ADDED, "torch.zeros_like(x).index_add(0, token, weighted.to(x.dtype))"),
    why="float16 has eleven bits: each weighted term is rounded to them before it is added.",
)
wrong(
    "weights_in_half",
    "You round the weights to x's dtype.",
    (WEIGHTED, "weights.to(x.dtype).float().flatten()[order, None]"),
    why="They are float32. float16 has eleven bits: 2049 becomes 2048.",
)
wrong(
    "result_in_float32",
    "You return float32. What comes back has x's dtype.",
    (".to(x.dtype)", ""),
    why="The sum is in float32, and is rounded to x's dtype once, at the end: the next layer expects that.",
)
wrong(
    "counts_the_nowhere",
    "You count the −1, too, and bincount takes no negative numbers.",
    ("torch.bincount(numbers[numbers >= 0], minlength=E)", "torch.bincount(numbers, minlength=E)"),
    why="−1 is nowhere, and no expert's. Count the others, and leave as many rows out at the beginning of the order.",
)
wrong(
    "nowhere_is_the_first",
    "You take −1 for expert 0.",
    ("numbers = experts.flatten()", "numbers = experts.flatten().clamp(min=0)"),
    why="−1 marks an expert that is not here, and adds nothing.",
)
wrong(
    "weighs_the_tokens",
    "You multiply the tokens with the weights, and not what the experts make of them.",
    ("torch.cat(done).float() * " + WEIGHTED, "torch.cat(done).float()"),
    ("rows = x[token]", "rows = (x[token] * " + WEIGHTED + ").to(x.dtype)"),
    why="An expert is no linear function: half a token is not half the answer.",
)
wrong(
    "first_weight",
    "You weigh all of a token's experts with the weight of the first.",
    (WEIGHTED, "weights[token, :1]"),
    why="The weight of row r is that of its assignment, order[r].",
)
wrong(
    "no_gradient_of_the_weights",
    "The weights get no gradient.",
    (WEIGHTED, "weights.detach().flatten()[order, None]"),
    why="It is by them that the router learns.",
)


@misconception(
    "14.dispatch",
    "Of a token's K results only one is left: out[token] += … does not add up rows with the same number.",
    why="It reads all, adds, and writes all: of rows with the same number, the last one wins. index_add adds.",
)
def overwrites(x, experts, weights, gate_up, down):
    E, K = len(gate_up), experts.shape[1]
    numbers = experts.flatten()
    order = numbers.argsort(stable=True)
    counts = torch.bincount(numbers[numbers >= 0], minlength=E)
    order = order[len(order) - int(counts.sum()) :]
    token = order // K
    rows = x[token].split(counts.tolist())
    done = [one_expert(*each) for each in zip(rows, gate_up.unbind(), down.unbind(), strict=True)]
    out = torch.zeros(x.shape)
    out[token] += torch.cat(done).float() * weights.flatten()[order, None]
    return out.to(x.dtype)


@misconception(
    "14.dispatch",
    "You compute every expert for every token, and multiply most of it with 0.",
    why="That is the same result for E / K times the operations: what a mixture of experts is there to avoid.",
)
def every_expert(x, experts, weights, gate_up, down):
    out = torch.zeros(x.shape)
    for e in range(len(gate_up)):
        share = torch.where(experts == e, weights, 0.0).sum(dim=-1, keepdim=True)
        out = out + share * one_expert(x, gate_up[e], down[e]).float()
    return out.to(x.dtype)


@misconception(
    "14.dispatch",
    "You fill each expert's rows up to those of the busiest one.",
    why="One product of all experts is quick to write. But where one expert has most tokens, all of them have as "
    "much to do as it has.",
)
def filled_up(x, experts, weights, gate_up, down):
    E, K = len(gate_up), experts.shape[1]
    numbers = experts.flatten()
    order = numbers.argsort(stable=True)
    counts = torch.bincount(numbers[numbers >= 0], minlength=E)
    order = order[len(order) - int(counts.sum()) :]
    token, expert = order // K, numbers[order]
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[expert]
    rows = x.new_zeros(E, int(counts.max()), x.shape[1]).index_put((expert, place), x[token])
    gate, up = (rows @ gate_up.mT).chunk(2, dim=-1)
    done = (F.silu(gate) * up @ down.mT)[expert, place]
    weighted = done.float() * weights.flatten()[order, None]
    return torch.zeros(x.shape).index_add(0, token, weighted).to(x.dtype)


@misconception(
    "14.dispatch",
    "You add up the rows by a product with a matrix of zeros and ones.",
    why="It has a row for each token and a column for each assignment: the work grows with the square of the tokens. "
    "index_add adds what is there.",
)
def adds_by_a_matrix(x, experts, weights, gate_up, down):
    E, K = len(gate_up), experts.shape[1]
    numbers = experts.flatten()
    order = numbers.argsort(stable=True)
    counts = torch.bincount(numbers[numbers >= 0], minlength=E)
    order = order[len(order) - int(counts.sum()) :]
    rows = x[order // K].split(counts.tolist())
    done = [one_expert(*each) for each in zip(rows, gate_up.unbind(), down.unbind(), strict=True)]
    weighted = torch.cat(done).float() * weights.flatten()[order, None]
    return (F.one_hot(order // K, len(x)).T.float() @ weighted).to(x.dtype)


@misconception(
    "14.dispatch",
    "You look through all assignments once for each expert.",
    why="That is right, and slow: with 256 experts, 256 searches. One sort finds all of them.",
)
def searches(x, experts, weights, gate_up, down):
    out = torch.zeros(x.shape)
    for e in range(len(gate_up)):
        token, j = torch.where(experts == e)
        done = one_expert(x[token], gate_up[e], down[e])
        out = out.index_add(0, token, done.float() * weights[token, j, None])
    return out.to(x.dtype)


@misconception(
    "14.dispatch",
    "You take each token through its experts by itself.",
    why="Each assignment then reads its expert's matrices anew. Sorted, all tokens of an expert share one reading.",
)
def token_by_token(x, experts, weights, gate_up, down):
    out = []
    for n, those in enumerate(experts.tolist()):
        total = torch.zeros(x.shape[1])
        for j, e in enumerate(those):
            if e >= 0:
                total = total + weights[n, j] * one_expert(x[n], gate_up[e], down[e]).float()
        out.append(total)
    return torch.stack(out).to(x.dtype)


@misconception(
    "14.dispatch",
    "You bring the rows back by the order itself, and it is its inverse that does that.",
    why="order[r] is the assignment that row r was made of. Assignment a is in the row where order is a.",
)
def back_by_the_order(x, experts, weights, gate_up, down):
    E, K = len(gate_up), experts.shape[1]
    numbers = experts.flatten()
    order = numbers.argsort(stable=True)
    counts = torch.bincount(numbers[numbers >= 0], minlength=E)
    here = order[len(order) - int(counts.sum()) :]
    rows = x[here // K].split(counts.tolist())
    done = [one_expert(*each) for each in zip(rows, gate_up.unbind(), down.unbind(), strict=True)]
    weighted = torch.cat(done).float() * weights.flatten()[here, None]
    nowhere = weighted.new_zeros(len(order) - len(here), x.shape[1])
    return torch.cat([nowhere, weighted])[order].view(len(x), K, -1).sum(1).to(x.dtype)
