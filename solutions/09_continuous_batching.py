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
# # 09 · Continuous batching
#
# A step reads all weights once, for however many sequences are in it: lesson 07. There is room for many of them: lesson
# 08. What is left to decide is *who* is in a step. Gather some requests, generate until all of them have their
# answers, gather the next ones? Then a short answer's place stays empty until the longest one ends.
#
# **The idea:** decide anew before every step. Whoever is done leaves, and whoever waits comes in. And since a step
# knows tokens and not phases, a prompt need not come in one piece: it fills what the others leave. That is the work of
# a *scheduler*. It is a few pages of plain Python, touches no tensor, and decides what a GPU's throughput is, and who
# waits for it.
#
# You will count what batches waste; see what one long prompt does to everybody else; write what a scheduler does in a
# step, and then what it does when memory runs out. In the end the library's engine serves SmolLM2 with your scheduler,
# and attends with your kernel of lesson 08.

# %% tags=["setup"]
import statistics
import time
from functools import partial

import torch

from llmsys import viz
from llmsys.attention.paged.one_token import attend_one_token, for_model
from llmsys.bench import recorded
from llmsys.cache import BlockPool
from llmsys.course import check, hint, measured, mine, predict
from llmsys.hardware.devices import DEVICES
from llmsys.hardware.tier import tier
from llmsys.lessons.lesson_09_continuous_batching.scheduler_parts import GivenAdmission, GivenSteps
from llmsys.models import generate, load_model
from llmsys.models.decode_cost import bytes_per_token, weights_of_step
from llmsys.models.shapes import SHAPES
from llmsys.serving import Engine, Request, RequestLength, SamplingParams, Scheduler, draw_lengths
from llmsys.viz.continuous_batching.play import asked, made_up, play
from llmsys.viz.continuous_batching.policies import waits
from llmsys.viz.continuous_batching.stepper import REQUESTS
from llmsys.viz.continuous_batching.timeline import read

model = load_model(device="cuda" if torch.cuda.is_available() else "cpu")

# %%
viz.continuous_batching.overview()

# %% [markdown]
# ## Predict: how empty is a full batch?
#
# The conversations of lesson 08 once more: half of the answers have at most 129 tokens, the mean is 211, the longest
# has 1,000. <!-- source: LENGTHS["azure-conversation"] in llmsys/serving/workload.py --> Thirty-two requests are a
# batch. It runs until the last of them has its answer, and then the next 32 begin. While others are waiting, **what
# share of a step's 32 places computes nothing**, on average?

# %% tags=["predict"]
predict("09.empty", None, "%")

# %% [markdown]
# ## What a static batch wastes
#
# A batch of $B$ answers, of $n_1, \dots, n_B$ tokens, takes as many steps as the longest has tokens. It has $B$ places
# in each of them, and uses one for each token:
#
# $$ \text{empty} = 1 - \frac{n_1 + \dots + n_B}{B \cdot \max_i n_i} = 1 - \frac{\text{mean}}{\text{longest}} \tag{1} $$
#
# The mean stays what it is. The longest of many is longer than the longest of few. So the waste grows with the batch,
# and lesson 07 has told us to make it large. In the lengths of 4,096 requests:

# %% tags=["claim"]
answers = [each.output for each in draw_lengths("azure-conversation", 4096, seed=9)]
print(f"{'batch':>6} {'longest, mean':>14} {'empty':>7}")
for B in (1, 4, 32, 256):
    batches = [answers[i : i + B] for i in range(0, len(answers), B)]
    longest = statistics.mean(map(max, batches))
    print(f"{B:6} {longest:14.0f} {1 - statistics.mean(answers) / longest:7.0%}")

# %% [markdown]
# Now count it. The library's scheduler is asked for the plan of a step, and told what came of it. Between the two is a
# model, and here there is none: who computes in which step depends on how *long* prompts and answers are. So a result
# can be made up, and this is a whole service in two lines:

# %% tags=["claim"]
scheduler = Scheduler(BlockPool(1000, 16), policy="static", max_sequences=2)
for name, prompt, output in (("a", [5, 9, 2], 4), ("b", [7, 1], 2), ("c", [3, 8, 8, 1], 2)):
    scheduler.add(Request(name, prompt, SamplingParams(max_tokens=output, ignore_eos=True)))
while plan := scheduler.plan():
    print(f"step {plan.step}:", {work.request: len(work.tokens) for work in plan.work}, "tokens of each")
    scheduler.update(plan, made_up(plan))

# %% [markdown]
# The prompts of `a` and `b` are read in step 0, which also says their first tokens; `b` is done in step 1, and its
# place stays empty until `a` is. `static` is one of four **policies** of the scheduler. What happened is in a log,
# `scheduler.events`: who came in, who computed how many tokens in which step, who said what and ended. `play` is the
# loop above, in a pool so large that nobody waits for a block. `read` sorts its log by steps: a step has its `parts`,
# one for each request that computed something, and how many others were `waiting`. Serve 128 conversations in 32
# places, with room in a step for all prompts of a batch:

# %% tags=["claim"]
PLACES = 32
conversations = asked(draw_lengths("azure-conversation", 128, seed=9))
said = sum(each.output for each in conversations)
longest_prompt = max(len(each.prompt) for each in conversations)


def empty(steps):
    """The share of places that computes nothing, in the steps in which others wait."""
    full = [step for step in steps if step.waiting]
    return 1 - sum(len(step.parts) for step in full) / (PLACES * len(full))


timelines = {"static": read(play(conversations, policy="static", max_tokens_per_step=131_072, max_sequences=PLACES))}
print(
    f"{sum(len(each.prompt) for each in conversations):,} tokens of prompts, the longest {longest_prompt:,}; ", end=""
)
print(f"{said:,} tokens of answers")
print(f"static: {len(timelines['static']):,} steps; while others wait, {empty(timelines['static']):.0%} are empty")

# %% tags=["measure"]
measured("09.empty", 100 * empty(timelines["static"]), "%")

