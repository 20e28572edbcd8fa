# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: llmsys
#     language: python
#     name: llmsys
# ---

# %% [markdown]
# # 14 · Mixture of experts
#
# In a transformer most parameters are in the MLPs, and every token goes through all of them. With twice the parameters
# a model becomes better, and each token costs twice the operations.
#
# **The idea:** take many small MLPs in place of a large one, the **experts**, and let each token go through a few of
# them only. A **router**, one small matrix, says which. Then a model can have many times the parameters for the same
# operations.
#
# DeepSeek-V3 is built like that, and so are most large models since. What is hard about it is not the idea. Tokens are
# scattered to experts and must be brought together again, for a GPU is fast only at large products. And nothing makes
# a router use all of its experts: left alone it overloads some, on which all others wait. You will write DeepSeek-V3's router; what sends tokens to their experts and back;
# the bias that keeps the loads even without any loss; and the loss that it is there to replace. Then the four ways to
# train are compared, twelve runs on an H200, with what each buys and costs.

# %% tags=["setup"]
import time
from statistics import fmean

import torch

from llmsys import viz
from llmsys.bench import recorded
from llmsys.bench.moe import SHAPES as MEASURED
from llmsys.bench.moe_training import LESSON
from llmsys.course import check, hint, measured, mine, predict
from llmsys.hardware.devices import DEVICES
from llmsys.models import MixtureLlama, TrainingStep, generate
from llmsys.models.text.byte_tokenizer import byte_tokenizer
from llmsys.models.decode_cost import weights_of_step
from llmsys.models.deepseek.shipped import load_shipped as load_balanced
from llmsys.models.mixture.shipped import load_shipped as load_unbalanced
from llmsys.models.shapes import SHAPES
from llmsys.models.training_step import token_loss
from llmsys.moe import (
    DEEPSEEK_V3,
    MixtureOfExperts,
    Routing,
    balance_loss,
    load_statistics,
    place_experts,
    route_sigmoid,
    route_softmax,
    run_experts,
)
from llmsys.moe import move_bias as library_move_bias
from llmsys.moe.experts import group_by_expert
from llmsys.moe.experts.reference import one_expert
from llmsys.training import Corpus, train
from llmsys.viz.mixture_of_experts import passing
from llmsys.viz.mixture_of_experts.stream import stream

# %%
viz.mixture_of_experts.overview()

# %% [markdown]
# ## Predict: how much of a model does a token use?
#
# DeepSeek-V3 has 671 billion parameters, in 61 layers. <!-- source: SHAPES["DeepSeek-V3"] in llmsys/models/shapes.py -->
# In 58 of them the MLP is a mixture of 256 experts, of which a token goes through 8, and through one more that is
# shared by all. The other layers, attention, embedding and head are as ever. **What share of the parameters does one
# token use?**

# %% tags=["predict"]
predict("14.active", None, "%")

# %% [markdown]
# ## What sparse buys
#
# Count. An expert is an MLP with a gate, three matrices of 7,168 × 2,048.

# %% tags=["claim"]
deepseek = SHAPES["DeepSeek-V3"]
experts = deepseek.experts
sparse_layers = deepseek.layers - experts.dense_layers
one = 3 * deepseek.width * experts.width
routed = sparse_layers * experts.routed * one
active = deepseek.parameters - sparse_layers * (experts.routed - experts.active) * one
print(f"an expert               {one / 1e6:10.1f} million parameters")
print(f"all routed experts      {routed / 1e9:10.1f} billion, {routed / deepseek.parameters:.1%} of the model")
print(f"the model               {deepseek.parameters / 1e9:10.1f} billion")
print(f"used by a token         {active / 1e9:10.1f} billion, {active / deepseek.parameters:.1%} of the model")
print(f"a dense model as large  {deepseek.parameters / active:10.1f} times the operations for each token")

# %% tags=["measure"]
measured("14.active", 100 * active / deepseek.parameters, "%")

# %% [markdown]
# Nearly all of the model is in experts, and a token sees one in 32 of those. (37 billion is what the report says: the
# embedding, of which a token reads one row, is counted here, and in what follows it is not.) In training, and in reading prompts, a GPU is busy
# with operations, and there it is as simple as that: about 18 times the parameters for the same work.
#
# ## What sparse costs
#
# In decoding it is not operations that count but bytes (lesson 07): a step reads the weights once, for however many
# tokens are in it. A step of one token reads 8 of a layer's experts. **A step of 64 tokens, one of each of 64 requests,
# which choose their 8 of 256 experts evenly and independently: how many of a layer's experts does it read?**

# %% tags=["predict"]
predict("14.touched", None, "experts")

# %% [markdown]
# A token leaves an expert out with probability $1 - K/E$, and $n$ tokens all do with that to the power of $n$. So of
# $E$ experts
#
# $$ \text{read} = E\,\Big(1 - \big(1 - \tfrac{K}{E}\big)^n\Big) \tag{1} $$
#
# are read, on average, and each of them for $nK/\text{read}$ tokens. In 8 bits, as DeepSeek-V3 is served, and of weights
# alone (the cache, and attention over it, come on top):

# %% tags=["claim"]
E, K = experts.routed, experts.active
print("tokens     experts read      tokens of    GB read    FLOP for")
print("of a step  in a layer   an expert read    in a step  each byte")
for n in (1, 8, 64, 256, 1024, 8192):
    read = E * (1 - (1 - K / E) ** n)
    step_bytes, used = weights_of_step(deepseek, batch=n, dtype="float8")
    print(f"{n:9,} {read:13.1f} {n * K / read:16.1f} {step_bytes / 1e9:10.0f} {2 * used * n / step_bytes:11.1f}")
h100 = DEVICES["H100 SXM"]
ridge = h100.flops["float8"] / h100.bandwidth
busy = next(
    n for n in range(1, 10_000) if 2 * used * n >= ridge * weights_of_step(deepseek, batch=n, dtype="float8")[0]
)
print(f"an H100 can do {ridge:.0f} FLOP in the time of a byte: DeepSeek-V3 has as many from {busy:,} tokens a step on,")
print(f"a dense model from {ridge / 2:.0f} on")

# %% tags=["measure"]
measured("14.touched", E * (1 - (1 - K / E) ** 64), "experts")

