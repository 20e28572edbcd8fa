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
# # 20 · Pipeline schedules
#
# A model that is too large for one GPU must be cut, and there are two ways to cut it: across every matrix, or between
# the layers. Between the layers is the cheap one: only activations cross the cut. The GPUs are a pipeline then, and
# batches go through it in small parts. But a GPU can compute nothing before its input has come, and so GPUs stand idle
# at the beginning and at the end of every step. That is the **bubble**.
#
# **The idea:** what each GPU does, in which order, is *data*: a list of actions a GPU. One rule says what must be done
# before what. From the list and the rule follow whether it can work at all, how long it takes, how much memory it
# needs, and its picture. So schedules can be proved, simulated and drawn before anybody trains with them.
#
# You will write that rule, the order that most of the world trains with, the simulator, and the trick that takes two
# thirds of its bubble away. Your order then trains a real model on two ranks, and is measured. And we look at the
# schedule of DeepSeek-V3, and at where its formula stops holding. You need no GPU for any of it.

# %% tags=["setup"]
import itertools
from dataclasses import replace
from functools import partial

from llmsys import viz
from llmsys.bench import recorded
from llmsys.course import check, hint, measured, mine, predict
from llmsys.hardware.devices import DEVICES
from llmsys.lessons.lesson_20_pipeline_schedules.given import given_fill, given_order
from llmsys.lessons.lesson_20_pipeline_schedules.leaderboard import leaderboard
from llmsys.models.shapes import SHAPES
from llmsys.parallel import execute, pipeline
from llmsys.parallel.pipeline import B, Costs, F, Schedule, linear, simulate, validate
from llmsys.viz.pipeline_schedules.recorded_runs import timeline_of
from llmsys.viz.pipeline_schedules.stepped import given_step, in_steps

# %%
viz.pipeline_schedules.overview()

# %% [markdown]
# ## Predict: what crosses the wires?
#
# DeepSeek-V3 has 61 layers, and 7,168 numbers for a token between two of them. Take a microbatch of 4,096 tokens in
# `bfloat16`. <!-- source: SHAPES["DeepSeek-V3"] in llmsys/models/shapes.py --> Call the activations between two layers
# $A$ bytes: tokens × width × 2.
#
# - *Across the matrices* (tensor parallelism), over 8 GPUs: each has an eighth of every matrix, and computes a part of
#   each sum. The parts are added up by an **all-reduce** of $A$ bytes after attention and after the MLP, in the forward
#   and in the backward: 4 in each layer. In a ring each of $t$ GPUs sends $2 \frac{t-1}{t} A$ bytes for one all-reduce.
# - *Between the layers*, in 16 stages: over each of the 15 cuts, $A$ bytes go forward and the gradient of as many comes
#   back.
#
# **How many times as many bytes does the first send**, all GPUs together, for one microbatch?

# %% tags=["predict"]
predict("20.bytes", None, "×")

# %% [markdown]
# ## Why pipeline at all

# %% tags=["claim"]
model, tokens, t, stages = SHAPES["DeepSeek-V3"], 4096, 8, 16
A = tokens * model.width * 2
sent_by_tensor = model.layers * 4 * 2 * (t - 1) * A
sent_by_pipeline = 2 * (stages - 1) * A
print(f"A = {A / 2**20:g} MiB")
print(f"across the matrices: {sent_by_tensor / 2**30:6.1f} GiB, {sent_by_tensor / t / 2**30:5.1f} by each of {t}")
print(f"between the layers:  {sent_by_pipeline / 2**30:6.1f} GiB, {2 * A / 2**30:5.1f} by each of {stages}")

# %% tags=["measure"]
measured("20.bytes", sent_by_tensor / sent_by_pipeline, "×")

# %% [markdown]
# Bytes become time on a wire. DeepSeek had H800s, made for export to China: an H100's arithmetic, with NVLink cut from
# 900 to 400 GB/s, half of it in each direction ([Zhao et al., 2025](https://arxiv.org/abs/2505.09343)). Between
# machines InfiniBand has 50 GB/s. DeepSeek-V3 uses 37.6 billion parameters for a token, and a training step takes 6
# operations for each of them: 2 forward, 4 backward. <!-- source: 37,552,282,624, counted from the released
# configuration, without multi-token prediction -->

# %% tags=["claim"]
h800, h100 = DEVICES["H800"], DEVICES["H100 SXM"]
arithmetic = 6 * 37.55e9 * tokens / h800.flops["bfloat16"]  # of the microbatch, on one GPU at its peak, s
print("one microbatch, ms           arithmetic   communication")
for gpu in (h100, h800):
    wire = sent_by_tensor / t / (gpu.interconnect / 2)
    print(f"each of  8, {gpu.name:9} NVLink {1e3 * arithmetic / t:9.1f} {1e3 * wire:12.1f}")
print(f"each of 16, InfiniBand       {1e3 * arithmetic / stages:9.1f} {1e3 * 2 * A / 50e9:12.1f}")

# %% [markdown]
# Across the matrices, an H800 would send for longer than it computes; and nobody computes meanwhile, for what comes next
# in the layer needs the sum. A stage sends for a twenty-fifth of its time, over the slowest wire in the house, and can compute meanwhile. So DeepSeek-V3
# was trained with 16 stages, and with no matrix cut across ([its report](https://arxiv.org/abs/2412.19437), section
# 3.2).
#
# The price is what this lesson is about.
#
# ## What has to wait for what
#
# A model in $S$ **stages**, 0 to $S − 1$. A batch in **microbatches**, whose gradients are added up. For one microbatch
# at one stage there is a **forward**, F: it takes the output of the stage before, and keeps activations for later. And
# there is a **backward**, B. Look into one, at a single matrix, $y = xW$. From the gradient $dy$ of its output it
# computes two things:
#
# $$ dx = dy\,W^\top \qquad\qquad dW = x^\top dy \tag{1} $$
#
# $dx$ is what the layer before waits for, and in the end the stage before. $dW$ is for the optimiser, at the end of the
# step, and nobody else. (A stage has many layers. The gradient of its last output comes from the next stage; the $dy$
# of all layers before that are made inside it, by $dx$ after $dx$. Only then can all of its $dW$ be computed.) The
# library writes **I** for the backward for the input (all of a stage's $dx$) and **W** for that of the weights (all of
# its $dW$), and B is I and W in one go. F, I and W are *elementary* actions. They are values: `F(2, 5)` is the forward
# of microbatch 5 at stage 2, and is printed as torch prints it, `2F5`. By (1) the backward has two products for the
# forward's one. So we count in units of a forward, and take F, I and W as 1 and B as 2, where nothing else is said.

# %% tags=["claim"]
action = B(2, 5)
print(action, "is of kind", action.kind, "at stage", action.stage, "of microbatch", action.microbatch)
print("its parts:", *action.parts, "  the parts of an F:", *F(2, 5).parts)
print("equal if all of it is equal:", F(2, 5) == F(2, 5), F(2, 5) == F(2, 6))

# %% [markdown]
# ## Exercise (a): dependencies (20 minutes)
#
# Write the one rule. Which elementary actions must be done before this one? Take each of `action.parts`, ask where what
# it uses comes from, and leave out what is in the action itself. A schedule with two copies of the model has a
# `replica` in each action as well; it is the same in all that an action needs. And two actions may be one, a pair that
# is overlapped: its parts are an F, an I and a W, at two stages and of two microbatches.

# %% tags=["exercise"] exercise="20.dependencies"
from llmsys.parallel.pipeline import F, I, Kind, W


def dependencies(action, num_stages):
    """The elementary actions (F, I, W) that must be done before `action` can begin: a list, in any order.

    action        an Action: of kind F, I, W, B, or a pair. action.parts are the elementary actions in it, each with
                  .kind (Kind.F, Kind.I or Kind.W), .stage, .microbatch and .replica
    num_stages    the stages are 0, 1, …, num_stages − 1

    F(stage, microbatch, replica), I(…) and W(…) make elementary actions. What is in the action itself is not among
    those that it needs. What those need in their turn may be left out, or be there.
    """
    ### BEGIN SOLUTION
    needed = []
    for part in action.parts:
        of_it = part.microbatch, part.replica
        if part.kind is Kind.F and part.stage > 0:
            needed.append(F(part.stage - 1, *of_it))  # its input
        if part.kind is Kind.I:
            needed.append(F(part.stage, *of_it))  # what it kept
            if part.stage < num_stages - 1:
                needed.append(I(part.stage + 1, *of_it))  # the gradient of its output
        if part.kind is Kind.W:
            needed.append(I(part.stage, *of_it))  # which has brought the gradient of every layer's output
    return [each for each in needed if each not in action.parts]
    ### END SOLUTION


