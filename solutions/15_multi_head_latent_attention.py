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
# # 15 · Multi-head latent attention
#
# In decoding it is the cache that fills the memory and that each step has to read (lesson 07). Sharing keys and values
# among heads makes it smaller, and the model a little worse: heads that share a key can only look at the same 128 numbers
# of each token. <!-- source: the usual size of a head -->
#
# **The idea:** of each token keep one vector of 512 numbers, the **latent**, from which *every* head makes a key and a
# value of its own. And then do not make them: the matrices that are for it can be moved to the query and to the output.
#
# This is how DeepSeek-V2 and V3 attend, and models that follow them. You will write attention that expands latents into
# keys and values; the same attention without a single key or value; and what is kept of a token, where positions are the
# difficulty. In the end a small DeepSeek model answers with your functions in all of its layers.

# %% tags=["setup"]
import time
from dataclasses import replace

import torch

from llmsys import viz
from llmsys.attention.latent import absorb_queries, absorbed_latent_attention, naive_latent_attention
from llmsys.attention.rotary import rotate, rotation
from llmsys.bench import recorded
from llmsys.cache import Batch
from llmsys.course import check, hint, measured, mine, predict
from llmsys.hardware.devices import DEVICES
from llmsys.hardware.meters import work
from llmsys.lessons.lesson_15_multi_head_latent_attention.plain import kept
from llmsys.models import DeepSeek, generate
from llmsys.models.decode_cost import bytes_per_token, cache_spec_of, with_kv_heads
from llmsys.models.deepseek import DEEPSEEK_V3
from llmsys.models.deepseek.model import LatentLayer, LatentMixtureLayer
from llmsys.models.deepseek.shipped import load_shipped
from llmsys.models.shapes import SHAPES

# %%
viz.multi_head_latent_attention.overview()

# %% [markdown]
# (The picture's letters come with (1) and (2).)
#
# ## Predict: a cache of how many heads?
#
# DeepSeek-V3 has 128 heads in each layer, and its cache has 576 numbers of a token there: the 512 of the latent, and 64
# more. <!-- source: DEEPSEEK_V3 in llmsys/models/deepseek/config.py --> Grouped-query attention has a key and a value of
# 128 numbers for each of its KV heads. **With how many KV heads would it have a cache of the same size?**

# %% tags=["predict"]
predict("15.heads", None, "heads")

# %% [markdown]
# ## From heads to groups to a latent
#
# Each model of the library says what its cache keeps, `cache_spec()`. For DeepSeek-V3, made without its numbers, that
# is:

# %% tags=["claim"]
with torch.device("meta"):  # weights with shapes and without memory
    v3 = DeepSeek(DEEPSEEK_V3).to(torch.bfloat16)
layer = v3.cache_spec().layers[0]
print(f"a layer keeps {layer.Dk} numbers; values are the first {layer.Dv} of them: {layer.values_in_keys}")
print(f"DeepSeek-V3: {v3.cache_spec().bytes_per_token:,} bytes a token, in {len(v3.cache_spec().layers)} layers")
for name in ("Qwen2.5-72B", "Llama-3.1-405B"):
    print(f"{name}: {cache_spec_of(SHAPES[name]).bytes_per_token:,} bytes a token")
alike = replace(with_kv_heads(SHAPES["DeepSeek-V3"], 128), name="DeepSeek-V3's heads")
print(f"128 heads of 128 in 61 layers, with keys and values of their own: {bytes_per_token(alike):,},", end=" ")
print(f"{bytes_per_token(alike) / v3.cache_spec().bytes_per_token:.0f} times as many as DeepSeek-V3")
print(f"DeepSeek-V3's heads as they are, keys of 128 + 64, values of 128: {128 * (192 + 128):,} in a layer,", end=" ")
print(f"{128 * (192 + 128) / layer.Dk:.0f} times as many")

# %% tags=["measure"]
measured("15.heads", layer.Dk / (2 * 128), "heads")

# %% [markdown]
# Two and a quarter heads, and each of 128 heads has its own keys. (Their keys have 64 numbers for the position beside the
# 128: that is (2) below. Against these keys of 192 it is 71 times less, against plain heads of 128 it is 57 times.) On one
# axis, with plain heads for the bar of "DeepSeek-V3's heads":

# %%
viz.kv_cache.bytes_per_token(["Llama-2-7B", alike, "Qwen2.5-72B", "Llama-3.1-405B", "DeepSeek-V3"])

# %% [markdown]
# What a smaller cache costs the model cannot be counted, it has to be trained. In
# [DeepSeek-V2's paper](https://arxiv.org/abs/2405.04434), appendix D, grouped and multi-query attention are worse than
# multi-head attention on hard benchmarks, and latent attention, at two sizes of models, is better than it on most.
#
# A small trial of the library's own: one model, lesson 14's with experts, with each kind of attention in turn (MHA, GQA,
# MLA: multi-head, grouped-query, multi-head latent), trained on the same bytes. It has 8 heads of 32 numbers; in GQA four
# share a key and a value; MLA has latents of 96, and 16 numbers for the position. <!-- source: FULL in llmsys/bench/mla_training.py -->

# %% tags=["claim"]
trainings = recorded("mla_training", "H200")
first = trainings.rows[0]
print(f"{first['steps']} steps of {first['tokens_a_step']:,} bytes, on {trainings.device}, one run each")
print("attention  numbers kept  parameters, all/active  held-out loss, nats a byte  above the best")
best = min(row["loss"] for row in trainings.rows)
for row in trainings.rows:
    sizes = f"{row['parameters'] / 1e6:.1f}M, {row['active'] / 1e6:.1f}M"
    print(f"{row['name']:9} {row['cache_numbers']:13} {sizes:>23} {row['loss']:27.3f} {row['loss'] / best - 1:15.1%}")

