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
# # 06 · FlashAttention on Hopper
#
# FlashAttention-2 reads and writes as little as can be, and on an H100 its tensor cores still wait: for tiles of $K$ and
# $V$ that are on their way, and for exponentials, which other units compute.
#
# **The idea:** nobody waits for what somebody else could be doing. One warp does nothing but start copies. Matrix
# products run by themselves while their warps compute a softmax. And two groups of warps take turns, so that one
# multiplies while the other one exponentiates. That is FlashAttention-3.
#
# You will order the work of one processor of an H100 in a model of it, build the ring of tiles through which its warps
# hand each other work, write the heart of a real kernel, and squeeze numbers into eight bits. All of it runs here,
# without an H100; with one, your kernel races against NVIDIA's.

# %% tags=["setup"]
from functools import partial

import torch

from llmsys import viz
from llmsys.bench import interleaved, recorded
from llmsys.course import check, hint, measured, mine, predict
from llmsys.hardware.devices import DEVICES
from llmsys.hardware.tier import load_triton, tier

triton, tl = load_triton()  # Triton decides when it is first imported whether it interprets: before anything else

# %%
viz.flash_hopper.overview()

# %% [markdown]
# ## Predict: how much of an H100 does FlashAttention-2 use?
#
# An H100's tensor cores can do 989.5 TFLOP/s in `bfloat16`. <!-- source: NVIDIA's data sheet, in hardware.devices -->
# Lesson 04's record has FlashAttention-2 on it, with heads of 128, 16k tokens and no mask: a kernel that never waits
# for memory to speak of. **What percentage of that does it reach?**

# %% tags=["predict"]
predict("06.fa2", None, "%")

# %% [markdown]
# And a kernel for the same GPU that lets everything overlap: **how many times as fast as FlashAttention-2 can it be?**

# %% tags=["predict"]
predict("06.speedup", None, "×")

# %% tags=["claim"]
table = [row for row in recorded("attention").rows if row["sweep"] == "table"]
reached = {row["name"]: row["tflops"] for row in table if (row["D"], row["T"], row["causal"]) == (128, 16384, False)}
peak = DEVICES["H100 SXM"].flops["bfloat16"] / 1e12
for name in ("FA2", "flash", "cuDNN", "hopper"):
    print(f"{name:7} {reached[name]:4.0f} TFLOP/s, {reached[name] / peak:.0%} of {peak}")

# %% tags=["measure"]
measured("06.fa2", 100 * reached["FA2"] / peak, "%")

# %% tags=["measure"]
measured("06.speedup", reached["hopper"] / reached["FA2"], "×")

# %% [markdown]
# ## The idea, I: what one SM has to do
#
# An H100 is 132 *SMs* (streaming multiprocessors), which do the same to different heads and queries. So look at one of
# them, and at one tile of 128 keys. A *warpgroup* is four warps, 128 threads, the unit that a Hopper GPU multiplies by;
# it holds 64 queries. <!-- source: an H100 SXM has 132 SMs, NVIDIA's data sheet --> For each tile of keys it needs:
#
# - the tile of $K$, $(128, D)$, and the tile of $V$, $(128, D)$, copied into shared memory;
# - $S = Q K^T$, $(64, 128)$: $2 \cdot 64 \cdot 128 \cdot D$ operations on the **tensor cores**;
# - $P = 2^{S - m}$, an **exponential** for each of $64 \cdot 128$ scores, and a handful of simple operations;
# - $O = O \cdot \text{shrink} + P V$, $(64, D)$: as many operations on the tensor cores again.
#
# An SM does 4096 dense half-precision operations on its tensor cores in a cycle, and 16 exponentials. <!-- source:
# 989.5e12 / 132 / 1.83e9; CUDA C++ programming guide, arithmetic instructions --> `attention_costs` divides. Two more
# numbers are in it. The "simple operations" are 3.5 for each score (maximum, scale and shift in one, sum, half of a
# conversion) and one for each element of $O$, and an SM does 128
# of them in a cycle. <!-- source: the same table of the guide --> A copy comes from the L2 cache, at 39 bytes in a cycle,
# an SM's share of what it delivers, and all warpgroups read it. <!-- source: 5120 bytes in a cycle over 132 SMs,
# hardware.sm.COPIED_A_CYCLE -->

# %% tags=["claim"]
from llmsys.hardware.sm import attention_costs

print("cycles of an SM for a warpgroup and a tile of keys")
for D in (64, 128):
    costs = attention_costs(block_m=64, block_n=128, D=D)
    products = f"Q Kᵀ {costs.scores:.0f}, P V {costs.output:.0f}"
    print(f"D = {D:3}: copy K or V {costs.load:.0f}, {products}, softmax {costs.softmax:.0f}")