# %% [markdown]
# Two thirds of the batch are empty, about as (1) has it. (It has 64% for many batches of 32. Here are four, and the
# last of them, behind which nobody waits, is left out.) And those who wait at the door wait for the longest of those
# inside.
#
# ## Deciding at every step
#
# Orca ([Yu et al., 2022](https://www.usenix.org/conference/osdi22/presentation/yu)) decides before each *iteration*: a
# request leaves in the step in which it ends, and in the next one its place is another's, who comes with the whole
# prompt. Nothing in the model has to change for that. Since lesson 07, the tokens of a step lie side by side, and
# each sequence brings as many as it likes.

# %% tags=["claim"]
timelines["orca"] = read(play(conversations, policy="orca", max_tokens_per_step=131_072, max_sequences=PLACES))
for name, steps in timelines.items():
    print(f"{name:8} {len(steps):6,} steps; while others wait, {empty(steps):4.0%} are empty")
print(f"{len(timelines['static']) / len(timelines['orca']):.2f} times as many steps")

# %% [markdown]
# Is it 2.30 times as fast? Count again, not in steps. A step with a prompt of a thousand tokens is not the step of 32
# tokens that it was before. By lesson 07, for a step with $n$ tokens, of sequences with $T_1, T_2, \dots$ tokens in the
# cache when it is done, $\kappa$ bytes each,
#
# $$ \text{seconds} \ge \max\Big(\frac{\text{weight bytes}}{\text{bandwidth}},\ \frac{2 \cdot \text{parameters} \cdot n}{\text{peak}}\Big) + \frac{\kappa \cdot (T_1 + T_2 + \dots)}{\text{bandwidth}} \tag{2} $$
#
# where a prompt's tokens count like all others. (Two simplifications, both for prompts: all of their tokens are
# multiplied with the head, of which only the last one has need; and attention's own arithmetic is left out.) Llama-3-8B
# on an H100:

# %% tags=["claim"]
llama, h100 = SHAPES["Llama-3-8B"], DEVICES["H100 SXM"]
weight_bytes, parameters = weights_of_step(llama, batch=1)
peak, kappa = h100.flops["bfloat16"], bytes_per_token(llama)


def seconds(step):
    """(2), of a step as `read` has it."""
    arithmetic = 2 * parameters * step.tokens / peak
    return (
        max(weight_bytes / h100.bandwidth, arithmetic) + kappa * sum(part.end for part in step.parts) / h100.bandwidth
    )


print("tokens of a step     shared part of (2), ms")
mean_prompt = round(statistics.mean(len(each.prompt) for each in conversations))
for n, what in ((1, ""), (32, "an answer's token for each place"), (295, "lesson 07: both sides of the max are equal"),
                (512, ""), (mean_prompt, "the mean prompt"), (longest_prompt, "the longest")):  # fmt: skip
    ms = 1e3 * max(weight_bytes / h100.bandwidth, 2 * parameters * n / peak)
    print(f"{n:16,} {ms:15.2f}   {what}".rstrip())
head = llama.vocab * llama.width / parameters
attention = sum(4 * llama.layers * llama.width * len(each.prompt) ** 2 / 2 for each in conversations)
products = 2 * parameters * sum(len(each.prompt) for each in conversations)
print(f"simplified in (2): the head, {head:.0%} too much; attention, {attention / products:.0%} too little")

# %% [markdown]
# Up to 295 tokens a step costs what one token costs. Beyond that, it takes as long as its arithmetic: a prompt of
# average length is a step of 16 ms, and the longest of these one of 166. <!-- source: the table above -->
#
# ## What a prompt does to the others
#
# Whoever is writing an answer then waits for somebody else's prompt. Measure that where the user feels it, from one
# token of an answer to its next one; first in tokens that all together computed meanwhile, and then in time:


# %% tags=["claim"]
def in_tokens(step):
    return step.tokens


def table(timelines):
    print(
        f"{'':12}{'steps':>6} {'seconds':>8} {'tokens/s':>9}   from token to token, ms: median, p99, max", end=""
    )
    print(f" {'in tokens':>10}")
    for name, steps in timelines.items():
        total = sum(map(seconds, steps))
        ms = sorted(1e3 * each.seconds for each in waits(steps, seconds))
        tokens = max(each.seconds for each in waits(steps, in_tokens))
        print(f"{name:12}{len(steps):6,} {total:8.2f} {said / total:9,.0f} {ms[len(ms) // 2]:30.1f}", end="")
        print(f" {ms[int(0.99 * len(ms))]:5.1f} {ms[-1]:5.1f} {tokens:11,}")


table(timelines)

# %% [markdown]
# By (2), Orca's batches give 1.85 times the tokens in a second: fewer steps, but prompts cost the same either way. <!--
# source: the table, 3,512 / 1,899 --> And now look to the right. Half of all waits are at most 5.7 ms; one in a hundred
# takes 39 or more, and the longest 185.6 ms: a step of 12,144 tokens, nearly all of them prompts. Everybody who was
# answering stood still until others' prompts had been read. The fuller the service, the more often somebody comes in.
# In a static batch there is none of that: nobody comes in.
#
# ## A prompt in pieces
#
# Why should a prompt be read in one step? Attention with a cache takes any piece of it (lesson 07: a triangle that ends
# in the bottom right corner), and the keys of earlier pieces are there. So let a step have a **budget**: at most so
# many tokens, whoever they belong to. A prompt that is longer goes on in the next step.
#
# Two ways to use it. *Alternating*: a step of pieces, a step of answers, and so on in turn. *Stall-free*, which is
# Sarathi-Serve's ([Agrawal et al., 2024](https://arxiv.org/abs/2403.02310)): every step gives each answer its token
# first, and fills what is left of the budget with a piece.

# %% tags=["claim"]
for name in ("alternating", "stall-free"):
    timelines[name] = read(play(conversations, policy=name, max_tokens_per_step=512, max_sequences=PLACES))
table(timelines)
for name, steps in timelines.items():
    full = [step for step in steps if step.waiting]  # who has ended in it had a place, too
    sit_out = sum(step.running + len(step.ended) - len(step.parts) for step in full) / (PLACES * len(full))
    print(f"{name:12} while others wait, {empty(steps):4.0%} of the places compute nothing", end="")
    print(f"; {sit_out:3.0%} belong to somebody who sits the step out")

# %%
viz.continuous_batching.policies(timelines, seconds, places=PLACES)