# %% [markdown]
# Sixty-four tokens read nearly all experts, for two tokens each. What a dense model has with a batch of 2, an expert
# has with one of 64: it takes $E/K = 32$ times as many tokens in a step until its bytes are worth reading. (For the
# whole model it is less, for attention and the shared expert see all tokens.) So mixtures are served in large batches,
# with the experts spread over many GPUs. That is lesson 21. In this one they are all here,
# and what you write is what each of those GPUs runs.
#
# ## The layer
#
# A token $x$, $C$ numbers, goes to experts $e_1, \dots, e_K$ with weights $w_1, \dots, w_K$, and to the shared expert:
#
# $$ y = \sum_{j=1}^{K} w_j \cdot \text{expert}_{e_j}(x) + \text{shared}(x), \qquad \text{expert}_e(x) = D_e\,\big(\operatorname{silu}(G_e x) \circ U_e x\big) \tag{2} $$
#
# with $G_e$ and $U_e$ of shape $(I, C)$, $D_e$ of $(C, I)$. The library keeps $G_e$ above $U_e$ in one tensor: `gate_up`
# is $(E, 2I, C)$, `down` is $(E, C, I)$. (The shared expert has what all tokens need, so that the others need not each
# learn it: [DeepSeekMoE](https://arxiv.org/abs/2401.06066).) The $N$ tokens of a step lie in one matrix $(N, C)$, whatever sequences they
# are of.
#
# The plain router: a logit for each expert, a softmax, and the best $K$ of it. This is how mixtures began (GShard, the
# Switch Transformer), and what Mixtral and Qwen3-MoE have:


# %% tags=["claim"]
def plain_router(logits, k):
    """(N, E) -> which experts (N, k), and their weights (N, k)."""
    scores = torch.softmax(logits, dim=-1)
    weights, experts = scores.topk(k, dim=-1)
    return experts, weights / weights.sum(dim=-1, keepdim=True)


logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, 1.0], [1.0, 2.0, 1.5, 0.0]])
chosen, weights = plain_router(logits, 2)
for n in range(3):
    print(f"token {n}: experts {chosen[n].tolist()}, weights {[round(w, 2) for w in weights[n].tolist()]}")
library = route_softmax(logits, 2)
print("as the library's:", torch.equal(chosen, library.experts) and torch.equal(weights, library.weights))
print("loads:", library.loads.tolist())

# %% [markdown]
# (With $K = 1$ a weight that is divided by the sum is 1, whatever the logit, and has no gradient. Switch, where $K$ is 1, takes
# the score itself, in which the softmax has the other logits, too.)
#
# The weights are part of the model, and not only of its plumbing. Which experts are best has no gradient: it jumps. But
# $y$ is differentiable in the *weights* of those that were chosen, and so the router learns: where an expert's answer
# helps, its weight is pushed up, and with it its score.
#
# ## DeepSeek-V3's router
#
# Three things are different.
#
# - **Sigmoids.** An expert's score is made of its own logit alone, and not of all the others':
#
# $$ s = \sigma(W x), \qquad W \text{ is the router's matrix, } (E, C) \tag{3} $$
#
# - **A bias.** Each expert has a number $b_e$ that is added to *choose*, and only then. It is not learnt by a gradient:
#   where an expert has too much to do, its $b_e$ is lowered, and it is chosen less. What its answer is worth has not
#   changed by that, so the weights are made of the scores without it.
# - **Groups.** The experts lie in groups of equal size, on 8 nodes of a cluster, say, and a token may only go to
#   experts of its 4 best groups: then its copies cross the network to at most 4 nodes. A group is as good as its best
#   two experts together, by $s + b$: two, for V3 takes 8 experts of 4 groups; here it is two whatever $K$ is. Let $\mathcal{G}$ be the experts of the groups that stay. What is chosen by is
#
# $$ c_e = \begin{cases} s_e + b_e & e \in \mathcal{G} \\ -\infty & \text{else} \end{cases} \tag{4} $$
#
# The $K$ largest of $c$ are $e_1, \dots, e_K$, and their weights are
#
# $$ w_j = \text{scale} \cdot \frac{s_{e_j}}{s_{e_1} + \dots + s_{e_K} + 10^{-20}} \tag{5} $$
#
# (scale is 2.5 in DeepSeek-V3: [its report](https://arxiv.org/abs/2412.19437), section 2.1.2, and the code that was
# released with it.) The $10^{-20}$ is there since a bias may choose experts that all score 0 in fp32.
#
# ## Exercise (a): the router (30 minutes)
#
# Write (3) to (5). On paper first: two groups of two experts, scores 0.9 and 0.1 in the one, 0.6 and 0.5 in the other.
# Which group stays, and why might one want that? Then let all biases be −2: what is the largest $c$ that an expert in
# $\mathcal{G}$ can have?

# %% tags=["exercise"] exercise="14.router"
import torch

from llmsys.moe import Routing


