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
# # 00 · Start here
#
# This course builds the system that runs a large language model, from the innermost loop outwards: attention, first as the
# paper writes it and in the end as fast as an H100 allows; then the engine that serves thousands of requests; then a DeepSeek-V3;
# and then its training, spread over many GPUs. You write the parts. They run in a real model from the first lesson on.
#
# In the next half hour you find out what your machine can do, answer an exercise wrongly and rightly, and make a language model
# talk with a function of yours.
#
# **How to use a notebook:** `Shift+Enter` runs a cell and goes on to the next. You may change every cell and add your own;
# updates of the course never overwrite what you have edited.

# %% tags=["setup"]
import torch

from llmsys import viz
from llmsys.course import check, diagnose, hint, measured, mine, predict
from llmsys.course.manifest import lessons, planned

# %%
viz.course.lesson_map(lessons(), planned=planned())

# %% [markdown]
# ## What can this machine do?
#
# Every lesson runs on three **tiers**, and every cell picks the best that is there:
#
# 1. **PyTorch** on a CPU: enough for every idea in the course.
# 2. **Triton's interpreter**: GPU kernels written in Triton run on the CPU, one program after another. Slow, and a wonderful
#    place to look inside a kernel.
# 3. **GPU**: the same kernels, compiled.
#
# The doctor says which one is yours, in its line *tier*, and what to do about anything that is missing. In a terminal, it is `llmsys doctor`.

# %%
diagnose()

# %% [markdown]
# ## A real model says hello
#
# The course has one model that stays with you the whole way: **SmolLM2-135M-Instruct**. It is small, but there is nothing toy about it: it has the
# architecture of Llama, real weights and a real tokenizer, and it answers questions. Later it will run on your attention, on your
# paged cache, in your engine.

# %%
from llmsys.models import generate, load_model

model = load_model()
print(model.config)

# %% tags=["engine"]
question = "What is a language model? Answer in one sentence."
answer = generate(model, question, max_new_tokens=60)
print(answer.text)

# %% [markdown]
# ## Predict
#
# The course asks for your guess before it measures anything, because a number that you have guessed at is a number you
# remember. Put yours in place of `None`: **how many tokens per second did the model produce just now, on this machine?**
# (A token is about three quarters of a word. There is no wrong answer, and nobody grades it; you can also leave it at
# `None`.) The measurement comes further down.

# %% tags=["predict"]
predict("00.tokens_per_second", None, "tok/s")

# %% [markdown]
# ## How a model writes
#
# A language model does not write sentences. It takes a sequence of **tokens** (numbers that stand for pieces of text), and returns, for each
# position, a score for every token of its vocabulary: how well would this one fit next? The scores are called **logits**.

# %% tags=["claim"]
tokens = torch.tensor([model.tokenizer.encode("The capital of France is")])
logits = model(tokens)
print("tokens:", tuple(tokens.shape), "(B, T)")
print("logits:", tuple(logits.shape), "(B, T, V)")

# %% [markdown]
# One sequence ($B = 1$) of $T = 5$ tokens went in; out came 5 × 49,152 logits. The row at position $t$ scores the candidates for
# position $t + 1$. To go on writing, only the last row matters, and in it the largest score:
#
# $$ \mathrm{next}_b = \operatorname*{arg\,max}_{v} \; \mathrm{logits}_{b,\,T-1,\,v} \tag{1} $$
#
# The token is appended, the longer sequence goes in again, and so on until the model says that it is done. That loop is called *greedy
# decoding*. Everything else in this course makes it faster. (`generate` makes it faster already: it computes the new token's row of logits only, and
# keeps the older ones. A function that chooses the next token gets them all, as if the whole sequence had gone in: $T$ grows with each step.)
#
# ## Exercise: the next token (10 minutes)
#
# Write (1) for a whole batch. An exercise in this course is always one cell with one function (here it lacks two lines at the most), and a second
# cell that checks it. What you see under a check before you have run it is what it will look for. **Do it wrongly first**: take the maximum over the
# wrong axis, `dim=1`, and see what the check has to say about it.

# %% tags=["exercise"] exercise="00.next_token"
import torch


def next_token(logits):
    """The next token of each sequence: the one with the largest logit at the last position.

    logits  (B, T, V)  float tensor: for each sequence and position, a score for every token of the vocabulary

    Returns (B,) int64 tensor of token ids, each between 0 and V - 1.
    """
    ### BEGIN SOLUTION
    return logits[:, -1].argmax(dim=-1)
    ### END SOLUTION


# %% tags=["check"] exercise="00.next_token"
check("00.next_token", next_token)