# %% [markdown]
# With heads of 128, the two products take 1024 cycles, and the softmax between them 800. Its 8192 exponentials alone take
# 512: each costs as much as 256 operations of a tensor core. <!-- source: the table above, 2 · 512; 64 · 128 / 16;
# 4096 / 16 --> With heads of 64, the softmax takes longer than both products. And copying $K$ and $V$ takes 1690 cycles:
# a warpgroup alone waits for them, two do not, whose products take 2048. <!-- source: the table above, 2 · 845, 2 · 1024
# -->
#
# **One thing after the other** means that the tensor cores work for 1024 of 1824 cycles, 56%, if nothing else were
# ever in the way. <!-- source: the table above, 1024 / (1024 + 800) --> To use more of them, the softmax has to happen
# *while* they multiply. Two warpgroups on one SM make that possible: products of one, softmax of the other. But nobody
# says that they will not all multiply at once, and then all compute exponentials.
#
# ## The idea, II: instructions that are started and waited for
#
# Up to the A100, a warp that wants a product gives the tensor cores its operands and waits for the result. Hopper has
# two instructions that are only *started*:
#
# - **`wgmma`**, a warpgroup's matrix product. It reads its operands from shared memory (the left one from registers, if
#   you like), and adds to registers. The warps go on. Before they read the result, they wait: `wait_group N` returns
#   when at most the $N$ products that were started last are still running.
# - **TMA**, the Tensor Memory Accelerator, a copy engine. *One thread* says: this tile of that tensor, to there. The
#   engine computes addresses, fills in zeros beyond the edge, and reports the bytes to a barrier in shared memory.
#
# So a single warp can start all copies of an SM: a **producer**. It computes nothing, and that pays in another
# currency. An SM has 65,536 registers. Shared out evenly to three warpgroups (a producer's and two that compute,
# **consumers**), each thread gets 168. <!-- source: 65,536 registers an SM, CUDA C++ programming guide, compute
# capability 9.0; 65,536 / 384 in steps of 8 --> What does a consumer need?

# %% tags=["claim"]
threads = 128  # of a warpgroup
for D in (64, 128):
    s, o, p = 64 * 128 / threads, 64 * D / threads, 64 * 128 / 2 / threads
    print(f"D = {D:3}: S {s:.0f} + O {o:.0f} + P in half precision {p:.0f} = {s + o + p:.0f} registers a thread")
asked = threads * (2 * 240 + 24)
print(f"two consumers with 240 registers a thread, a producer with 24: {asked:,} of 65,536")

# %% [markdown]
# 160, and some for addresses, $m$ and $l$, do not fit into 168. What does not fit is *spilled*: written to memory and
# read back, in every step. `setmaxnreg` is the way out, Hopper's third new instruction: a producer gives registers back,
# 24 are enough for it, and consumers take them, up to 240. (Registers are dealt out to warpgroups, so the producer's
# one warp counts as four.)
#
# ## The idea, III: orders
#
# `llmsys.hardware.sm` is a model of one SM, with the costs from above. A program is a list of actions, one list for
# each warpgroup and perhaps one for a producer:
#
# | action | what it does |
# |---|---|
# | `Load("K", i)`, `Load("V", i)` | start to copy tile $i$, as soon as a slot is free |
# | `Scores(i)`, `Output(i)` | start $S_i = Q K_i^T$, start $O \mathrel{+}= P_i V_i$ |
# | `Softmax(i)` | compute $P_i$ from $S_i$: this takes the warpgroup's own time |
# | `Wait("K", i)` | wait for a copy (`"K"`, `"V"`) or one's own product (`"S"`, `"O"`) |
# | `Turn()`, `Pass()` | wait for one's turn, pass it on to the next warpgroup; the first has it first |
#
# (Rescaling $O$ is in the cycles of `Softmax`. It comes last there, so an `Output` may still run when `Softmax` begins.)
# Shared memory has room for two tiles of $K$ and two of $V$. A tile's slot is free again when every warpgroup has waited
# for the product that reads it.
#
# FlashAttention-2 is this, for each warpgroup; the first one also starts the copies, a tile ahead.

# %% tags=["claim"]
from llmsys.hardware.sm import ORDERS, Load, Output, Pass, Scores, Softmax, Turn, Wait, run

costs = attention_costs(D=128)
for n, action in enumerate(ORDERS["fa2"](tiles=2, warpgroups=2)[1]):
    print(action, end="\n" if n == 6 else " ")
timeline = run(ORDERS["fa2"](tiles=16, warpgroups=2), costs)
busy = timeline.utilisation("tensor")
print(f"\n16 tiles, two warpgroups: {timeline.cycles:,.0f} cycles, tensor cores busy for {busy:.0%}")

# %% [markdown]
# The model takes three things for granted: an engine that two warpgroups want at the same time is shared evenly, each
# warpgroup's work on it is done in order, and nothing has a latency. It refuses what would be nonsense on a GPU, such
# as using a product that was not waited for:

# %% tags=["claim"]
from llmsys.hardware.sm import Race

hasty = [Load("K", 0), Load("V", 0), Wait("K", 0), Scores(0), Softmax(0), Wait("V", 0), Output(0), Wait("O", 0)]
try:
    run([hasty], costs)
except Race as error:
    print(error)

# %% [markdown]
# Two warpgroups that begin in step stay in step. Both start their scores, and share the tensor cores; both have them at
# the same time; both compute exponentials, and the tensor cores have nothing to do. Watch it happen. A row is an engine,
# a colour a warpgroup; a box of half the height shares its engine. (The other orders are those of exercise (a). Look at
# them now, or try first.)

# %% tags=["widget"]
viz.flash_hopper.sm_timeline(order="fa2")

# %% [markdown]
# ## Exercise (a): put it in order (40 minutes)
#
# What is it worth? In this model, 1.7 times the speed of `fa2`. <!-- source: the tables below, 96% over 55% --> On an H100,
# the last few percent: written in the best order of this lesson, a kernel is 5% faster than written one thing after the
# other, and most of what Hopper wins comes from its two instructions. <!-- source: the H100's table below,
# overlapped_held over one_at_a_time --> Why the model and the GPU differ so much, you will see when you have both. What
# the model teaches is what can be waited for, and for that it is good.
#
# Two overlaps are to be had.
#
# - **Between warpgroups** (*ping-pong*): one multiplies while the other computes exponentials. `Turn()` and `Pass()`
#   see to it: who has the turn may start products, and keeps it until its scores are there. Passed on earlier, the next
#   one starts, too, and they share; kept for longer, the tensor cores wait. (The last $P V$ needs no turn.)
# - **Within a warpgroup**: while it computes the softmax of tile $i$, the tensor cores can work on $P V$ of tile
#   $i - 1$. So a step starts $S_i$ *and* $O \mathrel{+}= P_{i-1} V_{i-1}$, and waits for the first of them alone.
#
# And copies are a **producer's** affair: a program of its own, the last of the list. With both overlaps, the tensor
# cores are busy for 95% of the time with two warpgroups and heads of 128, and for 97% with three; with heads of 64 a
# warpgroup alone keeps them busy for 45%. That is what the check asks for, with 16 tiles of keys. <!-- source: the
# check's thresholds -->

