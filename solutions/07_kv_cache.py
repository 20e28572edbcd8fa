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
# # 07 · The KV cache
#
# A language model writes one token at a time, and each token looks at all of those before it. Whoever runs the model on
# the whole text for every new token computes the same keys and values again and again.
#
# **The idea:** in a causal model, a token's key and value never change once they are there. Keep them, and a step
# computes its new tokens only: first the whole prompt at once, the **prefill**, and then a single token in each step of
# **decoding**. What is left of a decoding step is hardly any arithmetic and a lot of reading: all weights, for a
# handful of tokens, and everything that was kept. To serve language models is to make that reading worth while.
#
# You will write attention with a cache, for steps in which sequences of different lengths take part; count what a token
# costs in memory; predict to the byte how many sequences fit, and fill a memory with them; and see what a step waits
# for, here and on an H100. In the end, SmolLM2 answers three questions in the same steps, through your cache.

# %% tags=["setup"]
import re

import torch

from llmsys import viz
from llmsys.attention import sdpa_attention
from llmsys.attention.rotary import rotate
from llmsys.bench import recorded
from llmsys.bench.decode import sweep
from llmsys.cache import Batch, Chunk, NoCache, batch_of
from llmsys.course import check, hint, measured, mine, predict
from llmsys.hardware.devices import DEVICES, GIB, this_machine
from llmsys.hardware.roofline import total_seconds
from llmsys.lessons.lesson_07_kv_cache.budget import Budget
from llmsys.lessons.lesson_07_kv_cache.rows import Rows, attend_in_rows
from llmsys.models import decode_cost, generate, load_model
from llmsys.models.decode_cost import decode_step_of, decode_step_seconds, with_kv_heads
from llmsys.models.operations import operations
from llmsys.models.shapes import SHAPES, shape_of

model = load_model()

# %%
viz.kv_cache.overview()

# %% [markdown]
# ## Predict: sixty-four for the price of how many?
#
# Llama-3-8B in `bfloat16` on an H100. One sequence has 1024 tokens, and a step gives it one more. Now take 64 such
# sequences, with 1024 tokens each, in one step, which gives each of them one more: 64 times the tokens. **How many
# times as long does that step take?**

# %% tags=["predict"]
predict("07.batch", None, "×")

# %% [markdown]
# ## The idea: what never changes
#
# One head of one layer. Token $i$ has a query $q_i$ and a key $k_i$ of size $D_k$, and a value $v_i$ of size $D_v$. It
# attends to all tokens up to itself:
#
# $$ o_i = \sum_{j \le i} p_{ij}\, v_j, \qquad p_{ij} = \frac{e^{q_i \cdot k_j / \sqrt{D_k}}}{\sum_{j' \le i} e^{q_i \cdot k_{j'} / \sqrt{D_k}}} \tag{1} $$
#
# The query $q_i$ occurs in the step of token $i$, and nowhere else. The keys $k_j$ and values $v_j$ occur in every step
# from $j$ on. Are they the same ones each time? They are computed from token $j$'s hidden state, which by (1) has seen
# the tokens up to $j$ and no other, in every layer below. What comes later cannot change it. Ask the model: the keys of
# seven tokens, once with six more behind them and once without. (It calls `attend` in every layer; what that is handed,
# the section after this one says.)