# %% [markdown]
# With pieces, nobody waits longer than a step or two: 13.9 ms, or 9.3, where it was 185.6. They are bounded by the
# budget, and no longer by what others may ask: 512 tokens, or one more decoding step.
#
# The places that compute nothing are of two kinds now. Where a piece has used up the budget, nobody comes in, and a
# place is kept empty: that is all that stall-free has. With alternating, most of them belong to somebody: who answers
# sits out the steps of pieces, and who reads those of answers.
#
# But alternating is slower than Orca, and stall-free is the fastest of all. Both read the same prompts by the same
# budget, so look at (2) again. A step of 32 answers reads 15 GB of weights and has nearly nothing to do meanwhile; a
# step of a piece computes, and could have read on the side. Put both into *one* step, and it takes as long as the
# longer of them. Alternating pays for both: it has 1,431 steps, and stall-free 1,131. These are 300 more reads of the
# weights, 4.48 ms each: 1.34 s, and 1.30 s is what the two differ by. <!-- source: the tables above -->
#
# What budget, then? A short one makes short waits, and reads the weights more often for each prompt, and its earlier
# pieces, too. A long one is Orca. Lesson 10 chooses it by what a service has promised its users.

# %% [markdown]
# ## One rule
#
# Prefill, decoding, pieces: do not write a scheduler of three cases. A request has two numbers, how many of its tokens
# are **known** (its prompt's, and those generated so far) and how many of them are **computed**, their keys and values
# in the cache:
#
# | | known | computed | the next step |
# |---|---|---|---|
# | a prompt of 6, just admitted | 6 | 0 | up to 6 |
# | ... after a piece of 4 | 6 | 4 | 2 |
# | it answers | 7 | 6 | 1 |
# | a prompt of which 4 tokens were found in the cache | 6 | 4 | 2 |
#
# A step computes some tokens that are known and not computed. When nothing is left to compute, the logits of the last
# one say another token, which is then known, and not computed. So there is one rule: **computed catches up with
# known**, as far as the budget allows.
#
# Who is served first? Those that run, in the order in which they came in, and then those that wait, in the order in
# which they arrived: first come, first served.

# %% [markdown]
# ## Exercise (a): the scheduler's step (35 minutes)
#
# Write what decides over a step: who computes how many tokens, whose next token is wanted, and what becomes of the
# result. Take the requests that run in the order in which they were admitted, the oldest first; then let others in, as
# long as there are tokens left in the step, and places. Do you see why a decode never waits for a prompt in that order?
# Who can have more than one token left?
#
# Requests come and go, blocks are found and taken, what happens is written down: all of that is given, in
# `SchedulerParts`. So is what exercise (b) will ask for: whether there is room.

# %% tags=["exercise"] exercise="09.steps"
from llmsys.lessons.lesson_09_continuous_batching.scheduler_parts import SchedulerParts


class Steps(SchedulerParts):
    """Computed catches up with known. A step is a list of pairs (request, n): who computes how many tokens.

    SchedulerParts has these:

    self.max_tokens_per_step    tokens of a step, at most
    self.max_sequences          requests that run side by side, at most; never more than max_tokens_per_step
    self.running                a list of those that run, the oldest first. Whoever ends is taken out of it for you
    self.make_room(request)     asks for slots for all that is known of a running request. True if it has them; if not,
                                it computes nothing in this step
    self.admit()                lets the first of those that wait in: it is the last of self.running then, has slots for
                                all that is known of it, and is returned. None where nobody waits, or there is no room.
                                It does not look at max_sequences
    Of a request:
    request.tokens              a list: known, prompt and answer
    request.computed            an int: how many of them are computed. When it is let in, some may have been found
    """

    def share_out(self):
        """Who computes how many tokens in the next step: a list of pairs (request, n), with n at least 1.

        Those that run come first, in their order, then those that are let in. Each gets as many as it has left to
        compute, or as many as the step has left.
        """
        ### BEGIN SOLUTION
        left, shares = self.max_tokens_per_step, []
        for request in tuple(self.running):  # make_room may throw others out of it
            n = min(len(request.tokens) - request.computed, left)
            if self.make_room(request):
                shares.append((request, n))
                left -= n
        while left > 0 and len(self.running) < self.max_sequences:
            request = self.admit()
            if request is None:
                break
            n = min(len(request.tokens) - request.computed, left)
            shares.append((request, n))
            left -= n
        return shares
        ### END SOLUTION

    def logits(self, request, n):
        """1 if the request's next token is wanted after these n tokens, else 0. Asked before they are computed."""
        ### BEGIN SOLUTION
        return int(request.computed + n == len(request.tokens))
        ### END SOLUTION

    def take_in(self, request, n, said):
        """The step is done: n tokens of this request were computed. `said` is a list of its next token, or empty."""
        ### BEGIN SOLUTION
        request.computed += n
        request.tokens += said  # known from now on, and not computed
        ### END SOLUTION


# %% tags=["check"] exercise="09.steps"
check("09.steps", Steps)

# %% [markdown]
# Nothing in there says that those who decode go first, and they do: of those that run, only the one that came in last
# can have more than one token left. For a prompt is cut where the step's tokens end, and then nobody comes in behind
# it. (A policy that lets others in behind a prompt that was cut would have to say it.)
#
# Your steps, with all else as the library has it, serve the first 48 conversations; and in the real engine, which takes
# any scheduler, three questions in steps of at most 24 tokens:

# %% tags=["claim"]
OwnSteps = mine("Steps", default=GivenSteps)
some = conversations[:48]
limits = dict(max_tokens_per_step=512, max_sequences=PLACES)
own, library = read(play(some, scheduler=OwnSteps, **limits)), read(play(some, **limits))
print(f"{len(own)} steps, at most {max(step.tokens for step in own)} tokens in one; ", end="")
print(f"in {sum(step.decodes > 0 < step.prompt_tokens for step in own)} of them a prompt beside answers")
print("step by step as the library's scheduler:", [each.parts for each in own] == [each.parts for each in library])