# %% tags=["check"] exercise="20.dependencies"
check("20.dependencies", dependencies)

# %% [markdown]
# That is nearly all there is to know of a pipeline. A **schedule** adds a table, which rank has which stage (a *rank*
# is one GPU), and for each rank the order of its actions. The library asks your rule whatever it wants to know:

# %% tags=["claim"]
own_rule = mine("dependencies", default=pipeline.dependencies)
p, m = 4, 8
orders = [[F(rank, n) for n in range(m)] + [B(rank, n) for n in range(m)] for rank in range(p)]
gpipe = Schedule("GPipe", linear(p), m, orders)
print("rank 1:", *gpipe.orders[1])
print(validate(gpipe, dependencies=own_rule))
swapped = gpipe.with_order(1, [gpipe.orders[1][m], *gpipe.orders[1][:m], *gpipe.orders[1][m + 1 :]])
print(validate(swapped, dependencies=own_rule))

# %% [markdown]
# (What the first line says of sends comes further down.)
#
# ## Predict: the bubble
#
# What you see there is **GPipe** ([Huang et al., 2019](https://arxiv.org/abs/1811.06965)): all forwards, then all
# backwards. With $p = 4$ ranks and $m = 8$ microbatches, a backward taking twice as long as a forward: **what share of
# its time is a rank idle**, from the start of the first forward to the end of the last backward?

# %% tags=["predict"]
predict("20.bubble", None, "%")

# %% tags=["claim"]
timeline = simulate(gpipe, Costs(F=1, B=2), dependencies=own_rule)
print(f"makespan {timeline.makespan:g}; idle on each rank: {timeline.bubbles}; that is {timeline.bubble_share:.1%}")

# %% tags=["measure"]
measured("20.bubble", 100 * timeline.bubble_share, "%")

# %%
viz.pipeline_schedules.timelines(timeline)

# %% [markdown]
# Every rank has work for $m (F + B)$. The first forward reaches the last rank after $p − 1$ stages, and the last
# backward comes back over as many. So
#
# $$ \text{bubble} = (p - 1)(F + B) \qquad\qquad \frac{\text{bubble}}{\text{makespan}} = \frac{p - 1}{m + p - 1} \tag{2} $$
#
# whatever F and B are. More microbatches make it a smaller share. What do they cost?

# %% tags=["claim"]
print("microbatches   idle   activations kept by a rank, of its stage")
for many in (4, 8, 16, 32, 64):
    run = simulate(pipeline.gpipe(p, many))
    print(f"{many:12} {run.bubble_share:6.1%} {run.peak():10g}")

# %% [markdown]
# A forward's activations are kept until its backward is done, and in GPipe all forwards come first.
#
# ## One forward, one backward
#
# But a backward could come earlier. The last rank has the loss of microbatch 0 as soon as its first forward is done: it
# could go back at once. Then each rank would give back activations about as often as it keeps new ones.
#
# That is **1F1B** ([PipeDream-Flush](https://arxiv.org/abs/2006.09503); Megatron-LM's standard). Each rank first does
# as many forwards as it takes until a gradient can come back to it. Then it does a backward and a forward in turn. At
# the end there are backwards left.
#
# ## Exercise (b): 1F1B's order (20 minutes)
#
# How many forwards ahead must rank $r$ be, so that nobody waits longer than in GPipe, and no more? Draw three ranks on
# paper: when does rank 2 do its first backward, when rank 1, and what has rank 1 done until then?

# %% tags=["exercise"] exercise="20.one_f_one_b"
from llmsys.parallel.pipeline import B, F


def one_f_one_b(rank, num_ranks, num_microbatches):
    """What one rank does, in order: a list of its 2 · num_microbatches actions.

    Rank r has stage r, so every action is F(rank, microbatch) or B(rank, microbatch). First some forwards, as few as can
    be; then a backward and a forward in turn, in the microbatches' order; then the backwards that are left. There may be
    fewer microbatches than ranks. The result has the form [F(rank, 0), …, B(rank, num_microbatches − 1)].
    """
    ### BEGIN SOLUTION
    ahead = min(num_ranks - 1 - rank, num_microbatches)
    order = [F(rank, n) for n in range(ahead)]
    for n in range(num_microbatches):
        if ahead + n < num_microbatches:
            order.append(F(rank, ahead + n))
        order.append(B(rank, n))
    return order
    ### END SOLUTION


# %% tags=["check"] exercise="20.one_f_one_b"
check("20.one_f_one_b", one_f_one_b)

# %% [markdown]
# The orders of all ranks, yours, beside GPipe's:


# %% tags=["claim"]
def whole(name, order, p, m):
    """A schedule of one stage a rank, from what each rank does."""
    return Schedule(name, linear(p), m, [order(rank, p, m) for rank in range(p)])


own_order = mine("one_f_one_b", default=given_order)
print("microbatches   idle   activations kept by ranks 0, 1, 2, 3")
for many in (4, 8, 16, 32, 64):
    run = simulate(whole("1F1B", own_order, p, many), dependencies=own_rule)
    print(f"{many:12} {run.bubble_share:6.1%}   {', '.join(f'{kept:g}' for kept in run.peaks)}")

# %%
both = [simulate(each, Costs(F=1, B=2)) for each in (gpipe, whole("1F1B", own_order, p, m))]
viz.pipeline_schedules.timelines(*both)

# %% [markdown]
# The same bubble, and at most 4 activations, however many microbatches there are. It is the *order* that does it: no
# action takes less time than before. <!-- source: the two tables above -->
#
# ## The simulator
#
# So far, `simulate` was the library's. What is in it? Nothing that you could not do with a pencil: a rank does its
# actions in their order, each as soon as it can. It can when the rank has done the one before, and when everything that
# it needs is there: done, and if another rank did it, sent over. So for an action $a$ on rank $r$,
#
# $$ \text{start}(a) = \max\Big(\text{free}_r,\ \max_{d \,\in\, \text{dependencies}(a)} \text{end}(d) + \text{transfer}(d \to r)\Big) \tag{3} $$
#
# and where a dependency is not done, nobody knows yet. The transfer from a rank to itself takes no time, and a rank
# that sends goes on computing.
#
# ## Exercise (c): a step of the simulator (30 minutes)
#
# Write one step: look at every rank, and let those go on that can. Whoever calls you notes what ran, and calls again.

# %% tags=["exercise"] exercise="20.simulate"


def simulate_step(todo, free, done, needs, costs):
    """Runs the next action of each rank that can run now: a list of (rank, action, start, end), one for each of them.

    todo     for each rank, a tuple of the actions that it has still to do, in order; () where nothing is left
    free     for each rank, when its last action ended
    done     a dict: elementary action -> (when it ended, the rank that did it)
    needs    needs(action) are the elementary actions that must be done before it: your exercise (a)
    costs    costs.time(action) is how long it takes; costs.transfer_time(source, destination) how long a result takes
             from one rank to another, 0 where they are the same

    Only a rank's next action is looked at. If something that it needs is not in done, this rank runs nothing in this
    step. No argument is changed: done is what was done before the step.
    """
    ### BEGIN SOLUTION
    ran = []
    for rank, order in enumerate(todo):
        if not order or any(each not in done for each in needs(order[0])):
            continue
        start = free[rank]
        for each in needs(order[0]):
            end, by = done[each]
            start = max(start, end + costs.transfer_time(by, rank))
        ran.append((rank, order[0], start, start + costs.time(order[0])))
    return ran
    ### END SOLUTION


# %% tags=["check"] exercise="20.simulate"
check("20.simulate", simulate_step)

# %% [markdown]
# `in_steps` is the loop around it. It calls your step until nobody can go on, and makes a timeline of what ran. Where
# something is left over, it says who waits for whom. Here are uneven stages and slow wires, yours beside the library's:

# %% tags=["claim"]
own_step = mine("simulate_step", default=given_step)
own_simulate = partial(in_steps, own_step, dependencies=own_rule)
uneven = Costs(F=(1, 1, 1, 2), I=(1, 1, 1, 2), W=(1, 1, 1, 1), transfer=0.2)
yours, library = own_simulate(pipeline.one_f_one_b(4, 8), uneven), simulate(pipeline.one_f_one_b(4, 8), uneven)
print(f"makespan {yours.makespan:g}, and {library.makespan:g}; the same events: {yours.events == library.events}")
try:
    own_simulate(swapped)
except ValueError as error:
    print(error)

# %%
viz.pipeline_schedules.timelines(yours)