# %% [markdown]
# A check goes through properties, one after another, and stops at the first that does not hold. If your mistake is one that it knows, it says so
# first; then it shows why that property matters, what your function returned and what was expected. There are three hints for each exercise: a
# nudge about what failed, the invariant to keep, pseudocode. None is shown unasked. From your second wrong answer on the check offers the next one, and
# `hint("00.next_token")` in a cell of your own gives it, at any time. A check that takes a while says what it is doing; an answer that
# takes longer than a minute is stopped, and so it is by the button ■ above the notebook.
#
# When it passes, your answer is saved in `mine/`, a library of your own that grows with the course: `from mine import next_token` now works
# in every notebook.

# %% [markdown]
# ## Look inside: the model chooses
#
# Step through the sentence as it is being written: the candidates at each position, with their probabilities, and the one that (1)
# takes.

# %% tags=["widget"]
viz.start_here.stepper(model, "The capital of France is", steps=12)

# %% [markdown]
# ## Measure: how fast was that?
#
# Your guess from above, beside what the first answer in this notebook took:

# %% tags=["measure"]
measured("00.tokens_per_second", answer.tokens_per_second, "tok/s")

# %% [markdown]
# On an H100, a good engine reaches many times as much with this model, for a single reader. Why, and how, is part II of
# the course.

# %% [markdown]
# ## Your function, in the model
#
# Now let the model talk through your function. (`mine` fetches what you have passed, and otherwise the library's own function, and says which.)

# %% tags=["engine"]
from llmsys.models import greedy

your_next_token = mine("next_token", default=greedy)
yours = generate(model, question, next_token=your_next_token, max_new_tokens=60)
print(yours.text)

# %% tags=["engine", "claim"]
print("the same words as the library's:", yours.tokens == answer.tokens)

# %% [markdown]
# And this is what wrong answers sound like. The first takes the maximum over the *positions* instead of the vocabulary, whose results
# happen to be valid token ids, too; the second looks one position too early; the third takes the smallest logit.

# %% tags=["engine"]
wrong = {
    "over the wrong axis": lambda logits: logits.argmax(dim=1)[:, -1],
    "one position too early": lambda logits: logits[:, -2].argmax(dim=-1),
    "the smallest": lambda logits: logits[:, -1].argmin(dim=-1),
}
for mistake, choose in wrong.items():
    babble = generate(model, "Why is the sky blue?", next_token=choose, max_new_tokens=20)
    print(f"{mistake}: {babble.text!r}, tokens {babble.tokens[:5]} …")

# %% [markdown]
# Nothing crashed, nothing was out of range; only the text is nonsense, or not there at all (token 1 is the invisible mark at which a turn
# begins). Most mistakes in LLM systems are of this kind, and that is why this course checks properties instead of waiting for exceptions.

# %% [markdown]
# ## What production does differently
#
# - Nobody sends the whole sequence through the model again for each token: the keys and values of the past are kept (the *KV cache*, lesson 07).
#   `generate` above already does it; in [vLLM](https://docs.vllm.ai), the next token is chosen by `vllm.v1.sample.sampler.Sampler`, for
#   all running requests at once.
# - Greedy decoding is only one way to choose. `generate(…, temperature=0.8, top_p=0.9, seed=1)` draws from the distribution; try it.
# - Choosing the next token costs next to nothing. Producing the logits is the work, and most of this course is about it.
#
# ## If you are stuck
#
# - `hint("00.next_token")` for an exercise, `llmsys doctor` for the machine, `llmsys status` for how far you are.
# - `llmsys reset 00.next_token` puts the empty exercise back; your version is kept beside it.
# - The solutions are in the repository, under `solutions/`, with their outputs. Reading one after an honest try is no defeat.
# - `llmsys update` brings new and corrected lessons, and leaves what you have edited alone.
# - If something is wrong with the course, open an issue with the output of `llmsys doctor`.
#
# ## Do you have it?
#
# <details><summary><b>1.</b> logits has shape (2, 7, 49152). Which of its elements does greedy decoding look at?</summary>
#
# The two rows logits[0, 6] and logits[1, 6], all 49,152 elements of each. The rows of the earlier positions have been used already: each
# was the last one when the sequence was that long.
# </details>
#
# <details><summary><b>2.</b> Why does argmax over the positions return valid token ids, and why is the text still nonsense?</summary>
#
# It returns numbers between 0 and T − 1, and the vocabulary has tokens with those numbers. But they say *where* in the sequence a
# score was largest, which has nothing to do with what should come next.
# </details>
#
# <details><summary><b>3.</b> A check passes on your machine. What does the grader do differently?</summary>
#
# It runs your function in a process of its own, with inputs that it draws itself, and compares plain numbers on its side. It does not look
# at what your notebook printed, nor at your copy of the check.
# </details>
#
# **Next:** lesson 01, the memory wall: what attention computes, what it moves, and which of the two it waits for. (Any lesson can be first.)
