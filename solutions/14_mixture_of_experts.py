# %% tags=["exercise"] exercise="14.router"
import torch

from llmsys.moe import Routing


def route(logits, k, *, bias=None, groups=1, kept_groups=1, normalise=True, scale=1.0):
    """DeepSeek-V3's router: which k experts each token goes to, and how much each of them counts.

    logits       (N, E)  floating point, of any type: all that follows is computed in float32
    k            experts of a token
    bias         (E,)    float32, added to choose (4), and nowhere else; None: zeros
    groups       experts 0 to E/groups − 1 are the first group, the next E/groups the second, and so on
    kept_groups  a token's experts are in its best kept_groups groups. A group is as good as its best two experts
                 together, by what is chosen by (4); as good as its only one, where it has one
    normalise    divide the weights of a token by their sum + 1e-20; False: leave them
    scale        then multiply them by this

    Returns Routing(experts, weights, scores):
    experts      (N, k)  int64: the chosen ones, all different, in any order
    weights      (N, k)  float32, in the same order (5)
    scores       (N, E)  float32 (3)
    weights and scores have a gradient.
    """
    ### BEGIN SOLUTION
    N, E = logits.shape
    scores = torch.sigmoid(logits.float())  # (N, E)
    choice = scores if bias is None else scores + bias
    if kept_groups < groups:
        grouped = choice.view(N, groups, E // groups)
        of_group = grouped.topk(min(2, E // groups), dim=-1).values.sum(dim=-1)  # (N, groups)
        kept = torch.zeros(N, groups, dtype=torch.bool, device=logits.device)
        kept.scatter_(1, of_group.topk(kept_groups, dim=-1).indices, True)
        choice = grouped.masked_fill(~kept[:, :, None], float("-inf")).view(N, E)
    experts = choice.topk(k, dim=-1).indices  # (N, k)
    weights = scores.gather(1, experts)  # without the bias
    if normalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return Routing(experts, weights * scale, scores)
    ### END SOLUTION


# %% tags=["check"] exercise="14.router"
check("14.router", route)

# %% tags=["exercise"] exercise="14.dispatch"
import torch

from llmsys.moe.experts.reference import one_expert


def run_grouped(x, experts, weights, gate_up, down):
    """All experts of a layer: each token's weighted sum over its experts, equation (2) without the shared one.

    x        (N, C)        tokens, float32 or float16
    experts  (N, K)        int64: of 0 to E − 1, those of a token all different; or −1, which is nowhere and adds nothing
    weights  (N, K)        float32
    gate_up  (E, 2 I, C)   the matrices of each expert, in x's dtype
    down     (E, C, I)

    Returns (N, C), in x's dtype. What a token's experts say is multiplied with its weight and added up in float32. x,
    weights and the matrices get their gradients.

    one_expert(rows, gate_up[e], down[e]) is expert e, of any number of rows (M, C), 0 included.
    Not allowed: more rows in an expert's product than it was given; reading an expert's matrices more than once;
    looking through `experts` again for each of the E experts.
    """
    ### BEGIN SOLUTION
    E, K = len(gate_up), experts.shape[1]
    numbers = experts.flatten()  # (N K,) of the assignments
    counts = torch.bincount(numbers[numbers >= 0], minlength=E)  # (E,)
    order = numbers.argsort(stable=True)
    order = order[len(order) - int(counts.sum()) :]  # (R,) the −1 came first
    token = order // K  # (R,)
    rows = x[token].split(counts.tolist())
    done = [one_expert(*each) for each in zip(rows, gate_up.unbind(), down.unbind(), strict=True)]
    weighted = torch.cat(done).float() * weights.flatten()[order, None]  # (R, C)
    out = torch.zeros(x.shape, device=x.device)
    return out.index_add(0, token, weighted).to(x.dtype)
    ### END SOLUTION


# %% tags=["check"] exercise="14.dispatch"
check("14.dispatch", run_grouped)

# %% tags=["exercise"] exercise="14.bias"
def move_bias(bias, loads, rate):
    """Moves the router's bias by one step against the loads, in place (7). Returns nothing.

    bias   (E,)  float32; this tensor is to change
    loads  (E,)  int64: how many tokens each expert was given in this step, summed over all batches and ranks
    rate   γ, at least 0
    """
    ### BEGIN SOLUTION
    missing = loads.sum() - len(loads) * loads  # E times (mean − load), in whole numbers
    bias += rate * missing.sign()
    ### END SOLUTION


# %% tags=["check"] exercise="14.bias"
check("14.bias", move_bias)

# %% tags=["exercise"] exercise="14.sequence_loss"
import torch


def sequence_loss(routing, *, sequences=1):
    """The balance loss (6) of each sequence by itself: the mean over sequences, a float32 tensor of shape ().

    routing.experts  (N, K)  int64: the experts of each token, all different
    routing.scores   (N, E)  float32, at least 0: of all experts
    sequences        the N tokens are so many sequences of T = N / sequences, one after the other

    The scores of a token are divided by their sum + 1e-20 first. The gradient comes through them.
    """
    ### BEGIN SOLUTION
    N, E = routing.scores.shape
    K = routing.experts.shape[1]
    T = N // sequences
    chosen = torch.zeros(N, E, device=routing.scores.device).scatter(1, routing.experts, 1.0)
    shares = routing.scores / (routing.scores.sum(dim=-1, keepdim=True) + 1e-20)
    f = E / (K * T) * chosen.reshape(sequences, T, E).sum(dim=1)  # (S, E)
    P = shares.reshape(sequences, T, E).mean(dim=1)  # (S, E)
    return (f * P).sum(dim=-1).mean()
    ### END SOLUTION


# %% tags=["check"] exercise="14.sequence_loss"
check("14.sequence_loss", sequence_loss)