# %% tags=["exercise"] exercise="06.order"
from llmsys.hardware.sm import Load, Output, Pass, Scores, Softmax, Turn, Wait


def order(tiles, warpgroups):
    """The work of one SM: a list of actions for each warpgroup, and one for a producer, as the last.

    tiles         tiles of keys and values, 0 to tiles − 1, at least one; each warpgroup needs all of them
    warpgroups    how many compute, each with queries (64, D) of its own; they share what the producer loads

    Every warpgroup computes Scores(i), Softmax(i), Output(i) once for each tile. A new Output may start when the one
    before has been waited for; only one tile of scores fits into the registers; and at the end nothing may be running.
    """
    ### BEGIN SOLUTION
    program = []
    for i in range(tiles):
        program += [Wait("K", i)]
        if i > 0:
            program += [Wait("V", i - 1)]
        program += [Turn(), Scores(i)]
        if i > 0:
            program += [Output(i - 1)]
        program += [Wait("S", i), Pass(), Softmax(i)]
        if i > 0:
            program += [Wait("O", i - 1)]
    program += [Wait("V", tiles - 1), Output(tiles - 1), Wait("O", tiles - 1)]
    producer = []
    for i in range(tiles):
        producer += [Load("K", i), Load("V", i)]
    return [list(program) for _ in range(warpgroups)] + [producer]
    ### END SOLUTION


# %% tags=["check"] exercise="06.order"
check("06.order", order)

# %% [markdown]
# Yours beside the five that the library has, by the model: how busy are the tensor cores? `fa1` does one thing after
# the other, one warpgroup after the other; `fa2` is the one that you saw, and `independent` the same with a producer;
# `ping_pong` has turns, and `overlapped_held` both overlaps: its turns are held until the scores are there. (The last
# three have the same names in the H100's table, further down.) The stepper shows six tiles, where the first step and the
# last weigh more: its figures are those of the first row.

# %% tags=["claim"]
from llmsys.hardware.sm import overlapped_order

orders = {**ORDERS, "yours": mine("order", default=overlapped_order)}
print(" " * 36 + "".join(f"{name:>{len(name) + 2}}" for name in orders))
for tiles, D, warpgroups in ((6, 128, 2), (16, 128, 1), (16, 128, 2), (16, 64, 2), (16, 64, 3)):
    busy = {name: run(each(tiles, warpgroups), attention_costs(D=D)).utilisation("tensor") for name, each in orders.items()}
    print(f"{tiles:2} tiles, heads of {D:3}, {warpgroups} warpgroup{'s' if warpgroups > 1 else ' '}", end="   ")
    print("".join(f"{part:>{len(name) + 2}.0%}" for name, part in busy.items()))
at_it = run(orders["yours"](16, 3), attention_costs(D=64)).utilisation("exp")
print(f"heads of 64, 3 warpgroups, yours: a softmax is computed for {at_it:.0%} of the time")

# %% [markdown]
# With heads of 128, the tensor cores are what is left to wait for. (A warpgroup alone waits for its copies, so overlap wins
# it little.) With heads of 64, no order helps beyond 65%: there some warpgroup computes its softmax nearly all the time:
# an exponential costs the same whatever the head size is, and a smaller head has less to multiply for each. <!-- source:
# the table above -->
#
# Your own order, as the model ran it, action by action (the library's are there to compare with):

# %% tags=["widget"]
mine_alone = run(orders["yours"](6, 2), attention_costs(D=128))
viz.flash_hopper.sm_timeline({"yours": mine_alone}, tiles=6, warpgroups=2)

# %% [markdown]
# ### What an H100 makes of the same orders
#
# Six kernels, which differ in the few lines of a step, were timed on an H100, in turn, beside FlashAttention-2 and
# cuDNN. All have a producer, and all SMs had the same number of tiles: that takes 36 heads of 4224 tokens, so the speeds
# are others than at the top. <!-- source: recorded("hopper_orders"), H and T; 36 · 4224 / 128 = 9 · 132 -->
#
# | kernel | a consumer's step, as it is written |
# |---|---|
# | `one_at_a_time` | all of it in its turn, the softmax too |
# | `independent` | one thing after the other, without turns |
# | `ping_pong` | both products in its turn, then the softmax |
# | `overlapped_alone` | the softmax while $P V$ runs, without turns |
# | `overlapped_held` | the same with turns, which end when $S$ is there: exercise (a) |
# | `overlapped` | the same with turns, which end when both products are started: the library's, and FlashAttention-3's |
#
# Here are the cycles that an SM needed for a tile of keys with two consumers and heads of 128, and what the model says
# for two that begin in step.

# %% tags=["claim"]
record = recorded("hopper_orders")
rows = {row["name"]: row for row in record.rows if (row["D"], row["consumers"]) == (128, 2)}
print(f"{'':18}{'TFLOP/s':>8}{'cycles':>8}{'by the model':>14}")
for name, row in rows.items():
    model = f"{row['model']:14.0f}" if row["model"] else ""
    print(f"{name:18}{row['tflops']:8.0f}{row['cycles']:8.0f}{model}")