# %% tags=["claim"]
class Watched(NoCache):
    """No cache: attends to the tokens of a step, and notes their keys, (1, Hkv, T, D) a layer."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def attend(self, layer, q, k, v, batch, *, turn=None, scale=None):
        self.seen[layer] = rotate(k, turn)
        return super().attend(layer, q, k, v, batch, turn=turn, scale=scale)


tokens = torch.tensor([model.tokenizer.encode("The keys of a token do not change when the text goes on")])  # (1, 13)
long, short = Watched(), Watched()
with torch.no_grad():
    model(tokens, long)
    model(tokens[:, :7], short)
same = [torch.allclose(long.seen[layer][:, :, :7], short.seen[layer], atol=1e-4) for layer in long.seen]
print(f"layers whose first 7 keys are the same up to rounding, whatever follows: {sum(same)} of {len(same)}")

# %% [markdown]
# That is the whole licence for a cache. (A model whose tokens look both ways has none: there, one more token changes
# every key from the second layer on.) What it saves, in tokens that go through the model: a prompt of 1000 and an
# answer of 1000 are 1,999 with a cache (the last token of the answer is never fed). Without one, every step takes the
# whole text:

# %% tags=["claim"]
once, again = 1000 + 999, sum(range(1000, 2000))
print(f"with a cache {once:,} tokens; without {again:,}, {again / once:.0f} times as many")

# %% [markdown]
# ## A first version
#
# A model of this course leaves its attention to a *backend*: `begin` says where the tokens of a step stand, `attend`
# attends in each layer. It is handed $q$, $k$ and $v$ of the step's tokens, with $q$ and $k$ not rotated yet, and
# `turn`, the cosines and sines of the tokens' positions, for `rotate` (None: nothing to rotate). So a cache for one
# sequence is this:
# %%
class OneSequence:
    def __init__(self, attention):
        self.attention, self.kept, self.steps = attention, {}, []

    def begin(self, tokens):  # (1, T)
        start = sum(self.steps)
        self.steps.append(tokens.shape[1])
        return Batch(positions=torch.arange(start, sum(self.steps)))

    def attend(self, layer, q, k, v, batch, *, turn=None, scale=None):
        q, k = rotate(q, turn), rotate(k, turn)  # (1, Hq, T, D), (1, Hkv, T, D)
        if layer in self.kept:
            k, v = (torch.cat((old, new), dim=2) for old, new in zip(self.kept[layer], (k, v), strict=True))
        self.kept[layer] = k, v  # (1, Hkv, Tk, D), all tokens so far
        return self.attention(q, k, v, causal=True, scale=scale)


# %% tags=["claim"]
question = "Why is the sky blue? Answer in one sentence."
cache = OneSequence(sdpa_attention)
with_cache = generate(model, question, attention=cache, max_new_tokens=16)
without = generate(model, question, attention=sdpa_attention, max_new_tokens=16)  # all tokens, again and again
print("the same tokens with a cache and without:", with_cache.tokens == without.tokens)
print("tokens of each step:", cache.steps)

# %% [markdown]
# The first step is the prefill, with all 41 tokens of the prompt; each further one decodes, a single token.
#
# ## Who sees whom
#
# With a cache, a step has $T_q$ queries and $T_k \ge T_q$ keys. Which keys does query $i$ see? Its token stands at
# $i + T_k - T_q$ in the text, so it sees the keys $j \le i + T_k - T_q$. The mask is a triangle that ends in the
# *bottom right* corner, and this is what `causal=True` means to every stage of this course. Torch's
# [`scaled_dot_product_attention`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html)
# has a flag, `is_causal`, and its triangle begins in the *top left*.
# %%
viz.kv_cache.causal_alignment(Tq=3, Tk=7)

# %% [markdown]
# Without a cache, $T_q = T_k$, and both are the same triangle: nobody notices. Here is the same cache once more, with
# torch's function in place of the stage. The prompt is right, and so is the first token. Then:

# %% tags=["claim"]
def torchs_own(q, k, v, *, causal=False, scale=None):
    fused = torch.nn.functional.scaled_dot_product_attention
    return fused(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)


broken = generate(model, question, attention=OneSequence(torchs_own), max_new_tokens=16)
for n in (1, 2):
    print(f"the first {n} as without a cache:", broken.tokens[:n] == without.tokens[:n])

# %%
print("without a cache:", without.text)
print("top left:       ", broken.text)

# %% [markdown]
# No error, no NaN. The one query of a step sees one key, that of the very first token, and its output is that token's
# value, whatever was said in between. Two ways out are popular. "Decoding needs no mask" is true of a single query, and
# wrong as soon as a step brings several: a prompt in pieces, or guesses to be checked (lesson 12). The other is to
# build the mask, as `torch.nn.attention.bias.causal_lower_right` does.
#
# ## A step of many sequences
#
# `OneSequence` has two faults. `torch.cat` copies all that is kept, in every layer of every step. And it serves one
# sequence: all weights are read for a single token. A server has many sequences, of different lengths, some just
# beginning. So put their tokens **side by side**, $N$ of them, (1, N). To the matrices of a model, a token is a token,
# whichever sequence it belongs to. Attention alone has to know. So each sequence hands in a *chunk*: its tokens in this
# step, how many were computed before, and where it lies in the cache. A *batch* is made of the chunks, on the host,
# once a step:

# %% tags=["claim"]
step = batch_of(
    [
        Chunk(tokens=[5, 9, 2], computed=0, blocks=[2]),  # a prompt of three, in row 2
        Chunk(tokens=[7], computed=4, blocks=[0]),  # a sequence in row 0 that has four already, and gets its fifth
    ],
    block_size=8,  # slots of a row
)
for name in ("tokens", "positions", "slot_mapping", "query_start_loc", "seq_lens", "logits_indices"):
    print(f"{name:15}", getattr(step, name).tolist())

# %% [markdown]
# A cache is made of **slots**, one for each token that it has room for. Here they lie in rows of a fixed *capacity*, a
# row for each sequence. Token $i$ of the sequence in row $r$ lies in
#
# $$ \text{slot} = r \cdot \text{capacity} + i \tag{2} $$
#
# so the prompt goes to slots 16, 17 and 18. (The library says *block* and `block_size`: here a sequence has one block,
# its row, and `blocks=[2]` is row 2; in lesson 08 it has many.) `positions` are for the rotation; `query_start_loc`
# says where each sequence's queries begin, and in a last entry where they all end; `seq_lens`, how many keys each has
# with this step; `logits_indices` are the tokens after which a next one is asked for. Given a batch, the model does not
# call `begin`, and returns logits for these tokens only: (1, L, V), L of them. Prefill and decoding do not occur: there
# is only what is computed already and what is not.
#
# ## Exercise (a): attention with a cache (35 minutes)
#
# `Rows` is a cache without its `attend`: it has the memory, `keys` and `values` of each layer, and you write what is
# done with it. First, the step's keys and values go into their slots, in place. Then each sequence's queries attend to
# everything that its row holds by now. Slots behind that are nobody's: never written, or left by a sequence that had
# the row before.
#
# Copy nothing that is kept. A slice of a row, (Tk, Hkv, D), and its `transpose(0, 1)[None]`, (1, Hkv, Tk, D), are
# views.

# %% tags=["exercise"] exercise="07.cached_attend"
import torch

from llmsys.attention.rotary import rotate


def cached_attend(cache, layer, q, k, v, batch, *, turn=None, scale=None):
    """One layer of a step: keep K and V of its tokens, and attend, each sequence to all that is kept of it.

    q (1, Hq, N, Dk)    k (1, Hkv, N, Dk)    v (1, Hkv, N, Dv)    of the step's N tokens, side by side; not turned yet

    cache.keys[layer]   (rows · capacity, Hkv, Dk), and cache.values[layer] (rows · capacity, Hkv, Dv): written in place
    cache.capacity      slots of a row
    cache.stage         attention, with a mask that is aligned bottom-right:
                        cache.stage(q, K, V, causal=True, scale=scale), K (1, Hkv, Tk, Dk), V (1, Hkv, Tk, Dv)
    batch.slot_mapping  (N,) int32, the slot of each of the step's tokens (index_copy_ wants long)
    batch.chunks        of each sequence, in the order of their tokens: chunk.tokens, those of this step;
                        chunk.computed, how many were kept before; chunk.blocks[0], its row
    turn, scale         rotate(x, turn) gives q or k their positions (None: they need none); scale is for the stage

    Returns o (1, Hq, N, Dv). Keys are kept turned. The stage is called once for each sequence, with views of the cache.
    """
    ### BEGIN SOLUTION
    q, k = rotate(q, turn), rotate(k, turn)
    keys, values = cache.keys[layer], cache.values[layer]
    keys[batch.slot_mapping] = k[0].transpose(0, 1)  # (N, Hkv, Dk)
    values[batch.slot_mapping] = v[0].transpose(0, 1)
    parts, start = [], 0
    for chunk in batch.chunks:
        T = len(chunk.tokens)
        first = chunk.blocks[0] * cache.capacity
        kept = slice(first, first + chunk.computed + T)
        K, V = (x[kept].transpose(0, 1)[None] for x in (keys, values))  # views: (1, Hkv, Tk, D)
        parts.append(cache.stage(q[:, :, start : start + T], K, V, causal=True, scale=scale))
        start += T
    return torch.cat(parts, dim=2)
    ### END SOLUTION


# %% tags=["check"] exercise="07.cached_attend"
check("07.cached_attend", cached_attend)

# %% [markdown]
# In the model, with the question from above. Then once more with its prompt in pieces of seven: the steps in the middle
# have $1 < T_q < T_k$, where the corner of the triangle shows.

# %% tags=["claim"]
attend = mine("cached_attend", default=attend_in_rows)


def greedy(prompts, cache, *, new_tokens, chunk=None):
    """The next tokens of each prompt, all of them in the same steps. Returns them, and how many tokens each step had.

    A step takes of every sequence what is not computed yet, at most `chunk` tokens of it.
    """
    texts, computed, sizes = [list(prompt) for prompt in prompts], [0] * len(prompts), []
    while going := [i for i, text in enumerate(texts) if len(text) < len(prompts[i]) + new_tokens]:
        chunks = []
        for i in going:
            new = texts[i][computed[i] :][:chunk]
            whole = computed[i] + len(new) == len(texts[i])  # then a next token can be asked for
            chunks.append(Chunk(tokens=new, computed=computed[i], blocks=[i], logits=int(whole)))
            computed[i] += len(new)
        step = batch_of(chunks, block_size=cache.block_size)
        with torch.inference_mode():
            best = model(step.tokens, cache, step)[0].argmax(dim=-1).tolist()  # (L,)
        for i in [i for i, each in zip(going, chunks, strict=True) if each.logits]:
            texts[i].append(best.pop(0))
        sizes.append(step.tokens.shape[1])
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)], sizes


prompt = without.prompt_tokens
for chunk in (None, 7):
    cache = Rows(attend, model.cache_spec(), capacity=64)
    (answer,), sizes = greedy([prompt], cache, new_tokens=16, chunk=chunk)
    print(f"in steps of {sizes}\n    the same tokens as without a cache: {answer == without.tokens}")

# %% [markdown]
# `greedy` is the loop of a server in 15 lines: *what is computed catches up with what is known*. Lesson 09 makes an
# engine of that.
#
# ## What a step waits for
#
# Put both kinds of step on the roofline of lesson 01. A matrix of weights with $n$ tokens does $2n$ operations for each
# weight, which has two bytes in `bfloat16`: an intensity of $n$ FLOP a byte (less, the larger $n$ is: activations move,
# too). In prefill, $n$ is the length of the prompt, in decoding the number of *sequences*. Attention to a cache is
# another matter. A key or a value, two bytes, takes part in one multiply-add for each of the $G$ query heads that share
# it: $G$ FLOP a byte for one query. A prompt's many queries share the reading; a larger batch changes nothing, for
# every sequence brings a cache of its own. For Llama-3-8B, $G = 4$, on an H100, with the MLP's matrices for the
# weights:

# %% tags=["claim"]
llama, h100 = SHAPES["Llama-3-8B"], DEVICES["H100 SXM"]
print(f"FLOP a byte; in the time of a byte, the H100 does {h100.flops_per_byte():.0f}")
print("                   weights  attention   step, ms   ms a token")
cost = {}
for batch, queries in ((1, 1024), (1, 1), (64, 1), (256, 1)):
    parts = operations(llama, batch=batch, queries=queries, context=1024)
    intensity = {op.name: op.intensity for op in parts}
    ms = 1e3 * total_seconds(parts, h100)
    cost[batch, queries] = ms / batch / queries
    name = f"decoding, {batch:3}" if queries == 1 else "a prompt of 1024"
    print(f"{name:17} {intensity['MLP']:8.1f} {intensity['attention']:10.1f} {ms:10.2f} {cost[batch, queries]:12.4f}")
print(f"a token that is generated alone: {cost[1, 1] / cost[1, 1024]:.0f} × a token that is read")

# %% [markdown]
# The same model, the same GPU: by the roofline, a token that is generated alone costs 295 × as much as one that is
# read, and the chip hardly computes meanwhile. That this is the ridge once more is no accident. Alone, a token waits
# for the two bytes of each weight, and does two operations with them; in a prompt, it takes those two operations at the
# peak.
#
# So serve many at once. Then the weights' part of a step is shared, and the cache's part is not. With $B$ sequences of
# $T$ tokens each, and $\kappa$ bytes of keys and values for each token (all layers together),
#
# $$ \text{seconds} \ge \underbrace{\max\Big(\frac{\text{weight bytes}}{\text{bandwidth}},\ \frac{2 \cdot \text{parameters} \cdot B}{\text{peak}}\Big)}_{\text{shared by the batch}} \;+\; \underbrace{\frac{B \cdot T \cdot \kappa}{\text{bandwidth}}}_{\text{each sequence's own}} \tag{3} $$
#
# The weights are those that the step multiplies with. The table of embeddings is not among them: a token takes one row
# of it. Llama-3-8B has 16.1 GB of weights in `bfloat16` (15 GiB), and a step reads 15.0 GB of them (14 GiB). <!--
# source: 128,256 · 4096 numbers of two bytes are 1.05 GB --> The maximum goes over from reading to arithmetic at about 300 sequences on an
# H100: up to there, one more costs the weights' part nothing.
#
# The two parts are added, for they run one after another: a layer's attention waits for its matrices, and they for it.
# If they overlapped, (3) would be no lower bound. And the second part is reading as long as $G$ is far below 295, as it
# is here.
#
# Check (3) on a published example, a model of 30 billion parameters on 16 TPU v5e, weights in eight bits, arithmetic in
# `bfloat16`, 100 kB a token and a context of 8192 ([How to scale your
# model](https://jax-ml.github.io/scaling-book/inference/)), which has 2.5 and 21 ms:

# %% tags=["claim"]
tpus = {"bandwidth": 820e9, "peak_flops": 197e12, "devices": 16}
for batch in (4, 256):
    seconds = decode_step_seconds(
        batch=batch, context=8192, parameters=30e9, weight_bytes=30e9, bytes_per_token=100e3, **tpus
    )  # fmt: skip
    print(f"batch {batch:3}: {1e3 * seconds:.2f} ms a step, {batch / seconds:,.0f} tokens/s")

# %% [markdown]
# Grow the batch, then the context. The boxes are drawn to scale: what a step reads of weights, and what of caches. Find
# the batch at which there is as much of the one as of the other. Then go on: does a token become cheaper?

# %% tags=["widget"]
viz.kv_cache.stepper()

# %% [markdown]
# <details><summary>Answer</summary>
#
# A step reads 15.0 GB of weights, and each sequence of 8k tokens has 1.07 GB of cache: they are as much as each other
# at 14 sequences, between two of the frames, and with 1k tokens at 112. <!-- source: 15,009,849,344 bytes, 8192 ·
# 131,072 bytes: 13.98; 1024 · 131,072 bytes: 111.8 --> A token goes on becoming cheaper, by less and less: the weights'
# part is shared by ever more, and its own cache, 0.32 ms at 8k, remains. <!-- source: 1.07 GB at 3.35 TB/s -->
# </details>
#
# Now your prediction, by (3) and by the GPU. The record is of Llama-3-8B with random weights, and a cache in rows in an
# H100's memory; a step is launched as one CUDA graph, all of its kernels at once, so that nothing waits for Python.

# %% tags=["claim"]
record = recorded("decode")
on_h100 = {(row["context"], row["batch"]): row for row in record.rows if row["name"] == "Llama-3-8B"}
print("context  batch   step, ms   by (3)       ×   cache, ms   by (3)   tokens/s")
for (context, batch), row in on_h100.items():
    print(f"{context:7,} {batch:6} {row['ms']:10.2f} {row['predicted_ms']:8.2f}", end="")
    print(f" {row['ms'] / row['predicted_ms']:7.2f}", end="")
    print(f" {row['attention_ms']:11.2f} {row['predicted_attention_ms']:8.2f} {1e3 * batch / row['ms']:10,.0f}")
for point in record.missing:
    if point.startswith("Llama-3-8B"):
        batch, context = map(int, re.findall(r"\d+", point.partition(" at ")[2]))
        caches = batch * context * decode_cost.bytes_per_token(llama)
        print(f"{context:7,} {batch:6}   out of memory: {caches / 1e9:.1f} GB of cache", end="")
        print(f" beside {2 * llama.parameters / 1e9:.1f} GB of weights")
alone, together = on_h100[1024, 1], on_h100[1024, 64]
for (context, batch), row in on_h100.items():
    if (context, batch) in ((1024, 64), (16384, 16)):
        longer, by_3 = (row[key] / on_h100[context, 1][key] for key in ("ms", "predicted_ms"))
        print(f"{batch} sequences of {context:,} tokens: {longer:.2f} × the step of one, by (3) {by_3:.2f} ×")
for name, row in (("one sequence", alone), ("64", together)):
    print(f"a step of {name} takes {row['ms']:.2f} ms, by (3) {row['predicted_ms']:.2f} ms")
large = [row["attention_ms"] / row["predicted_attention_ms"] for row in on_h100.values() if row["cache_bytes"] > 8e9]
print(f"caches of more than 8 GB: {min(large):.2f} to {max(large):.2f} × the time that (3) has")
for batch in (1, 64, 256):
    more = [row["rest_ms"] - row["predicted_rest_ms"] for row in on_h100.values() if row["batch"] == batch]
    shown = ", ".join(f"{each:.1f}" for each in more)  # a context each
    print(f"batch {batch:3}: the rest of a step takes {shown} ms longer than (3) says")
smol = {row["batch"]: row for row in record.rows if row["name"] == "SmolLM2-135M" and row["context"] == 1024}
print(f"SmolLM2, {SHAPES['SmolLM2-135M'].layers} layers, {smol[1]['weight_bytes'] / 1e9:.2f} GB of weights: ", end="")
print(f"the rest takes {smol[1]['rest_ms']:.2f} ms, with 256 sequences {smol[256]['rest_ms']:.2f} ms, ", end="")
print(f"by (3) {smol[1]['predicted_rest_ms']:.2f} ms")

# %% tags=["measure"]
measured("07.batch", together["ms"] / alone["ms"], "×")

# %% [markdown]
# Sixty-four times the tokens, for a step of 1.52 × the time; by (3), 1.56 ×. A step for one sequence reads 15 GB of
# weights, and multiplies each with a single token; 63 more come along for the 8.5 GB of their caches. <!-- source: 7.5
# billion weights that a step reads, 2 bytes each; 63 · 1024 · 131,072 bytes -->
#
# How good is (3)? Its ratio is right because both steps take 1.7 to 1.8 × as long as it says: 7.96 ms where it has
# 4.52, and 12.09 where it has 7.04. (The table before that had 7.17: it counts all operations, and all that they move.)
#
# Compare the columns. Large caches, of more than 8 GB, are read nearly as fast as the memory can: 1.07 to 1.17 × the
# time of (3). The rest of a step, which is all but attention, takes longer than its weights do: by 3.2 ms for one
# sequence and 4.6 ms for 64, whatever the context, and by 7.1 ms for 256. Shared, but not free. Why? Between the
# products there are norms, rotations and additions, and in this model each of them is a kernel of its own, hundreds in
# a step; (3) knows none of them. SmolLM2 has nearly as many layers, and hardly any weights: 0.08 ms to read them, and
# its rest takes 2.35 ms. So for one sequence, kernels that wait for each other are most of it, probably. The engine of
# this part of the course will fuse them. They do not explain what the batch adds: with 256 sequences, SmolLM2's rest
# takes 3.00 ms, hardly more. That far up, a product's arithmetic takes nearly as long as its reading, and neither
# hides behind the other as well as (3) has it: a guess, which a profile of one product could test.
#
# Now go down to 16k tokens. Sixteen sequences take 2.29 × the time of one there, and 2.88 × by (3), for the two steps
# are not off by the same factor: 1.34 and 1.69. The caches take longer than the weights, and each further sequence
# brings another one. And where the batch of 64 should stand, there is no memory left.
#
# So a token's bytes decide how long a step takes, and how many sequences can be in it.
#
# ## Exercise (b): the bytes of a token (15 minutes)
#
# What does a layer keep of a token? With **multi-head attention** (MHA), a key and a value for each of its $H$ heads.
# All that has been invented since keeps less:
#
# - **Multi-query attention** (MQA): one key head and one value head, which all query heads share ([Shazeer,
#   2019](https://arxiv.org/abs/1911.02150)).
# - **Grouped-query attention** (GQA): something in between, $H_{kv}$ of them, for $G = H_q / H_{kv}$ query heads each
#   ([Ainslie et al., 2023](https://arxiv.org/abs/2305.13245)).
# - **Multi-head latent attention** (MLA): one vector of `kv_rank` numbers, from which keys and values of all heads can
#   be computed. Such a key cannot be rotated ahead, so a second, small one of `rope_dim` numbers carries the position,
#   and all heads share it ([DeepSeek-V2, 2024](https://arxiv.org/abs/2405.04434)). Lesson 15 builds it. Queries have a
#   latent of their own, of `q_rank` numbers.

# %% tags=["exercise"] exercise="07.bytes_per_token"
from llmsys.models.shapes import ITEMSIZE


def bytes_per_token(shape, dtype="bfloat16"):
    """Bytes that one token of one sequence takes in the cache, in all layers together.

    shape     a model's: shape.layers, width, heads, kv_heads, head_dim; shape.latent is None, or has latent.q_rank,
              kv_rank and rope_dim. Without a latent, a layer has keys (T, kv_heads, head_dim), and values like them
    dtype     of what is kept, by name: ITEMSIZE[dtype] bytes an element

    Returns an int.
    """
    ### BEGIN SOLUTION
    if shape.latent is not None:
        numbers = shape.latent.kv_rank + shape.latent.rope_dim
    else:
        numbers = 2 * shape.kv_heads * shape.head_dim
    return shape.layers * numbers * ITEMSIZE[dtype]
    ### END SOLUTION


# %% tags=["check"] exercise="07.bytes_per_token"
check("07.bytes_per_token", bytes_per_token)

# %% [markdown]
# Real models, in `bfloat16`; and what each would keep if every query head had a key and a value of its own.

# %% tags=["claim"]
per_token = mine("bytes_per_token", default=decode_cost.bytes_per_token)
print(f"{'':16}{'parameters':>15} {'bytes a token':>14} {'8k tokens':>11} {'MHA keeps':>12}")
for name, shape in SHAPES.items():
    kept, mha = per_token(shape), per_token(with_kv_heads(shape, shape.heads))
    print(f"{name:16}{shape.parameters:15,} {kept:14,} {8192 * kept / GIB:7.2f} GiB {mha / kept:9.1f} ×")

# %%
viz.kv_cache.bytes_per_token()

# %% [markdown]
# DeepSeek-V3 has 671 billion parameters, and keeps about half as much of a token as Llama-3-8B. <!-- source: the table
# above --> Falcon-7B kept 64 times less than Llama-2-7B, which came out two months later (and 71 times less than with a
# key and a value for each of its own 71 heads). <!-- source: the table above, 524,288 / 8,192; Falcon-7B: May 2023,
# Llama 2: July 2023 --> Most models have not followed it that far: a
# single key head costs quality, and eight of them next to none, says the paper on GQA.
#
# ## Predict: how many fit?
#
# Llama-3-8B in `bfloat16`, weights and cache, on an H100 with 80 GiB. <!-- source: NVIDIA's data sheet --> Every
# sequence may come to have 8192 tokens, and has room for all of them: 65 fit, the stepper said. <!-- source: its
# opening frame --> Now take **two** H100s, which share weights and caches evenly, each a half of every matrix and every
# cache. **How many sequences fit into both together?**

# %% tags=["predict"]
predict("07.fits", None, "sequences")

# %% [markdown]
# ## Exercise (c): the largest batch (10 minutes)
#
# Write it as a function. Count in whole bytes, exactly: a server that is one sequence too optimistic dies of it.

# %% tags=["exercise"] exercise="07.largest_batch"
def largest_batch(memory, *, weight_bytes, bytes_per_token, context):
    """The most sequences whose caches fit into `memory` bytes beside the weights.

    memory, weight_bytes   ints, bytes
    bytes_per_token        int: of one token in the cache, all layers together
    context                int: tokens that each sequence has room for, so that a cache is (batch, context, bytes_per_token)

    Returns an int; 0 where not even one fits.
    """
    ### BEGIN SOLUTION
    each = context * bytes_per_token
    return max(memory - weight_bytes, 0) // each
    ### END SOLUTION


# %% tags=["check"] exercise="07.largest_batch"
check("07.largest_batch", largest_batch)

# %% [markdown]
# The H100, and three models: Llama-3-8B as it is, and as it would be with 32 key heads or a single one. The step is the
# least that (3) allows, at the batch that fits.

# %% tags=["claim"]
fits = mine("largest_batch", default=decode_cost.largest_batch)
memory, batches = 80 * GIB, {}
print("context 8192     κ, bytes    fit   step, ms   tokens/s")
for name, heads in (("MHA, 32 heads", 32), ("GQA, 8", 8), ("MQA, 1", 1)):
    shape = with_kv_heads(llama, heads)
    batch = fits(memory, weight_bytes=2 * shape.parameters, bytes_per_token=per_token(shape), context=8192)
    seconds = decode_step_of(shape, h100, batch=batch, context=8192).seconds
    batches[heads] = batch
    print(f"{name:14} {per_token(shape):10,} {batch:6} {1e3 * seconds:10.1f} {batch / seconds:10,.0f}")
both = fits(2 * memory, weight_bytes=2 * llama.parameters, bytes_per_token=per_token(llama), context=8192)
print(f"two H100s, GQA: {both}, which is {both - 2 * batches[8]} more than twice {batches[8]}")

# %% tags=["measure"]
measured("07.fits", both, "sequences")

# %% [markdown]
# Not 130 but 145: the weights are there once, however many GPUs share them, and their 15 GiB on the second one are room
# for 15 sequences of 1 GiB. <!-- source: 16,060,522,496 bytes of weights, 8192 · 131,072 bytes a sequence --> One GPU
# has room for 65, about a fifth of what its arithmetic could serve. Memory ends first, long before.
#
# And look at the two columns on the right: with a full memory, a step takes about as long in each row, for it reads
# *all* of the memory, once. So the tokens in a second go with the number of sequences that fit, and that goes as
# $1/\kappa$. (MQA's 523 are beyond the 300: the weights' part is arithmetic there, and the step a little longer.) At a
# fixed batch, a smaller $\kappa$ shortens the step instead.
#
# ### Reach it
#
# SmolLM2 in `float32`, 538,060,032 bytes of weights, and a machine of 1 GiB. A CPU lends more than one asks for, so
# `Budget` watches every allocation, and refuses as a GPU does. Predict with your two functions, then fill the memory
# with your cache, and let as many sequences as fit generate in it.

# %% tags=["claim"]
MEMORY, CONTEXT = 1 * GIB, 1024
weights = sum(weight.nbytes for weight in model.parameters())
kept = per_token(shape_of(model.config), "float32")
n = fits(MEMORY, weight_bytes=weights, bytes_per_token=kept, context=CONTEXT)
print(f"{MEMORY // GIB} GiB, {weights:,} bytes of weights, {kept:,} bytes a token, {CONTEXT} tokens each: {n} sequences")
for rows in (n, n + 1):
    try:
        with Budget(MEMORY, taken=weights) as budget:
            cache = Rows(attend, model.cache_spec(), rows=rows, capacity=CONTEXT)
            print(f"{rows} fit: {budget.taken:,} of {MEMORY:,} bytes are taken")
            answers, sizes = greedy([prompt] * rows, cache, new_tokens=4, chunk=8)
            right = all(each == without.tokens[:4] for each in answers)
            print(f"    and {sum(map(len, answers))} tokens are generated in it, the right ones: {right}")
    except MemoryError as error:
        print(f"{rows} do not fit: {error}")
del cache

# %% [markdown]
# To the byte: the weights, and 11 · 1024 tokens of 46,080 bytes. What a step computes needs room as well, and here
# found it in what was left over: with pieces of 8 tokens of 11 sequences it is a few megabytes. <!-- source: the cell
# above; 88 tokens · (1536 + 1536) · 4 bytes in the MLP, and 11 rows of 49,152 logits --> Engines take it off
# beforehand: they run the largest step that they will allow once, and look how much it took.
#
# And note what these 11 rows hold: 44 tokens each, of 1024. <!-- source: 41 of the prompt and 3 of the 4 new ones, for
# K and V of the last one were never computed; 1 − 44 / 1024 --> A contiguous cache has to reserve the longest that a
# sequence may become. Who has a use for the other 96%? That is lesson 08.
#
# ## Measure: this machine
#
# SmolLM2 again, with random keys in the cache (how long a step takes does not depend on what they are); in `float32`, or
# in `bfloat16` where there is a GPU. **A batch of 16 with 256 tokens each: how many times as long as a step of one
# sequence?** Mind that a CPU is no H100: it does fewer operations in the time of a byte.

# %% tags=["predict"]
predict("07.here", None, "×")

# %% tags=["measure"]
timed = load_model(device="cuda", dtype=torch.bfloat16) if torch.cuda.is_available() else model
rows = sweep(timed, (1, 4, 16), (256, 1024), spec=this_machine(), missing={}, repeats=5)
here = [row | {"name": "SmolLM2-135M"} for row in rows]
ms = {(row["context"], row["batch"]): row["ms"] for row in here}
by_3 = {(row["context"], row["batch"]): row["predicted_ms"] for row in here}
print(f"by (3): {by_3[256, 16] / by_3[256, 1]:.2f} ×")
measured("07.here", ms[256, 16] / ms[256, 1], "×")

# %% tags=["measure"]
viz.kv_cache.decode_time(record, here=here, model="Llama-3-8B")

# %% [markdown]
# Points are measured, lines are (3). A token becomes cheaper with the batch, and each line bends towards a floor of its
# own, the reading of one cache: four times the context, four times the floor. On the H100 the points lie furthest above
# their lines at 1,024 tokens, 1.72 to 1.88 × up to a batch of 64, and come down to them as the caches grow: to 1.34 ×
# for sixteen sequences of 16k. <!-- source: the table of the record above, step / by (3) -->
#
# If this machine's points lie far above their lines at a batch of 1, that is overhead: hundreds of calls from Python in
# a step. At a batch of 16, add the arithmetic: its peak was measured with large square matrices, and 16 rows are a thin
# one.
#
# ## Three questions, one cache
#
# Three sequences of different lengths, in rows of the same cache, pieces of at most 16 tokens of each in a step. While
# the longest is still reading its question, the others already answer.

# %% tags=["engine"]
questions = [
    "Why is the sky blue? Answer in one sentence.",
    "Name three colours.",
    "Here is a list: apples, pears, plums, cherries, quinces, grapes, figs, dates, limes. Which of them is yellow?",
]
alone = [generate(model, each, max_new_tokens=12) for each in questions]
cache = Rows(attend, model.cache_spec(), rows=3, capacity=128)
together, sizes = greedy([each.prompt_tokens for each in alone], cache, new_tokens=12, chunk=16)
for tokens in together:
    print("·", model.tokenizer.decode(tokens))

# %% tags=["engine", "claim"]
print("prompts of", [len(each.prompt_tokens) for each in alone], "tokens, in steps of", sizes)
said = [each.tokens == tokens[: len(each.tokens)] for each, tokens in zip(alone, together, strict=True)]
print("each as if it were alone:", said)

# %% [markdown]
# In the step of 16 tokens, the third question comes with its last 14, and the two others, which have begun to answer,
# with one each.
#
# The library's cache does this with its arguments checked, and on a GPU without waiting for anything inside a step:
# `generate_batch(model, questions)` in `llmsys.models`.
#
# ## What production does differently
#
# - **vLLM** has the step of this lesson, and nearly its names: `query_start_loc`, `seq_lens`, `slot_mapping` and
#   `block_table_tensor` in its `CommonAttentionMetadata`, `logits_indices` in its model runner, `num_computed_tokens`
#   for what is `computed` here. One kernel, `reshape_and_cache_flash`, writes K and V through the slots; another,
#   `flash_attn_varlen_func`, attends for all sequences at once, where you call the stage for each. Its rows are blocks
#   of 16 tokens: lesson 08.
# - **FlashAttention** aligned its mask top-left, as torch does, until version 2.1, and bottom-right ever since; its
#   README draws both. `flash_attn_with_kvcache` writes, rotates and attends in one kernel. For torch, the same change
#   was [proposed](https://github.com/pytorch/pytorch/issues/108108), and is backward incompatible. What came instead is
#   a mask of its own, [`causal_lower_right`](https://github.com/pytorch/pytorch/pull/114823).
# - **TensorRT-LLM** says *context phase* and *generation phase*, and batches "in flight". Its
#   `free_gpu_memory_fraction` gives the cache 90% of what is free when the weights are there ([its
#   documentation](https://nvidia.github.io/TensorRT-LLM/examples/kvcacheconfig.html)); vLLM's `gpu_memory_utilization`
#   is a share of all of the memory, from which weights and one largest step are then taken off.
# - **Transformers** (Hugging Face) has both of this lesson's versions: `DynamicCache` grows by `torch.cat`, as
#   `OneSequence` does, `StaticCache` is allocated for its whole length, as `Rows` is. Its batches are padded on the
#   left, with a mask.
# - **Fewer bytes** is where research goes: $\kappa$ in eight bits (`kv_cache_dtype="fp8"` in vLLM), windows and sinks
#   (lesson 13), latents (lesson 15). The sum (3), and where it leads, is in [Pope et al.,
#   2022](https://arxiv.org/abs/2211.05102).
#
# ## Do you have it?
#
# <details><summary><b>1.</b> You double the batch. What happens to the tokens in a second, at a context of 100 tokens, and at one of 100,000?</summary>
#
# With short contexts, (3) is nearly all weights: the step takes as long as before, and the tokens in a second double,
# up to a batch of about 300 on an H100 in bf16. With long ones the cache takes over. Of Llama-3-8B, one sequence of
# 100,000 tokens reads 13 GB of cache beside 15 GB of weights: from one sequence to two, the tokens in a second still
# grow by 36%, from two to four by 22%, and no more than five fit. The more of a step is cache, the nearer a doubled
# batch comes to a doubled time. There, only fewer bytes a token help, or more bandwidth. <!-- source: decode_step_of:
# 8.39, 12.31 and 20.13 ms for 1, 2 and 4 sequences; largest_batch(80 GiB, …) -->
# </details>
#
# <details><summary><b>2.</b> Why is there no cache for queries? And what would have to be kept of a token in a model that is not causal?</summary>
#
# By (1), token i's query occurs in o_i alone, and that is computed once. Keys and values occur in every later token's
# sum. If the model looked both ways, a new token would change the hidden states of all others from the second layer on,
# and with them their keys and values: nothing could be kept but those of the first layer.
# </details>
#
# <details><summary><b>3.</b> A colleague's cache calls the stage with causal=False whenever something has been kept before: "a decode step sees
# everything anyway". All of her tests pass. Which test is missing?</summary>
#
# One in which a step brings several tokens of a sequence that has some already: a prompt in chunks, a second question
# in a conversation, guesses to be checked. There, all queries but the last see keys of the future, and keys and values
# of the next layer are wrong, and kept.
# </details>
#
# **Next:** lesson 08, blocks in place of rows.
