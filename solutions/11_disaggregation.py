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
# # 11 · Disaggregating prefill and decode
#
# A prompt keeps a GPU's arithmetic busy, an answer its memory: lesson 07. In one step they share the weights, which is
# cheap, and the time, which is not: whoever writes an answer waits for everybody's prompts. Lesson 09 cut prompts into
# pieces, so that nobody waits long at once. The pieces still have to be computed, by the same GPU, in the same steps.
#
# **The idea:** let some GPUs read prompts and do nothing else, and others write answers. What a prompt leaves, its keys
# and values, is sent from the one to the other. The two phases then have queues of their own, and how many GPUs each of
# them gets is a number to choose.
#
# You will write how two designs are compared: by the highest rate at which a service keeps its promises, for each GPU.
# Then the order in which a cache is sent while it is being computed, and a search for how many GPUs of each kind. In the
# end SmolLM2 reads a prompt, sends its cache layer by layer in your order, and a second copy of it goes on from there.
# You will also see how a router chooses among many engines, where all this loses, and what two real GPUs made of it.

# %% tags=["setup"]
import random
from functools import cache, partial

from llmsys import viz
from llmsys.bench import all_recorded, recorded
from llmsys.bench.disaggregate import recorded_times as times_of
from llmsys.bench.disaggregate import share_within, simulated
from llmsys.bench.goodput import MISTRAL_7B, recorded_times
from llmsys.course import check, hint, measured, mine, predict
from llmsys.lessons.lesson_11_disaggregation import right
from llmsys.lessons.lesson_11_disaggregation.sending import Kept, Sending, decode, prefill
from llmsys.lessons.lesson_11_disaggregation.wire import Wire, in_the_open, lanes
from llmsys.models import generate, load_model
from llmsys.models.decode_cost import bytes_per_token
from llmsys.models.shapes import SHAPES
from llmsys.models.transfer_cost import LLAMA_3_70B, OPT_66B, bits_per_second, break_even_bandwidth, cache_bytes
from llmsys.serving.goodput import Limits, percentile
from llmsys.serving.simulator import Placed, Placement, Prices, StepTimes, Transfer, placements, simulate
from llmsys.serving.workload import Arrival, synthetic

# %%
viz.disaggregation.overview()

# %% [markdown]
# Both halves of the picture are simulated: the scheduler is the library's own, the one of lesson 09, and a step takes as
# long as it did on an H200 with a model of Mistral-7B's shape. (Steps of all sizes were measured there; the time of
# a step is a sum of prices, for its tokens, its sequences and what they attend to, fitted to those measurements.) All
# times of this lesson come from there, but for those that say otherwise.

# %% tags=["claim"]
times = recorded_times()
link = Transfer(bytes_per_token=bytes_per_token(MISTRAL_7B), bandwidth=50e9, latency=20e-6, layers=MISTRAL_7B.layers)
serve = partial(simulate, times=times, num_blocks=40_000, ahead=True, transfer=link)
print(f"a token's keys and values: {link.bytes_per_token:,} bytes; a link of {8 * link.bandwidth / 1e9:.0f} Gb/s")

# %% [markdown]
# ## Predict: what do others' prompts cost an answer?
#
# Sixteen people are reading answers of 200 tokens. Nobody else is there, and each of them gets a token every 5.3 ms. <!-- source: the table below --> Now
# prompts of 4,000 tokens come as well, six a second, for as long as anybody reads; each of them takes the GPU about a
# tenth of a second. They are cut into pieces, in steps of 512 tokens, so that nobody ever waits long. **How long does a
# token take on average then?**

# %% tags=["predict"]
predict("11.per_token", None, "ms")

# %% [markdown]
# ## Interference
#
# Measure it, for prompts whole (Orca's policy) and in pieces of two sizes, and beside it with a second GPU that reads
# the prompts:


# %% tags=["claim"]
def answers_while(rate, placement, **settings):
    """Sixteen answers while so many prompts a second come: seconds per token (the median), and the longest wait."""
    answers = [Arrival(0.0, 500, 200)] * 16
    prompts = [Arrival((n + 1) / rate, 4000, 1) for n in range(4 * rate)]  # for four seconds: the answers end before
    found = serve([*answers, *prompts], placement=placement, gaps=True, **settings).requests[:16]
    return percentile([each.time_per_output_token for each in found], 50), max(each.longest_gap for each in found)


ONE, TWO = Placement(colocated=1), Placement(prefill=1, decode=1)
DESIGNS = {
    "one GPU, prompts whole": (ONE, dict(policy="orca", max_tokens_per_step=8192)),
    "one GPU, steps of 2,048": (ONE, dict(max_tokens_per_step=2048)),
    "one GPU, steps of 512": (ONE, dict(max_tokens_per_step=512)),
    "two GPUs, one for prompts": (TWO, {}),
}
RATES = (0, 2, 4, 6)
waits = {name: [answers_while(rate, at, **how) for rate in RATES] for name, (at, how) in DESIGNS.items()}
print(f"{'ms a token (longest wait)':27}" + "".join(f"{rate:>10} a s" for rate in RATES))
for name, pairs in waits.items():
    print(f"{name:27}" + "".join(f"{1e3 * mean:8.1f} ({1e3 * longest:3.0f})" for mean, longest in pairs))
whole, pieces = (serve([Arrival(0.0, 4000, 1)], placement=ONE, **DESIGNS[name][1]).ttft(50) for name in
                 ("one GPU, prompts whole", "one GPU, steps of 512"))  # fmt: skip
print(f"a prompt of 4,000 tokens alone: whole {1e3 * whole:.0f} ms, in eight pieces {1e3 * pieces:.0f} ms")

# %%
viz.disaggregation.interference(RATES, waits)

# %% tags=["measure"]
measured("11.per_token", 1e3 * waits["one GPU, steps of 512"][RATES.index(6)][0], "ms")