costs, exponentials = attention_costs(D=128), 64 * 128 / 16
print("two warpgroups, one thing after the other, cannot take less than")
print(f"  {2 * (costs.scores + costs.output + costs.softmax):,.0f} cycles, by the model's costs")
print(f"  {2 * (costs.scores + costs.output + exponentials):,.0f} cycles, if of a softmax only the exponentials count")
for name in ("FA2", "one_at_a_time"):
    print(f"overlapped_held over {name}: {rows['overlapped_held']['tflops'] / rows[name]['tflops']:.2f} ×")

# %% [markdown]
# Begin with `one_at_a_time`, which took 3,197 cycles: fewer than the 3,648 of its costs. (The model's figure beside it
# is that of `fa1`, which has no producer and waits for its copies, too.) Perhaps it did overlap: exponentials only touch
# registers, so the assembler may move them past the barrier at which a turn is passed on. Perhaps a softmax costs less
# than the model has it: with its exponentials alone, 3,072 cycles would do. We do not know, so *no row is known to be
# without overlap*, and what overlap is worth, the table cannot say. It says what it is worth to *write* one order or the
# other: 5% from the first of the six to the best. <!-- source: the table above, 1.05 -->
#
# And that is not what the model promised. Of the factor of two over FlashAttention-2, nearly all is there as soon as the
# kernel has a producer and asynchronous products, in whatever order they are written. Two orders that the model calls bad
# are among the best. Why?
#
# - FlashAttention-2's products are the A100's instruction, `mma.sync`, which reaches about two thirds of what `wgmma`
#   does on an H100. <!-- source: FlashAttention-3's paper, https://arxiv.org/abs/2407.08608, section 1 and 2.2 --> The
#   model does not know that.
# - In the model, warpgroups in step stay in step. On a GPU something always drifts: a copy is late, one scheduler is
#   quicker. Warpgroups that are apart stay apart, and overlap without having arranged it. Let the second begin two
#   products after the first (`run(…, begin=[0, 1024])`), and the model, too, finds `overlapped_alone` and `overlapped`
#   within 2% of yours. Turns make sure of it. <!-- source: run over 16 tiles: 2181 and 2142 cycles a tile -->
# - The order that you write need not be the order that runs: the assembler has the last word.
# - And the model knows no latencies: of the 3,039 cycles of `overlapped_held` it predicts 2,094. <!-- source: the table
#   above --> What is in the difference, no model of this size can say.
#
# A model shows *what can be waited for*. What it is worth, a measurement says.
#
# ## The ring
#
# The producer is ahead of the consumers, as far as shared memory has room. Tiles go through a **ring** of slots: tile
# $i$ into slot $i \bmod \text{slots}$. The producer must not overwrite a tile that is still being read, and a consumer
# must not read one that is still being copied. Both wait at barriers in shared memory, *mbarriers*, two for each slot:
#
# | | who waits | what ends a phase |
# |---|---|---|
# | `full[slot]` | consumers | the producer's arrival, and as many bytes copied as it announced |
# | `empty[slot]` | the producer | an arrival of every consumer: "nothing of mine reads it any more" |
#
# A barrier counts arrivals. When the last one has come, its **phase** ends, and the next begins, which counts from zero
# again: phase 0 is the slot's first use, phase 1 its second. A barrier has no memory for a phase number, though, only
# for one bit of it, the **parity**. `wait(parity)` says: go on if the phase *before* the present one had this parity. In
# other words: if the phase of this parity has ended.

# %% tags=["claim"]
from llmsys.hardware.mbarrier import Arrive, Barrier, Copy, Deadlock, Expect, Read, Ring, play
from llmsys.hardware.mbarrier import Wait as WaitFor

barrier = Barrier(count=2)
print("new:             phase", barrier.phase, " wait(0)", barrier.wait(0), " wait(1)", barrier.wait(1))
barrier.arrive()
print("one arrival:     phase", barrier.phase, " wait(0)", barrier.wait(0), " wait(1)", barrier.wait(1))
barrier.arrive()
print("two arrivals:    phase", barrier.phase, " wait(0)", barrier.wait(0), " wait(1)", barrier.wait(1))

# %% [markdown]
# Note the first line. For a new barrier, `wait(1)` is true: before phase 0 there was, as it were, a phase of parity 1,
# and it has ended. That is what a producer needs: at the beginning, every slot is empty.
#
# ## Exercise (b): producer and consumer (30 minutes)
#
# A role is a generator: it yields what it wants to do, and goes on when that is done.
#
# | action | who | what |
# |---|---|---|
# | `WaitFor(barrier, parity)` | both | go on when the phase of this parity has ended |
# | `Expect(barrier, nbytes)` | producer | arrive, and announce so many bytes |
# | `Copy(tile, slot)` | producer | tell the copy engine; it reports the bytes to `ring.full[slot]` |
# | `Read(slot)` | consumer | use the tile that is there |
# | `Arrive(barrier)` | consumer | arrive |
#
# (`Expect` and `Copy` may come in either order: the phase cannot end before the producer has arrived.) `play` runs a
# producer and consumers over a ring, an action at a time, and draws who is next. An answer must be right for every draw:
# nobody may be assumed to be fast. And give every slot back, the last ones, too: the real ring goes on to the next
# queries' tiles.

# %% tags=["exercise"] exercise="06.ring"
from llmsys.hardware.mbarrier import Arrive, Copy, Expect, Read
from llmsys.hardware.mbarrier import Wait as WaitFor