# %% [markdown]
# What is kept is certain. The losses are another matter: here latent attention ends as the worst of the three, by 5.6%,
# although DeepSeek found the opposite. This trial does not say why, nor that it must be so. It has one seed for each, and
# lesson 14 found that seeds of one and the same model lie several percent apart. It has 250 steps, where a training has a
# hundred thousand, with a learning rate that was searched for none of them. And the three differ in more than their
# caches: with MHA and GQA, each head's queries and keys are normalised, with MLA only the latents are; and of the 32 + 16
# columns of its keys only 16 have a position. DeepSeek's comparison took models of billions of parameters, and benchmarks.
# <!-- source: kinds() in llmsys/bench/mla_training.py -->
#
# ## Compress, and expand
#
# Of what comes into a layer at token $t$, $x_t$ with $C$ numbers, two vectors are made, and kept:
#
# $$ c_t = \operatorname{norm}(W_c\, x_t) \qquad r_t = W_r\, x_t, \text{ turned by the position } t \tag{1} $$
#
# with $L = 512$ and $R = 64$ numbers. Take $r_t$ as given for the moment: how it is made has to do with positions, and
# exercise (c) is about that. Of the latent, head $h$ makes its key and its value by two matrices of its own, $U_h$ of shape $(D_n, L)$ and
# $V_h$ of $(D_v, L)$, and $r_t$ is the end of every head's key:
#
# $$ k_{t,h} = \begin{bmatrix} U_h\, c_t \\ r_t \end{bmatrix} \qquad v_{t,h} = V_h\, c_t \tag{2} $$
#
# In DeepSeek-V3 $D_n = D_v = 128$, so a key has 192 numbers and a value 128. The query has the parts of the key,
# $[q^{\text{nope}} ; q^{\text{rope}}]$, with no position and with one. (DeepSeek-V3 makes it of another latent, of 1,536
# numbers, normalised as $c$ is; it is not kept, and nothing in (2) to (7) depends on it.)
#
# What is given up by it? Write the keys of all heads of a token one below the other: $H \cdot D_n$ numbers, which are a
# matrix times $c_t$. So whatever text comes, they lie in a space of $L$ dimensions: in DeepSeek-V3 16,384 numbers in 512.
# In plain multi-head attention it would be up to $\min(C, H \cdot D_n)$, which is 7,168 there: <!-- source: 128 · 128, and hidden_size of DEEPSEEK_V3 -->

# %% tags=["claim"]
torch.manual_seed(0)
T, H, Dn, L, C = 200, 8, 16, 24, 96
x = torch.randn(T, C, dtype=torch.float64)
plain = x @ torch.randn(C, H * Dn, dtype=torch.float64)  # (T, H · Dn), the keys of multi-head attention
latent_keys = x @ torch.randn(C, L, dtype=torch.float64) @ torch.randn(L, H * Dn, dtype=torch.float64)
print(f"keys of {T} tokens, {H} heads of {Dn} each, of x with {C} numbers")
print("rank with a matrix for each head:   ", int(torch.linalg.matrix_rank(plain)))
print(f"rank by way of a latent of {L} numbers:", int(torch.linalg.matrix_rank(latent_keys)))

# %% [markdown]
# That is a loss. But with a cache of 24 numbers (and an $r$), grouped queries would not even have one KV head: a key and a
# value of 16 are 32 numbers. And all heads would see those 16 as they are, where with a latent each makes its own 16 of all 24.
#
# ## Exercise (a): expand (20 minutes)
#
# Write attention with a cache of latents in the straightforward way: make the keys and values of all heads by (2), and
# attend to them as ever. That is the **naive form**. On paper first: which number is under the root of the scale?

# %% tags=["exercise"] exercise="15.expand"
import torch

from llmsys.attention import naive_attention


def attend_expanded(q, latent, key_up, value_up, *, causal=False, scale=None):
    """Latent attention that makes the keys and values of all heads (2), and attends to them.

    q         (B, H, Tq, Dn + R)  queries [q_nope ; q_rope] of the newest Tq tokens, q_rope turned already, as r is
    latent    (B, 1, Tk, L + R)   what is kept of each token: [c ; r]; Tk is at least Tq
    key_up    (H, Dn, L)          the heads' U: a key is [U c ; r], with the same r in all heads
    value_up  (H, Dv, L)          the heads' V: a value is V c
    causal    the last query sees all keys, the one before it one key less, and so on
    scale     of the scores; None: one over the root of the size of a key

    Returns (B, H, Tq, Dv), of q's dtype. Attention itself is given: naive_attention(q, k, v, causal=…, scale=…) or
    another of the library's stages. Not allowed: the library's latent attention.
    """
    ### BEGIN SOLUTION
    H, Dn, L = key_up.shape
    c, r = latent[..., :L], latent[..., L:]
    k = c @ key_up.mT  # (B, H, Tk, Dn)
    v = c @ value_up.mT  # (B, H, Tk, Dv)
    k = torch.cat((k, r.expand(-1, H, -1, -1)), dim=-1)  # (B, H, Tk, Dn + R)
    return naive_attention(q, k, v, causal=causal, scale=scale)
    ### END SOLUTION


# %% tags=["check"] exercise="15.expand"
check("15.expand", attend_expanded)


# %% [markdown]
# (For the paper: a score is a product of a query and a key, of $D_n + R = 192$ numbers, so the scale is $1/\sqrt{192}$.
# DeepSeek-V3 itself hands over a larger one: it was stretched to longer contexts by YaRN, which slows its rotations down
# and sharpens the softmax.)
#
# It is right, and saves memory. But look at what it computes for a single new token:


# %% tags=["claim"]
def naive_flops(H, Tk, Tq=1, L=512, R=64, Dn=128, Dv=128):
    """Operations of the naive form, a layer and sequence: to expand, and to attend."""
    return 2 * H * Tk * L * (Dn + Dv), 2 * H * Tq * Tk * (Dn + R + Dv)


def drawn(H, Tk, Tq=1, L=512, R=64, Dn=128, Dv=128):
    """q, latent, key_up, value_up at random; by default with DeepSeek-V3's sizes."""
    ups = torch.randn(H, Dn, L) * L**-0.5, torch.randn(H, Dv, L) * L**-0.5
    return torch.randn(1, H, Tq, Dn + R), torch.randn(1, 1, Tk, L + R), *ups