# %% [markdown]
# Pieces do what they promise: the longest wait is a quarter of what it is with whole prompts. But the *mean* is no
# shorter. What takes the time is the prompts' arithmetic: whole, six tenths of each second are theirs, and 5 ms become
# 5 / 0.4, which is the 12.5 of the table. In pieces of 512 it is longer, 16.5 ms: eight short steps take 1.4 times as
# long as a prompt at once. (Tokens that come along in a prompt's step make that less.) Where another GPU does it, answers
# do not notice that prompts come at all. Their longest wait, 12 ms, is the first: sixteen caches are sent, and then a step
# has to begin. <!-- source: the table, and the line under it -->
#
# That was not fair, of course: two GPUs against one. Two GPUs that both do everything would have half of the prompts
# each. So what is the right question?
#
# ## What a service promises
#
# A service is asked for two things: the first token in time (TTFT, seconds from arrival), and the others after it in time
# (TPOT, seconds per token, on average). A request that gets both **meets the limits**. As more requests come, fewer of
# them do. DistServe ([Zhong et al., 2024](https://arxiv.org/abs/2401.09670)) calls **goodput** the highest rate at which
# 90% still do, and divides it by the number of GPUs, $n$:
#
# $$ \text{goodput per GPU} = \frac{1}{n} \max \{\, r : \text{attainment}(r) \ge 90\% \,\} \tag{1} $$
#
# Now two designs of any size can be compared. Prompts that are long and answers that are short, as those of a service
# that completes code: 2,048 and 28 tokens on average. <!-- source: LENGTHS["azure-code"] --> A user wants the first token
# in half a second, and the others at 10 ms each. Requests come at random moments, for five seconds, and at low
# rates for as long as sixty take: that is soon simulated, and too short to see a queue that grows slowly, so rates near
# what a design can do at all come out too high.


# %% tags=["claim"]
LIMITS = Limits(ttft=0.5, tpot=0.010)
SECONDS = 5


def requests(rate):
    """What comes in so many seconds, at random moments, always the same: prompts and answers as of azure-code."""
    return synthetic("azure-code", max(60, round(SECONDS * rate)), rate=rate, seed=0)


def attainment(rate, placement, limits=LIMITS, **settings):
    """The share of requests that meet the limits where so many come a second."""
    return serve(requests(rate), placement=placement, **settings).attainment(limits)


for rate in (5, 10, 15, 20):
    both = [attainment(rate, each) for each in (Placement(colocated=2), TWO)]
    print(f"{rate:3} a second, two GPUs: colocated {both[0]:4.0%}, one for prompts and one for answers {both[1]:4.0%}")

# %% [markdown]
# ## Exercise (a): goodput per GPU (20 minutes)
#
# Each rate that is tried is a simulation, on a real cluster an hour. So do not try many: halve what is left. Rates are
# compared as factors, so the middle of two is $\sqrt{\text{low} \cdot \text{high}}$.

# %% tags=["exercise"] exercise="11.goodput"
import math


def goodput_per_gpu(attained, *, gpus, low, high, share=0.9, within=0.02):
    """The highest rate at which enough requests meet the limits, by bisection; for each GPU (1).

    attained   rate → the share of requests that meet the limits, from 0 to 1; it falls as the rate rises.
               The rate is that of the whole service, and each call is a long simulation
    gpus       that the service has, all together
    low, high  rates of the whole service, between which to search
    share      is enough
    within     how near: the search ends when high / low is at most 1 + within

    Returns requests a second and GPU (a float, no tensor). The rate must have been tried, and must have been
    good enough. Where high is good enough, that is the rate; where low is not, goodput is 0.
    Not allowed: the library's search.
    """
    ### BEGIN SOLUTION
    if attained(high) >= share:
        return high / gpus
    if attained(low) < share:
        return 0.0
    while high / low > 1 + within:
        middle = math.sqrt(low * high)
        if attained(middle) >= share:
            low = middle
        else:
            high = middle
    return low / gpus
    ### END SOLUTION


# %% tags=["check"] exercise="11.goodput"
check("11.goodput", goodput_per_gpu)

# %% [markdown]
# ## Watch it
#
# Fourteen requests and two GPUs. Above, each of the GPUs does everything; below, one of them reads and the other one
# writes. A row is a request. Look for rows with a cross: which limit was missed, and who was in the way? Then change what
# is asked, and the link.

# %% tags=["widget"]
viz.disaggregation.stepper()

# %% [markdown]
# At 4 a second both designs keep their promises. At 12 the answers of the upper half are too slow: ten of fourteen wait for
# others' prompts, and below nobody does; only the last first token comes too late. At 20 the one prefiller is full, and the last eight have their first tokens too
# late. And over a link of 10 Gb/s no answer of the lower half is in time, at any rate: each waits for its cache first.
# <!-- source: the stepper's captions, tests/viz/disaggregation/test_pictures.py -->

# %% [markdown]
# ## Predict: is a GPU worth more, divided?
#
# Four GPUs serve these requests. All four do everything, in steps of at most 2,048 tokens, the default of many engines; or
# three of them read prompts and one writes answers. **How many times as high is the goodput per GPU of the second?**

# %% tags=["predict"]
predict("11.times", None, "times")

# %% [markdown]
# Be fair to the first design: it has a knob, the budget. In steps of few tokens a piece of a prompt adds little to the
# time of a token, and prompts take longer. With tight limits to both it has to be chosen well.

# %% tags=["claim"]
goodput_of = mine("goodput_per_gpu", default=right.goodput_per_gpu)


def reached(placement, *, limits=LIMITS, low=2, within=0.1, **settings):
    """A placement's goodput by your search, from `low` to 25 a second and GPU, and TTFT and TPOT at that rate."""
    gpus = placement.gpus
    rate = gpus * goodput_of(
        lambda rate: attainment(rate, placement, limits, **settings),
        gpus=gpus, low=low * gpus, high=25 * gpus, within=within,
    )  # fmt: skip
    there = serve(requests(rate or low * gpus), placement=placement, **settings)
    return Placed(placement, rate, there.ttft(90), there.tpot(90))


found = {}
for budget in (256, 2048):
    found[f"4 colocated, steps of {budget:,}"] = reached(Placement(colocated=4), max_tokens_per_step=budget)
for placement in placements(4)[1:]:
    found[str(placement)] = reached(placement)