def route(logits, k, *, bias=None, groups=1, kept_groups=1, normalise=True, scale=1.0):
    """DeepSeek-V3's router: which k experts each token goes to, and how much each of them counts.

    logits       (N, E)  floating point, of any type: all that follows is computed in float32
    k            experts of a token
    bias         (E,)    float32, added to choose (4), and nowhere else; None: zeros
    groups       experts 0 to E/groups − 1 are the first group, the next E/groups the second, and so on
    kept_groups  a token's experts are in its best kept_groups groups, which have at least k. A group is as good as its
                 best two experts together, by s + b; as good as its only one, where it has one
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

# %% [markdown]
# <details><summary>On paper</summary>
#
# The second group stays, with 1.1 against 1.0. A token has several experts in a group, and two good ones
# are worth the journey. With biases of −2 no $c$ is
# above −1, for no sigmoid is above 1; and whoever masks with 0 in place of −∞ chooses only
# experts that are out: vLLM had that bug for a while,
# and took a group to be as good as its best one, too ([#13474](https://github.com/vllm-project/vllm/pull/13474)); and before that the bias
# was in the weights ([#12002](https://github.com/vllm-project/vllm/pull/12002)).
# </details>
#
# Your router goes into the library's layer, whose argument `route=` takes any function with this contract: DeepSeek-V3's
# own settings, 256 experts, and a smaller width.

# %% tags=["claim"]
own_route = mine("14.router", default=route_sigmoid)
print(DEEPSEEK_V3)
torch.manual_seed(0)
layer = MixtureOfExperts(64, 32, DEEPSEEK_V3, shared_size=32)
yours = MixtureOfExperts(64, 32, DEEPSEEK_V3, shared_size=32, route=own_route)
yours.load_state_dict(layer.state_dict())
x = torch.randn(2, 50, 64)
with torch.no_grad():
    (y, routing), (own_y, own_routing) = layer(x), yours(x)
groups = own_routing.experts // (DEEPSEEK_V3.experts // DEEPSEEK_V3.groups)
print("the same layer:", torch.allclose(own_y, y, atol=1e-6))
print("groups that a token goes to: at most", max(len(set(each)) for each in groups.tolist()))
print("weights of a token add up to", sorted({round(float(w), 4) for w in own_routing.weights.sum(-1)}))

# %% [markdown]
# ## Tokens to experts
#
# Next, (2) itself. As it stands there, it is a loop:


# %% tags=["claim"]
def loop(x, experts, weights, gate_up, down):
    """(2) without the shared expert, token by token."""
    y = torch.zeros_like(x)
    for n in range(len(x)):
        for e, w in zip(experts[n].tolist(), weights[n], strict=True):
            y[n] += w * one_expert(x[n], gate_up[e], down[e])
    return y


torch.manual_seed(1)
x, gate_up, down = torch.randn(6, 8), torch.randn(4, 2 * 5, 8), torch.randn(4, 8, 5)
experts = torch.tensor([[2, 0], [2, 3], [0, 2], [3, 2], [2, 0], [0, 2]])
weights = torch.rand(6, 2)
library = run_experts(x, experts, weights, gate_up, down)
print("as the library's:", torch.allclose(loop(x, experts, weights, gate_up, down), library, atol=1e-5))

# %% [markdown]
# Every token reads the matrices of its experts, one after the other: with 6 tokens expert 2 is read six times, for a
# product of one row each. A GPU wants one product of six rows. So bring together what belongs together. Number the
# **assignments**, token $n$'s $j$-th expert is assignment $nK + j$, and sort them by expert:

# %% tags=["claim"]
grouped = group_by_expert(experts, 4)
print("experts, flattened: ", experts.flatten().tolist())
print("order:              ", grouped.order.tolist(), "  the assignment of each row")
print("their tokens:       ", (grouped.order // 2).tolist(), "  order // K")
print("counts:             ", grouped.starts.diff().tolist(), "  rows of each expert")
print("starts:             ", grouped.starts.tolist(), "  where each expert's rows begin")

# %% [markdown]
# Four rows for expert 0, none for expert 1, six for expert 2: the groups are **ragged**, and how ragged is for the
# router to say. Then each expert multiplies its rows, and every result is multiplied by its assignment's weight and
# added to its token.
#
# There is a shortcut that many take. A product of *all* experts at once, `torch.bmm`, wants as many rows of each: so
# fill every expert's rows up with zeros to those of the busiest. What does that cost? It depends on how uneven the
# loads are.
#
# With the library comes a small mixture that was trained on SymPy's sources, byte by byte, **without anything that keeps
# its loads even**: three layers, of which two have 32 experts, and a token goes to 4 of them and to a shared one. Let it read 4,096 bytes of files that it was not
# trained on.

# %% [markdown]
# ## Predict: the busiest expert
#
# **In its most uneven layer, how many times the mean load does the busiest expert get?**

# %% tags=["predict"]
predict("14.busiest", None, "×")

# %% tags=["claim"]
trained = load_unbalanced()
corpus = Corpus.load(byte_tokenizer(), files=LESSON.files)
held_out = corpus.held_out_batches(16, 256)
tokens = held_out[0][:, :-1]  # (16, 256)
with torch.no_grad():
    routings = trained.routed(tokens)[1]  # by layer
busiest = []
for layer, routing in routings.items():
    statistics = load_statistics(routing.loads)
    busiest.append(float(statistics.busiest))
    print(f"layer {layer}: {routing.loads.tolist()}")
    print(f"         the busiest has {busiest[-1]:.1f} × the mean, {int(statistics.idle)} of 32 have nobody")

# %% tags=["measure"]
measured("14.busiest", max(busiest), "×")

# %% [markdown]
# No expert can have more than $E/K = 8$ times the mean: then every token goes to it. Nearly every token does go to one
# expert here, and a few others have nobody at all. A product of all experts at once, filled up to that one, would
# compute so many times the rows that were asked for; and on many GPUs with an expert each, all would wait for it.
#
# ## Exercise (b): dispatch and combine (35 minutes)
#
# Write it for ragged groups. An expert number of −1 is nowhere: an expert on another GPU, or the place of a token that
# is none. In a sort, −1 comes first. And mind experts without a row: what do your counts say of them?

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
    Not allowed: more rows in an expert's product than it was given, or any other matrix product; reading an expert's
    matrices more than once; looking through `experts` again for each of the E experts.
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

# %% [markdown]
# Whose rows are whose was sorted once; each matrix was read once, for as many rows as there are; and no row was
# multiplied for nothing. In the layer, `form=` takes your function: here is the trained mixture, with your router and
# your experts in it, reading the same files.

# %% tags=["claim"]
own_run = mine("run_grouped", default=run_experts)
own_trained = load_unbalanced()
for moe in own_trained.mixtures.values():
    moe.router.route, moe.experts.form = own_route, own_run
with torch.no_grad():
    own_logits, logits = own_trained(tokens), trained(tokens)
print("the same logits:", torch.allclose(own_logits, logits, atol=1e-3))
prompt = "from sympy import "
own_text, text = (generate(model, prompt, max_new_tokens=60) for model in (own_trained, trained))
print("the same text:", own_text.tokens == text.tokens)

# %% tags=["engine"]
print(prompt + own_text.text)

# %% [markdown]
# What is it worth? On this machine, 2,000 tokens, of 32 experts 4 for each, by the three ways. Every expert for every
# token is $E/K = 8$ times the operations of the sorted way, in larger products, which are quicker for their size: is it 8
# times as long? (Token by token, 100 tokens are timed, and 2,000 taken to be 20 times as long.)

# %% tags=["measure"]
torch.manual_seed(2)
N, E, K, C, I = 2000, 32, 4, 128, 128
x, gate_up, down = torch.randn(N, C), torch.randn(E, 2 * I, C) / C**0.5, torch.randn(E, C, I) / I**0.5
routing = route_sigmoid(torch.randn(N, E), K)


def every_expert(x, experts, weights, gate_up, down):
    """All experts for all tokens, and a mask."""
    y = torch.zeros_like(x)
    for e in range(len(gate_up)):
        w = torch.where(experts == e, weights, 0.0).sum(-1, keepdim=True)
        y += w * one_expert(x, gate_up[e], down[e])
    return y


ways = {"token by token": loop, "every expert for every token": every_expert, "sorted, grouped": own_run}
for name, way in ways.items():
    some = slice(0, 100 if way is loop else N)
    start = time.perf_counter()
    with torch.no_grad():
        way(x[some], routing.experts[some], routing.weights[some], gate_up, down)
    seconds = (time.perf_counter() - start) * N / len(x[some])
    print(f"{name:30} {1e3 * seconds:8.1f} ms")

# %% [markdown]
# ## On a GPU
#
# With your function the host has to ask the GPU how many rows each expert has, `counts.tolist()`: it waits for the answer,
# and then the GPU waits for its next launches. With the library's kernels nobody asks. A matrix product works on tiles of rows anyway, say 16 to 128; no tile may
# have rows of two experts; so beside the order there is a table, which tile is which expert's. How many tiles there are
# depends on the loads, but how many there *may* be does not:
#
# $$ \text{tiles} \le \Big\lfloor \frac{NK}{\text{block}} \Big\rfloor + \min(E, NK) $$
#
# full ones, and a ragged one for each expert that has a row. So many programs are launched, those beyond the last tile do
# nothing, and one launch, or one CUDA graph, serves any loads. Here are the twelve assignments of the six tokens above,
# in tiles of 4. (Expert 4 is one more than there are: that marks a tile that is none.)

# %% tags=["claim"]
grouped = group_by_expert(experts, 4, block_m=4)
six, many = experts.shape[0], len(grouped.tile_expert)
print(f"{six} tokens: there may be {six * 2} // 4 + min(4, {six * 2}) = {many} tiles")
print("tile    expert    rows")
for tile, (e, row) in enumerate(zip(grouped.tile_expert.tolist(), grouped.tile_row.tolist(), strict=True)):
    end = min(row + 4, grouped.starts[e + 1].item()) if e < 4 else row
    print(f"{tile:4} {e:9}    {f'{row} to {end - 1}' if e < 4 else 'none: it does nothing'}")

# %% [markdown]
# How fast is that? Rows times the matrix of their expert, in bf16, on an H200, beside PyTorch's own grouped product,
# `torch._grouped_mm`, in the same process. Rows are sorted for both. *Skewed* is a load in which the $n$-th expert has
# $1/n$ of the first one's rows; *one in eight*, that only every eighth expert has rows at all. *dx* and *dweight* are the two products of the backward pass: the gradient of the rows,
# and that of the matrices, in which the ragged dimension is the one that is summed over. (Where experts have a few rows
# each, as in *decode* steps, it is the matrices that take time to read, and GB/s are what counts.)
#
# A *layer* is router, experts and shared expert, of which the experts' products are counted. Beside the library's stands
# the same layer whose experts are torch's operations around `torch._grouped_mm`. Both are timed as CUDA graphs. (It is
# the router's bias that skews a layer's loads.)

# %% tags=["claim"]
speeds = recorded("moe", "H200")
print(f"{speeds.device:36}{'llmsys':>8}{'torch._grouped_mm':>20}{'times as fast':>24}")
by_shape = {}
for row in speeds.rows:
    by_shape.setdefault((row["shape"], row["load"]), {}).setdefault(row["what"], {})[row["name"]] = row
for (shape, load), by_what in by_shape.items():
    print(f"{shape}: {load}")
    unit = ("gbps", "GB/s") if load == "decode" else ("tflops", "TFLOP/s")
    for what, found in by_what.items():
        if {"llmsys", "torch._grouped_mm"} <= found.keys():
            own, peer = found["llmsys"], found["torch._grouped_mm"]
            print(f"    {what:32}{own[unit[0]]:8,.0f}{peer[unit[0]]:20,.0f} {unit[1]:9}{own['ratio']:14.2f}")

# %%
viz.mixture_of_experts.grouped_speed(speeds)

# %% [markdown]
# (The green crosses are the layer with a loop over experts, whose host waits for their loads.)
#
# What does a **skewed load** cost? Something can be counted beforehand: the last tile of an expert is not full, and all of
# it is computed.

# %% tags=["claim"]
speed = {(row["R"], row["load"], row["what"], row["name"]): row["tflops"] for row in speeds.rows if "R" in row}
for shape in MEASURED:
    if shape.load != "skewed":
        continue
    loads = shape.loads()
    computed = sum(-(-rows // 128) * 128 for rows in loads)  # in tiles of 128 rows
    print(f"{shape.R:,} rows, {min(loads):,} to {max(loads):,} an expert:", end=" ")
    print(f"{computed / shape.R - 1:.0%} more are computed", end="")
    print("; product, dx, dweight are slower by", end="")
    for name in ("llmsys", "torch._grouped_mm"):
        slower = [
            1 - speed[shape.R, "skewed", what, name] / speed[shape.R, "even", what, name]
            for what in ("product", "dx", "dweight")
        ]
        print(f" {', '.join(f'{each:.0%}' for each in slower)} ({name.split('.')[0]})", end="")
    print()
took = {
    row["load"]: row["ms"]
    for row in speeds.rows
    if (row["name"], row["what"], row.get("R")) == ("llmsys", "dweight", 65_536)
}
shape = next(shape for shape in MEASURED if shape.load == "one in eight")
zeros = shape.loads().count(0) * shape.IN * shape.OUT * 2  # bytes, in bf16
print(f"dweight, one in eight: {took['one in eight']:.2f} ms, where even loads take {took['even']:.2f}.", end=" ")
print(f"{shape.loads().count(0)} experts have no row: their zeros are {zeros / 1e9:.2f} GB,", end=" ")
print(f"{1e3 * zeros / DEVICES['H200'].bandwidth:.2f} ms at least")

# %% [markdown]
# In product and dx that is, with 65,536 rows, all of it for the library's kernels. With half as many rows and larger
# matrices a skewed load costs the two a quarter, and torch's a fifth: there torch is ahead. Of that the rows of tiles are
# less than half; what the rest is the record does not say.
#
# In the table the largest fall is another one: *dweight*, where **one expert in eight** has rows. An expert without any
# has a gradient all the same, of zeros, which must be written, and that can be nearly all of the difference. Torch's falls
# as far.
#
# But on *one* GPU one busy expert does not make the others wait: it has many tiles, and tiles are dealt to the GPU's
# multiprocessors whosever they are. With the experts on many GPUs, each waits for the one with the most rows.
#
# **Whole layers** gain more than their products: 1.34 times and more, with the backward pass 1.40, where no product of
# as many rows gains more than 1.23. What can be counted of the reason is memory's traffic between the products. Torch's
# operations write three tensors there, for the next operation to read: $\operatorname{silu}$ of the gate, $(NK, I)$;
# the experts' results, back in the order of the tokens, $(NK, C)$; and these times their weights, $(NK, C)$, before
# they are added up. In the library `gated_silu` reads gate and up and writes their product at once, and `unpermute`
# reads a token's $K$ results where they lie, weights them, adds them up in registers, and writes the sum. So none of
# the three is made. (`permute` copies each token to its $K$ rows; that is the same in both.) How much is it?

# %% tags=["claim"]
even = [row for row in speeds.rows if row["load"] == "even"]
layers = {row["name"]: row for row in even if row["what"] == "layer forward"}
ours, torchs = layers["llmsys"], layers["torch._grouped_mm"]
rows_of_layer = ours["N"] * ours["K"]
tensors = 2 * rows_of_layer * (ours["I"] + 2 * ours["C"])  # bytes, in bf16
bandwidth = DEVICES["H200"].bandwidth
print(f"the three tensors have {tensors / 1e9:.2f} GB. To write and to read them takes", end=" ")
print(f"{2e3 * tensors / bandwidth:.2f} ms at least, at {bandwidth / 1e12:.1f} TB/s")
ms = {(row["what"], row["name"]): row["ms"] for row in even if row.get("R") == rows_of_layer}
product, dx = (ms[what, "torch._grouped_mm"] - ms[what, "llmsys"] for what in ("product", "dx"))
print(f"products: gate and up are two of the product above, down is as large as dx: {2 * product + dx:.2f} ms less")
print(f"the layer, forward: {ours['ms']:.2f} ms, torch's {torchs['ms']:.2f}: {torchs['ms'] - ours['ms']:.2f} ms less")
print(f"a loop over experts: {layers['loop']['ms']:.2f} ms, {layers['loop']['ms'] / ours['ms']:.1f} times as long")

# %% [markdown]
# Products and tensors together are half of the difference. The rest the record does not divide up: 4.8 TB/s is the data
# sheet's, which no copy reaches, and torch's form has more kernels to begin and to end. With the backward pass there is
# more of the same: for torch the gradient of a gather is a scatter, which adds up into a tensor of zeros. The library
# knows the token of every row and the rows of every token, so it gathers there, too, with the weights in the same kernel
# (`llmsys/moe/experts/rows.py`).
#
# In a decode step it is the other way round: 1.24 for the layer, whose gate and up alone (128 experts, 512 rows) gain
# 1.43. Router and shared expert are the same in both layers, and a larger part there.
#
# (For Hopper the library has kernels of its own, in `llmsys/moe/experts/hopper_kernels.py`, with what lesson 06 is about:
# a warp that only loads, others that only multiply. Those for all other GPUs are plain Triton, a page each:
# `llmsys/moe/experts/matmul_kernels.py`.)

# %% [markdown]
# ## The rich stay rich
#
# Why are the loads of that model as they are? The usual explanation: at the beginning all tokens look much alike to a
# router, and a random matrix sends most of them to the same few experts. (You will see that below.) These get most of the
# learning, so others have no reason to be scored higher. The matrices of an expert that is never chosen get no gradient
# from the model's loss, and with (5) its score gets none either; with Switch's it does. In the runs that are shown further down, loads are
# uneven from the first steps on, and stay so. There is nothing in the model's loss against it: it wants good answers, and
# does not know what a GPU is.
#
# The classic remedy is a second loss. For $T$ tokens, let $f_e$ say how often expert $e$ was chosen, and $P_e$ how much
# it was scored, with each token's scores divided by their sum:
#
# $$ f_e = \frac{E}{K T} \sum_{t} [\,e \text{ is one of } t\text{'s}\,], \qquad P_e = \frac{1}{T} \sum_{t} \frac{s_{t,e}}{\sum_{e'} s_{t,e'}}, \qquad L = \sum_e f_e P_e \tag{6} $$
#
# Where all is even, every $f_e$ is 1 and every $P_e$ is $1/E$, and $L$ is 1. Where one expert has all tokens and all
# score, $L = E$ (for $K = 1$). $f$ is a count and has no gradient. It says how hard to pull at $P_e$: the scores of an
# expert that was chosen often are lowered, against those of the others. $\alpha L$ is added to the model's loss.

# %% tags=["claim"]
even = Routing(torch.arange(8).view(4, 2) % 4, torch.full((4, 2), 0.5), torch.full((4, 4), 0.5))
scores = torch.tensor([[0.9, 0.1, 0.1, 0.1]]).repeat(4, 1)
one_for_all = Routing(torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, 1), scores)
print(f"even loads, even scores:       L = {balance_loss(even):.2f}")
share = scores[0, 0] / scores[0].sum()
print(f"one expert has all the tokens, and {share:.2f} of the score: L = {balance_loss(one_for_all):.2f}")
scores.requires_grad_()
balance_loss(Routing(one_for_all.experts, one_for_all.weights, scores)).backward()
print("what a step down its gradient does to each score:", [f"{-g:+.2f}" for g in scores.grad[0].tolist()])

# %% [markdown]
# It works. Does it have a price? The gradient of $\alpha L$ comes on top of the one that makes the model better. Take
# both, of the trained mixture's routers and of the same mixture's with random weights, on the text that it has just read:

# %% tags=["claim"]
torch.manual_seed(0)
for when, learning in {
    "random weights": MixtureLlama(trained.config, byte_tokenizer()),
    "trained": load_unbalanced().requires_grad_(True),
}.items():
    x, routings = learning.routed(tokens)
    own = token_loss(learning.head(x[:, :-1]), tokens[:, 1:])
    for layer, routing in routings.items():
        matrix = learning.mixtures[layer].router.weight
        (ours,) = torch.autograd.grad(own, matrix, retain_graph=True)
        (balancing,) = torch.autograd.grad(balance_loss(routing), matrix, retain_graph=True)
        cosine = torch.cosine_similarity(ours.flatten(), balancing.flatten(), dim=0)
        longer = float(f"{float(balancing.norm() / ours.norm()):.1g}")  # one digit
        most = float(load_statistics(routing.loads).busiest)
        print(f"{when}, layer {layer}: busiest {most:.1f} × the mean; cosine of the two gradients", end=" ")
        print(f"{cosine:+.1f}, that of L about {longer:.0f} times as long")

# %% [markdown]
# In the trained model they are about at right angles, as directions are that have nothing to do with each other: a step down
# the one is a step sideways for the other. (At the beginning they have something in common.) And $L$'s is by far the longer
# one, at both ends of a training: with an $\alpha$ of 0.01, Switch's, 20 become 0.2, and 200 become 2. So $\alpha$ has to be small, or it drowns what the
# model wants; and not too small, or it balances nothing. Somebody has to search for it. (Whether the model becomes worse
# is measured further down.)
#
# DeepSeek-V3 does without. Its bias is outside of the gradient. After each step of the optimiser, look at the loads of
# that step, all batches and all GPUs together, and move each expert's bias one step, of one size, against them:
#
# $$ b_e \leftarrow b_e + \gamma \cdot \operatorname{sign}\big(\overline{\text{load}} - \text{load}_e\big) \tag{7} $$
#
# with $\gamma = 0.001$ for 14.3 of 14.8 trillion tokens and then 0 ([its report](https://arxiv.org/abs/2412.19437),
# section 4.2). A controller, and not a loss. Nothing in the model has to agree to it.
#
# ## Exercise (c): the bias (10 minutes)
#
# Write (7), in place. Two lines, in which there is room for a number of mistakes: what is compared with what, in which
# direction, and what becomes of somebody who has exactly the mean?


# %% tags=["exercise"] exercise="14.bias"
def move_bias(bias, loads, rate):
    """Moves the router's bias by one step against the loads, in place (7). Returns nothing.

    bias   (E,)  float32; this tensor is to change
    loads  (E,)  int64: how many tokens each expert was given in this step, summed over all batches and GPUs; any
                 number, also above 2²⁴
    rate   γ, at least 0
    """
    ### BEGIN SOLUTION
    missing = loads.sum() - len(loads) * loads  # E times (mean − load), in whole numbers
    bias += rate * missing.sign()
    ### END SOLUTION


# %% tags=["check"] exercise="14.bias"
check("14.bias", move_bias)

# %% [markdown]
# The counts come from the layers as *results* of the forward pass, and the trainer adds them up over the batches of a
# step and over all GPUs before it hands them to `model.after_step`. Were they added up in a buffer of the layer while
# it runs, a layer that is computed again in the backward pass, to save memory, would count its tokens twice.

# %% [markdown]
# ## What a batch does not see
#
# There is a choice hidden in (6): *which* $T$ tokens? Switch takes those of the batch. Let a batch have two sequences,
# of Python and of Latin, say, and let the first go to experts 0 and 1 and the second to 2 and 3, always:

# %% tags=["claim"]
T = 8
experts = torch.cat([torch.tensor([[0, 1]]).repeat(T, 1), torch.tensor([[2, 3]]).repeat(T, 1)])
scores = torch.full((2 * T, 4), 0.1).scatter(1, experts, 0.9)
specialists = Routing(experts, torch.full((2 * T, 2), 0.5), scores)
print("loads of the batch:      ", specialists.loads.tolist(), f"  L = {balance_loss(specialists):.2f}")
for n, part in enumerate(experts.split(T)):
    alone = Routing(part, specialists.weights[:T], scores[n * T : (n + 1) * T])
    print(f"loads of sequence {n}:     ", alone.loads.tolist(), f"  L = {balance_loss(alone):.2f}")

# %% [markdown]
# In the batch the loads are perfectly even, and the loss of the batch has nothing to say. The bias has nothing to do
# either: it sees the same sums. But in each sequence half of the experts do everything.
#
# Is that bad? Not for the model: those *are* specialists, and a loss that forbids them costs some of what experts are
# for. Nor in training, where a GPU sees many sequences at once. It is bad where a step has few sequences: one long prompt
# in a service of many GPUs runs on those few that hold its experts. So DeepSeek-V3 has a loss by sequence as well, with
# a very small weight, $\alpha = 0.0001$, against the extremes ([its report](https://arxiv.org/abs/2412.19437), sections
# 2.1.2 and 4.2): (6) of each sequence by itself, and the mean of that.
#
# ## Exercise (d): the loss by sequence (20 minutes)
#
# Write it. Which tensors have a row for each sequence?

# %% tags=["exercise"] exercise="14.sequence_loss"
import torch


def sequence_loss(routing, *, sequences=1):
    """The balance loss (6) of each sequence by itself: the mean over sequences, a float32 tensor of shape ().

    routing.experts  (N, K)  int64: the experts of each token, all different
    routing.scores   (N, E)  float32, at least 0: of all experts. Both may be views, and not contiguous
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