own_expanded = mine("attend_expanded", default=naive_latent_attention)
with work() as done:
    own_expanded(*drawn(H=4, Tk=100))
print(
    f"the function has {done.matmul_flops / sum(naive_flops(H=4, Tk=100)):.2f} times as many operations as the formula"
)
expanding, attending = naive_flops(H=128, Tk=8192)
print(f"the last of 8,192 tokens of DeepSeek-V3, in one layer: {(expanding + attending) / 1e9:.1f} GFLOP,")
print(f"of which attention is {attending / (expanding + attending):.2%}")

# %% [markdown]
# Nearly all of the work is to make keys and values that the last step has made, too, and thrown away. Keeping them
# would be the large cache again.
#
# ## Absorb
#
# Look at a score. Without $r$ it is $q \cdot (U_h c_t)$: a number made of a vector, a matrix and a vector, and such a
# product can be taken from either side.
#
# $$ s_{t,h} = q^{\text{nope}}_h \cdot (U_h c_t) + q^{\text{rope}}_h \cdot r_t = (U_h^\top q^{\text{nope}}_h) \cdot c_t + q^{\text{rope}}_h \cdot r_t = \begin{bmatrix} U_h^\top q^{\text{nope}}_h \\ q^{\text{rope}}_h \end{bmatrix} \cdot \begin{bmatrix} c_t \\ r_t \end{bmatrix} \tag{3} $$
#
# On the left $U_h$ is multiplied with every token's latent. On the right it is multiplied once, with the query, which has
# $L + R = 576$ numbers then and meets what is kept as it is. The values are as easy: with the weights $p_t$ of the
# softmax,
#
# $$ o_h = \sum_t p_t V_h c_t = V_h \Big( \sum_t p_t c_t \Big) \tag{4} $$
#
# So sum the latents first and multiply once. $U_h$ and $V_h$ are **absorbed** by the query and by the output. What
# is left between them is attention of 128 query heads to *one* key head, whose values are the beginning of its keys.
#
# ## Predict: how many times less?
#
# Now a score costs 576 multiplications in place of 192, and its part of the output 512 in place of 128; but nothing is
# expanded. **For the last of 8,192 tokens: how many times fewer operations are that?**

# %% tags=["predict"]
predict("15.times", None, "times")

# %% [markdown]
# ## Exercise (b): absorb (25 minutes)
#
# Write (3) and (4), and prove to yourself that it is the same attention. Before you run the check: what is the scale
# now?

# %% tags=["exercise"] exercise="15.absorb"
import math

import torch

from llmsys.attention import naive_attention


def attend_absorbed(q, latent, key_up, value_up, *, causal=False, scale=None):
    """The same attention, by (3) and (4): no key and no value of a head is made.

    q         (B, H, Tq, Dn + R)  queries [q_nope ; q_rope] of the newest Tq tokens, q_rope turned already, as r is
    latent    (B, 1, Tk, L + R)   what is kept of each token: [c ; r]; Tk is at least Tq
    key_up    (H, Dn, L)          the heads' U
    value_up  (H, Dv, L)          the heads' V
    causal    the last query sees all keys, the one before it one key less, and so on
    scale     of the scores; None: the one that makes it equal to exercise (a)

    Returns (B, H, Tq, Dv), of q's dtype. naive_attention takes one key head for many query heads: k (B, 1, Tk, …).
    Not allowed: the library's latent attention; a product of all latents with a matrix of a head.
    """
    ### BEGIN SOLUTION
    H, Dn, L = key_up.shape
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    nope, rope = q[..., :Dn], q[..., Dn:]
    absorbed = torch.cat((nope @ key_up, rope), dim=-1)  # (B, H, Tq, L + R)
    o = naive_attention(absorbed, latent, latent[..., :L], causal=causal, scale=scale)  # (B, H, Tq, L)
    return o @ value_up.mT  # (B, H, Tq, Dv)
    ### END SOLUTION


# %% tags=["check"] exercise="15.absorb"
check("15.absorb", attend_absorbed)


# %% [markdown]
# (The scale: (3) says that the *scores are the same numbers*. So it is what it was, $1/\sqrt{192}$, though the vectors
# are of 576. It is an easy mistake: functions for attention take one over the root of the size that they see.)
#
# The proof, in float64, over some sizes: your two functions against each other.

# %% tags=["claim"]
own_absorbed = mine("attend_absorbed", default=absorbed_latent_attention)
for sizes in (
    {"H": 3, "Tk": 50, "Tq": 1, "L": 32, "R": 8, "Dn": 16, "Dv": 12},
    {"H": 2, "Tk": 17, "Tq": 5, "L": 9, "R": 2, "Dn": 20, "Dv": 7},
    {"H": 16, "Tk": 64, "Tq": 2},
):
    tensors = [each.double() for each in drawn(**sizes)]
    expanded, absorbed = (attend(*tensors, causal=True) for attend in (own_expanded, own_absorbed))
    same = torch.allclose(expanded, absorbed, rtol=1e-10, atol=1e-12)
    other = own_absorbed(*tensors, causal=True, scale=tensors[1].shape[-1] ** -0.5)
    print(f"{sizes}: equal {same}; with 1/√(L + R) equal {torch.allclose(expanded, other, rtol=1e-3)}")
print(f"DeepSeek-V3's scale, with YaRN, in both forms: {DEEPSEEK_V3.scale * 192**0.5:.2f} times 1/√192")


# %% tags=["claim"]
def absorbed_flops(H, Tk, Tq=1, L=512, R=64, Dn=128, Dv=128):
    """Operations of the absorbed form, a layer and sequence: of U and V, and to attend."""
    return 2 * H * Tq * L * (Dn + Dv), 2 * H * Tq * Tk * (L + R + L)


with work() as done:
    own_absorbed(*drawn(H=4, Tk=100))
print(
    f"the function has {done.matmul_flops / sum(absorbed_flops(H=4, Tk=100)):.2f} times as many operations as the formula"
)
print(" new tokens    naive   absorbed, GFLOP     (128 heads, 8,192 tokens in all)")
for Tq in (1, 2, 16, 128, 256, 8192):
    naive, absorbed = sum(naive_flops(128, 8192, Tq)), sum(absorbed_flops(128, 8192, Tq))
    print(f"{Tq:11,} {naive / 1e9:8,.0f} {absorbed / 1e9:10,.1f}")