print(f"{'four GPUs':30}   a second and GPU   TTFT, ms   TPOT, ms")
for name, each in found.items():
    print(f"{name:30}{each.goodput:19.1f}{1e3 * each.ttft:11.0f}{1e3 * each.tpot:11.1f}")

# %% tags=["measure"]
divided = found["3 prefill, 1 decode"].goodput
measured("11.times", divided / found["4 colocated, steps of 2,048"].goodput, "times")

# %%
viz.disaggregation.goodputs(list(found.items()), LIMITS)

# %% tags=["claim"]
for name in ("4 colocated, steps of 2,048", "4 colocated, steps of 256"):
    print(f"3 prefill, 1 decode: {divided / found[name].goodput:.1f} times the goodput of {name}")

# %% [markdown]
# Read the dots on the right of the picture. A colocated service runs into the limit to TPOT, with time to spare for first
# tokens; a small budget spends some of it, up to six tenths of the limit, and runs into the same one. Of the divided ones none
# comes near the limit to TPOT: their decoders could take more, and it is the prefillers that are full. So the division
# matters more than the idea: with one prefiller and three decoders, four GPUs are worth less than in the plainest
# colocated service.
#
# How much of that is chance, and the five seconds? With twenty seconds of requests, three prefillers and a decoder
# take 12.3, and the colocated services 6.0 and 5.2; with other requests for five seconds 11.4, 5.2 and 5.2, or 13.3, 6.0
# and 4.1. <!-- source: the cell of the table with SECONDS = 20; with seed=1; with seed=2 --> So twice the better
# colocated one stands; of the 3.0 times the default, more than twice does.
#
# ## What is sent
#
# A divided service sends every prompt's cache. OPT-66B, without grouped queries, is the example of DistServe's paper:

# %% tags=["claim"]
print(f"OPT-66B, a prompt of 512 tokens: {cache_bytes(OPT_66B, tokens=512) / 2**30:.3f} GiB")
print(f"ten such prompts a second: {bits_per_second(OPT_66B, tokens=512, rate=10) / 1e9:.1f} Gb/s")
for name in ("Llama-2-7B", "Llama-3-8B", "DeepSeek-V3"):
    need = bits_per_second(SHAPES[name], tokens=2048, rate=10)
    print(f"{name}, ten prompts of 2,048 a second: {need / 1e9:.1f} Gb/s")

# %% [markdown]
# Where sending is slow enough, it is better to compute again. A prefix of T tokens is moved over a link of β bytes a
# second, and computed by GPUs that do γ operations a second, all together. With L layers of width C, a key head for each
# G query heads, and elements of e bytes, its keys and values are 2 L T (C / G) e bytes. Its operations are
# L (a T² C + b T C²): a is for attention, b for the matrices. So
#
# $$ \beta > \gamma \cdot \frac{2\, L\, T\, (C/G)\, e}{L\, (a\, T^2 C + b\, T\, C^2)} = \frac{2\, \gamma\, e}{G\, (a\, T + b\, C)} \tag{2} $$
#
# is when moving wins. It is equation 2 of Mooncake ([Qin et al., 2025](https://arxiv.org/abs/2407.00079)) in our letters,
# with its $a = 4$ and $b = 22$. For Llama-3-70B, a prefix of 8,192 tokens, and eight GPUs at their peak:

# %% tags=["claim"]
for device, peak in (("A800", 312e12), ("H800", 989e12)):
    for prefix in (512, 8192, 65_536):
        least = break_even_bandwidth(LLAMA_3_70B, prefix=prefix, flops=8 * peak)
        print(f"8 × {device}, {prefix:6,} tokens: moving wins above {least / 1e9:5.2f} GB/s")

# %% [markdown]
# That is an upper bound of what a network must do, for no GPU computes at its peak. And it falls with the length: attention
# grows with T², what is sent with T.
#
# ## Hidden
#
# The cache of a prompt is not there at once. Layer 0's keys and values are final while layer 1 is computed, and so on. So
# send each layer while the next ones are computed. If a layer takes $c$ to compute and $x$ on the link, and there are
# $L$ of them, then
#
# $$ \text{in the open} = \max(x,\ L x - (L - 1)\, c) \tag{3} $$
#
# is what sending adds to the $L c$ of computing. As long as $x < c$ that is one layer's part of it.
#
# One difficulty: what is sent must not change until it has been sent. In an engine the layer is copied to a *buffer*
# first, which the network card knows, and there are few of these. So a layer can be computed only when its buffer is
# free again.
#
# ## Exercise (b): send while you compute (20 minutes)
#
# Write the order of the sender's actions. `("compute", i)` computes layer `i`, and puts it into buffer `i % buffers`.
# `("send", i)` gives that buffer to the link, and returns at once; the link sends one layer after the other. `("wait",
# i)` returns when layer `i` is through. On paper first: four layers and two buffers.


# %% tags=["exercise"] exercise="11.transfer_order"
def transfer_order(layers, buffers):
    """In which order layers are computed, sent and waited for.

    layers    how many the model has, at least 1
    buffers   how many there are, at least 1: layer i is in buffer i % buffers from its computing until it is
              through

    Returns a list of pairs ("compute", i), ("send", i), ("wait", i), each once for each layer. No buffer is
    overwritten before what is in it is through; a layer is sent before the next one is computed; nobody waits
    before it is needed; and at the end all layers are through.
    """
    ### BEGIN SOLUTION
    order = []
    for layer in range(layers):
        if layer >= buffers:
            order.append(("wait", layer - buffers))
        order.append(("compute", layer))
        order.append(("send", layer))
    for layer in range(max(layers - buffers, 0), layers):
        order.append(("wait", layer))
    return order
    ### END SOLUTION


# %% tags=["check"] exercise="11.transfer_order"
check("11.transfer_order", transfer_order)

# %% [markdown]
# Nobody has measured time in this check: an order is right or wrong. What it is worth depends on how fast the link is.
# Eight layers, each of which takes 1 to compute, in orders that send all at the end, wait for each, and yours:

# %% tags=["claim"]
own_order = mine("transfer_order", default=right.transfer_order)
AT_THE_END = [("compute", i) for i in range(8)] + [("send", i) for i in range(8)] + [("wait", i) for i in range(8)]
IN_TURN = [(what, i) for i in range(8) for what in ("compute", "send", "wait")]
ORDERS = {
    "all at the end, 8 buffers": AT_THE_END,
    "one after the other": IN_TURN,
    "yours, 2 buffers": own_order(8, 2),
    "yours, 8 buffers": own_order(8, 8),
}
print(f"{'in the open, if a layer takes so long to send':46}" + "".join(f"{x:8}" for x in (0.25, 0.5, 1, 1.5)))
for name, each in ORDERS.items():
    print(f"{name:46}" + "".join(f"{in_the_open(each, compute=1, send=x):8.2f}" for x in (0.25, 0.5, 1, 1.5)))
print(f"{'by (3)':46}" + "".join(f"{max(x, 8 * x - 7):8.2f}" for x in (0.25, 0.5, 1, 1.5)))

# %%
bars = [
    (name, [(busy.lane, busy.layer, busy.start, busy.end) for busy in lanes(each, compute=1, send=0.5)])
    for name, each in ORDERS.items()
    if "8 buffers" not in name or name.startswith("all")
]
viz.disaggregation.order(bars)

# %% [markdown]
# Two buffers are as good as eight while the link is faster than the layers. Where it is slower, computing is held up by
# it, and everything ends when the link does: with any number of buffers.
#
# In the simulator (3) is the whole model of a transfer, in closed form. So what is hiding worth in a service? The
# requests of before, one prefiller and one decoder, over links of three speeds:

# %% tags=["claim"]
print(f"{'':12}  from the first token until the cache is there, median, ms")
for bandwidth in (1.25e9, 5e9, 50e9):
    row = []
    for layers in (None, MISTRAL_7B.layers):
        sent = Transfer(link.bytes_per_token, bandwidth, link.latency, layers)
        done = serve(requests(3), placement=TWO, transfer=sent)
        row.append(percentile(done.transfers, 50))
    print(f"{8 * bandwidth / 1e9:4.0f} Gb/s: {'whole':>12} {1e3 * row[0]:9.2f}, layer by layer {1e3 * row[1]:9.2f}")

# %% [markdown]
# On 400 Gb/s next to nothing is left of sending, on 40 Gb/s a sixtieth. On 10 Gb/s sending is slower than computing, and
# (3) is not all: caches queue for the link, too, which three a second keep busy for most of the time.
#
# ## How many of each?
#
# What bounds a divided service is the slower of two: its prefillers, which must keep TTFT, and its decoders, which must
# keep TPOT. Of $n$ GPUs let $n_p$ be prefillers. Then
#
# $$ \text{rate} = \min(\text{prefill rate}(n_p),\ \text{decode rate}(n - n_p)) \tag{4} $$
#
# in requests a second, where each side has a rate that it can take by itself. That is the search of DistServe: each kind
# by itself, and then as many of both as the rates ask for. The prefill rate is found by simulations in which every answer
# has one token. In those for the decode rate prompts are free.
#
# ## Exercise (c): divide the GPUs (20 minutes)
#
# With each prefiller more the first of the two rises and the second falls. So you need not look everywhere, and must not:
# each rate is a search of its own, yours of exercise (a). Mind that two engines do not take twice what one takes.


# %% tags=["exercise"] exercise="11.divide"
def divide(gpus, prefill_rate, decode_rate):
    """How many GPUs read prompts and how many write answers, so that the service takes most (4).

    gpus           at least 2
    prefill_rate   n → requests a second that n prefillers take, n from 1 to gpus − 1; it rises with n
    decode_rate    the same of n decoders

    Returns (prefillers, decoders), two ints of at least 1 that are gpus together. A call of either rate takes
    long: ask at most about 4 log₂(gpus) times, both together.
    Not allowed: the library's search.
    """
    ### BEGIN SOLUTION
    first, last = 1, gpus - 1  # the first division at which prompts do not bound the rate is between them
    while first < last:
        middle = (first + last) // 2
        if prefill_rate(middle) >= decode_rate(gpus - middle):
            last = middle
        else:
            first = middle + 1
    rate = min(prefill_rate(first), decode_rate(gpus - first))
    if first > 1 and prefill_rate(first - 1) > rate:
        first -= 1
    return first, gpus - first
    ### END SOLUTION


# %% tags=["check"] exercise="11.divide"
check("11.divide", divide)

# %% [markdown]
# Your search with the simulator's rates, for the four GPUs:


# %% tags=["engine", "claim"]
FREE = StepTimes(Prices(fixed=1e-9))  # prompts that take no time


def prefill_rate(n):
    """What n prefillers take, by (1), if nobody has to decode."""

    def attained(rate):
        asked = [each._replace(output=1) for each in requests(rate)]
        return serve(asked, placement=Placement(colocated=n)).attainment(LIMITS)

    return n * goodput_of(attained, gpus=n, low=5 * n, high=40 * n, within=0.1)


def decode_rate(n):
    """What n decoders take, if prompts take no time, and neither do their caches."""

    def attained(rate):
        free = dict(prefill_settings={"times": FREE}, transfer=Transfer())
        return serve(requests(rate), placement=Placement(prefill=1, decode=n), **free).attainment(LIMITS)

    return n * goodput_of(attained, gpus=n, low=5 * n, high=160 * n, within=0.1)


own_divide = mine("divide", default=right.divide)
rates = {}
for kind, rate_of in (("prefill", prefill_rate), ("decode", decode_rate)):
    rates[kind] = cache(rate_of)  # asked for once each
p, d = own_divide(4, rates["prefill"], rates["decode"])
print(f"{p} prefill, {d} decode")
takes = rates["prefill"](p), rates["decode"](d)
print(f"by themselves, the prefillers take {takes[0]:.0f} a second, the decoders {takes[1]:.0f}", end="; ")
print(f"by (4), {min(takes) / 4:.1f} a second and GPU")
print(f"simulated together: {found[str(Placement(prefill=p, decode=d))].goodput:.1f}")