# %% [markdown]
# The two specialists again, and the real thing: the mixture that was trained without balancing; and a small DeepSeek-V3,
# the model of lesson 15, which was trained as V3 was, with the bias and with a loss by sequence of that very small weight.
# (It is another model, with 4 of 16 experts for a token. So no expert of it can have more than 4 times the mean, where
# in the first it was 8.) Of each layer, the loss of the batch and yours, by sequence:

# %% tags=["claim"]
own_loss = mine("sequence_loss", default=balance_loss)
print(f"the two specialists: L of the batch {balance_loss(specialists):.2f}", end="")
print(f", by sequence {own_loss(specialists, sequences=2):.2f}")
two = {"nothing": trained, "bias and loss": load_balanced()}
for kept_even, model in two.items():
    with torch.no_grad():
        routings = model.routed(tokens)[1]
    for layer, routing in routings.items():
        whole, each = balance_loss(routing), own_loss(routing, sequences=len(tokens))
        most = load_statistics(routing.loads).busiest
        print(
            f"trained with {kept_even}, layer {layer}: busiest {most:.1f} × the mean; L of the batch {whole:.2f}",
            end="",
        )
        print(f", by sequence {each:.2f}")

# %% [markdown]
# A single sequence is a little less even than the batch. And with a bias the loss can even be below 1, which
# looks like more than even. It is not: 1 is where loads *or* scores are even, and less is where experts with high scores
# are chosen seldom. A bias does that: it works against the scores.
#
# Is a busiest expert with 1.6 times the mean even? Those were 16 excerpts, and the bytes of one go together: far fewer
# independent choices than 4,096. And they are of files that the model
# never saw. Loads follow the text. Over 32 batches, eight times as many bytes, of such files and of those that it was trained on:

# %% tags=["claim"]
batches = corpus.batches(8, 128, seed=1)
for kept_even, model in two.items():
    for files, some in (("held-out", corpus.held_out_batches(8, 128)), ("training", batches)):
        with torch.no_grad():
            each = [model.routed(some[n][:, :-1])[1] for n in range(32)]
        found = [float(load_statistics(sum(by[layer].loads for by in each)).busiest) for layer in model.mixtures]
        most = " and ".join(f"{most:.2f}" for most in found)
        print(f"trained with {kept_even}, 32 batches of {files} files: the busiest of each layer {most} × the mean")

# %% [markdown]
# ## Watch it
#
# Those batches go by the router of layer 1, whose matrix the training without any balancing has left behind. The stepper
# asks your `move_bias` and your `sequence_loss`. It begins with the bias on. Try other steps, then only the loss, then
# neither, and look at three things:
#
# - how soon the busiest expert comes down, and how far, with each size of step;
# - what it takes: with the bias a part of the choices is no longer what the scores alone would say, and the scores stay
#   as they are; with the loss it is the other way round, the scores themselves are moved;
# - the orange bars, the batch's first sequence by itself: does anything even those? (The number beside them, *in a
#   sequence*, is the mean over all sequences of the batch: of each by itself, its busiest expert.)
#
# How hard the loss pulls is a number that was chosen for this picture: a step goes 0.3 of its gradient. With a larger one it
# would even out more, as the bias does with a larger $\gamma$. So compare the ways in what they do, and not in how far they get. <!-- source: PULL in llmsys/viz/mixture_of_experts/stream.py -->