even = next(Tq for Tq in range(1, 8192) if sum(naive_flops(128, 8192, Tq)) < sum(absorbed_flops(128, 8192, Tq)))
print(f"from {even} new tokens on, expanding is less work; with very long texts from {512 * 256 / (1088 - 320):.0f}")
ratio = sum(naive_flops(16, 2048)) / sum(absorbed_flops(16, 2048))
print(f"one new token, 16 heads, 2,048 tokens: {ratio:.0f} times less, absorbed")

# %% tags=["measure"]
measured("15.times", sum(naive_flops(128, 8192)) / sum(absorbed_flops(128, 8192)), "times")

# %% [markdown]
# (The 171 are $L (D_n + D_v)$ over the difference of $2L + R$ and $D_n + R + D_v$, whatever $H$ is. A causal mask, which
# spares work in both forms, is not counted.)
#
# So both forms are needed. In decoding few queries see many keys, and expanding these is waste. In training, and for the
# chunks of a prompt, many queries see each key. Then it pays to make the key once, because each of its products is
# cheaper: 320 multiplications for a query, a key and a value, in place of 1,088. <!-- source: 192 + 128, 576 + 512 -->
# The library's model has a simpler rule: `latent="auto"` expands where there is no cache, and absorbs where there is one.
# So it absorbs for long chunks of prompts, too, where it would be less work to expand.
#
# ## Predict: what does a step wait for?
#
# Lesson 07 had attention in decoding wait for memory, for any batch: a key is read, and takes part in a product with the
# few query heads that share it. Now a latent is read once, and meets all 128 heads, as a key and as a value. **How many
# operations is that for each byte, in bf16?**

# %% tags=["predict"]
predict("15.intensity", None, "FLOP/byte")

# %% [markdown]
# ## At the ridge
#
# A latent has $L + R$ numbers of two bytes. With each of $H$ heads and of $n$ new tokens it takes $L + R$ multiply-adds
# in the score and $L$ in the sum:
#
# $$ I = \frac{2\,n H\,(2L + R)}{2\,(L + R)} \approx 1.9\,n H \tag{5} $$


# %% tags=["claim"]
def intensity(H, n=1, L=512, R=64):
    """FLOP for each byte of latents."""
    return 2 * n * H * (2 * L + R) / (2 * (L + R))


h100 = DEVICES["H100 SXM"]
reached = 746e12 / 3.02e12  # what this project measured: products of large matrices, and copies
print(f"an H100's ridge: {h100.flops_per_byte('bfloat16'):.0f} FLOP/byte by its data sheet, {reached:.0f} as measured")
print("FLOP for each byte of the cache, in a decode step:")
for name in ("Llama-2-7B", "Qwen2.5-72B", "Llama-3.1-405B"):
    shape = SHAPES[name]
    of_key = 2 * shape.heads / shape.kv_heads / 2  # FLOP with each head that shares it, for two bytes
    print(f"{name:29} {of_key:7.0f}")
for H, n in ((16, 1), (32, 1), (128, 1), (128, 2)):
    print(f"latents, {H:3} heads, {n} new token{'s' * (n > 1):1}  {intensity(H, n):6.0f}")

# %% tags=["measure"]
measured("15.intensity", intensity(128), "FLOP/byte")

# %% [markdown]
# With 128 heads the decode step sits at the ridge of an H100, as measured: at full rates, memory would need about as long
# for the latents as the tensor cores for the products. What kernels reach of that is below. <!-- source: 746 TFLOP/s and 3.02 TB/s are the measured rates of the project's H100, as llmsys/hardware/devices.py says -->
# With fewer heads it waits for memory, and with 128 and two tokens a step, as speculative decoding brings them (lessons 12
# and 16), for the tensor cores: there the second token is no longer free.
#
# ## Where would a position go?
#
# So far keys had no positions. Rotary positions turn queries and keys by an angle that grows with the position, $\mathcal{R}_m$ for
# position $m$ (with as many columns as what it turns), so that a score depends on the distance of the two. Apply that to
# the expanded key of token $t$, and to a query at $m$:
#
# $$ (\mathcal{R}_m\, q) \cdot (\mathcal{R}_t\, U_h\, c_t) = q \cdot (\mathcal{R}_m^\top \mathcal{R}_t\, U_h\, c_t) = (U_h^\top \mathcal{R}_{m-t}\, q) \cdot c_t \tag{6} $$
#
# The rotation has come to stand between $q$ and $U_h$. What would have to be absorbed is another matrix for every
# distance $m - t$, so another query for every key. Here is one query, absorbed for keys at some distances; how alike
# are they?

# %% tags=["claim"]
torch.manual_seed(0)
q, up = torch.randn(1, 1, 1, 16), torch.randn(1, 16, 32)


def absorbed_for(distance):
    """U^T R q: (32,)"""
    turned = rotate(q, rotation(torch.tensor([distance]), 16, interleaved=True))
    return absorb_queries(turned, up)[0, 0, 0]


for distance in (0, 1, 10, 1000):
    cosine = torch.cosine_similarity(absorbed_for(0), absorbed_for(distance), dim=0)
    print(f"distance {distance:5}: cosine with the one for distance 0 is {cosine:5.2f}")

# %% [markdown]
# There is no query that fits all keys. (Likeness does not fall steadily with the distance: each pair of columns turns at its
# own speed, and fast ones have come round many times at 1,000.) What if it is the *latent* that is turned? Then $U_h$ comes after the rotation, and
# the score of a query that is turned as ever, $(\mathcal{R}_m\, q) \cdot (U_h \mathcal{R}_t\, c_t)$, is no function of a distance any more. Move a
# query and a key by five tokens, and see whether their score stays; then the query alone, and it should change. In the last two lines, what is turned is the query
# *after* it has absorbed $U_h$, or $r$ as in (1).