# %% [markdown]
# The last stage takes longer than the others, as one with the head of the model does, and everybody waits for it in
# every round. With an uneven cut, the bubble is no longer a matter of both ends: it grows with the number of
# microbatches.
#
# ## Smaller stages
#
# The ramps at both ends are $p − 1$ stages long. What if stages were smaller? Give each rank $v$ of them: the layers
# are cut into $v \cdot p$ stages, and rank $r$ has stages $r$, $r + p$, $r + 2p$, … A microbatch then goes round all
# ranks $v$ times ([Narayanan et al., 2021](https://arxiv.org/abs/2104.04473), *interleaved 1F1B*). **Predict** its
# bubble with $p = 4$, $m = 8$, $v = 2$, if the whole share of a rank takes 1 for the forward and 2 for the backward, as
# before. (GPipe's and 1F1B's was $(4 − 1)(1 + 2) = 9$.)

# %% tags=["predict"]
predict("20.interleaved", None)

# %% tags=["claim"]
halves = Costs(F=1 / 2, B=2 / 2, activation=1 / 2)  # of a stage, of which each rank has two
timeline = simulate(pipeline.interleaved(p, m, chunks=2), halves)
print(f"bubble {timeline.bubble():g}; activations, in shares of a rank: {', '.join(map(str, timeline.peaks))}")
run = simulate(pipeline.one_f_one_b(p, m), Costs(F=1, B=2))
print(f"1F1B:  bubble {run.bubble():5.3g}, peak {run.peak():5.4g}")
for v in (2, 4):
    run = simulate(pipeline.interleaved(p, m, chunks=v), Costs(F=1 / v, B=2 / v, activation=1 / v))
    print(f"v = {v}: bubble {run.bubble():5.3g}, peak {run.peak():5.4g}, p + (p − 1)/v = {p + (p - 1) / v:.4g}")

# %% tags=["measure"]
measured("20.interleaved", timeline.bubble())

# %%
viz.pipeline_schedules.timelines(timeline)

# %% [markdown]
# The bubble is $(p − 1)(F + B)/v$. It is paid for twice: with $v$ times as many transfers, and with more activations than
# 1F1B's $p$, for rank 0 must be $p − 1$ stages further ahead. The smaller the stages, the less that is. <!-- source: the
# output above -->
#
# ## Nobody waits for W
#
# Look at the end of 1F1B's picture once more. Rank 0 waits there for gradients; each of them comes after a whole B of
# rank 1. But of that B it only needs the half by (1), I. And on the other side: rank 3 has nothing to do there any
# more. If it had put its W off, it could do them now.
#
# **Zero-bubble** schedules ([Qi et al., 2023](https://arxiv.org/abs/2401.10241)) do both. In **ZB-H1** the order of F
# and B is 1F1B's. Every B becomes an I, and its W is done later. How much later, memory says: a microbatch's
# activations are kept until its W is done. Rank 0 of 1F1B keeps $p$ microbatches. Let all ranks keep as many.
#
# **Predict** rank 0's bubble with $F = I = W = 1$, $p = 4$ and $m = 8$, from its own first action to its own last one. (In
# 1F1B it is $(4 − 1)(1 + 2) = 9$, as before.)

# %% tags=["predict"]
predict("20.zero_bubble", None)

# %% [markdown]
# ## Exercise (d): fill the bubble with W (25 minutes)
#
# How many microbatches does rank $r$ keep in 1F1B at most? How many does rank 0, and so how many W may wait on rank $r$
# at a time? At the end the forwards run out. The same number may still wait, and no more: a rank that lets more W pile
# up, until all its I are done, has waited between them for nothing.

# %% tags=["exercise"] exercise="20.fill_with_w"
from llmsys.parallel.pipeline import I, Kind, W


def fill_with_w(order, rank):
    """1F1B's order of one rank, with the backward in two halves: a list of F(rank, n), I(rank, n) and W(rank, n).

    order    the list of F and B that exercise (b) gives for this rank
    rank     0, 1, …: rank r has stage r

    F and I stay in the order of F and B. Each W comes after its I, in the microbatches' order. Some W may wait, at any
    time the same number, also when no forwards are left: when one more would wait, the oldest is done. While a W waits
    its activations are kept, and no rank is to keep more of them than rank 0 keeps in 1F1B.
    """
    ### BEGIN SOLUTION
    filled, waiting = [], []
    for action in order:
        if action.kind is Kind.F:
            filled.append(action)
            continue
        filled.append(I(rank, action.microbatch))
        waiting.append(W(rank, action.microbatch))
        if len(waiting) > rank:  # 1F1B keeps num_ranks − rank, so there is room for as many more
            filled.append(waiting.pop(0))
    return filled + waiting
    ### END SOLUTION


# %% tags=["check"] exercise="20.fill_with_w"
check("20.fill_with_w", fill_with_w)

# %% tags=["claim"]
own_fill = mine("fill_with_w", default=given_fill)
zb_h1 = whole("ZB-H1", lambda rank, p, m: own_fill(list(own_order(rank, p, m)), rank), p, m)
print("  F I W   bubble of ranks 0, 1, 2, 3     (p − 1)(F + I − W)   keeps")
for f, i, w in ((1, 1, 1), (2, 2, 1), (2, 3, 1), (2, 2, 3)):
    run = own_simulate(zb_h1, Costs(F=f, I=i, W=w))
    own = ", ".join(f"{each:2g}" for each in run.own_bubbles)
    print(f"  {f} {i} {w}   {own} {(p - 1) * (f + i - w):22} {run.peak():15g}")
timeline = own_simulate(zb_h1, Costs())

# %% tags=["measure"]
measured("20.zero_bubble", timeline.own_bubble(0))

# %%
viz.pipeline_schedules.timelines(simulate(pipeline.one_f_one_b(p, m)), timeline)

# %% [markdown]
# A third of 1F1B's bubble, and nobody keeps more than rank 0 did before. In 1F1B rank 0 waits $(p − 1) B$ for its first
# gradient, and F before each of its last $p − 1$, when it has no forwards left. Now the first one needs only I from each
# rank: $(p − 1) I$. And the last ones come earlier, by the W that the other ranks have put off: before each, $F − W$ is
# left. Where W takes longer than F (the last line), the formula promises too much: a gap cannot be negative. Remember
# that. (In the picture all ranks are idle for 3: that is from the first start of all to the last end. The table counts
# from a rank's own start to its own end.)
#
# Could the beginning be filled as well? With more forwards ahead, which is **ZB-H2**: no bubble at all for
# $F = I = W$, and nearly twice the activations. (No rank is idle between its own first and last action. The ranks leave
# one after the other, as they came, so the next step can follow at once. Those of ZB-H1 leave together.)
#
# ## Two stages a rank, on a V
#
# Rank 0 has the first forward early and the last backward late, and rank 3 the other way round. So give each rank two
# stages, going down the ranks and up again: with 4 ranks and 8 stages, rank 0 has stages 0 and 7, rank 3 has 3 and 4.
# Where activations live long at the one stage, they live short at the other. **ZB-V** ([Qi et al.,
# 2024](https://arxiv.org/abs/2405.15362), and section 6 of the first paper) has no bubble for $F = I = W$, in 1F1B's
# memory. **V-Half** and **V-Min** keep about a half and a third of it if there are many ranks (a table further down has
# the figures for 8), and pay for that with a bubble.
#
# The widget shows what an order is worth: change one.
#
# ## Watch it
#
# Four ranks with a stage each, six microbatches. Every line is a rank's order, and can be edited (press Enter, or leave
# the line). Your step runs it, under your rule. If somebody waits for ever, it says who, for what, and who would have
# to do it. Try these:
#
# - In 1F1B, let rank 3 do F1 before B0. What does it cost, and whom?
# - In 1F1B, let rank 1 do B0 before F2. No dependency is violated. Why is it so much slower?
# - In 1F1B, let rank 2 do B0 before F1. Then let rank 3 do F1 before B0 as well: each of the two alone can be run.
# - In ZB-H1, put rank 3's W0 at the end of its line. Then choose other times: is it a good idea now?
# - From GPipe, get to 1F1B's memory: one rank after the other, without making it slower.

# %% tags=["widget"]
mine_of_six = {
    "1F1B, yours": whole("1F1B, yours", own_order, 4, 6),
    "ZB-H1, yours": whole("ZB-H1, yours", lambda rank, p, m: own_fill(list(own_order(rank, p, m)), rank), 4, 6),
}
viz.pipeline_schedules.editor(mine_of_six, step=own_step, dependencies=own_rule)