# %% tags=["widget"]
own_move = mine("move_bias", default=library_move_bias)
router = trained.mixtures[1].router
going_by = passing(trained, [batches[n][:, :-1] for n in range(32)], 1)
viz.mixture_of_experts.stepper(going_by, router.weight.detach(), router.config, move=own_move, balance=own_loss)

# %% [markdown]
# (Only the router learns here, and only from the balance loss: in training, the model's own loss has its say, and the
# router learns along with the bias.) In numbers, after the last batch:

# %%
print("γ       loss        busiest × mean   in a sequence   chosen as by scores alone   scores moved by")
for rate, loss in ((0.0, ""), (0.003, ""), (0.01, ""), (0.03, ""), (0.0, "batch"), (0.0, "sequence")):
    ways = dict(rate=rate, loss=loss, move=own_move, balance=own_loss)
    last = stream(going_by, router.weight.detach(), router.config, **ways)[-1]
    print(f"{rate:<7g} {loss or 'none':10} {last.busiest[-1]:15.1f} {last.of_sequences:15.1f}", end="")
    print(f" {last.own_choice:27.0%} {last.moved:17.2f}")

# %% [markdown]
# A small step is slow, and a large one overshoots: it never comes to rest. A single sequence stays less even than the batch,
# by the loss of its own, too: it has 128 bytes, and they are of one text. (Where the two are equal, in the first two rows, one
# expert is the busiest of every sequence.)