# %% tags=["claim"]
def turned(x, position):
    """A vector, as a token at that position has it."""
    turn = rotation(torch.tensor([position]), x.shape[-1], interleaved=True)
    return rotate(x.view(1, 1, 1, -1), turn).flatten()


def absorbed(q):
    return q @ up[0]  # Uᵀ q


q, c, q_rope, r = q.flatten(), torch.randn(32), torch.randn(16), torch.randn(16)
scores = {
    "expanded keys, queries": lambda m, t: turned(q, m) @ turned(up[0] @ c, t),
    "latents, queries": lambda m, t: absorbed(turned(q, m)) @ turned(c, t),
    "latents, absorbed queries": lambda m, t: turned(absorbed(q), m) @ turned(c, t),
    "r, q_rope": lambda m, t: absorbed(q) @ c + turned(q_rope, m) @ turned(r, t),
}
for name, score in scores.items():
    here, there, other = (float(score(*at)) for at in ((9, 4), (14, 9), (14, 4)))
    print(f"turned: {name:26} {here:8.3f} at 9 and 4, {there:8.3f} at 14 and 9: {abs(here - there) < 1e-3}", end="")
    print(f"; {other:8.3f} at 14 and 4")

# %% [markdown]
# Turned keys know the distance, and cannot be absorbed. Turned latents alone know no distance.
#
# The third line knows the distance, and needs no key of a head. Decoding could use it; but training and prompts need the
# expanded form, and it has none: its key is $U_h \mathcal{R}_{t-m}\, c_t$, another key of the same token for every query.
# And the values are made of the same latents and have no position: they would have to be turned back in every step, or
# kept a second time.
#
# Therefore positions are **decoupled**: the latent has none, and beside it there is $r_t$, a key of 64 numbers that is not
# expanded. It is turned once, when it is kept, and all heads share it. Both forms can have it.
#
# ## Exercise (c): what is kept (20 minutes)
#
# Write (1). RMSNorm is $c / \sqrt{\operatorname{mean}(c^2) + \epsilon}$ times a weight, and $r$ has no norm. Columns $2i$
# and $2i + 1$ of $r$ are a pair $(a, b)$ that is turned by $\theta = t \cdot \text{base}^{-2i/R}$:
#
# $$ (a, b) \;\to\; (a \cos\theta - b \sin\theta,\; a \sin\theta + b \cos\theta) \tag{7} $$
#
# In Llama's checkpoints, column $i$ is paired with column $i + R/2$. Nobody's shapes will tell you which it is.

# %% tags=["exercise"] exercise="15.keep"
import torch


def keep(x, down, weight, positions, *, base=10_000.0, eps=1e-6):
    """What is kept of each token: [c ; r], c normalised (1) and without a position, r turned (7).

    x          (B, T, C)   float32, what comes into the layer
    down       (L + R, C)  W_c above W_r
    weight     (L,)        of the latent's norm: c / √(mean(c²) + eps) · weight
    positions  (T,)        int64, where these tokens stand
    base       columns 2i and 2i + 1 of r turn by position · base^(−2i / R); R is even

    Returns (B, 1, T, L + R), float32. Not allowed: the library's rotation and its norm.
    """
    ### BEGIN SOLUTION
    L, R = len(weight), len(down) - len(weight)
    c, r = (x @ down.mT).split((L, R), dim=-1)  # (B, T, L), (B, T, R)
    c = weight * c * torch.rsqrt(c.square().mean(dim=-1, keepdim=True) + eps)
    frequency = base ** (-torch.arange(0, R, 2) / R)  # (R / 2,)
    angle = positions[:, None] * frequency  # (T, R / 2)
    cos, sin = angle.cos(), angle.sin()
    even, odd = r[..., 0::2], r[..., 1::2]
    r = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    return torch.cat((c, r), dim=-1)[:, None]
    ### END SOLUTION


# %% tags=["check"] exercise="15.keep"
check("15.keep", keep)


# %% [markdown]
# ## Watch it
#
# Step through the products of one layer's attention in a decode step, with their shapes, what they read, and what they
# compute, and watch where they come to stand on an H100's roofline (the data sheet's). Three things to look for:
#
# - DeepSeek-V3, absorbed: with which product does the time grow, and why does the sum, with nearly as many operations, add
#   nothing? And naive: what is written, and how much of the time passes before attention begins?
# - The same heads with a cache of their own keys and values (MHA; keys of 192 here, so more than in the bar above): do 32 sequences of 8k fit into an H100? Does one of 32k?
# - Absorbed, with 1, 2 and 4 new tokens: from where on does another token cost more time?
#
# <details><summary>What is to be seen, with 32 sequences of 8k</summary>
#
# Absorbed, the time grows with the scores: they read the latents. The sum reads nothing more, and its operations are done
# in the time of that reading. Naive, 21 GB of keys and values are written, and 58% of the time is over before attention
# begins. MHA's cache would have 1.3 TB, and 164 GB for one sequence of 32k: neither fits. New tokens cost time from the
# second on: two take 158 µs in place of 100, four take 305.
# <!-- source: total_seconds(operations(products(…))) of llmsys/viz/multi_head_latent_attention/products.py on DEVICES["H100 SXM"], and bytes_per_token of its designs -->
# </details>

# %% tags=["widget"]
viz.multi_head_latent_attention.stepper()

# %% [markdown]
# ## Measure
#
# On one core of this machine: a decode step of one layer, 16 heads of DeepSeek's size, as DeepSeek-V2-Lite has them, for
# the last of 2,048 tokens. The operations differ by a factor of 114.
# **How many times faster is the absorbed form?** (More than that, if what counts is that the naive form has keys and values
# of all heads to write and to read again. Less, if it is that its large products keep a core busy, and the absorbed form
# has small ones, with as many small operations between them.)

# %% tags=["predict"]
predict("15.faster", None, "times")


# %% tags=["measure"]
def seconds(attend, tensors, calls):
    """Of a call: the fastest of some, after one that does not count."""
    attend(*tensors)
    found = []
    for _ in range(calls):
        start = time.perf_counter()
        attend(*tensors)
        found.append(time.perf_counter() - start)
    return min(found)