# %% [markdown]
# <details><summary>Answers</summary>
#
# F1 before B0 makes rank 3's first gradient one later, and so everybody's: 28 in place of 27, and rank 3 keeps one
# more.
#
# B0 before F2 on rank 1: it stands still until the gradient comes back, and the ranks below have nothing to do
# meanwhile. One action, and the whole pipeline takes 30.
#
# Rank 2 waits with B0 for rank 3's I0, and would do F1 after that; rank 3 waits with F1 for rank 2's, and would do B0
# after that. Each waits for what the other one does later: a circle. There is nothing wrong with either order alone.
#
# W0 at the end: 22 in place of 21, with 5 activations kept. With (2, 3, 1) it makes no difference in time, since
# everybody waits for other things, and with (2, 2, 3) it costs 3.
#
# From GPipe to 1F1B: begin with rank 3, and go up, and it takes 27 at every stop. If rank 0 begins, everybody is stuck:
# it waits with F4 until the first gradient is there, and rank 1 waits with its first gradient until F4 is there.
# <!-- source: the widget's last frames, as
# tests/lessons/test_20_pipeline_schedules.py has them -->
# </details>
#
# ## Execute it
#
# Until now W was a box in a picture. What is it in a model? By (1) it is a product of each matrix, and nearly all
# operations of a stage are those of its matrices. (Of its time that is another matter, as we shall see.) So it is enough to split the backward of *one matrix*. When autograd
# comes to it on its way back, it gets $dx$ and goes on. The other product is not computed, but kept for later, as a
# function that nobody has called yet. At the end of I there is a list of such functions, one for each matrix of the
# stage, and W calls them.
#
# The library's models have their matrices made by a factory, which can be exchanged. `PutOff(f)` is one whose matrices
# have their backward split by the function f: yours. What is no matrix (attention, the norms) keeps an ordinary
# backward, in I.
#
# ## Exercise (e): split a backward (15 minutes)
#
# torch stores a matrix as (outputs, inputs), so a linear layer is $y = x W^\top$. In (1) $W$ and $W^\top$ change
# places, and $dW$ is transposed as well: it has the weight's shape. And the input has a row for each token of each
# sequence. Write both halves.

# %% tags=["exercise"] exercise="20.split_backward"


def split_backward(dy, x, weight):
    """The backward of y = x @ weight.T in two halves: dx, and a function that computes dW when it is called.

    dy        (…, outputs), the gradient of the output y
    x         (…, inputs), the input of the forward. Its leading dimensions are those of dy: (sequences, tokens) in
              a model, and there may be one or several. Both may have any strides
    weight    (outputs, inputs), as torch stores it
    Returns (dx, later). dx is (…, inputs), a tensor. later is a function without arguments: it returns dW
    (outputs, inputs), of all rows together.

    Nothing of dW is computed before later is called. Until then split_backward may be called for other
    microbatches, and their functions may be called in any order, each once. Whoever calls one adds what it
    returns to the weight's gradient. Each half is one matrix product; no autograd.
    """
    ### BEGIN SOLUTION
    def later():
        return dy.flatten(0, -2).T @ x.flatten(0, -2)  # a product sums over its rows, those of all tokens

    return dy @ weight, later
    ### END SOLUTION


# %% tags=["check"] exercise="20.split_backward"
check("20.split_backward", split_backward)

# %% [markdown]
# Here is one matrix with your halves in it. Autograd comes to it with a $dy$ of ones, and stops at I. `take()` is the
# list of what has been put off, and `finish()` is W: it calls your function, and adds what comes back to the gradient:

# %% tags=["claim"]
import torch

own_halves = mine("split_backward", default=execute.split_backward)
torch.manual_seed(0)
put_off = execute.PutOff(own_halves)
matrix, x = put_off(3, 2), torch.randn(4, 5, 3)  # 3 numbers in, 2 out; 4 sequences of 5 tokens
matrix(x).sum().backward()
print("after I, the weight's gradient is", matrix.weight.grad)
for waiting in put_off.take():
    waiting.finish()
print("after W, it is the sum of all inputs, for each output:", torch.allclose(matrix.weight.grad, x.sum((0, 1))))

# %% [markdown]
# ## Predict: the real bubble
#
# Two ranks now, which are two processes on this machine, and SmolLM2 with its real weights. It has 30 layers, and a
# head that costs as much as several of them:

# %% tags=["claim"]
from llmsys.models import load_model

smollm2 = load_model()
context, microbatches = 32, 4
layer, head = execute.costs(smollm2.config, context)
cut = execute.Cut.by_cost(smollm2.config, 2, context)
print(f"the head costs as much as {head / layer:.1f} layers; layers of each stage:", *map(len, cut.ranges))
two = whole("ZB-H1", lambda rank, p, m: own_fill(list(own_order(rank, p, m)), rank), 2, microbatches)
print("rank 0:", *two.orders[0])
print("rank 1:", *two.orders[1])
print(f"simulated with F = I = W: idle for {own_simulate(two, Costs()).bubble_share:.1%} of the time")

# %% [markdown]
# Those are your orders (b), filled by your (d). Each rank does its actions one after the other: an F computes the layers
# of its stage; an I is autograd's backward through them, with your halves in every matrix; and a W calls the functions
# that this I has left. But nobody waits for the I of the first stage, whose input is tokens, which have no gradient. So
# on rank 0 nothing is split: I does nothing, and W is the whole backward. Between two actions, what others need is sent
# to them. A microbatch is one sequence of 32 tokens of the course's corpus. **For what share of a step will a rank be idle,** on the mean of both? (A step is all forwards
# and backwards, from the first start to the last end; the optimiser's part of it does not count. Two steps are taken, and
# the second one is measured.)

# %% tags=["predict"]
predict("20.executed", None, "%")

# %% [markdown]
# ## Your schedule trains the model
#
# Two steps on two ranks. Then the same two steps without a pipeline, on the whole model, by the ordinary trainer: four
# forwards and backwards, one after the other. Loss and gradient should be the same, but for rounding. (The squares of
# all gradients are added up in `float64` by the ranks and in `float32` by the trainer, and there are so many that it
# shows in the length's last digits. The processes have to start first, and each reads its own stage's weights, of
# `load_model()`'s model where `None` is given. It takes some ten seconds, and a minute on a busy machine.)
#
# One matrix is at both ends: SmolLM2's head is its embedding. Each rank has a copy of it, and in its backward the copy
# gets the gradient of its own use. At the end of a step the ranks exchange the two and add them up, so both copies are
# moved alike. They add up the squares of all gradients as well, for the length by which a gradient is clipped.

# %% tags=["engine"]
from llmsys.parallel.ranks import close, run
from llmsys.training import Corpus, TrainConfig, train
from llmsys.training.pipelined import train_in_stages

corpus = Corpus.load(smollm2.tokenizer, files=8)
settings = TrainConfig(steps=2, batch=1, context=context, accumulate=microbatches, warmup=1, evaluate_batches=1)


def on_a_rank():
    """What each of the two processes does: the steps, and when all ranks did what in each of them."""
    seen = []
    done = train_in_stages(None, corpus, settings, two, backward=own_halves, on_timeline=seen.append)
    return done.steps, seen


steps, timelines = run(on_a_rank, 2, backend="gloo")[0]
close()
unsplit = train(smollm2, corpus, settings).steps
print("step   loss: 2 ranks   whole model   length of the gradient: 2 ranks   whole model")
for one, other in zip(steps, unsplit, strict=True):
    print(f"{one.number:4} {one.loss:15.4f} {other.loss:13.4f} {one.gradient_norm:32.3f} {other.gradient_norm:13.3f}")

# %% tags=["engine", "claim"]
agree = all(abs(a.loss - b.loss) < 1e-3 and abs(a.gradient_norm / b.gradient_norm - 1) < 1e-3
            for a, b in zip(steps, unsplit, strict=True))  # fmt: skip
print("loss and gradient agree to a thousandth, in both steps:", agree)

# %% tags=["measure"]
executed = timelines[-1]
measured("20.executed", 100 * executed.bubble_share, "%")

# %% [markdown]
# What became of your prediction? The figure simulated before it is for ranks that take the same time for everything.
# The real one may be smaller, close to it, or several times as large: it depends on how well the cut balances the ranks, on this
# machine and at this moment. Below is the second step as it was, in seconds. And below that is your simulator, told
# what the actions took: the mean of each kind at each stage.

# %%
costs = pipeline.costs_of(executed, two.num_stages)
told = own_simulate(two, costs)
viz.pipeline_schedules.timelines(
    replace(executed, name="executed, in seconds"), replace(told, name="simulated, with the times that its actions took")
)