# %% [markdown]
# ## Four ways, twelve runs
#
# A mixture of 27 million parameters, with 32 experts in each of five layers, 4 of them for a token, was
# trained on an H200 in four ways: with nothing that keeps its loads even;
# with $\alpha L$ by sequence, and by batch; and with the bias alone. The same budget, and for each way three seeds, which
# are those of the first weights and of the order of the batches, the same three for all ways. **By how many percent is the held-out loss of the
# worst of the four ways above that of the best?** (Means over the seeds.)

# %% tags=["predict"]
predict("14.price", None, "%")

# %% tags=["claim"]
record = recorded("moe_training", "H200")
first = record.rows[0]
print(f"{first['model']}, {first['active'] / 1e6:.1f}M for a token; ", end="")
print(f"{first['steps']} steps of {first['tokens_a_step']:,} bytes, on {record.device}")
print(f"{'':10}{'α':>6}{'γ':>7}   held-out loss, over seeds       busiest × mean there     the same in a sequence")
means, spreads = {}, {}
for name in ("none", "sequence", "batch", "bias"):
    runs = [row for row in record.rows if row["name"] == name]
    losses, inside = ([row[what] for row in runs] for what in ("loss", "in_sequence"))
    means[name], spreads[name] = fmean(losses), max(losses) - min(losses)
    ends = [float(load_statistics(torch.tensor(row["loads"])).busiest.mean()) for row in runs]  # the mean over layers
    print(f"{name:10}{runs[0]['alpha']:6g}{runs[0]['rate']:7g}   ", end="")
    print(f"{means[name]:.4f} ({min(losses):.4f} to {max(losses):.4f})", end="")
    print(f"{fmean(ends):9.2f} ({min(ends):.2f} to {max(ends):.2f})", end="")
    print(f"{fmean(inside):13.2f} ({min(inside):.2f} to {max(inside):.2f})")
paired = zip(*([row["loss"] for row in record.rows if row["name"] == name] for name in ("sequence", "none")), strict=True)
print("sequence less none, seed by seed:", ", ".join(f"{ours - none:+.4f}" for ours, none in paired))
apart, best, widest = max(means.values()) - min(means.values()), min(means.values()), max(spreads.values())
print(
    f"the ways are {apart:.4f} apart, {apart / best:.1%}; the seeds of one way up to {widest:.4f}, {widest / best:.1%}"
)

# %% tags=["measure"]
measured("14.price", 100 * apart / best, "%")

# %%
viz.mixture_of_experts.training_arms(record)

# %% [markdown]
# **The losses** first, in the upper row. The four ways are 0.6% apart, and the seeds of a single way up to 7.3%. Nor does it
# help to compare seed by seed: the loss by sequence ends below *none* with two of them, and above it with the third. So these runs do not
# say which way gives the better model, not even whether balancing costs anything; three seeds are far too few for
# a difference as small as this one, if there is any. DeepSeek reports for models of a billion parameters 2.258 with the
# loss by sequence, and 2.253 with the loss by batch and with the bias ([its report](https://arxiv.org/abs/2412.19437),
# section 4.5.3): 0.2%, in runs that are far longer. Whoever tells you that one of these is better by a few
# tenths of a percent, ask for the seeds. (Why the runs without balancing lie so near each other these twelve do not say
# either; of three, that may be chance.)
#
# **The loads**, in the lower row, are another matter. The ways are much further apart than their seeds, but for the two with a balance loss. (What
# is shown is the mean over the five layers, and not the worst of them. The curves are of training steps; table and lower
# right are of held-out text, where loads are a little less even.)
#
# - Without anything, the busiest experts have five to seven times the mean all the time, 5.40 on held-out text at the end.
# - Either loss brings that down to about 1.3 within 200 steps, with an $\alpha$ of 0.01, which somebody had to find: it is
#   Switch's.
# - The bias is slow. It moves by $\gamma = 0.001$ a step, so by a quarter at most in 250 steps, and where it would end these
#   runs do not say. The small DeepSeek-V3 from above has had 700 steps with the same $\gamma$, and over its training files its
#   busiest experts have 1.09 and 1.14 times the mean. But it has 16 experts, in groups, and had the loss by sequence as well:
#   how much of that is the bias's, it does not say. <!-- source: SHIPPED_TRAINING and BALANCE in llmsys/bench/mla_training.py -->
# - Within a single sequence, last column, the loss by sequence is the most even, 2.02 against 2.31 of the loss by batch,
#   and no seed of the one comes near the other. That is what it is for.
#
# What each costs: nothing at all costs GPUs that wait, and experts that are paid for and do not work. A loss costs the
# search for $\alpha$, and a pull at the weights. The bias costs a rate, and the steps until
# it has arrived.

# %% [markdown]
# ## All of it is yours
#
# Last, a mixture that is trained from nothing on this machine, in the library's trainer, in the same four ways, with
# your code wherever you have written some: the router in each layer, the experts, the bias in the trainer's hook after
# each step, the loss by sequence. It is 80 steps of 1,024 bytes
# for each way, which may take minutes: far too few for a verdict about losses, and enough to see what becomes of the loads. (In
# so short a run $\gamma$ is ten times what it was above.)


# %% tags=["engine"]
class Own(MixtureLlama):
    """A mixture with your code in it. The trainer calls `training_step` for each batch, and `after_step` after each step
    of the optimiser, with the loads of all its batches."""

    def __init__(self, config, tokenizer, balance):
        super().__init__(config, tokenizer, balance=balance, form=own_run)
        for moe in self.mixtures.values():
            moe.router.route = own_route
        self.loads = []

    def training_step(self, tokens, backend):
        x, routings = self.routed(tokens[:, :-1], backend)
        loss, terms = token_loss(self.head(x), tokens[:, 1:]), {}
        if self.balance.alpha:
            sequences = len(tokens) if self.balance.loss == "sequence" else 1
            terms["balance"] = self.balance.alpha * sum(
                own_loss(each, sequences=sequences) for each in routings.values()
            )
        return TrainingStep(loss, terms, {layer: each.loads for layer, each in routings.items()})

    def after_step(self, loads):
        self.loads.append(torch.stack(list(loads.values())))  # (layers, E)
        if self.balance.rate:
            for layer, moe in self.mixtures.items():
                own_move(moe.router.bias, loads[layer], self.balance.rate)