threads = torch.get_num_threads()
torch.set_num_threads(1)  # of several that share a product, all wait for one that is disturbed
with torch.inference_mode():
    tensors = drawn(H=16, Tk=2048)
    in_turn = [(seconds(own_expanded, tensors, 2), seconds(own_absorbed, tensors, 10)) for _ in range(2)]
torch.set_num_threads(threads)
slow, fast = (min(each) for each in zip(*in_turn, strict=True))
flops = sum(naive_flops(16, 2048)), sum(absorbed_flops(16, 2048))
print(f"naive    {1e3 * slow:8.2f} ms, {flops[0] / slow / 1e9:6.1f} GFLOP/s")
print(f"absorbed {1e3 * fast:8.2f} ms, {flops[1] / fast / 1e9:6.1f} GFLOP/s")
rates = flops[1] / fast / (flops[0] / slow)
print(
    f"{flops[0] / flops[1]:.0f} times fewer operations, at {rates:.2f} times the rate: {slow / fast:.0f} times faster"
)
measured("15.faster", slow / fast, "times")

# %% [markdown]
# Where the last line has a rate below 1, the gain is smaller than the operations promise: a call as short as the absorbed
# one has small products, and what is beside them (the softmax, copies, the calls themselves) weighs more. <!-- source: its four products, timed one by one on a core, are 1.3 of 2.1 ms -->
# Where it is above 1, what the naive form writes and reads outweighs that; or the machine is busy: the naive form's long
# calls have every disturbance in them, while of ten short ones one may have none.

# %% [markdown]
# ### On a GPU
#
# A record of an H200 has the absorbed form by two kernels, `gluon` for Hopper and `triton` for any GPU, over pages of 64
# latents, in bf16. Beside it are two ways without absorbing: **expanded**, cuDNN's attention to a cache that keeps the
# keys and values of all heads, and **naive**, which makes them of the latents for each step, and then attends in the same
# way (both where keys and values are at most 48 GB: with 128 heads, 128 sequences of 4,096 tokens) <!-- source: MOST_EXPANDED in llmsys/bench/mla_decode.py -->. The formula (5) says what to expect of the number of heads. An H200 has an H100's tensor cores and a faster
# memory, so its ridge is lower. **128 heads, 128 sequences of 8,192 tokens: how many times as long does a step take with
# two new tokens of each, as one with one?**

# %% tags=["predict"]
predict("15.second", None, "times")

# %% tags=["claim"]
record = recorded("mla_decode", "H200")
rows = {
    (row["Hq"], row["tokens"], row["longest"], row["name"]): row
    for row in record.rows
    if row["B"] == 128 and row["page"] == 64 and row["shortest"] == row["longest"]
}
copy = max(row["gbps"] for row in record.rows if row["name"] == "copy")
print(f"{record.device}: a copy has up to {copy / 1000:.2f} TB/s;", end=" ")
print(f"the ridge is at {746e3 / copy:.0f} FLOP/byte, with 746 TFLOP/s")
print("128 sequences of 8,192 tokens           gluon                     triton")
print("heads × tokens  FLOP/byte     µs   GB/s  TFLOP/s        µs   GB/s  TFLOP/s")
for H, n in ((16, 1), (32, 1), (128, 1), (128, 2)):
    print(f"{H:9} × {n} {intensity(H, n):13.0f}", end="")
    for name in ("gluon", "triton"):
        row = rows[H, n, 8192, name]
        print(f" {row['us']:8.0f} {row['gbps']:6,.0f} {row['tflops']:8.0f} ", end="")
    print()
few, one, two = (rows[H, n, 8192, "gluon"] for H, n in ((16, 1), (128, 1), (128, 2)))
print(
    f"gluon: 16 heads {few['of_copy']:.2f} of the copy's speed, 128 heads {one['tflops'] / 746:.2f} of 746 TFLOP/s;",
    end=" ",
)
print(f"two new tokens take {two['us'] / one['us']:.2f} times as long as one")
forms = {name: rows[128, 1, 4096, name]["us"] for name in ("gluon", "expanded", "naive")}
print("128 heads, 4,096 tokens:", ", ".join(f"{name} {us:,.0f} µs" for name, us in forms.items()), end=": ")
print(f"{forms['expanded'] / forms['gluon']:.0f} and {forms['naive'] / forms['gluon']:.0f} times the first")
small = {name: rows[16, 1, 4096, name]["us"] for name in ("gluon", "expanded")}
print(f"16 heads: a cache of keys and values has {16 * (192 + 128) / 576:.1f} times the numbers,", end=" ")
print(f"and takes {small['expanded'] / small['gluon']:.1f} times as long")
print(f"to expand the latents, with 128 heads: {128 * naive_flops(128, 4096)[0] / 1e12:.1f} TFLOP")

# %% tags=["measure"]
measured("15.second", two["us"] / one["us"], "times")

# %%
viz.multi_head_latent_attention.decode_roofline(record)

# %% [markdown]
# `gluon` does as (5) has it. With 32 heads it has twice the work of 16, in nearly the same time: with both it waits for memory.
# 128 heads are four times the work of 32, and far from four times as long, but longer: now it is the tensor cores, and
# from here on each token costs time. (Not quite twice as much for the second: the TFLOP/s are a little higher. Why, the
# record does not say.)
# How near `gluon` comes to its two roofs is printed above: the copy's speed, where heads are few, and with 128 what the
# project measured for large products of matrices, on an H100, which has the same tensor cores. (The picture's flat roof is
# the data sheet's, and so its ridge is at 231; the points of a column are the record's lengths, of 1,024 tokens and more.) <!-- source: 989 TFLOP/s over 4.29 TB/s -->
# `triton` is the portable kernel: 32 heads take it nearly half as long again as 16, and with 128 it is less than half as fast as `gluon`;
# `llmsys/attention/latent/hopper/` says what the other does differently, and by how much it falls short of its targets.
#
# A cache of keys and values loses by its size: with 16 heads, where memory decides for both, by its bytes nearly exactly.
# With 128 heads it has 71 times the bytes and takes 37 times as long, about half of that, as the latents' kernel no longer waits for memory
# there. And the naive form has all of that to make first, 17.6 TFLOP in a layer of this step, and to write and read again. At the
# rates above, that is less than half of its time. It is PyTorch's operations one after the other (pages are gathered and
# multiplied, then $r$ is put behind each head's key), and each writes and reads anew. <!-- source: naive in llmsys/bench/mla_decode.py; 17.6 TFLOP at 746 TFLOP/s, 43 GB written, and read by attention, at 4.29 TB/s: 44 of 92 ms -->
#
# All of that was of 128 sequences. How is it with fewer?