# %% [markdown]
# Where is it idle? Of both timelines, what a rank does for one microbatch, and what it waits for:

# %% tags=["engine"]
print("seconds           F    I    W   sum    waits: to begin   for its first gradient   later   at the end")
for name, shown in (("executed", executed), ("simulated", told)):
    for rank, row in enumerate(shown.events):
        gaps = {later.action: later.start - one.end for one, later in itertools.pairwise(row)}
        first = gaps.pop(I(rank, 0))
        took = [each[rank] for each in (costs.F, costs.I, costs.W)]
        print(f"{name:9} rank {rank}", *(f"{each:4.2f}" for each in (*took, sum(took))), end="")
        begin, end = row[0].start - shown.start, shown.end - row[-1].end
        print(f"{begin:18.2f} {first:24.2f} {sum(gaps.values()):7.2f} {end:12.2f}")

# %% [markdown]
# Some of it is the ramps: rank 1 waits for the first microbatch, rank 0 for the first gradient, and one of them for the
# other one's end. The rest is under *later*, and to understand it compare the sums of both ranks. If they are about the
# same, there is little later waiting: where one rank is longer at I and the other one at W, a W that has been put off
# fills the difference. If one rank takes longer in all, the other one waits for it in every round. The cut has balanced
# operations, and how long they take is for the machine to say.
#
# F, I and W are not 1 : 1 : 1. On rank 0, W is all of the backward, with the embedding's gradient in it: 49,152 × 576
# numbers for every microbatch, however few tokens that has. The head's is as large, and is in rank 1's W. Rank 1's I has,
# beside its half of every matrix, all that is no matrix: attention and the norms. But with so few tokens a matrix's W is
# mostly memory: 32 tokens are 64 operations for each weight, whose gradient of 4 bytes is written, fetched, and added to
# the last one, which is fetched and written. So W may well be the longer one here. <!-- source: smollm2.config -->
#
# Where the executed bubble is another one than the simulated, a mean cannot tell it: an action takes longer now and then,
# and others wait for it, or it takes longer where nobody waits. Here that is mostly two processes on one machine that
# take memory's bandwidth, and perhaps cores, from each other. And an action begins some time after what it needs has
# been computed, for it has to be sent.
#
# ## On two GPUs
#
# Now a model that fills two GPUs, one rank on each, and microbatches that fill them, too: 20 layers with 1.2 billion
# weights (width 2,048, 16 heads, an MLP of 5,632, a vocabulary of 32,000, in `bfloat16`), and 8 microbatches of 4 ×
# 2,048 tokens. <!-- source: MODEL in llmsys/bench/pipeline.py --> Recorded are four schedules, forward and backward
# without the optimiser's step. *torch's* is torch's own runtime with the same model, schedule and microbatches; a step
# of ours and one of torch's were taken alternately, and medians are compared. *Simulated* is the bubble as the
# simulator has it, told what the actions of this very run took: the mean of each kind at each stage, and sends that
# take no time.

# %% tags=["claim"]
from statistics import fmean

from llmsys.bench.pipeline import MODEL

record = recorded("pipeline", "H200")
runs = {row["name"]: timeline_of(row) for row in record.rows}
print(f"recorded on two {record.device}, {record.date}")
print(f"{'':12} tokens/s   torch's   times as fast   ms a step   bubble   simulated   layers of each stage")
for row in record.rows:
    speeds = f"{row['tokens_s']:9,.0f} {row['torch_tokens_s']:9,.0f} {row['ratio']:15.3f}"
    idle = f"{8 * 4 * 2048 / row['tokens_s'] * 1e3:11.1f} {row['bubble']:8.1%} {row['bubble_simulated']:11.1%}"
    layers = ", ".join(str(len(each)) for each in execute.Cut.by_cost(MODEL, row["stages"], 2048).ranges)
    print(f"{row['name']:12}{speeds} {idle}   {layers}")
apart = max(abs(row["bubble"] - row["bubble_simulated"]) for row in record.rows)
print(f"\nbetween a bubble and the simulated one lie {100 * apart:.1f} percentage points at most")
layer, head = execute.costs(MODEL, 2048)
print(f"the last stage has the head, too, which costs as much as {head / layer:.1f} layers")

# %%
viz.pipeline_schedules.recorded_runs(record)

# %% [markdown]
# (The picture has the run that a row is the median of, in milliseconds, action by action as they were recorded. In the
# first stage, W is the whole backward. What a rank keeps is in shares of a rank: of the activations of its whole half of
# the model.)
#
# Where an action takes tens of milliseconds, what the simulator leaves out hardly counts: it is within half a percentage
# point of each run, and takes milliseconds. Ours is as fast as torch's runtime with one stage a rank, and a little faster
# with two, by 1.3% here; on two other GPUs, an hour before, it was 2.9% and 0.6%. <!-- source: the table above,
# MEASURED.md -->
#
# So are these the bubbles of the formulas? By (2) it is one of 9 with 1F1B, and one of 17 with the interleaved
# schedule, whose bubble is half as long. If F, I and W took the same, it would be one of 25 with ZB-H1, and one of 49
# with ZB-V: a forward of half a rank, for which rank 1 waits before it begins, and rank 0 at the end. The simulator
# says these, too. Then tell it some of what was measured, and at last all of it:

# %% tags=["claim"]
took = {row["name"]: pipeline.costs_of(runs[row["name"]], row["stages"]) for row in record.rows}


def mean_of(costs):
    """The mean of each kind over all stages; of I and W over those whose backward is cut, all but the first."""
    return {kind: fmean(getattr(costs, kind)[kind in "IW" :]) for kind in "FIWB"}


print("bubble        F = I = W   equal stages   I = W   as recorded: simulated   measured   each rank busy for, ms")
for row in record.rows:
    schedule, each = pipeline.make_schedule(row["name"], 2, 8), took[row["name"]]
    half = [(i + w + b) / 2 for i, w, b in zip(each.I, each.W, each.B, strict=True)]  # I and W, or B: one is 0
    tries = Costs(), Costs(**mean_of(each)), Costs(F=each.F, I=half, W=half), each
    unit, equal, halved, all_of_it = (simulate(schedule, costs).bubble_share for costs in tries)
    busy = ", ".join(f"{runs[row['name']].busy(rank):.0f}" for rank in range(2))
    print(f"{row['name']:12} {unit:10.1%} {equal:14.1%} {halved:7.1%} {all_of_it:24.1%} {row['bubble']:10.1%}   {busy}")
print()
for name, kinds in (("1f1b", "FB"), ("zb-h1", "FIW")):
    print(f"{name:6} takes, in ms on ranks 0 and 1:", end=" ")
    print("; ".join(f"{kind} {', '.join(f'{ms:.1f}' for ms in getattr(took[name], kind))}" for kind in kinds))
for name in ("interleaved", "zb-v"):
    tries = {"equal stages": Costs(**mean_of(took[name])), "as recorded": took[name]}
    for stages_are, costs in tries.items():
        idle = simulate(pipeline.make_schedule(name, 2, 8), costs).bubbles
        print(f"{name:11} simulated, {stages_are}: ranks 0, 1 are idle for {idle[0]:.1f}, {idle[1]:.1f} ms")
mean = mean_of(took["zb-v"])
print(f"2 (I − W) of zb-v: {2 * (mean['I'] - mean['W']):.1f} ms")
layer, head = execute.costs(MODEL, 0)  # without attention, a multiplication for each weight
weights = 9 * layer + head  # of rank 1
flops, peak = 2 * weights * 4 * 2048, DEVICES["H200"].flops["bfloat16"]
rate = flops / took["zb-h1"].W[1] / 1e9
print(f"rank 1's W in zb-h1, of {weights / 1e6:.0f} million weights, runs at {rate:.0f} of {peak / 1e12:.0f} TFLOP/s")