print(f"{'':10} held-out loss   busiest × mean, over the last 10 steps")
for name, balance in LESSON.arms().items():
    torch.manual_seed(0)
    own = Own(LESSON.model, byte_tokenizer(), balance)
    run = train(own, corpus, LESSON.training)
    last = load_statistics(torch.stack(own.loads[-10:]).sum(0)).busiest
    print(f"{name:10} {run.held_out[LESSON.training.steps]:13.3f}   {[round(float(each), 1) for each in last]}")

# %% [markdown]
# Neither losses nor loads are in the order of the record, and neither run is wrong. The bias, which was slow there, is ten times
# as fast here. The losses, with the same $\alpha$ of 0.01, are slower: in the record they had the busiest experts below twice
# the mean after as many steps. Steps there have 24 times the bytes, and model and learning rate are others; which of these
# it is, these runs do not say. <!-- source: LESSON and FULL in llmsys/bench/moe_training.py; "busiest" in the record, steps 76 to 80 -->
# How long a run is, and
# how $\alpha$ and $\gamma$ were chosen, is part of what is compared: whoever wants one of the ways to look best has only to
# choose them.
#
# ## Where experts lie
#
# Loads that are even over a training run are not even for the questions that are asked today. Serving has one remedy
# more: the busiest experts are put on several GPUs, and all are dealt to GPUs so that these have about the same to do.
# DeepSeek publishes how it does that, [EPLB](https://github.com/deepseek-ai/EPLB). The worked example of its README: two
# layers, 12 experts in 4 groups, 16 places on 8 GPUs of 2 nodes, groups whole on a node.

# %% tags=["claim"]
loads = torch.tensor([
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
])  # fmt: skip
placement = place_experts(loads, physical=16, gpus=8, nodes=2, groups=4)
once = load_statistics(loads.double()).busiest
for layer in range(2):
    twice = [e for e, n in enumerate(placement.replicas[layer].tolist()) if n > 1]
    gpus = load_statistics(placement.gpu_loads(loads)[layer]).busiest
    print(f"layer {layer}: busiest expert {once[layer]:.3f} × the mean; experts {twice} are there twice;", end=" ")
    print(f"busiest GPU {gpus:.3f} × the mean")

# %% [markdown]
# Four experts of twelve are there twice. The busiest expert has 2.126 and 2.045 times the mean of the 12 experts; the
# busiest GPU has 1.208 and 1.242 times the mean of the 8 GPUs, as follows from the placement that EPLB's README prints.
#
# ## What production does differently
#
# - **vLLM**: `fused_moe` sorts by expert with `moe_align_block_size`, whose table of tiles is the one above, and has one
#   Triton kernel for both products of any model; `FusedMoE` chooses among that, CUTLASS, DeepGEMM and others, by shape
#   and type. `grouped_topk` is your router, and `EplbState` moves experts while it serves.
# - **DeepGEMM** ([its repository](https://github.com/deepseek-ai/DeepGEMM)): `m_grouped_fp8_gemm_nt_contiguous` is this
#   lesson's product in 8 bits, for prompts and training, with each expert's rows begun at a multiple of a tile;
#   `m_grouped_fp8_gemm_nt_masked` is for decoding under CUDA graphs: rows filled up to a maximum, and a count that only the GPU knows.
# - **Megatron-LM**: `TopKRouter` has all of it: `aux_loss` (of the batch), `seq_aux_loss`, `global_aux_loss`,
#   `moe_router_enable_expert_bias` and `moe_router_bias_update_rate`; `MoEAlltoAllTokenDispatcher` permutes, and
#   `TEGroupedMLP` multiplies. `moe_expert_capacity_factor` still drops what is too much, as GShard did; with
#   ragged groups nothing has to be dropped.
# - **PyTorch** has `torch._grouped_mm`, the peer in the record above.
# - **DeepSeek**: [DeepEP](https://github.com/deepseek-ai/DeepEP) takes tokens to experts on other GPUs and back: lesson
#   21's subject, for which the library's layer has an argument, `dispatch=`.
# - Papers: [GShard](https://arxiv.org/abs/2006.16668) and the [Switch Transformer](https://arxiv.org/abs/2101.03961)
#   (capacity, and the loss by batch); [Mixtral](https://arxiv.org/abs/2401.04088);
#   [MegaBlocks](https://arxiv.org/abs/2211.15841) (ragged groups in place of dropped tokens);
#   [DeepSeekMoE](https://arxiv.org/abs/2401.06066) (many small experts, and shared ones);
#   [Wang et al., 2024](https://arxiv.org/abs/2408.15664) (the bias); [DeepSeek-V3](https://arxiv.org/abs/2412.19437).
#
# ## Do you have it?
#
# <details><summary><b>1.</b> Somebody initialises all biases with 100, to be far from 0/0 and negative numbers. What changes? And why would you
# still not do it?</summary>
#
# Against 0/0 nothing: a bias is in no weight. And in exact arithmetic nothing else: all $c$ are 100 higher, and the order is the same, in groups, too (200 for each). But near
# 100 fp32 has a number every 0.0000076, and near 0.5 every 0.00000006: scores that differ by less are equal then, and
# steps of γ are rounded. The mask of 0 would seem to work, until a bias has come down far enough. <!-- source: 2^-17 and 2^-24 -->
# </details>
#
# <details><summary><b>2.</b> The bias has evened the loads of the training batches perfectly. A customer then serves requests in one
# language that was a fiftieth of the training text. What do the loads look like, which of the remedies of this lesson helps, and
# which does not?</summary>
#
# They are uneven: the biases balance the mixture of texts that was trained on, and this is another one. The sequence's
# loss would have helped a little, for it evens each sequence by itself, but its weight is tiny by design. Moving the
# biases while serving would even the loads, and change the answers: which expert a token goes to would depend on who
# else is being served. What helps is placement: copies of the busy experts, from today's loads.
# </details>
#
# <details><summary><b>3.</b> Your grouped product is right for every test. In training, the loads of the last layers add up to twice the
# step's assignments, those of the first ones do not. Some layers are recomputed. Where do you look first?</summary>
#
# At where loads are counted. A layer that is computed again in the backward pass counts its tokens again, if it counts
# by itself: twice for layers that are recomputed. (Sums over GPUs that are taken twice would be too large in all layers.) Loads
# that are returned by the forward pass, and added up by the trainer alone, cannot.
# </details>
#
# **Next:** lesson 15, Multi-head latent attention, the other half of DeepSeek-V3's layer.