# %% tags=["claim"]
print("sequences of        16 heads                   128 heads")
print("8,192 tokens      µs   of the copy's speed      µs   TFLOP/s")
batches = {
    (row["B"], row["Hq"]): row
    for row in record.rows
    if row["name"] == "gluon" and row["shortest"] == row["longest"] == 8192 and (row["tokens"], row["page"]) == (1, 64)
}
for B in (1, 4, 16, 64, 128):
    few, many = batches[B, 16], batches[B, 128]
    print(f"{B:12} {few['us']:7.0f} {few['of_copy']:21.2f} {many['us']:7.0f} {many['tflops']:9.0f}")
print(f"64 sequences, 16 heads: {batches[64, 16]['us'] / batches[1, 16]['us']:.0f} times as long as one")
print(f"128 sequences of 1,024 tokens, 16 heads: {rows[16, 1, 1024, 'gluon']['of_copy']:.2f} of the copy's speed")

# %%
viz.multi_head_latent_attention.decode_sizes(record)

# %% [markdown]
# The keys of a single sequence are dealt to all multiprocessors, too, and their parts are merged (lesson 08). But then
# each has little to do, and what counts is beginning, waiting for the first tiles, and the merge: 64 sequences take
# nine times as long as one. From 64 on it is bytes that count, or with 128 heads operations. Short contexts lose, too:
# with 16 heads, 128 sequences of 1,024 tokens have 0.77 of the copy's speed; 16 of 8,192, which are as many tokens, have
# 0.71.

# %% [markdown]
# ## Your functions in a real model
#
# The library ships a very small model of DeepSeek's kind: three layers with latent attention, of which two have a mixture
# of experts, trained for half a minute on the bytes of Python sources. Its layers are made with your functions here: `keep`
# makes what goes into the cache, and one of your two forms attends to it.


# %% tags=["engine"]
own_keep = mine("keep", default=kept)


class Latents:
    """A backend with a cache of latents, and with one of the two forms to attend to them."""

    def __init__(self, form):
        self.form, self.latents, self.length = form, {}, 0

    def begin(self, tokens):
        start, self.length = self.length, self.length + tokens.shape[1]
        return Batch(torch.arange(start, self.length))

    def attend(self, layer, q, new, v, batch, *, turn, scale, key_up, value_up):
        """q (B, H, T, Dn + R), whose last R columns are still to be turned; new (B, 1, T, L + R), to be kept.

        Returns (B, H, T, Dv). `rotate` turns as many columns as `turn` is for, the last ones.
        """
        latent = torch.cat((self.latents[layer], new), dim=2) if layer in self.latents else new
        self.latents[layer] = latent
        return self.form(rotate(q, turn), latent, key_up, value_up, causal=True, scale=scale)


class OwnAttention:
    """Attention of a layer that lets `keep` make what is kept, and hands its matrices to the backend."""

    def attention(self, x, turn, backend, batch):
        config, (B, T, _) = self.config, x.shape
        q = self.query_up(self.query_norm(self.query_down(x))).view(B, T, -1, config.query_size).transpose(1, 2)
        new = own_keep(x, self.latent_down.weight, self.latent_norm.weight, batch.positions, base=config.rope_base)
        up = self.latent_up.weight.view(-1, config.expanded_size, config.latent_size)
        key_up, value_up = up.split((config.nope_size, config.value_size), dim=1)
        weights = {"key_up": key_up, "value_up": value_up}
        o = backend.attend(self.index, q, new, None, batch, turn=turn, scale=config.scale, **weights)
        return self.output(o.transpose(1, 2).reshape(B, T, -1))


class OwnLayer(OwnAttention, LatentLayer): ...


class OwnMixtureLayer(OwnAttention, LatentMixtureLayer): ...


class OwnDeepSeek(DeepSeek):
    dense_layer, mixture_layer = OwnLayer, OwnMixtureLayer


# %% tags=["engine"]
model = load_shipped()
prompt, new = "    return ", 40
expected = generate(model, prompt, attention="contiguous", max_new_tokens=new)
print(repr(prompt), "→", repr(expected.text))

# %% tags=["engine", "claim"]
for name, options in (("without a cache, expanded", {"cache": False}), ("latents in pages", {"attention": "paged"})):
    said = generate(model, prompt, max_new_tokens=new, **options)
    print(f"the library's, {name}: the same {len(said.tokens)} tokens: {said.tokens == expected.tokens}")
own = OwnDeepSeek(model.config, model.tokenizer).eval()
own.load_state_dict(model.state_dict())
for name, form in (("expanded", own_expanded), ("absorbed", own_absorbed)):
    cache = Latents(form)
    said = generate(own, prompt, attention=cache, max_new_tokens=new)
    print(f"layers with these functions, {name}: the same {len(said.tokens)} tokens: {said.tokens == expected.tokens}")
config = model.config
print(
    f"kept of a token in a layer: {cache.latents[0].shape[-1]} numbers; keys and values of its {config.heads} heads",
    end="",
)
print(f" would be {config.heads * (config.query_size + config.value_size)}")

# %% [markdown]
# In pages it is the cache of lesson 08: `PagedCache` sees one key head of $L + R$ numbers, whose values are in its keys.
# So blocks that are shared, chunks of prompts and preemption are what they were (`tests/serving/test_latent.py`).
#
# ## On many GPUs
#
# Tensor parallelism (lesson 19) gives each GPU some of the heads, with their keys and values. Eight KV heads on eight
# GPUs: each has an eighth of the cache. A latent belongs to all heads, and so each GPU needs the whole of it:

# %% tags=["claim"]
gpus = 8
llama, mla = bytes_per_token(SHAPES["Llama-3.1-405B"]), v3.cache_spec().bytes_per_token
print(f"bytes a token on {gpus} GPUs together, by tensor parallelism:")
print(f"    Llama-3.1-405B {llama:9,}: {llama // gpus:,} on each")
print(f"    DeepSeek-V3    {gpus * mla:9,}: {mla:,} on each,", end=" ")
print(f"with {128 // gpus} heads and {intensity(128 // gpus):.0f} FLOP/byte")
plain = bytes_per_token(alike)
print(f"    128 heads with their own keys {plain:,}: {plain // gpus:,} on each, {plain / gpus / mla:.0f} times as many")
weights = sum(
    weight.numel()
    for name, weight in v3.named_parameters()
    if name.split(".")[2:3] and name.split(".")[2].startswith(("query", "latent", "output"))
)
print(f"DeepSeek-V3, each with its own sequences: {mla:,}, with 128 heads and {intensity(128):.0f} FLOP/byte")
print(f"attention's weights: {weights / 1e9:.1f} billion, {2 * weights / 1e9:.0f} GB in bf16, as much as", end=" ")
print(f"{2 * weights / mla / 1000:.0f} thousand tokens of latents")

# %% [markdown]
# Most of the gain would be lost. There would be eight copies of the cache: on each GPU it would be 7 times smaller than with
# 128 plain heads, and not 57 times; and each reads all latents for 16 heads, at an eighth of the FLOP a byte. So DeepSeek-V3
# is served with **data-parallel attention**: each GPU has all heads, and sequences of its own. Attention's weights are on
# each GPU then, which takes room of its own, and pays where many or long sequences are served. The experts, nearly all of
# the model, stay spread over all GPUs, and between the two the tokens are sent around (lesson 21).
#
# ## What production does differently
#
# - **FlashMLA**, [DeepSeek's kernels](https://github.com/deepseek-ai/FlashMLA): `flash_mla_with_kvcache` is the
#   absorbed form over pages of 64 tokens. For an H800 it claims up to 3,000 GB/s where memory limits, and since April
#   2025 up to 660 TFLOP/s where the tensor cores do. Its `softmax_scale` is $1/\sqrt{576}$ if nothing is said, so callers
#   say it. <!-- source: README of FlashMLA, its release of 2025-04-22 -->
# - **vLLM**: `vllm/model_executor/layers/attention/mla_attention.py` (before: `vllm/v1/attention/backends/mla/common.py`)
#   calls the two forms "compute friendly" and "data-movement friendly", and takes the first for prompts, in chunks, too,
#   and the second for decoding. It keeps $U$ and $V$ as `W_UK_T` and `W_UV`.
# - **SGLang**: `--enable-dp-attention` is the data-parallel attention from above
#   ([its guide](https://docs.sglang.io/docs/advanced_features/dp_dpa_smg_guide.md)).
# - **FlashInfer**: `BatchMLAPagedAttentionWrapper` takes `c` and `r` as two caches.
# - **DeepSeek-V3.2** adds sparse attention to it: a small indexer chooses 2,048 tokens, and the absorbed form attends to
#   those (lesson 13). Its indexer's rotation pairs half and half, while latent attention's pairs neighbours; engines have
#   mixed them up, and nothing failed but the answers' quality
#   ([sglang#13495](https://github.com/sgl-project/sglang/pull/13495)).
# - Papers: [multi-query attention](https://arxiv.org/abs/1911.02150), [grouped queries](https://arxiv.org/abs/2305.13245),
#   [DeepSeek-V2](https://arxiv.org/abs/2405.04434) (section 2.1, appendix C), [DeepSeek-V3](https://arxiv.org/abs/2412.19437),
#   [YaRN](https://arxiv.org/abs/2309.00071), by which V3's scale is 1.87 times $1/\sqrt{192}$.
#
# ## Do you have it?
#
# <details><summary><b>1.</b> A colleague multiplies $U_h$ into the matrix that makes the queries, once, when the model is loaded: "then even
# absorbing is free". Is it right? Would you do it for DeepSeek-V3? <!-- source: an assumption --></summary>
#
# It is right: $U_h^\top W_q$ is one matrix, for the part without a position. But $W_q$ of a head has 128 rows, the
# product 512. DeepSeek-V3 makes its queries of a latent of their own, of 1,536 numbers. So it would be 1,536 · 512 numbers
# a head in place of 1,536 · 128 + 128 · 512, those of $W_q$ and of $U_h$, which is then not read any more: three times as
# much to keep and to read. And each new token is multiplied with all of them: three times the operations, too. Nothing is
# saved. One would not.
# </details>
#
# <details><summary><b>2.</b> Somebody serves a model with 16 heads of latent attention, and complains that speculative decoding with two tokens a
# step costs no more time than one. A friend with DeepSeek-V3 on H200s says that it costs nearly double. Who is wrong? <!-- source: an assumption --></summary>
#
# Nobody, if it is attention's time that they mean. By (5), 16 heads have 30 FLOP a byte, 60 with two tokens, both far below
# the ridge: memory decides, and it reads the same latents. 128 heads are above an H200's ridge with one token already, and
# there everything costs what it computes. (An H100's ridge is higher: in the stepper, two
# tokens take 158 µs in place of 100.)
# </details>
#
# <details><summary><b>3.</b> To save 64 numbers a token, you leave out $r$, and add positions to $x$ before the first layer instead, as the first
# transformers did. Does absorbing still work? What is lost?</summary>
#
# It works: nothing stands between $q$ and $U_h$. What is lost is that scores depend on distances by construction: the
# model has to learn to take positions out of $x$, through 512 numbers of latent, and it has never seen positions beyond
# those it was trained on. Rotations are a part of the scores, and can be slowed down there for longer texts (YaRN).
# </details>
#
# **Next:** lesson 16, Multi-token prediction, which is not built yet; nor are 12, 13, 19 and 21.