# %% [markdown]
# (At 160 a second the search for decoders ends: one of them has next to nothing to do with answers so short.) It is the
# division that was best above, found without a simulation of any service as a whole, and (4) is close to what all
# of it together reached. It cannot be exact: what is sent takes time, and requests do not leave a prefiller as evenly, or
# unevenly, as they came.
#
# For services of your own, `llmsys plan serving --trace azure-code --ttft 0.5 --tpot 0.01 --gpus 8` does this in a terminal:
# first each kind by itself, then whole services, of which only those are simulated that may be the best.
#
# ## A cluster: who is asked?
#
# Which of three prefillers gets a prompt hardly matters, as long as none has a long queue. Which of thirty does, for
# prompts have something in common: the same instructions stand in front of them, or the same document, or the
# conversation so far. Who has computed that keeps it in its prefix cache (lesson 08), and has only the rest to compute.
# Of thirty engines perhaps one has. (Prefillers are chosen as any engines are. To see nothing but the choice, each
# engine of this section does everything, prompts and answers, as in a colocated service.)
#
# Two simple rules are wrong in opposite ways. By load alone each engine computes what another one has, and keeps it,
# too: the caches of all hold little more than the cache of one. By hits alone whoever was first gets everything that
# begins alike, while others are idle. So add both up. A prompt has $T$ tokens, of which $\text{hit}_i$ are in the cache
# of engine $i$; and it holds the requests that it was given and has not done with, which came with $\text{held}_i$
# tokens together. The request goes where
#
# $$ \text{cost}_i = w\, (T - \text{hit}_i) + \text{held}_i \tag{5} $$
#
# is lowest. $w$ is the price of a token that is to be computed. NVIDIA's Dynamo has this rule, and counts in blocks of
# tokens. Its example: a prompt of ten blocks, three engines that have 2, 5 and 8 of them cached, and hold 10, 5 and 9
# blocks of others. With $w = 1$ the costs are 8 + 10, 5 + 5 and 2 + 9: the second engine gets it, and not the one with
# the largest hit. It also holds the least; but if the first held 4 blocks in place of 10, it would be the one that load
# alone chooses, hits alone would choose the third, and (5) still the second: 8 + 4, 5 + 5, 2 + 9.
#
# ## Exercise (d): a router (15 minutes, optional)
#
# If you like (no points): write the rule, in tokens. It is called as the library's routes are
# (`llmsys.serving.routing`): the simulator chooses among its engines by one of them, and `llmsys serve --prefill 2
# --decode 2 --route …` among real ones.


# %% tags=["exercise"] exercise="11.route"
def route(request, engines, weight=1.0):
    """Which engine gets a request: the one with the lowest cost (5), in tokens; of equal ones the first.

    request   request.tokens is a list of the prompt's tokens
    engines   what is known of them, a list for each thing: engine i has engines.hits[i] of the prompt's tokens
              in its cache, and holds engines.held[i] tokens of others. len(engines) is how many there are.
              (engines.queued and engines.block_size, which there are, too, are not needed here.)
    weight    w, from 0 on

    Returns the number of an engine, from 0 on. Changes nothing.
    Not allowed: the library's own routes.
    """
    ### BEGIN SOLUTION
    tokens = len(request.tokens)
    costs = [weight * (tokens - engines.hits[i]) + engines.held[i] for i in range(len(engines))]
    return costs.index(min(costs))
    ### END SOLUTION


# %% tags=["check"] exercise="11.route"
check("11.route", route)

# %% [markdown]
# Eight engines answer questions about documents. A question comes with its document in front of it, 4,096 tokens, and has
# 300 of its own. There are 200 documents, and one of them is what three of ten questions are about. An engine's cache has
# room for 80 documents, without anything else. Eighty questions a second come, at random moments:


# %% tags=["engine", "claim"]
def questions(rate, count=6000, documents=200):
    """Questions, each with its document in front of it: eight blocks of 512 tokens that it has in common with others."""
    draw, at, asked = random.Random(0), 0.0, []
    for number in range(count):
        document = 0 if draw.random() < 0.3 else draw.randrange(documents)
        blocks = (*range(8 * document, 8 * document + 8), 10_000 + number)
        asked.append(Arrival(at, prompt=4096 + 300, output=60, blocks=blocks))
        at += draw.expovariate(rate)
    return asked


def hits_alone(request, engines):
    return engines.hits.index(max(engines.hits))


own_route = mine("11.route", default=right.route)
routes = {"random": "random", "fewest tokens": "fewest-tokens", "most hits": hits_alone}
routes |= {f"(5), w = {w}": partial(own_route, weight=w) for w in (1, 4)}
asked, PROMISED = questions(rate=80), Limits(ttft=0.5, tpot=0.02)
print(f"{'eight engines':15} tokens hit   TTFT p90, ms   TPOT p90, ms   within 500 and 20 ms")
for name, each in routes.items():
    done = serve(asked, placement=Placement(colocated=8), num_blocks=640, block_size=512, route=each)
    print(f"{name:15}{done.hit_share:11.0%}{1e3 * done.ttft(90):15,.0f}{1e3 * done.tpot(90):15.1f}", end="")
    print(f"{done.attainment(PROMISED):23.0%}")

# %% [markdown]
# At random, and by load alone, each engine is asked about nearly all documents, and its cache has room for two fifths
# of them: what is hit is the document that all ask about, and some of what was asked about lately. (With room for all
# documents either would hit 70%.) <!-- source: this cell with num_blocks=40_000 --> By load alone at least nobody waits
# behind others while an engine is free: 89% of answers keep the promise, at random 65%. Most hits first is the worst of
# all. Where nobody has the document, the first engine has as many hits as any other, none, and gets the question; so it
# is the only one that ever has any. All 6,000 questions go to it, and seven engines do nothing. <!-- source: engines
# chosen by hits_alone in this cell, counted --> Its one cache hits no more than each of the eight does at random.
#
# By (5) documents find a home of their own, and are computed again only where that is busy. With $w = 4$ a busy one is
# waited for longer, and more is hit. Both keep the promise nearly always. Which $w$ is best depends on how much prompts
# have in common, and on how unevenly. There is no rule of thumb for that; there is a simulator.
#
# Now with more engines, and two of Mooncake's traces: the conversations of a chat service, and a synthetic one, whose
# documents are long and asked about often. Of each the first 3,000 requests are taken, in their order, but at random
# moments, so that there is a rate to speak of. For each number of engines the highest rate within limits, 5 s and 50 ms
# here, is looked for, as in exercise (a). That takes minutes and not seconds, so it has been simulated before, and
# recorded (`llmsys data`, then `llmsys bench routing`). The prompts of these requests have 13,500 and 13,600 tokens on
# average, but half of them have fewer than 8,000, and some are very long. <!-- source: input_length of the first 3,000
# lines of the two files: means 13,517 and 13,630, medians 7,993 and 6,786, longest 123,192 and 191,374 --> What is that
# in seconds, for the longest one of the conversations, too?