def warp(role, ring, tiles):
    """All actions of one warp, one after another: a generator.

    role     "producer", which copies tiles 0 to tiles − 1 through the ring, or "consumer", which reads each in turn
             (several consumers all read all tiles)
    ring     ring.slots; ring.full[slot] and ring.empty[slot], barriers; ring.tile_bytes, the bytes of a tile (128, D)

    full expects one arrival (the producer's, with the bytes), empty one arrival of each consumer.
    """
    ### BEGIN SOLUTION
    for i in range(tiles):
        slot, use = i % ring.slots, i // ring.slots
        if role == "producer":
            yield WaitFor(ring.empty[slot], (use + 1) % 2)  # of the use before this one
            yield Expect(ring.full[slot], ring.tile_bytes)
            yield Copy(i, slot)
        else:
            yield WaitFor(ring.full[slot], use % 2)
            yield Read(slot)
            yield Arrive(ring.empty[slot])
    ### END SOLUTION


# %% tags=["check"] exercise="06.ring"
check("06.ring", warp)

# %% [markdown]
# Now break it: your producer, and your consumer, which forgets to give its slot back, with two slots. How far does the
# producer come, and who waits for what? (The stepper below plays this run, of your own function if it has passed.)

# %% tags=["claim"]
from llmsys.hardware.mbarrier import warp as library_warp

both_roles = mine("warp", default=library_warp)


def forgetful(ring, tiles):
    for action in both_roles("consumer", ring, tiles):
        if not isinstance(action, Arrive):
            yield action


try:
    play(partial(both_roles, "producer"), [forgetful], slots=2, tiles=5)
except Deadlock as error:
    deadlock = error
    print(f"after {len(error.trace.events)} events: {error}")

# %% tags=["widget"]
viz.flash_hopper.ring(deadlock)

# %% [markdown]
# On a GPU there is no message. The kernel hangs, and after a while somebody resets the process. That is why it is worth
# having a ring whose mistakes are named.
#
# Turns are made of the same stuff: a barrier for each consumer, at which the one before arrives when it passes on.
#
# ## The kernel
#
# `llmsys.attention.hopper` is that design in **Gluon**, the layer below Triton's language. There a kernel says itself
# how a tile lies in shared memory, which warps do what, and when they wait. Its files are the chapters of this lesson:
#
# | file | what is in it |
# |---|---|
# | `ring` | your exercise (b), with `mbarrier.wait`, `mbarrier.expect`, `mbarrier.arrive` |
# | `kernels` | the roles, and the producer |
# | `consumer` | the consumer; its `step` is your exercise (a), with `warpgroup_mma` |
# | `schedule` | which program computes which tile |
#
# The producer is so short that you can read all of it:

# %% tags=["claim"]
import inspect

from llmsys.attention.hopper import kernels

print(inspect.getsource(kernels.produce.fn))

# %% [markdown]
# ### Which tile, and when
#
# The grid has as many programs as the GPU has SMs, and each *stays*: it goes down a list of tiles of queries. So the
# copies of the next tile begin while the last one is being written out, and barriers are set up once. With a causal
# mask, tiles differ: the last queries see all keys, the first ones hardly any. The host hands them out, longest first,
# each to the program that will be free first. What that is worth, for 16 heads of 4096 tokens:

# %% tags=["claim"]
from llmsys.attention.hopper.schedule import hopper_schedule, hopper_tiles