# %% tags=["claim"]
questions = ["Why is the sky blue? Answer in one sentence.", "Name three colours.", "What is 2 + 2?"]
alone = [generate(model, each, max_new_tokens=4) for each in questions]
engine = Engine(model, scheduler=OwnSteps, num_blocks=60, max_tokens_per_step=24, max_sequences=3)
answers = engine.generate(questions, SamplingParams(max_tokens=4), progress=False)
for step in read(engine.events):
    print(f"step {step.number}:", {part.request: part.tokens for part in step.parts})
same = [one.tokens == answer.tokens for one, answer in zip(alone, answers, strict=True)]
print("each as if it were alone:", same)

# %% [markdown]
# ## When memory runs out
#
# Nobody knows how long an answer will be. The scheduler lets requests in as long as there are blocks for their prompts;
# then all of them grow, a block every 16 tokens, and at some step there is none left for one of those who are in the
# middle of an answer. (To reserve the longest answer for everybody would be lesson 07's rows again.) Somebody has to
# go: **preemption**.
#
# - **Who?** The one that was admitted last. Then whoever came first is never stopped by others and reaches the end, and
#   so does, after it, the next one: everybody ends. By another rule, the longest first, say, a request may be thrown
#   out again and again for the sake of those who came after it.
# - **What becomes of what it has computed?** Either its blocks are copied to the host's memory, and later back:
#   *swapping*. Or they are given up, and computed again: *recomputation*. To compute them needs no further code, for by
#   the one rule a preempted request is one whose `computed` is 0: all that it knows, its own answer included, is a long
#   prompt, read in a few steps, where it was generated in many. And its blocks are free, but not forgotten (lesson 08):
#   if nobody has needed them meanwhile, it finds them.
# - **When does it come back?** In its old place in the queue, before all who came after it.
#
# What do the two cost? Swapping moves $\kappa$ bytes a token, twice, over PCIe: 64 GB/s in each direction. <!-- source:
# NVIDIA's data sheet of the H100 SXM has 128 GB/s for PCIe Gen5, both directions together --> Recomputation is two
# operations a parameter:

# %% tags=["claim"]
for name, kv_heads in (("Llama-3-8B, 8 key heads", 8), ("with 32 key heads", 32)):
    swapped = 2 * kappa * kv_heads / llama.kv_heads / 64e9
    print(f"{name:24} a token: swapped {1e6 * swapped:5.1f} µs, computed again {1e6 * 2 * parameters / peak:5.1f} µs")

# %% [markdown]
# On paper, swapping is nearly four times cheaper here. (With as many key heads as query heads, as models had when the
# two were first compared, it is no cheaper at all.) But look at what happens in a service. Short questions, a twentieth
# of the conversations' prompts, so that nearly all of the memory goes to answers; a pool of 400 blocks; and a
# **watermark**: a request is admitted only if so many blocks stay free beside its own. (Until here it was 1% of the
# pool, the default. And `num_blocks` is 401, since block 0 belongs to nobody: lesson 08.) <!-- source: watermark: float
# = 0.01 in llmsys/serving/scheduler.py -->