# %% tags=["claim"]
for tokens in (8000, 13_500, 55_000, 123_192):
    alone = serve([Arrival(0.0, tokens, 1)], placement=ONE).ttft(50)
    print(f"a prompt of {tokens:7,} tokens, alone on an engine: {alone:4.1f} s")

# %%
viz.disaggregation.cluster(recorded("routing", "H200"))

# %% [markdown]
# The upper row is simulated goodput, the lower one what share of the prompts' tokens is found in a cache. Read the
# upper one from the left. One engine is asked by everybody, and takes 0.20 requests a second, though it reads a prompt
# of the conversations in 0.90 s on average, and could read five times as many. <!-- source: the record; times as in the
# cell above, of all 3,000 --> The longest prompts keep it from more. Some 2 to 4% have over 55,000 tokens, which cannot
# be read within 5 s by any engine, <!-- source: the same lines, 106 and 56 of 3,000; the cell above --> and while one
# of them is read, up to 22 s, all who come wait behind it. Nine of ten requests have to miss them. Without these the
# same engine takes 0.94 a second. <!-- source: bench.routing.highest for the 2,894 others, one engine --> With more
# engines each is worth more, as long as somebody looks at their queues: a long prompt on one of them is no misfortune
# for who can go elsewhere. Asked at random they are as many single engines. With 32 that is worth a factor of more than
# three, and more <!-- source: the record, 0.688 / 0.192 and 0.753 / 0.210 --> than prefixes are. It does not go on for
# ever: in the conversations there is nothing to win from 16 to 32. (One line falls there and one rises, by a step of the
# search, which ends within 5%. Differences of one step mean nothing.)
#
# Then the prefixes, in the lower row. One engine hits 5%: its cache has room for some 66 such prompts, and what a
# prompt has in common with another one has mostly gone by then. <!-- source: the record of goodput, 890,880 tokens /
# 13,500; a cache without bound would hit 32% and 50% --> By load alone it is no more with 32 caches, for the next
# prompt of a conversation comes to another one. By (5) the more engines there are, the more is hit, up to 24% and 43%
# with $w = 4$: their caches are one, in pieces. In the synthetic trace, where prompts have more in common, the goodput
# of 32 engines is then 1.8 times as high as by load alone, in the conversations 1.2 times. <!-- source: the record,
# 1.36 / 0.753 and 0.825 / 0.688 --> There $w = 4$ hits nearly half as much again as $w = 1$, and its goodput is the same but
# for one step; why, the record does not say. With two engines there is little to win.
#
# ## Where it loses
#
# Divide nothing without having looked at the limits. The four GPUs of the division again, first for users who are
# content with a second to the first token and 40 ms for each other one; then with half a second and 10 ms, as there, but
# over a link of 10 Gb/s:

# %% tags=["claim"]
EASY = Limits(ttft=1.0, tpot=0.040)
lost = {
    "4 colocated, steps of 1,024": reached(
        Placement(colocated=4), limits=EASY, low=10, within=0.05, max_tokens_per_step=1024
    ),
    "3 prefill, 1 decode": reached(Placement(prefill=3, decode=1), limits=EASY, low=10, within=0.05),
}
for name, each in lost.items():
    print(f"40 ms a token: {name:28}{each.goodput:6.1f} a second and GPU, TPOT {1e3 * each.tpot:.1f} ms")
slow = Transfer(link.bytes_per_token, 1.25e9, link.latency, link.layers)
for sent in (link, slow):
    share = attainment(8, Placement(prefill=3, decode=1), transfer=sent)
    print(f"10 ms a token, 8 a second in all, {8 * sent.bandwidth / 1e9:3.0f} Gb/s: {share:4.0%} within the limits")
mean = sum(each.prompt for each in requests(8)) / len(requests(8))
print(f"a cache of {mean:,.0f} tokens takes {1e3 * slow.ticks(round(mean)) / 1e15:.0f} ms on 10 Gb/s")

# %% [markdown]
# With 40 ms for a token there is room for a piece of a prompt in every step, and a step that has both reads the weights
# once for both. Divided, the decoder's arithmetic is idle, and so is the prefillers' bandwidth. What the division buys,
# tokens at less than 7 ms, nobody asked for. And the link: what is not hidden of sending is waited for between the first
# token and the second. Of the 270 ms on the link (for the mean of these sixty prompts, which happen to be long), computing
# hides a quarter; the other 200, spread over an answer of thirty tokens, are 7 for each, and with its own 5 that is over
# the limit. And it gets worse: eight such caches a second are more than twice what the link of the one decoder takes. <!--
# source: the cell above -->
#
# It also loses where there are too few GPUs to divide, and where the mix of prompts and answers changes from hour to hour:
# a division that is right at noon is wrong at night.
#
# ## On two GPUs
#
# All that was simulated. This is not: the library's own engines, in two processes with a GPU each; Mistral-7B's shape,
# with random weights; conversations (azure-conversation: longer answers than those above) that come for ten seconds. It
# is the same two engines in both designs, told anew what to do: each everything, in steps of at most 2,048 tokens, or
# one the prompts and the other one the answers; over NVLink, with the limits of the division, half a second and 10 ms.
# **At 26 requests a second, how many times as many are within the limits, a second and GPU, divided as colocated?**

# %% tags=["predict"]
predict("11.two_gpus", None, "times")