T = 4096
tiles = hopper_tiles(128, T, True)
a_head = T // tiles.block_m  # tiles of queries
steps = {n: -(-(n + 1) * tiles.block_m // tiles.block_n) for n in range(a_head)}  # tiles of keys that a tile sees
table = hopper_schedule(1, 16, 16, T, T, 128, True, tiles, programs=132)
lists = [table[1 : 1 + table[0, program], program].tolist() for program in range(132)]  # each one's tiles of queries
longest_first = max(sum(steps[tile % 2**24] for tile in each) for each in lists)  # a tile's low bits: its place in a head
in_order = [sum(steps[n % a_head] for n in range(program, 16 * a_head, 132)) for program in range(132)]
print(f"tiles of keys for a program: {16 * sum(steps.values()) / 132:.0f} on average")
print(f"for the busiest one: {max(in_order)} if tiles are dealt out in order, {longest_first} if longest first")

# %% [markdown]
# ## Exercise (c): the consumer's step (40 minutes)
#
# You write `step`, the loop's body: $P V$ of tile $i$, and the scores and the softmax of tile $i + 1$. (The kernel does
# the first tile's scores and the last $P V$.) What you have, in no order:
#
# - `keys.take(i)` and `values.take(i)` wait for tile $i$ of the ring and give it; `keys.give_back(i)` says that nothing
#   of this consumer reads it any more.
# - `turns.wait(J, turn)` and `turns.pass_on(J)`: consumer `J`'s turn. Who has it may start products. (The kernel's loop
#   counts `turn`; a step hands it on.)
# - `warpgroup_mma(p, v, o, is_async=True)` starts $O \mathrel{+}= P V$ and returns the new `o`; `start_scores(q, k, S)`
#   starts $S = Q K^T$ and returns `s`. Neither may be used before it has been waited for. A warpgroup's products are done
#   in the order in which they were started.
# - `warpgroup_mma_wait(N, [x])` waits until at most the $N$ products that were started last are running, and returns
#   `x`, finished.
# - `softmax(s, m, l, seen, key, scale_log2, MASKED)` is lesson 02: it returns `p, m, l, shrink`, the last of them what
#   `o` is to be multiplied with.
# - Layouts: the arguments `S` and `P` are those of $S$ and of $P$ as an operand. `p` goes into the next product as
#   `gl.convert_layout(p.to(o_desc.dtype), P)`. `shrink` is a number for each row of $S$; for rows of a finished `o` it is
#   `gl.convert_layout(shrink, gl.SliceLayout(1, o.type.layout))[:, None]`.
#
# Four things are yours to decide, and the check looks at each:
#
# 1. Which of the two products is started first? (Which of them does the softmax need? And if one of two is still
#    running, which one can that be?)
# 2. How long is the turn held? It is for starting products, and over before the softmax. The kernels `overlapped` and
#    `overlapped_held` decide differently; both are right here, and on an H100 within about 2% of each other. <!-- source:
#    recorded("hopper_orders"), overlapped and overlapped_held: 0.98 to 1.01 -->
# 3. What is waited for before the softmax, and what after it?
# 4. From which line on does nothing read the tile of $K$ any more, and from which the tile of $V$?
#
# Here your step is run as Python by simulated warps, which take turns at random, with engines that copy and multiply
# early or late. Deadlocks and races have names there, too. On an H100 it is compiled.

# %% tags=["exercise"] exercise="06.consumer"
from llmsys.attention.hopper.consumer import softmax, start_scores
from llmsys.attention.hopper.gluon import gl, gluon, warpgroup_mma, warpgroup_mma_wait


@gluon.jit
def step(
    J: gl.constexpr, q, keys, values, turns, i, turn, p, m, l, o, seen, key, scale_log2,
    S: gl.constexpr, P: gl.constexpr, o_desc, MASKED: gl.constexpr,
):  # fmt: skip
    """P V of tile i, and scores and softmax of tile i + 1. Returns p, m, l and o, ready for the next step.

    q               this consumer's queries, (64, D), in shared memory
    p               the weights of tile i, (64, BLOCK_N), as operand P; m and l (64,), and o (64, D), before P V of tile i
    seen, key, scale_log2, MASKED    what softmax wants
    """
    ### BEGIN SOLUTION
    k = keys.take(i + 1)
    turns.wait(J, turn)
    s = start_scores(q, k, S)
    o = warpgroup_mma(p, values.take(i), o, is_async=True)
    turns.pass_on(J)
    s = warpgroup_mma_wait(1, [s])  # P V goes on
    keys.give_back(i + 1)
    p, m, l, shrink = softmax(s, m, l, seen, key, scale_log2, MASKED)
    o = warpgroup_mma_wait(0, [o])
    p = gl.convert_layout(p.to(o_desc.dtype), P)
    values.give_back(i)
    return p, m, l, o * gl.convert_layout(shrink, gl.SliceLayout(1, o.type.layout))[:, None]
    ### END SOLUTION


# %% tags=["check"] exercise="06.consumer"
check("06.consumer", step)

# %% [markdown]
# On a Hopper GPU, your kernel against cuDNN's, on the same inputs, in turn. (Elsewhere this cell says what it needs.)

# %% tags=["measure"]
from llmsys.attention.hopper.consumer import step as library_step

your_step = mine("step", default=library_step)
if torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    from llmsys.attention.hopper.forward import launch
    from llmsys.bench.hopper_orders_kernels import kernel_with

    kernel = kernel_with(step=your_step)

    def cudnn(q, k, v):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return scaled_dot_product_attention(q, k, v)

    def yours(q, k, v):
        return launch(q, k, v, False, q.shape[3] ** -0.5, kernel)[0]

    for D in (64, 128):
        shape = (4, 2048 // D, 4096, D)  # (B, H, T, D)
        sets = [tuple(torch.randn(shape, device="cuda").bfloat16() for _ in range(3)) for _ in range(2)]
        torch.testing.assert_close(yours(*sets[0]), cudnn(*sets[0]), atol=2e-2, rtol=2e-2)
        times = interleaved({"yours": yours, "cuDNN": cudnn}, sets)
        tflops = {name: 4 * 4 * 2048 * 4096**2 / time.median / 1e12 for name, time in times.items()}
        print(f"heads of {D}, 4096 tokens: yours {tflops['yours']:.0f} TFLOP/s, cuDNN {tflops['cuDNN']:.0f}")
else:
    print(f"This is tier {tier()}. The race needs an H100 or H200, with Triton.")

# %% [markdown]
# The library's, which has the same step, as recorded:

# %% tags=["measure"]
viz.charts.attention_speed(recorded("attention"), names=["FA2", "flash", "hopper", "cuDNN"])

# %% [markdown]
# With a causal mask and 1024 tokens it is *not* ahead. There a tile of queries meets eight tiles of keys at most, and
# what cannot overlap, the first scores, the first softmax and the last $P V$, weighs the most. <!-- source: 1024 / 128
# -->
#
# ## Eight bits
#
# Hopper's tensor cores multiply 8-bit numbers at twice the rate of 16-bit ones: in the model, `itemsize=1`. The
# exponentials stay as slow as they are.

# %% tags=["claim"]
for bits, itemsize in ((16, 2), (8, 1)):
    costs = attention_costs(D=128, itemsize=itemsize)
    found = run(orders["yours"](16, 2), costs)
    at_it = found.utilisation("exp")  # a softmax, of which exponentials are a part
    print(f"{bits:2} bits: products {costs.scores + costs.output:5.0f} cycles, softmax {costs.softmax:4.0f}: "
          f"{found.cycles / 16:5.0f} cycles a tile, a softmax is computed for {at_it:.0%} of the time, "
          f"its exponentials for {at_it * exponentials / costs.softmax:.0%}")  # fmt: skip

# %% [markdown]
# The format is **e4m3**: a sign, 4 bits of exponent, 3 of mantissa. It reaches from $2^{-9}$ to 448, and has no
# infinity. A number that is not too small is off by at most 1/16 of itself. To be in that range, numbers share a
# *scale*, and the question is how many:
#
# $$ x \approx \text{code} \cdot \text{scale}, \qquad \text{scale} = \frac{\max |x|}{448}, \qquad
# |x - \text{code} \cdot \text{scale}| \le \max\left(\frac{|x|}{16}, \frac{\text{scale}}{1024}\right) \tag{1} $$
#
# The second bound is that of the small ones: below $2^{-6}$ codes are $2^{-9}$ apart. One scale for a whole tensor, and
# a single outlier, large enough, leaves nothing but small codes to all others, or 0: the picture says how large. One
# scale for every 128 rows, and only its neighbours suffer. 128 rows of a head are what the kernel loads as a tile, so
# the product of two scales is *one* factor for a tile of scores, and goes into the scale of the softmax, for nothing.

# %%
viz.flash_hopper.fp8_error()

# %% [markdown]
# ## Exercise (d): blocks with a scale (25 minutes)

# %% tags=["exercise"] exercise="06.quantize_blocks"
import torch


def quantize_blocks(x, rows=128):
    """Codes and scales of x (..., T, D): each block of `rows` rows, with all of its D columns, has one scale.

    Returns codes (..., T, D) in torch.float8_e4m3fn, and scales (..., ceil(T / rows)) in float32, so that
    x ≈ codes · scale of the block, by equation (1). The last block may be shorter.

    A block of zeros has the scale 1. Every other scale is at least torch.finfo(torch.float32).tiny, 1.2e-38: of what
    is smaller, float32 keeps few bits, or none, and a block of tiny numbers would be divided by 0.
    NaN stays NaN; infinity becomes the largest code; neither counts for the scale.
    (Depending on its version, torch's cast makes NaN or 448 of what is above 448: clamp first.)
    """
    ### BEGIN SOLUTION
    T = x.shape[-2]
    padded = torch.nn.functional.pad(x.float(), (0, 0, 0, -T % rows))
    blocks = padded.unflatten(-2, (-1, rows))  # (..., blocks, rows, D)
    largest = torch.where(blocks.isfinite(), blocks.abs(), 0.0).amax((-2, -1))
    smallest = torch.finfo(torch.float32).tiny
    scales = torch.where(largest > 0, (largest / 448).clamp(min=smallest), 1.0)
    codes = (blocks / scales[..., None, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes.flatten(-3, -2)[..., :T, :], scales
    ### END SOLUTION


# %% tags=["check"] exercise="06.quantize_blocks"
check("06.quantize_blocks", quantize_blocks)

# %% [markdown]
# What does it cost attention? Quantise $q$, $k$ and $v$ of one head, compute in full precision with what is left of
# them, and compare with `bfloat16`.

# %% tags=["claim"]
from llmsys.attention import naive_attention
from llmsys.precision.fp8 import dequantize_blocks
from llmsys.precision.fp8 import quantize_blocks as library_quantize

quantize = mine("quantize_blocks", default=library_quantize)
generator = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(1, 1, 1024, 128, generator=generator) for _ in range(3))
exact = naive_attention(q.double(), k.double(), v.double())
for name, rounded in {
    "e4m3, blocks": [dequantize_blocks(*quantize(x)) for x in (q, k, v)],
    "bfloat16": [x.bfloat16().float() for x in (q, k, v)],
}.items():
    error = (naive_attention(*rounded).double() - exact).norm() / exact.norm()
    print(f"{name:13} error of the output, root mean square: {error:.2%} of it")

# %% [markdown]
# About 16 times the error of `bfloat16`, for a mantissa of four bits less. <!-- source: 2^4 --> (The kernel's is a
# little more: it rounds $P$, too.) Whether a model bears that, only the model can say: for $K$ and $V$ in a cache it
# often does.
#
# The kernel, on an H100, with heads of 128. Quantising is counted apart: keys and values of a cache are quantised once.

# %% tags=["claim"]
fp8 = {(row["name"], row["T"], row["causal"]): row for row in recorded("attention_fp8").rows}
print("     T  causal   8 bits, TFLOP/s   over cuDNN in 16   with quantising   error")
for T in (1024, 4096, 16384):
    for causal in (False, True):
        eight, both = fp8["hopper_fp8", T, causal], fp8["both", T, causal]
        print(f"{T:6,} {'yes' if causal else 'no':>7} {eight['tflops']:17.0f}", end=" ")
        print(f"{eight['ratio']:18.2f} {both['ratio']:17.2f} {eight['error']:7.1%}")

# %% [markdown]
# Twice the rate for the products, and not nearly twice the speed: the model said so. It also said that somebody would be
# at a softmax nearly always, and that the units for exponentials would be busy for 62% of the time. <!-- source: the
# model's cell above, 8 bits --> Ask the GPU's own counters for the same units, at 16k tokens and without a mask:

# %% tags=["claim"]
wanted = {"D": 128, "T": 16384, "causal": False, "pass": "forward"}
for row in recorded("attention_counters").rows:
    if row["name"].startswith("hopper") and wanted.items() <= row.items():
        print(f"{row['name']:10} tensor cores busy for {row['tensor']:.0%} of the time, exponential units for {row['exp']:.0%}")

# %% [markdown]
# In 16 bits, the tensor cores are what everybody waits for, as it should be. (The 80% are of the cycles that there were,
# 1.69 billion a second; the 71% at the top are of the data sheet's rate, at 1.83: most of the difference.) <!-- source:
# recorded("attention_counters"), ghz of the row above; 989.5e12 / 132 / 4096 --> In 8 bits, neither unit is busy for
# even half of the time, and exponentials for 46% instead of the model's 62. The rest is waiting, presumably for the
# chain that a softmax is: maximum, exponentials, sum, conversion, each after the one before. Products of half the length
# hide half of it. Here is something left to be won, perhaps by you.
#
# ## Your step in a model
#
# One layer of SmolLM2, its real queries, keys and values for a short prompt, in `float16`: heads of 64, three queries
# to a key. The simulated warps run your step, and torch's fused attention says what should come out.

# %% tags=["engine", "claim"]
from llmsys.attention import sdpa_attention
from llmsys.attention.hopper.simulated.forward import kernel_here, simulate
from llmsys.models import NoCache, load_model

model, caught = load_model(), []


def catch(q, k, v, *, causal=False, scale=None, return_lse=False):
    caught.append((q.half(), k.half(), v.half()))
    return sdpa_attention(q, k, v, causal=causal, scale=scale, return_lse=return_lse)


tokens = model.tokenizer.encode("The tensor cores no longer wait for exponentials, and " * 8)
with torch.no_grad():
    model(torch.tensor([tokens]), NoCache(catch))
q, k, v = caught[10]  # layer 10
o, _ = simulate(q, k, v, causal=True, kernel=kernel_here(step=your_step))
expected = sdpa_attention(q.float(), k.float(), v.float(), causal=True)
print(f"q {tuple(q.shape)}, k {tuple(k.shape)}: ", end="")
print("your step gives what torch's attention gives:", torch.allclose(o.float(), expected, atol=4e-3))

# %% [markdown]
# On an H100 the whole model runs on it: `llmsys generate "…" --attention hopper --dtype bfloat16`; with `--attention auto`
# it says which stage it picks.
#
# ## What production does differently
#
# - **FlashAttention-3** ([Shah et al., 2024](https://arxiv.org/abs/2407.08608)) is where this lesson's ideas are from:
#   section 3.1 has producer and consumers, and ping-pong; 3.2 the overlap within a warpgroup; 3.3 eight bits. Its code
#   is C++ on CUTLASS, in the repository's folder `hopper/`: `mainloop_fwd_sm90_tma_gmma_ws.hpp` has the producer,
#   `load`, and the consumer, `mma`; turns are `warp_scheduler_barrier_sync` and `warp_scheduler_barrier_arrive`. The
#   reported speeds are up to 740 TFLOP/s in `float16`. <!-- source: the paper's abstract -->
# - **CUTLASS** calls the ring a pipeline: `PipelineTmaAsync` and its `PipelineState` of index and phase, in
#   `include/cutlass/pipeline/sm90_pipeline.hpp`.
# - **cuDNN** is closed. It is our peer in every table of this lesson, and on most rows it is slower than what you can
#   read here.
# - **FlashInfer** compiles such kernels for serving, with paged caches; lesson 08 is about those. **FlashAttention-4**
#   is for Blackwell, whose tensor cores are twice as fast again, and whose exponential units are not: it computes a part
#   of the exponentials by polynomials, on the units for multiplications.
# - **The scales of FlashAttention-3's eight bits** are one for each block in its paper, as ours, and one for each head of
#   a sequence in its code. Before that it multiplies $Q$ and $K$ with a random orthogonal matrix, which spreads outliers
#   over all columns: *incoherent processing*.
#
# ## Do you have it?
#
# <details><summary><b>1.</b> A consumer waits for parity 0 of <code>full[1]</code> for its third tile in a ring of two slots. Will it read the right tile?</summary>
#
# Tiles go 0, 1, 2, 3 into slots 0, 1, 0, 1. Its third tile, number 2, is in slot 0, not 1. And slot 0 is in its second
# use: what has to have ended is phase 1 of full[0], so parity 1. As it stands, it depends on who is fast. Phase 0
# of full[1] ended with tile 1. While full[1] is in phase 1, the wait lets the consumer pass: it reads tile 1 again, or
# tile 3 half copied. Once tile 3 is there, phase 1 has ended, too, and parity 0 means phase 2, which ends with tile 5:
# for that, the consumer would have to give tile 3 back first. It waits for ever.
# </details>
#
# <details><summary><b>2.</b> Heads of 256 instead of 128: what happens to products, softmax and registers of a tile of 64 queries and 128 keys?</summary>
#
# Products take twice the cycles, 2048, and the softmax needs as many exponentials as before: the tensor cores are even
# more what one waits for, and overlap matters less. But O alone is 64 · 256 / 128 = 128 registers a thread, and with S
# and P it is 224: hardly anything is left of 240. And two slots for K and V each would be 256 KiB of shared memory, of
# which a program can have 227 KiB. FlashAttention-3 takes tiles of 80 keys there (`hopper/tile_size.h`).
# </details>
#
# <details><summary><b>3.</b> A colleague gives K's slot back right after starting the scores, "because the instruction has been issued". It
# works on all of his inputs. What is wrong?</summary>
#
# wgmma reads K from shared memory while it runs, so the slot may be overwritten under it. In this kernel it is not: the
# producer fills K and V in turn, and before it comes to that slot of K again, it has to wait for a slot of V that is
# given back later. It is right by an accident of two other functions: with more slots for V than for K, or another order
# of the copies, it is a race. So the check looks at the promise and not at the result. Wait for what reads a tile, then
# give it back.
# </details>
#
# **Next:** part II, where attention meets a cache: lesson 07, the KV cache.