# %% [markdown]
# *Equal stages* has the times of each kind as recorded, and all stages alike, the first one cut like the others; *I = W*
# has the stages as recorded, and each backward in equal halves. So there are two reasons, and 1F1B and the interleaved schedule, which do not split B,
# have but the first one.
#
# - **The cut.** Twenty layers and a head cannot be cut into equal halves. With one stage a rank, rank 1 is the faster
#   one, and waits in every round; with the interleaved schedule, too. With ZB-V rank 0 is: it has the first stage and the
#   last one, nine layers and the head. (By operations that is 11 layers against 10.2, by time 9 to 13%.)
# - **I takes more than three times as long as W**, where there are two. By (1) the matrices have as many operations in
#   each. But W is nothing else, and runs at nearly three quarters of the GPU's peak. Attention, the norms and the MLP's
#   activation have their whole backward in I. They are few operations and a lot of time: a norm, for one, fetches each
#   number from memory to do very little with it. If the matrices take as long in I as in W, more than half of I is no
#   matrix. What ZB-H1 saves against 1F1B is $2 (p − 1) W$ by the formulas, and with such a W that is 24 of 768 ms. ZB-V
#   counts on a W wherever a rank waits for an I of the other one. Such a W is too short, and gaps are left: with equal
#   stages, and where F is at most I and W at most half of it, each rank is idle for $2 (I − W)$ in all, by simulation,
#   rank 1's wait at the beginning included.
#
# So ZB-V, "without a bubble", has a larger one here than the interleaved schedule, which splits nothing, and its step
# takes as long, for its ranks are busy for a little less. These two are the fastest, since their stages are smaller. With
# ZB-H1 a step is 19 ms shorter than with 1F1B, and not 24: the stages are not equal. <!-- source: the tables above -->
#
# ## Predict: a transfer that waits
#
# A rank sends a result as soon as it has it, and computes on. When should the other rank begin to receive? *Early*, as
# soon as the data may be there, so that they have come when they are needed? Or *late*, just before they are needed?
#
# Early seems to cost nothing, for the GPU computes meanwhile. But if the sender takes longer than was thought, the
# receive waits, and with NCCL what waits is a kernel on the same GPU: between these two GPUs, one of 16 blocks, each of which
# takes an SM for itself. <!-- source: MEASURED.md --> An H200 has 132 of them. **Beside such a receive, how much longer
# does a matrix product take than alone?** (A layer's gate and up projections, of one microbatch.)

# %% tags=["predict"]
predict("20.beside", None, "%")

# %% tags=["measure", "claim"]
transfers = recorded("transfers", "H200")
ms = {(row["rank"], row["name"], row.get("beside", row.get("bytes"))): row["ms"] for row in transfers.rows}
for (rank, name, beside), took_ms in ms.items():
    if name in ("matrix product", "SiLU") and beside != "nothing":
        alone = ms[rank, name, "nothing"]
        longer = round(100 * (took_ms / alone - 1))
        print(f"{name:14} beside {beside:18} {took_ms:.3f} ms, alone {alone:.3f}: {longer:+}%")
print("\na send, where the receive begins 30 ms later:")
print("   MiB", *(f"{count / 2**20:6.0f}" for _, name, count in ms if name == "send"))
print("    ms", *(f"{each:6.2f}" for (_, name, _), each in ms.items() if name == "send"))
beside, alone = (ms[1, "matrix product", each] for each in ("a receive", "nothing"))
measured("20.beside", 100 * (beside / alone - 1), "%")

# %% [markdown]
# Of 132 SMs 116 are left, and 132 / 116 is 1.14. <!-- source: that division --> SiLU, which memory's bandwidth limits and not the SMs, takes 5% longer.
#
# A send that nobody has received yet costs the same if it is large. But up to 64 MiB have left, as the last two lines
# say, before anybody receives them: NCCL has buffers, 4 MiB for each of 16 channels
# (`NCCL_BUFFSIZE`). <!-- source: the table above; NCCL's documentation of that variable --> What a microbatch
# sends here is 4 × 2,048 × 2,048 numbers of two bytes, 32 MiB. So if one end must wait, let it be the sender: receive
# *late*. All that is above was recorded so. Below it is compared with *early*, step by step in turns. There a receive
# begins in the pause in which a simulation with F = I = W has the data arrive:

# %% tags=["claim"]
early = {row["name"]: timeline_of({**row, "events": row["early_events"]}) for row in record.rows}
print(f"{'in ms':12} a step: early   late   ranks 0 and 1 are busy for: early        late")
for row in record.rows:
    name = row["name"]
    steps = [8 * 4 * 2048 / row[each] * 1e3 for each in ("early_tokens_s", "tokens_s")]
    busy = [f"{each.busy(0):.1f}, {each.busy(1):.1f}" for each in (early[name], runs[name])]
    print(f"{name:12} {steps[0]:13.1f} {steps[1]:6.1f} {busy[0]:>35} {busy[1]:>14}")
print("\nearly, with a receive beside them that waits:")
for name, timeline in early.items():
    waits = pipeline.waiting_beside(pipeline.make_schedule(name, 2, 8), timeline, "early", sends=False)
    late = {event.action: event.duration for event in itertools.chain(*runs[name].events)}
    found = {}  # a stage's actions of a kind
    for event in itertools.chain(*timeline.events):
        if waits[event.action] >= 0.02:
            found.setdefault((event.action.stage, event.action.kind.value), []).append(event)
    for (stage, kind), events in found.items():
        took_early, took_late = fmean(each.duration for each in events), fmean(late[each.action] for each in events)
        if len(events) > 1 and took_late > 0.1:  # not the first stage's I
            share = fmean(waits[each.action] for each in events)
            print(f"{name:12} stage {stage}, {kind}: {len(events)} of 8, for {share:4.0%} of their time;", end=" ")
            print(f"{took_early:.1f} ms, the same late {took_late:.1f}: {took_early / took_late - 1:+.1%}")

# %% [markdown]
# Early, an action takes longer by about 14% of the time that a receive waits beside it: 3% where it waits for a fifth, 11
# to 15% where it waits for most of it. (Stage 3's backwards, with the least of it, show nothing.) Whether the step takes
# longer depends on whose actions these are. With ZB-H1 they are the forwards of rank 0, which has more to do: six of the
# 9.7 ms that it is busy longer, and the step takes 6.7 ms longer, or 0.9%, as it did in another run. With ZB-V and the
# interleaved schedule they are of the rank that has less to do: it is busy longer, waits less, and the step takes the
# same, within 0.4%. Late, in turn, rank 1 is busy longer with one stage a rank, by 1.5 and 2.4%; with 1F1B the step is
# 0.3% longer for that, and we do not know why. <!-- source: the tables above; MEASURED.md for the other run -->
#
# ## DualPipe
#
# DeepSeek-V3 was trained with **DualPipe** ([DeepSeek-AI, 2024](https://arxiv.org/abs/2412.19437), section 3.2.1). It
# is made of two things that you have seen, 2 and 3, and of two that are new:
#
# 1. **Two directions.** There are two copies of the model, in opposite directions: rank $r$ has stage $r$ of the one
#    and stage $P − 1 − r$ of the other, and half of the microbatches go each way. While one direction has not reached a
#    rank yet, the other one keeps it busy. (**Chimera**, [Li and Hoefler, 2021](https://arxiv.org/abs/2107.06925), is
#    that and no more. It is for as many microbatches as ranks, and for B about as long as F: with more of them, and B =
#    2F, the two directions get into each other's way, as the table at the end shows.)
# 2. **1F1B's order** in each direction, which bounds the memory.
# 3. **W in the gaps**, at both ends only.
# 4. **Pairs.** In between, a rank in the middle always has a forward of one direction and a backward of the other at hand. They run
#    as one: while one computes, the other communicates. (Where nothing is hidden, a pair takes as long as its halves,
#    $F + B$, and so it does here where nothing else is said.) With experts on many GPUs communication is half of the time
#    (lesson 21), and it is why the schedule exists.

# %% tags=["claim"]
P, N = 8, 20
dualpipe = simulate(pipeline.dualpipe(P, N))
print(f"bubble of each rank: {', '.join(f'{each:g}' for each in dualpipe.bubbles)}")
print(f"activations:         {', '.join(f'{each:g}' for each in dualpipe.peaks)}")

# %% [markdown]
# In the picture each direction counts its microbatches from 0, and replica 1 is strong. (In texts its actions end in
# `r1`, and its microbatches come after those of replica 0.)

# %%
viz.pipeline_schedules.timelines(dualpipe)

# %% [markdown]
# **Why P + 1 activations.** In 1F1B, stage $s$ keeps $P − s$ microbatches. Rank $r$ has stage $r$ of one copy and stage
# $P − 1 − r$ of the other, so it keeps $(P − r) + (r + 1) = P + 1$: the same on every rank. (And twice the weights.
# That is bearable where most weights are experts, which 64 GPUs share.)
#
# **Why −3W.** The table in DeepSeek's [repository](https://github.com/deepseek-ai/DualPipe) says that the bubble is
#
# $$ \Big(\frac{P}{2} - 1\Big)\,\big(F\&B + B - 3W\big) \tag{4} $$
#
# where $F\&B$ is the time of a pair. A strange formula. Look where a rank in the middle is idle, rank 3 in the picture:

# %% tags=["claim"]
for f, i, w, pair in ((1, 1, 1, 3), (2, 2, 1, 5), (2, 2, 1, 4)):
    run = simulate(pipeline.dualpipe(P, N), Costs(F=f, I=i, W=w, FB=pair))
    events = run.events[3]
    gaps = [later.start - one.end for one, later in itertools.pairwise(events)]
    print(f"F = {f}, I = {i}, W = {w}, F&B = {pair}: {events[0].start:g} before its first action;", end=" ")
    waits = " + ".join(f"{gap:g}" for gap in gaps if gap)
    print(f"{waits} in between; {run.end - events[-1].end:g} after its last one; {run.bubble(3):g} in all")

# %% [markdown]
# With $H = P/2 − 1$, 3 here:
#
# - *Before its first action*, for the forwards of the $H$ ranks from the end to it: $H \cdot F$.
# - *In between*, $H$ times, when its own forwards are at their end and it does backwards alone. They come to it from
#   ranks that still do pairs: one comes in every $F\&B$, and takes this rank only $B$. Each time $F\&B − B$.
# - *After its last one*, until the ranks at the ends are done, $H$ ranks further. Each of these takes an I to pass a
#   gradient on. Meanwhile rank 3 does the W that it has left: $H$ more than a rank at the end. What remains is $I − W$,
#   $H$ times.
#
# In all $H \,(F + (F\&B − B) + (I − W))$. And now put in that a forward takes as long as a backward for the input:
# $F = I$, which is $B − W$. The first term is $B − W$, the last one $B − 2W$, and with the middle one it is
# $F\&B + B − 3W$. So the three W are: the one that B has more than F; the one that B has more than I; and the one that
# fills the gap.
#
# ## Predict: where it stops holding
#
# So (4) has two assumptions that it does not state: $F = I$, and $I \ge W$, or there is no gap to fill. Take
# $F = I = 2$ and $W = 3$. By (4), the bubble with $P = 8$ is $3 \cdot (7 + 5 − 9) = 9$. **What is it?**

# %% tags=["predict"]
predict("20.dualpipe", None)