# %% [markdown]
# What was recorded, by rate. In brackets, how far off the simulator is when it is asked the same, with prices fitted to
# the steps of these runs and a link as fast as caches went. On the right, how many requests were within half a second
# to the first token and 10 or 30 ms a token, and in brackets what the simulator says of that.

# %% tags=["claim"]
records = all_recorded("disaggregate")
results = {}


def of_design(record, name):
    """What was served by a design, from the lowest rate to the highest."""
    rows = [row for row in record.rows if row["sweep"] == "served" and row["name"] == name]
    return sorted(rows, key=lambda row: row["rate"])


for record in records:
    print(f"recorded on two of {record.device}, {record.date}")
    print(f"a second {'':10} {'TTFT 50%, ms':>15} {'90%':>14} {'TPOT 50%, ms':>14} {'90%':>12} {'10 ms':>11} {'30 ms':>11}")
    for name in ("colocated", "divided"):
        for row in of_design(record, name):
            results[record.device, name, row["rate"]] = result = simulated(row, times_of(record, name))
            print(f"{row['rate']:8g} {name:10}", end="")
            for what, wide in (("ttft", 8), ("tpot", 6)):
                for at in (50, 90):
                    there = row[f"{what}_p{at}_ms"]
                    print(f" {there:{wide}.1f} ({1e3 * getattr(result, what)(at) / there - 1:+4.0%})", end="")
            for tpot in (0.010, 0.030):
                limits = Limits(ttft=0.5, tpot=tpot)
                print(f" {share_within(row, limits):4.0%} ({result.attainment(limits):4.0%})", end="")
            print()
    for what, why in record.missing.items():
        print(f"not recorded: {what} ({why})")
if not records:
    print("not recorded yet; with two GPUs: python -m llmsys.bench disaggregate --out results/")

# %%
for record in records:
    served = [row for row in record.rows if row["sweep"] == "served"]
    said = [results[record.device, row["name"], row["rate"]] for row in served]
    display(viz.disaggregation.two_gpus(record, said, LIMITS))

# %% tags=["measure"]
for record in records:
    within = {row["name"]: share_within(row, LIMITS) for row in record.rows if row["sweep"] == "served" and row["rate"] == 26}
    measured("11.two_gpus", within["divided"] / within["colocated"], "times")

# %% [markdown]
# Divided, the service keeps its promise to TPOT at every rate. All the same it is the worse one at every rate, under
# either limit, by its first tokens: at 26 a second half of the requests wait longer than half a second. By (1), with 10
# ms and the rates that were tried, the colocated service has a goodput of 10 a second and GPU, 96% at 20 a second, and
# the divided one none: 87% at 20. (The chart on the left counts requests within the limits also where fewer than 90%
# are.)
#
# And the simulator? Of TPOT it is right within a tenth. First tokens it says too early, colocated by 5 to 28%: what the
# front takes, which accepts requests and hands out tokens, and its connections, it leaves out. It has the queue of the
# divided service, too, as its prices are those of these steps. How long that grows where it hardly ends, it does not
# say well: at 26 a second it has 82% within the limits, where 51% were, at 32 it has 12%, where 39% were. So what
# follows looks at how its figures differ from each other, not at how high they are.
#
# First tokens come late, divided. Is it the prompts' steps?

# %% tags=["claim"]
SIZES = ((16, 512), (513, 1999), (2000, 2048))


def steps_of(record, role, low, high):
    """The steps with prompts of a role that have so many tokens, in ms each."""
    steps = [row for row in record.rows if row["sweep"] == "step" and row["name"] == "mixed" and row["role"] == role]
    return [row["ms"] for row in steps if low <= row["tokens"] <= high for _ in range(row["count"])]


for record in records:
    for name, role in (("colocated", "colocated"), ("the prefiller", "prefill")):
        print(f"{name:14} median step, ms (how many): ", end="")
        for low, high in SIZES:
            steps = steps_of(record, role, low, high)
            many = percentile(steps, 50)  # in the end, of full steps of the prefiller
            print(f"{many:7.1f} ({len(steps)}) of {low:,} to {high:,} tokens", end="")
        print()
    odd, all_steps = (sum(ms < limit for size in SIZES for ms in steps_of(record, "prefill", *size)) for limit in (3, 1e9))
    print(f"of the prefiller's {all_steps} steps {odd} are written down as shorter than 3 ms")
    print(f"{MISTRAL_7B.layers} layers: in a full step of the prefiller one takes {many / MISTRAL_7B.layers:.1f} ms")
    rows = of_design(record, "divided")
    prompt = sum(row["prompt_tokens"] for row in rows) / sum(row["requests"] for row in rows)
    print(f"prompts have {prompt:,.0f} tokens: one prefiller takes {2048 / many * 1e3 / prompt:.0f} a second")
    messages, moved, busy = (sum(row[key] for row in rows) for key in ("messages", "moved_bytes", "moved_s"))
    print(f"a layer of a step's prompts: {moved / messages / 1e6:.1f} MB on average, sent in {1e3 * busy / messages:.2f} ms: {moved / busy / 1e9:.1f} GB/s")
    for link_row in (row for row in record.rows if row["sweep"] == "link"):
        print(f"   the link alone, messages of {link_row['bytes'] / 1e6:5.1f} MB: {link_row['us'] / 1e3:.2f} ms, {link_row['gbps']:.0f} GB/s")
    print("divided, simulated, within 10 ms a token:")
    for row in rows:
        shares = {
            "these steps": results[record.device, "divided", row["rate"]],
            "ten times the link": simulated(row | {"moved_gbps": 10 * row["moved_gbps"]}, times_of(record, "divided")),
            "steps as colocated": simulated(row, times_of(record, "colocated")),
        }
        print(f"{row['rate']:5g} a second", *(f"{name} {each.attainment(LIMITS):4.0%}" for name, each in shares.items()), sep="   ")