# %% tags=["claim"]
short = [
    RequestLength(max(8, each.prompt // 20), each.output) for each in draw_lengths("azure-conversation", 96, seed=9)
]
print("                  preempted:                                              waits, s:")
print("watermark  steps  times  requests  at once    lost   found  seconds by (2)   median   max   above 0.1")
for watermark in (0, 0.05, 0.2, 0.4):
    log = play(asked(short), max_tokens_per_step=512, max_sequences=64, num_blocks=401, watermark=watermark)
    steps = read(log)
    preempted, at_once, lost, found, came_in = [], 0, 0, 0, {}
    for step in steps:
        preempted += step.preempted
        at_once += sum(step.number - came_in[name] <= 3 for name in step.preempted)  # after three steps at most
        lost += sum(step.preempted.values())
        found += sum(step.admitted.values())
        came_in |= dict.fromkeys(step.admitted, step.number)
    long = sorted(each.seconds for each in waits(steps, seconds))
    print(f"{watermark:9.0%} {len(steps):6,} {len(preempted):6} {len(set(preempted)):9} {at_once:8} {lost:7,}", end="")
    print(f" {found:7,} {sum(map(seconds, steps)):15.2f} {long[len(long) // 2]:8.4f} {long[-1]:5.2f}", end="")
    print(f" {sum(each > 0.1 for each in long):11}")

# %% [markdown]
# Without a watermark, 77 times somebody is thrown out, and 9,047 tokens must be computed a second time, but for 1,968
# that are found. And it costs nothing: 5.17 s, as with 28 preemptions. What is computed again rides along, in steps
# that wait for the weights anyway, so there is nothing that swapping could save. (In a service of long prompts, whose
# steps are full of arithmetic, there would be.) Preemption is not paid by the service, then, but by the one who is
# preempted, and waits for up to 1.37 s in the middle of a sentence, where half of all waits are below 5 ms. <!--
# source: the table above -->
#
# A watermark of a few percent prevents most preemptions, at no cost, and hardly shortens the waits. Of the 77, 33 hit
# somebody who had come in at most three steps before: by the last blocks, to be thrown out by a neighbour's next
# tokens, having computed a prompt for nothing. 5% end that. But 22 requests, where they were 27, are thrown out in the
# middle of an answer, for 1.33 s at worst. A large watermark helps those, too, and costs: with 20%, 10 waits are longer
# than 0.1 s and the longest is 1.02, and all takes 3% longer; with 40%, 4 and 0.65, and 16%, for so much memory is kept
# free for what might happen that batches are smaller. <!-- source: the table above, 5.32 / 5.17, 6.00 / 5.17 -->

# %% [markdown]
# ## Exercise (b): admission and preemption (40 minutes)
#
# Three methods: room for one that runs, if need be from others; what it means to be thrown out; and who comes in. The
# pool is the library's, with the methods of lesson 08: it finds prefixes, and says `OutOfBlocks` where it has too
# little, with nothing changed. Steps are shared out for you as in exercise (a).

# %% tags=["exercise"] exercise="09.admission"
from llmsys.cache import OutOfBlocks
from llmsys.lessons.lesson_09_continuous_batching.scheduler_parts import SchedulerParts


class Admission(SchedulerParts):
    """Who has blocks.

    SchedulerParts has these, and the three lists are yours to change:

    self.waiting      a list of requests, first come first; who was preempted is among them again
    self.running      a list of requests, in the order in which they were admitted
    self.preempted    a list of those that this step has preempted. It is emptied before each step
    self.reserve      the watermark, in blocks
    self.pool         a BlockPool:
        hit = pool.match(tokens)                 the longest prefix that is there: hit.tokens of them, fewer than all
        table = pool.allocate(length, hit, reserve=0)   slots for `length` tokens, the hit's among them. OutOfBlocks
                                                 where fewer than `reserve` blocks would stay free
        pool.extend(table, length)               slots for `length` tokens in all. OutOfBlocks where it has too few
        pool.free(table)                         its blocks are free; what is in them can be hit until they are needed
    Of a request:
    request.tokens    a list: known, prompt and answer
    request.computed  an int: how many of them are in its blocks
    request.table     while it runs, its table

    Before each step, make_room is called for those that run, the oldest first, and then admit, again and again, as long
    as somebody came in, and the step has tokens and places left.
    """

    def make_room(self, request):
        """True if the request has slots for all its known tokens now, for which others may have been preempted: the one
        that was admitted last, as often as it takes. False if that was the request itself.
        """
        if request not in self.running:
            return False  # an older one has thrown it out in this step
        ### BEGIN SOLUTION
        while True:
            try:
                self.pool.extend(request.table, len(request.tokens))
                return True
            except OutOfBlocks:
                newest = self.running[-1]
                self.preempt(newest)
                if newest is request:
                    return False
        ### END SOLUTION

    def preempt(self, request):
        """Throws a running request out. It waits again, in its old place: before all that came after it.

        It has no blocks then, and nothing of it is computed. What it knows, it knows.
        """
        ### BEGIN SOLUTION
        self.running.remove(request)
        self.pool.free(request.table)
        request.computed = 0  # its tokens stay: they are one long prompt now
        self.waiting.insert(0, request)  # whoever runs came before all that wait
        self.preempted.append(request)
        ### END SOLUTION

    def admit(self):
        """Lets the first of those that wait in, with slots for all its known tokens, and returns it.

        None, and nothing has changed, where nobody waits, where there is no room for it, or where this step has
        preempted anybody. Beside others it only comes in if self.reserve blocks stay free; alone, it may have them all.
        """
        ### BEGIN SOLUTION
        if self.preempted or not self.waiting:
            return None
        request = self.waiting[0]
        hit = self.pool.match(request.tokens)
        reserve = self.reserve if self.running else 0
        try:
            request.table = self.pool.allocate(len(request.tokens), hit, reserve=reserve)
        except OutOfBlocks:
            return None
        request.computed = hit.tokens
        self.waiting.remove(request)
        self.running.append(request)
        return request
        ### END SOLUTION


# %% tags=["check"] exercise="09.admission"
check("09.admission", Admission)

# %% [markdown]
# How often does it take? Once: who runs needs one block at most, for the token that was said, and whoever goes has at
# least one of its own. A loop is right without that argument, and where it does not hold.
#
# Both answers make one scheduler. In the pool of 400 blocks, with the short questions and a watermark of 5%:


# %% tags=["claim"]
class OwnScheduler(OwnSteps, mine("Admission", default=GivenAdmission)):
    """Everything that a step decides is yours."""


limits = dict(max_tokens_per_step=512, max_sequences=64, num_blocks=401, watermark=0.05)
own, library = read(play(asked(short), scheduler=OwnScheduler, **limits)), read(play(asked(short), **limits))
preempted = [name for step in own for name in step.preempted]
print(f"{len(own):,} steps, {len(preempted)} preemptions of {len(set(preempted))} requests")
done = sum(len(step.ended) for step in own)
print(f"{done} of {len(short)} requests have their whole answers; blocks in use: {own[-1].blocks_used}")
print("step by step as the library's scheduler:", [each.parts for each in own] == [each.parts for each in library])

# %% [markdown]
# ## Watch it
#
# The whole of it, on your scheduler: seven requests in four places, blocks of 4 tokens, and a pool of 12 blocks, which
# is too small. One of them, the watermark's 1% rounded up, stays free where somebody comes in. <!-- source: watermark:
# float = 0.01 in llmsys/serving/scheduler.py --> Three prompts begin with the same eight tokens. Step through it, and
# predict each step before you see it. Why does D wait so long, with blocks free, and why do E and F, which would fit?
# Who is preempted, and what does it find when it comes back? Then choose other policies, and watch the two lanes at the
# bottom.

# %% tags=["widget"]
viz.continuous_batching.stepper(OwnScheduler)

# %% [markdown]
# <details><summary>Answer</summary>
#
# D's 21 tokens need six blocks, and one more must stay free, as the watermark has it. In step 3 five are free. In step
# 4 B ends, and then seven are: just enough. But those that run go first, and in step 5 both A and C fill a block and
# take another. Five are free when the queue's turn comes. Only when A has left, D comes in, in step 7, with 15 tokens:
# C decodes in the same step, and the budget is 16. E would fit in step 5, and F in step 6, but nobody passes the first
# of the queue: if they did, a large request might wait for ever. (From step 8 on, F and G wait for room.)
#
# In step 10, E's thirteenth token needs a fourth block, and none is free. The newest is E itself, so E goes. C ends in
# that very step, and E is back in the next one: its three full blocks are still there, 12 of its 13 tokens are found,
# and all that it has lost is a step. With `orca` and the same blocks it is D that is thrown out, with 21 tokens
# computed and 20 found again; with 24 blocks it is nobody. `static` takes 29 steps for what takes 19 here, and with
# `alternating` somebody has blocks and computes nothing, again and again. <!-- source: the stepper's frames -->
# </details>
#
# The free blocks after each step, and who came, came in, was thrown out and ended:

# %% tags=["claim"]
small = dict(max_tokens_per_step=16, max_sequences=4, num_blocks=13, block_size=4)
for step in read(play(REQUESTS, scheduler=OwnScheduler, **small)):
    words = {"arrives": step.arrived, "comes in": step.admitted, "is preempted": step.preempted, "ends": step.ended}
    told = [f"{name} {what}" for what, names in words.items() for name in names]
    free = step.blocks - step.blocks_used
    print(f"step {step.number:2}: free blocks {free:2}  {', '.join(told)}".rstrip())

# %% [markdown]
# ## Measure: this machine
#
# SmolLM2, twelve questions, four places. The answers are as long as those of twelve conversations, divided by 24: 6, 8,
# 1, 17, 3, 5, 5, 2, 17, 15, 1 and 8 tokens, in the order in which they come. The engine's `policy` is first `static`,
# then `stall-free`. **How many times as many tokens in a second?** Count the steps of both first. (The questions begin
# alike, which both of them find in the cache.)

# %% tags=["predict"]
predict("09.here", None, "×")

# %% tags=["measure"]
asks = [f"Write a sentence about the number {n}." for n in range(12)]
limits = [max(1, each.output // 24) for each in draw_lengths("azure-conversation", len(asks), seed=3)]
assert limits == [6, 8, 1, 17, 3, 5, 5, 2, 17, 15, 1, 8]
params = [SamplingParams(max_tokens=limit, ignore_eos=True) for limit in limits]
engines, took = {}, {}
for policy in ("static", "stall-free"):
    engines[policy] = Engine(model, num_blocks=100, max_sequences=4, max_tokens_per_step=256, policy=policy)
    took[policy] = 0.0
    for ask, its in zip(asks, params, strict=True):
        engines[policy].add(ask, its)
while any(engine.has_unfinished for engine in engines.values()):
    for policy, engine in engines.items():  # a step each, in turn: whatever else this machine does, it does to both
        start = time.perf_counter()
        engine.step()
        took[policy] += time.perf_counter() - start
for policy, engine in engines.items():
    print(f"{policy:12} {engine.metrics.totals.steps:3} steps, {sum(limits) / took[policy]:6.1f} tokens/s")
measured("09.here", took["static"] / took["stall-free"], "×")

# %% [markdown]
# Compare the ratio of the speeds with that of the steps. The steps with prompts take as long by either policy, so the
# speeds differ by less; and on a CPU four tokens cost a little more than one, too. More than that is what else the
# machine was doing.
#
# ## Predict: how busy is the GPU?
#
# By (2) a step takes as long as its bytes, or its arithmetic. That is what it takes *at least*. Here is a real one, of a
# small model on a large GPU: Qwen3-0.6B, 256 requests, and all of them decode. How fast memory is was measured in the
# same run, by a copy.

# %% tags=["claim"]
record = recorded("serving", "H200")
steps_of = {(row["model"], row["batch"], row["name"]): row for row in record.rows if row["sweep"] == "step"}
plain = steps_of["Qwen3-0.6B", "full batch", "all off"]
(copied,) = (row["gbps"] for row in record.rows if row["sweep"] == "copy")
print(f"{record.device}, a copy: {copied:,.0f} GB/s")
print(f"{plain['weight_bytes'] / 1e9:.2f} GB of weights, and of {plain['sequences']} requests {plain['tokens']:,} tokens", end="")
print(f" in the cache, {plain['cache_bytes'] / 1e9:.1f} GB: at least {plain['roofline_ms']:.2f} ms a step")
print(f"the plain engine launches {plain['launches']:,} kernels (and copies) for it, one by one")

# %% [markdown]
# A plain engine goes about it like this. The host plans the step, makes a batch of the plan, and runs the model: 28
# layers in Python, in which one kernel after the other is launched. Then it waits for the tokens, takes them in, gives
# them to whoever listens, and plans the next step. Kernels run while it launches others; whenever the last one that was
# launched is done, the GPU has nothing to do. To launch a kernel takes the host ten microseconds and more, with all that
# PyTorch does around it. **For what share of such a step does the GPU have nothing to do?**

# %% tags=["predict"]
predict("09.idle", None, "%")

# %% tags=["measure"]
measured("09.idle", 100 * plain["idle_ms"] / plain["ms"], "%")

# %%
viz.continuous_batching.step_parts(record)

# %% [markdown]
# ## What a step is made of
#
# Look at the upper left first, 256 requests, and there at the line "all off". The step has three parts.
#
# **Attention** reads the cache. It takes about as long as its bytes do, and none of the lines below it changes that:
# lesson 08 has been there. (It is most of the dashed line, which has the weights as well.)
#
# **The other kernels** are the products, which read the weights, and between them what is small: norms, the rotation,
# the gate of the MLP, the sums of the residual, the draw of the next tokens. A small kernel moves a megabyte or two;
# much of its time is spent to begin and to end.
#
# **Nothing** is the host's part. In it no byte moves, and none of it is in (2).
#
# For the last two, the library's engine has four switches, the fields of `Execution`:
#
# - `graphs`: what a step launches is the same in every step of its size, but for the numbers in its tensors. So it is
#   recorded once, as a *CUDA graph*, and then launched as a whole. A graph's tensors have fixed sizes: there is one for
#   each of a few sizes of steps, and a step is filled up to the next of them with rows that nobody wants.
# - `ahead`: the next step is planned, and put into the GPU's queue, while this one runs. But its plan needs the tokens
#   that this step is just computing. It has *place-holders* for them: by the one rule it is enough that a token is
#   known *then*, and when the step runs, the GPU fills them in from what it has drawn. Who has come to `max_tokens` is
#   known beforehand. Who says an end token, or a stop string, is known a step late: the request has been computed once
#   more, and that token is thrown away.
# - `fused`: a layer is four products and attention, and there is one small kernel between any two of these: the
#   residual's sum with the norm after it; the norms of the heads with their rotation and the write into the cache; the
#   gate. In plain PyTorch a norm alone is half a dozen.
# - `few_kernels`: where there are few requests, a layer is five kernels, small operations included. Each is launched
#   before the one ahead of it has ended, and has fetched its weights when its turn comes.
#
# In the picture each of them is taken away from "all on", so what a line has more than the last one is what its switch
# is worth there. And what is it worth? Host and GPU are two workers. Let $P$ be the time in which the host plans,
# prepares and takes in, $L$ that in which it launches, and $G$ that of the kernels. While the host launches, the GPU
# works already. While it plans, the GPU does only if it has been given something to do before:
#
# $$ \text{step} \approx P + \max(L, G), \qquad \text{planned ahead:} \quad \max(P + L,\ G) \tag{3} $$

# %% tags=["claim"]
WAYS = ["all off", "without ahead", "without graphs", "without fused", "without few_kernels", "all on"]


def by_3(row):
    """P, L and G of a step, and its time by (3), in ms."""
    P = sum(row[f"host_{phase}_ms"] for phase in ("plan", "prepare", "update"))
    L, G = row["host_launch_ms"], row["attention_ms"] + row["other_ms"]
    waits_for_its_tokens = row["name"] in ("all off", "without ahead")
    return P, L, G, P + max(L, G) if waits_for_its_tokens else max(P + L, G)


for batch in ("full batch", "one request"):
    print(f"{'Qwen3-0.6B, ' + batch:26}{'P':>7}{'L':>7}{'G':>7}   by (3)  measured, ms")
    for way in WAYS:
        row = steps_of["Qwen3-0.6B", batch, way]
        print(f"  {way:24}" + "".join(f"{ms:7.2f}" for ms in by_3(row)[:3]), end="")
        print(f"{by_3(row)[3]:9.2f}{row['ms']:10.2f}")

# %% [markdown]
# So the switches do not add up. Planning ahead hides $P$, at most, and only behind a GPU that is busy: as long as
# launching takes longest, there is nothing to hide it behind. Graphs take $L$ away, and then it is $G$ that counts; fewer and
# larger kernels make $G$ shorter (and without graphs $L$, too). When $G$ is all that is left, the engine is where (2)
# begins.
#
# One request alone is another world. Its step reads hardly more than the weights, and its kernels are so short that to
# begin and to end is most of what they do; and a GPU that is done so soon hides little of the host. Whole answers, in
# tokens a second:

# %% tags=["claim"]
speeds = {(row["model"], row["sweep"], row["name"]): row for row in record.rows if row["sweep"] in ("throughput", "one")}
shapes = list(dict.fromkeys(shape for shape, *_ in speeds))
many = speeds[shapes[0], "throughput", "all on"]
print(f"{many['requests']} requests at once, {many['prompt_tokens']:,} tokens of prompts, {many['output_tokens']:,} of answers")
for shape in shapes:
    print(f"{shape:22}  256 requests: tokens/s  of reading alone      one: tokens/s  of reading alone")
    for way in (way for way in WAYS if (shape, "one", way) in speeds):
        pair = [speeds[shape, sweep, way] for sweep in ("throughput", "one")]
        shown = [f"{row['tokens_per_s']:24,.0f}{row['of_roofline']:17.0%}" for row in pair]
        print(f"  {way:20}{shown[0]}{shown[1][4:]}")
on, off = (
    [speeds["Qwen3-0.6B", sweep, way]["tokens_per_s"] for sweep in ("throughput", "one")] for way in ("all on", "all off")
)
print(f"Qwen3-0.6B, all on: {on[0] / off[0]:.1f} times the tokens/s of all off with 256 requests, ", end="")
print(f"{on[1] / off[1]:.1f} times with one")

# %% [markdown]
# "Of reading alone" is the share of a time that nobody can beat: that of the weights once a step, and of everybody's
# keys and values, at the copy's speed. The smaller the model, the smaller the share: its bytes are read in no time, but
# it has no fewer kernels, and the host no less to do. In SmolLM2's steps of 256 requests the GPU has done its part before
# the host has, and by (3) it is then the host that counts. Whole answers have their prompts in them, which are
# computed and not only read, and steps in which few are left; so their shares are below those of a step of the full
# batch. (With all off, and without graphs, the answers are a quarter as long: whole ones would take minutes.)

# %% [markdown]
# ## The four policies on a GPU
#
# Back to the policies, and to a service that people come to: 128 conversations, as long as those of
# `azure-conversation`, which come to the same Qwen3-0.6B at random moments, 32 a second. There are 64 places. Steps are
# now measured, and not computed by (2). **How long does half of them wait for their first token, at least, with a static
# batch? And with `stall-free`? Predict how many times as long.**

# %% tags=["predict"]
predict("09.first_token", None, "×")

# %% tags=["measure"]
policy_rows = {row["name"]: row for row in record.rows if row["sweep"] == "policies"}
medians = {name: row["ttft_median_ms"] for name, row in policy_rows.items()}
measured("09.first_token", medians["static"] / medians["stall-free"], "×")

# %%
viz.continuous_batching.measured_policies(record)

# %% tags=["claim"]
print(f"{'':12}{'steps':>6} {'tokens/s':>9}   first token, ms: median, p99   token to token, ms: median, p99, max")
for name, row in policy_rows.items():
    first = "".join(f"{row[f'ttft_{which}_ms']:14,.0f}" for which in ("median", "p99"))
    between = "".join(f"{row[f'wait_{which}_ms']:12.1f}" for which in ("median", "p99", "longest"))
    print(f"{name:12}{row['steps']:6,} {row['tokens_per_s']:9,.0f}   {first}   {between}")

# %% [markdown]
# The tokens a second hardly tell the policies apart: 32 requests a second are less than this GPU can serve, so what
# three of them say is how fast the requests came. The users would tell them apart. In a static batch half of them wait
# half a second or more before anything happens, for a batch that runs lets nobody in. With Orca's policy they wait for
# a step or two; but the longest wait *within* an answer is three times that of the other policies, 58.7 ms against
# 20.6: some prompt was read in one step, and all who were answering stood still. Cut into pieces of at most 2,048 tokens
# a step, the same prompts hold nobody up for longer than a piece takes. What is paid for it is in the second column of
# first tokens: of the long prompts themselves, which are read in several steps now. <!-- source: the table above -->

# %% [markdown]
# ## Your scheduler and your kernel in the engine
#
# Now the real thing. The library's `Engine` is a loop around four parts: the scheduler, which is yours; the runner,
# which makes a batch of a plan and runs the model; the sampler; and what turns tokens into text. Attention is your
# kernel of lesson 08, in steps in which everybody has one token (in others it is plain PyTorch). The pool is just too
# small for three questions, and there is no watermark. (In Triton's interpreter a step takes seconds: the answers are
# short.)

# %% tags=["engine"]
attention = "torch"
if tier() != "pytorch":
    from llmsys.attention.paged.one_token_kernel import one_token_kernel

    attention = for_model(partial(attend_one_token, kernel=mine("paged_walk", default=one_token_kernel)))
questions = [
    "Why is the sky blue? Answer in one sentence.",
    "Name three colours.",
    "Which of apples, pears, plums and limes is yellow?",
]
engine = Engine(
    model, scheduler=OwnScheduler, attention=attention, num_blocks=26, block_size=4, max_sequences=3,
    max_tokens_per_step=32, watermark=0,
)  # fmt: skip
answers = engine.generate(questions, SamplingParams(max_tokens=3), progress=False)
for answer in answers:
    print("·", answer.text)

# %% tags=["engine", "claim"]
steps = read(engine.events)
print("tokens of each step:", [step.tokens for step in steps])
for step in steps:
    for name, lost in step.preempted.items():
        print(f"step {step.number}: {name} is preempted, and loses {lost} tokens")
    for name, hit in step.admitted.items():
        print(f"step {step.number}: {name} comes in, with {hit} tokens found")
alone = [generate(model, each, max_new_tokens=3) for each in questions]
same = [one.tokens == answer.tokens for one, answer in zip(alone, answers, strict=True)]
print("each as if it were alone:", same)
print("blocks in use at the end:", engine.pool.stats.used)

# %% [markdown]
# Thrown out with 44 tokens computed, and 44 of them found one step later: nobody had needed its blocks meanwhile. By
# lesson 08 they were free and not forgotten, and so this preemption has cost a step, and nothing was computed twice.
#
# Your scheduler's own log, as a timeline:

# %%
viz.continuous_batching.stepper(events=engine.events, budget=32, places=3)

# %% [markdown]
# ## What production does differently
#
# - **Orca** ([Yu et al., 2022](https://www.usenix.org/conference/osdi22/presentation/yu)) decides before every
#   iteration. Blocks did not exist yet: at admission it reserves room for the longest answer that the request allows,
#   and so never preempts. Requests of different lengths share a step by its *selective batching*: products for all
#   tokens at once, attention a sequence at a time.
# - **vLLM** has one rule as well. A comment in its `Scheduler.schedule` says that there is no decoding phase and no
#   prefill phase, only `num_computed_tokens`, which catches up. `max_num_batched_tokens` is the budget, `max_num_seqs`
#   the places. Running requests go first, in the order of admission; if `allocate_slots` has no block, the last of
#   `running` is preempted, and nobody is admitted in a step that preempted. Its first engine could swap as well ([Kwon
#   et al., 2023](https://arxiv.org/abs/2309.06180), section 7.3: copies of small blocks are slow, and with blocks of 16
#   to 64 tokens the two are alike), the present one recomputes ([its
#   documentation](https://docs.vllm.ai/en/stable/configuration/optimization/)).
# - **Sarathi-Serve** ([Agrawal et al., 2024](https://arxiv.org/abs/2403.02310)) is the source of stall-free batches,
#   and chooses the budget by the latency that was promised.
# - **SGLang** has pieces of prompts, too, in steps of their own; `enable_mixed_chunk` puts answers beside them. In
#   place of a watermark it estimates how much of their `max_new_tokens` those who run will still need
#   (`new_token_ratio`), which sinks as they go, and is raised when it had to *retract* somebody. That is not the
#   newest, but whoever has generated least: the least to be computed again.
# - **TensorRT-LLM** says *in-flight batching*, and its `CapacitySchedulerPolicy` is the choice of this lesson:
#   `GUARANTEED_NO_EVICT`, the default, reserves what a request may come to need; `MAX_UTILIZATION` admits what fits
#   now, and pauses somebody when it no longer does; `STATIC_BATCH`.
# - **A step ahead.** SGLang's scheduler [plans one batch ahead](https://lmsys.org/blog/2024-12-04-sglang-v0-4/), with
#   *future tokens* as place-holders, an idea of NanoFlow's ([Zhu et al., 2024](https://arxiv.org/abs/2408.12757)).
#   TensorRT-LLM has its [overlap scheduler](https://nvidia.github.io/TensorRT-LLM/features/overlap-scheduler.html), which
#   also computes a step too many for whoever ends; vLLM says `async_scheduling`, and `cudagraph_capture_sizes` for the
#   sizes of its graphs.
#
# ## Do you have it?
#
# <details><summary><b>1.</b> A service answers yes or no: every answer has one token. What does a static batch waste? Would you
# cut its prompts, and what is the price of not doing so?</summary>
#
# Nothing: by (1), mean and longest are the same. Every request is a prompt and no more, so all of the work is
# arithmetic, and no step has anything to ride along with. Whole prompts, as many as fill the budget: cutting them only
# reads their earlier pieces again. The price is long steps, and nobody pays it: no one waits between two tokens. What a
# policy is worth depends on how different the lengths are.
# </details>
#
# <details><summary><b>2.</b> A colleague deletes the rule that nobody is admitted in a step that preempted, and every count in this lesson
# stays what it was. Why? When would it not?</summary>
#
# Somebody is thrown out only when no block is free. Of the blocks that it gives back, one is taken at once. It is the
# first in the queue now, and needs all of them again, so it does not fit; and nobody passes it. It is the order of the
# queue that keeps the door shut. <!-- source: counted with 400 and 250 blocks, watermarks of 0 and 5% --> Two ways to
# open it: a queue with priorities, or one in which a small request may pass a large one. Or two with the same prompt,
# who came in in one step and each computed it: the one that is thrown out now finds the other's blocks, and needs fewer
# than it gave back. Whoever comes in has blocks that those who run will ask for in the next steps, and is thrown out
# for it, having computed for nothing. The rule says what is meant, whatever the order.
# </details>
#
# <details><summary><b>3.</b> Your service's tokens a second are as high as ever, and users complain that answers stop in the middle of a sentence.
# Name two causes, and the number that tells them apart.</summary>
#
# Long prompts that are read whole (or by too large a budget): everybody stands still at the same time, and the tokens
# of a step have spikes. Or preemption: one stands still, for seconds, while the others go on, and `preemptions` and
# `lost_tokens` in `engine.metrics.totals` are not 0. Both are invisible in the throughput: the GPU is busy with
# somebody else.
# </details>
#
# **Next:** lesson 10, Chunked prefill and goodput: the budget, and what a service promises.