# %% tags=["claim"]
def by_formula(f, i, w, pair):
    return (P // 2 - 1) * (pair + (i + w) - 3 * w)


def by_simulation(f, i, w, pair=None):
    return simulate(pipeline.dualpipe(P, N), Costs(F=f, I=i, W=w, FB=pair)).bubble()


print("  F I W   formula (4)   simulated   H (F + F&B − B + max(I − W, 0))")
for f, i, w in ((1, 1, 1), (2, 2, 1), (2, 2, 3), (2, 3, 1), (3, 2, 1)):
    gaps = 3 * (f + f + max(i - w, 0))
    print(f"  {f} {i} {w} {by_formula(f, i, w, f + i + w):10} {by_simulation(f, i, w):13g} {gaps:10}")
times = [(f, i, w) for f in range(1, 5) for i in range(1, 5) for w in range(1, 5)]
holds = [each for each in times if by_formula(*each, sum(each)) == by_simulation(*each)]
print(f"the formula holds in {len(holds)} of {len(times)} cases; always F = I ≥ W:", end=" ")
print(set(holds) == {(f, i, w) for f, i, w in times if f == i >= w})
faster = simulate(pipeline.dualpipe(P, N), Costs(FB=2.5)).bubbles
print(f"a pair in 2.5: formula {by_formula(1, 1, 1, 2.5)}, ranks 0 to 3 {faster[:4]}")

# %% tags=["measure"]
measured("20.dualpipe", by_simulation(2, 2, 3))

# %% [markdown]
# The gap at the end closes and does not become negative. Where $I$ takes longer than $F$, as in the fourth line, ranks
# wait at other places, too, and neither formula holds. In the fifth it is (4) alone that fails, for it takes $F$ for
# $I$. With a pair that is faster than its halves, (4) is what the ranks in the middle wait; those at the ends, with
# fewer pairs, wait less.
#
# No formula knows what your GPUs do. A simulation takes milliseconds: measure F, I, W and the pair, and put them in.
#
# **DualPipeV.** Ranks $r$ and $P − 1 − r$ of DualPipe do the same, each for the other direction. So cut it in half:
# keep the first half of the ranks, and let a rank send to itself what it would send to its mirror image. What is left
# is a V, with one copy of the weights ([Qi, 2025](https://hackmd.io/@ufotalent/r1lVXsa9Jg), *cut in half*).

# %% tags=["claim"]
v = pipeline.dualpipe_v(P // 2, N // 2)
cut = simulate(v)
print(f"DualPipe  on {P} ranks: bubble {dualpipe.bubble():g}, keeps {dualpipe.peak():g}, 2 copies of the weights")
print(f"DualPipeV on {P // 2} ranks: bubble {cut.bubble():g}, keeps {cut.peak():g}, 1 copy, in half as many ranks")
print("rank 1 of both:")
for order in (pipeline.dualpipe(P, N).orders[1], v.orders[1]):
    print("  ", *order[:9], "…")

# %% [markdown]
# ## Exercise (f): fold DualPipe (20 minutes, optional)
#
# If you like (no points): fold it yourself, from a DualPipe schedule to one on `v_shaped`. What becomes of an action of
# replica 1, of its stage and its microbatch? `Action(kind, stage, microbatch)` makes one. A pair is `pair(F(…), B(…))`,
# and has its halves in `.forward` and `.backward`. Any order is right that is as fast and keeps as little;
# `pipeline.fold` is the library's.

# %% tags=["exercise"] exercise="20.fold"
from llmsys.parallel.pipeline import Action, Kind, Schedule, pair, v_shaped


def fold(schedule):
    """DualPipe's schedule as one of half of the ranks, one replica, and half of the microbatches: DualPipeV.

    schedule: on P ranks (an even number), of 2 replicas with P stages each. Its orders are of shape (P, actions), and
    replica 1 has the second half of schedule.num_microbatches. Pairs, of kind Kind.FB, stay pairs.
    Returns Schedule(name, v_shaped(P // 2), number of microbatches, orders).
    """
    ### BEGIN SOLUTION
    half, share = schedule.num_ranks // 2, schedule.num_microbatches // 2

    def one_replica(action):
        if action.kind is Kind.FB:
            return pair(one_replica(action.forward), one_replica(action.backward))
        return Action(action.kind, action.stage, action.microbatch - action.replica * share)

    orders = [[one_replica(action) for action in order] for order in schedule.orders[:half]]
    return Schedule("folded", v_shaped(half), share, orders)
    ### END SOLUTION


# %% tags=["check"] exercise="20.fold"
check("20.fold", fold)

# %% [markdown]
# ## A schedule can hang, and its order be right
#
# One thing is missing from our rule: sending. If a send returns at once and the data wait in a buffer, nothing is
# missing. But there may be no buffer. A **blocking send** returns only when the other side receives, and so a send
# waits, too. `pipeline.programs` writes the sends and receives between the actions (*apart*: each for itself, sends first);
# `circle` plays them, and says who waits for whom:

# %% tags=["claim"]
small = pipeline.one_f_one_b(2, 3)
apart = pipeline.programs(small, "apart")
for rank, program in enumerate(apart):
    steps = [step if hasattr(step, "kind") else step.transfers[0] for step in program]
    words = [
        str(step) if hasattr(step, "kind") else f"{'→' if step.source == rank else '←'}{step.of}" for step in steps
    ]
    print(f"rank {rank}:", *words)
print("hangs:", "; ".join(map(str, pipeline.circle(apart))))
for transfers in ("together", "early"):
    circles = {name: pipeline.circle(pipeline.programs(each(4, 8), transfers)) for name, each in (
        ("1F1B", pipeline.one_f_one_b), ("interleaved", pipeline.interleaved), ("ZB-V", pipeline.zb_v))}  # fmt: skip
    print(f"{transfers}:", {name: "hangs" if found else "runs" for name, found in circles.items()})

# %% [markdown]
# Rank 0 sends a forward while rank 1 sends a gradient, and both wait for the other one to receive. With 1F1B this
# happens in every pipeline that has more than one microbatch. *Together* is a way out for 1F1B: what lies between two
# actions begins at the same time (Megatron's `send_forward_recv_backward`). For others it is not enough: a rank that
# receives only what it needs next keeps others waiting who are further ahead. *Early* is the one that always works:
# receive in the first pause in which the data can be there. (Our own ranks receive late all the same, for their sends do
# not block: they go on computing, and wait for their sends at the end of the step.)
#
# All this takes for granted that transfers that begin together do not wait for each other. With NCCL they do, where they
# share a communicator: it carries out a send and a receive at a time, and what else has begun waits until both have ended. So
# DualPipeV hung on four ranks when both directions between two ranks had one communicator: a rank began two sends and a
# receive; the second send waited for the receive, and the receive for what the other rank was to make of the second send.
# Now each direction has a communicator of its own (`llmsys/parallel/execute/wire.py`). All eleven schedules have run so
# on two GPUs: on 2 ranks, and on 4 and 8 that share the two. <!-- source: tests/parallel/execute/test_on_gpus.py and
# test_queues.py -->
#
# ## Exercise (g): repair it (20 minutes, optional)
#
# If you like (no points): repair `apart`. A program is a tuple of actions and exchanges, `step.transfers[0]` has a
# `.source` and a `.destination`. Change the order of exchanges between two actions on some ranks, and nothing else,
# until `circle` is empty, for 2 ranks and for more. (Any other order of the transfers is right, too, if nobody waits in a
# circle.)

# %% tags=["exercise"] exercise="20.unblock"
from itertools import groupby

from llmsys.parallel.pipeline import Exchange


def unblock(programs):
    """Programs of 1F1B that hang, with their transfers in an order in which they come to their end.

    programs: of the form (P, steps of the rank), a step is an action or an Exchange of one transfer. There are at least as
    many microbatches as ranks. Returns programs of the same form: the same actions in the same order, and the same
    exchanges. None is sent before it is computed, or received after the action that needs it.
    """
    ### BEGIN SOLUTION
    repaired = []
    for rank, program in enumerate(programs):
        mended = []
        for moves, steps in groupby(program, key=lambda step: isinstance(step, Exchange)):
            steps = list(steps)
            if moves and rank % 2:  # receives first; of two neighbours only one has an odd number
                steps.sort(key=lambda step: step.transfers[0].source == rank)
            mended += steps
        repaired.append(mended)
    return repaired
    ### END SOLUTION


# %% tags=["check"] exercise="20.unblock"
check("20.unblock", unblock)

# %% [markdown]
# <details><summary>One way</summary>
#
# Ranks with odd numbers receive first and send afterwards. Then of two neighbours one sends where the other receives.
# It is the oldest trick of message passing, and works for 1F1B with at least as many microbatches as ranks.
# </details>
#
# ## All of them, by your code
#
# Your rule and your step run every schedule of the library: 8 ranks, 24 microbatches, $F = I = W$, each with its own
# placement. A rank with two stages has stages of half the size. The bubble here is that of the rank that is idle
# longest between its own first and last action.

# %% tags=["engine", "claim"]
ranks, many = 8, 24
points = []
for name, make in pipeline.SCHEDULES.items():
    schedule = make(ranks, many)
    size = schedule.num_stages / ranks
    costs = Costs(F=1 / size, I=1 / size, W=1 / size, activation=1 / size)
    run = own_simulate(schedule, costs)
    assert run.events == simulate(schedule, costs).events, f"{name}: your step runs it otherwise than the library"
    assert validate(schedule, dependencies=own_rule).valid, f"{name}: {validate(schedule, dependencies=own_rule)}"
    idle = max(run.own_bubbles)
    copies = schedule.num_replicas
    points.append(viz.pipeline_schedules.Point(name, run.peak(), idle / (idle + run.busy(0)), copies))
    print(f"{name:12} idle {idle:5.3g} of {idle + run.busy(0):5.4g}, keeps {run.peak():5.3g}, weights × {copies}")

# %%
viz.pipeline_schedules.pareto(points)

# %% [markdown]
# Left and below is better, and the line joins those that no other one beats (it crosses ZB-H1, which ZB-V beats). It is a line of published orders, and no
# theorem. What the picture does not show: interleaved and V-shaped schedules send twice as much; ZB-V's zero is one of
# equal times; and DualPipe's point is that its pairs hide communication, which costs nothing here.
#
# ## Leaderboard
#
# Eight stages, of which the last has the head and takes longer, and the first is a little shorter. Twelve microbatches,
# four ranks, each with room for **six** activations of a stage (three shares of a rank); a transfer takes 0.1. <!-- source: COSTS in
# llmsys/lessons/lesson_20_pipeline_schedules/leaderboard.py --> Which rank has which stage, and who does what when, is
# yours. The library's schedules are there to be beaten: most of them do not even fit (those with one stage a rank are
# listed with each stage cut in two). On a V, rank 0 is busy for 86.4, and nobody can be faster than that.

# %% tags=["engine"]
yours = pipeline.v_half(4, 12)  # begin with any, and change it: yours.with_order(rank, order), or Schedule(…)
leaderboard(yours)

# %% [markdown]
# Ways to go on: who is idle when (`timelines(simulate(yours, COSTS))`, with `COSTS` from the module of `leaderboard`),
# and for what? Which W could go there? Or write a scheduler, that runs through time and lets each rank choose among
# what can run and fits: forwards, while there is room; gradients first, or last?
#
# ## What production does differently
#
# - **Megatron-LM** has 1F1B and interleaved 1F1B, written as loops that send and receive; the order is what the code
#   happens to do. Its `overlap_p2p_comm` hides transfers of the interleaved one. Stages need not be equal: the first
#   and the last may get fewer layers, for the embedding and the head.
# - **torch.distributed.pipelining** has schedules as data, too: `1F1B`, `Interleaved1F1B`, `ZBVZeroBubble`,
#   `DualPipeV`, and a CSV of your own, in the notation that is used here. Sends and receives are inserted by a pass
#   over it, as in `pipeline.programs`. Its `I` and `W` are made by walking autograd's graph, from the inputs to where it
#   meets a weight: that works for any model, where ours has to have its matrices made by `PutOff`.
# - **DeepSeek** published [DualPipe](https://github.com/deepseek-ai/DualPipe) with hand-written steps, eight loops a
#   rank, of which the lengths depend on the rank. The pairs are theirs to write: the model's code for a forward and a
#   backward that interleave, layer by layer, with the GPU's multiprocessors divided between computing and
#   communicating.
# - **Sea AI Lab**'s [zero-bubble](https://github.com/sail-sg/zero-bubble-pipeline-parallelism) searches orders for
#   measured times by an integer program and by heuristics. And it solves what our timelines leave out: the
#   optimiser's step needs the norm of *all* gradients, and waiting for that is a bubble as well. Each stage steps ahead,
#   and takes the step back if the norm turns out to be too large.
# - **What is missing here:** an activation is not all of a size (lesson 22 recomputes most of it); B is often faster
#   than I and W apart; a W that waits keeps the $dy$ of its matrices as well as their $x$, as your `later` does, and
#   *keeps* counts only what forwards have kept; and the simulator's times are constant, while with experts they depend
#   on the tokens (lesson 21).
#
# ## Do you have it?
#
# <details><summary><b>1.</b> You double the number of microbatches at the same batch size, so each is half as large. By (2) the bubble
# shrinks. Why not go on until each is a single sequence?</summary>
#
# The bubble's share falls, but every microbatch reads all weights of its stage, sends a message and starts all kernels,
# however small it is. At some size a half microbatch takes more than half the time, and then F and B in (2) no longer
# fall in proportion. And 1F1B keeps $p − r$ microbatches, so it is not memory that stops you: smaller ones keep less.
# </details>
#
# <details><summary><b>2.</b> With 1F1B, rank 0 runs out of memory and the last rank has plenty. Two ways out, without recomputation, and what
# each of them costs?</summary>
#
# Give rank 0 fewer layers and the last rank more: then the ranks no longer take the same time, and everybody waits for
# the slowest in every round. Or a placement on which lifetimes add up to the same on every rank, a V, as with V-Half:
# twice the transfers, and a bubble of its own. (ZB-H1 does not help: it brings all ranks up to what rank 0 keeps.)
# </details>
#
# <details><summary><b>3.</b> On your GPUs F = I = 10 ms and W = 14 ms, and a pair takes as long as its halves. A colleague reads off
# (4) that DualPipe's bubble is 16 ms times P/2 − 1. Is it more or less?</summary>
#
# More: 20 ms times that. <!-- source: the three places above --> Of the three waits that (4) adds up, F and $F\&B − B$
# are 10 ms each, and the third one would be $I − W = −4$ ms. A wait is not negative: W is longer than the gap that it
# was to fill, and fills it. That it makes others late is a matter for the simulation, in which these times go in as
# they are, and those of the transfers as well.
# </details>
#
# **Next:** lesson 21, experts on many GPUs, and the communication that pairs hide. It is not built yet: `llmsys update`
# brings it when it is.