# %% [markdown]
# A prefiller's step of a few hundred tokens takes nearly four fifths of what one of two thousand takes; colocated it is
# a quarter. So most of a short step's time is not the GPU's, it is the host's: the CPU has to launch what the GPU
# computes. A colocated engine's step is a graph, one launch for everything. The prefiller's is launched kernel by
# kernel, so that each layer can leave when it is computed; and the thread that sends shares Python's interpreter with
# the one that launches. (How much is the one and how much the other was not measured, nor why a full step takes longer
# than short ones all the same, nor what the few steps of less than 3 ms are.) So this prefiller is full at 25 requests
# a second, while the decoder at its side is far from its limit, and two GPUs have no other division than one and one.
# If its steps took as long as colocated ones do, the simulator would have it keep the promise at 26 and at 32 a second.
# Of the colocated service it says that at 26 only, 93%, where 88% were measured; at 32 it says 62%, and 46% were. So in
# the simulator the division wins at 32, with steps that nobody has run. Measured is that a division can lose by how a
# step is launched.
#
# It is not the link. `nvidia-smi nvlink` counts 18 links of 26.6 GB/s between these two GPUs, some 480 GB/s in each
# direction. <!-- source: nvidia-smi nvlink on that machine; 18 · 26.6 --> Of these one message behind the
# other reaches three quarters where each has half a gigabyte, and a sixth where it has the eight megabytes of a layer:
# a call takes a tenth of a millisecond, however short. While serving it is a tenth of that again: the two processes
# tell each other what comes, in threads that wait for their interpreters. All the same sending is hidden: a layer takes
# two milliseconds to compute, launching included, and less than one to send. By (3) one layer's part is in the open,
# and in the simulator a link of ten times the speed changes nothing.
#
# ## Your order moves a real cache
#
# SmolLM2 reads a prompt. Whenever a layer has its keys and values they go into a buffer, and a thread sends what is in
# the buffers; both by your order. A second model, the decoder, has what came through the wire and nothing else.

# %% tags=["engine", "claim"]
model = load_model()
prompt = model.tokenizer.encode("The three primary colours are")
layers = model.config.layers
with Wire(buffers=2) as wire:
    first = prefill(model, prompt, Sending(wire, own_order(layers, 2)))
answer = decode(model, first, Kept.of(wire.received), tokens=12)
alone = decode(model, prefill(model, prompt, both := Kept()), both, tokens=12)
print(f"{len(wire.received)} layers came, {sum(t.nbytes for pair in wire.received.values() for t in pair):,} bytes")
print("the same tokens as one model's:", answer == alone)
print("·", model.tokenizer.decode(answer))

# %% [markdown]
# And an order that forgets to wait for buffers, and sends at the end? It has computed all layers into two buffers, and
# sends what is in them, thirty times:

# %% tags=["engine", "claim"]
forgetful = [(what, i) for what in ("compute", "send", "wait") for i in range(layers)]
with Wire(buffers=2) as wire:
    first = prefill(model, prompt, Sending(wire, forgetful))
wrong = decode(model, first, Kept.of(wire.received), tokens=12)
print("layers that came:", len(wire.received), "; the same tokens:", wrong == alone)

# %% [markdown]
# All layers came, and no error: only the answer is nonsense.
#
# ## What production does differently
#
# - **DistServe** ([Zhong et al., 2024](https://arxiv.org/abs/2401.09670)) and **Splitwise** ([Patel et al.,
#   2024](https://arxiv.org/abs/2311.18677)) divided the phases first. DistServe searches for the parallelism of both
#   kinds, too: a prefiller wants its time short, a decoder its batch large, and tensor parallelism does the one and not the
#   other. Splitwise sends layer by layer from a certain length of the prompt on.
# - **Mooncake** ([Qin et al., 2025](https://arxiv.org/abs/2407.00079)) puts a cache in the hosts' memory between the two,
#   of which all prefillers find prefixes. What arrives at a decoder waits there until there is room on the GPU. Our
#   simulator has that, too: without it, a full decoder would hold up prefillers.
# - **vLLM** has connectors for it (`KVConnectorBase_V1`): the decoder asks for blocks, and a request waits with the
#   status `WAITING_FOR_REMOTE_KVS` until they have come. **SGLang** starts engines with `--disaggregation-mode prefill` or
#   `decode`; the decoder reserves blocks before a prompt is sent.
# - **DeepSeek-V3** ([its report](https://arxiv.org/abs/2412.19437), section 3.4) is served so that prefill has units of 32
#   GPUs, and decoding units of 320, with other parallelism on each side: caches are laid out anew on the way.
# - **Dynamo**'s router has (5) in blocks, and $w$ is an option of it; it hears of each block that engines cache and evict,
#   or guesses, as our front does, from what it has sent (`llmsys.serving.routing.Remembered`). **SGLang**'s router keeps a
#   tree of prompts for each worker, and goes by queues alone when those are too uneven.
# - A service is never at one rate. **Dynamo** and others change the counts while it runs.
#
# ## Do you have it?
#
# <details><summary><b>1.</b> In the table of four GPUs, one prefiller and three decoders are worth less than four colocated GPUs. Which of
# the two limits is missed, and would a faster link help?</summary>
#
# TTFT: one prefiller is asked for what three should do, and prompts wait in its queue. TPOT is far from its limit. A link
# changes nothing before the first token.
# </details>
#
# <details><summary><b>2.</b> A layer takes 2 ms to compute, and its keys and values 3 ms on the link. There are 32 layers. What is in the open,
# what with twice as many buffers, and what would you do?</summary>
#
# By (3), 32 · 3 − 31 · 2 = 34 ms, a third of the 96 that the link needs; buffers do not change it, for it is the link that
# ends last. More bandwidth does: a second network card, fewer bytes (8 bits, or latents as in lesson 15). Or
# send less: blocks that the decoder has already need not travel.
# </details>
#
# <details><summary><b>3.</b> Your service has goodput 10 per GPU, colocated, and TTFT is at 40% of its limit where TPOT is at 100%. What do you
# try first?</summary>
#
# The budget: smaller steps trade TTFT, of which there is some left, for TPOT. It costs nothing. Above, it raised goodput
# by a sixth. Dividing the GPUs comes after that, when both limits are near.
# </details>
#
# **Next:** lesson 12, Speculative decoding, which is not built yet.
