"""Text for several prompts at once: each step computes the next token of all of them.

    for said in generate_batch(model, ["What is 2 + 2?", "Name a colour."]):
        print(said.text)

One step reads the weights once, for however many sequences (lesson 07 counts what that saves). The batch is static: all
prompts begin together, and the next call begins when the last of them has ended. A sequence that has ended is computed
no more, but its row of the cache stands empty until then.
"""

import time
from collections.abc import Callable, Sequence
from numbers import Real
from typing import SupportsIndex

import torch
from torch import nn

from llmsys.cache import Chunk, NoCache, as_backend, batch_of
from llmsys.models.generate import Generation
from llmsys.models.modules import unwrapped
from llmsys.models.sampling import sampler, whole_number
from llmsys.models.text.prompt import Prompt, token_ids


@torch.inference_mode()
def generate_batch(
    model: nn.Module,
    prompts: Sequence[Prompt],
    *,
    attention: str | Callable = "sdpa",
    max_new_tokens: SupportsIndex = 128,
    temperature: Real = 0.0,
    top_k: SupportsIndex | None = None,
    top_p: Real | None = None,
    seed: SupportsIndex | None = None,
) -> list[Generation]:
    """Let the model continue each of `prompts`: what `generate` says to each by itself, in the same order.

    Arguments, defaults and errors are `generate`'s. A stage of the library, by its name, has a contiguous cache with a
    row for each prompt, "paged" as many pages as that; a callable with a stage's contract gets whole sequences.
    """
    start = time.perf_counter()
    model = unwrapped(model)
    if not model.is_whole:
        raise ValueError("model must be a whole one to generate, and this is a part, without some layers or an end")
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not len(prompts):
        raise ValueError(f"prompts must be a list of at least one prompt, got {prompts!r}")
    if hasattr(attention, "attend"):
        raise ValueError("attention must be a name or a function here, for this call makes the backend itself")
    max_new_tokens = whole_number("max_new_tokens", max_new_tokens, at_least=1)
    prompts = [token_ids(model, prompt) for prompt in prompts]
    context = model.config.context_length
    if (longest := max(map(len, prompts))) >= context:
        raise ValueError(f"prompts must be shorter than the model's context of {context} tokens, got {longest}")
    ends = model.tokenizer.eos_ids if model.tokenizer else frozenset()
    pick = [sampler(temperature, top_k, top_p, seed) for _ in prompts]
    capacity = min(longest + max_new_tokens, context)
    backend = as_backend(attention, capacity=capacity, sequences=len(prompts), spec=model.cache_spec())
    whole = isinstance(backend, NoCache)
    each = 1 if whole else -(-capacity // backend.block_size)  # blocks: of a contiguous cache, a row

    sequences = [list(prompt) for prompt in prompts]
    computed = [0] * len(prompts)
    times: list[list[float]] = [[] for _ in prompts]  # of each new token, the one that ends included
    stopped = [False] * len(prompts)
    running = list(range(len(prompts)))
    while running:
        step = batch_of(
            [Chunk(sequences[i][computed[i] :], computed[i], range(i * each, (i + 1) * each)) for i in running],
            block_size=backend.block_size,
            device=model.device,
        )
        logits = model(step.tokens, backend, step).transpose(0, 1)  # (sequences, 1, V)
        tokens = [int(pick[i](row[None])) for i, row in zip(running, logits, strict=True)]
        now = time.perf_counter()
        for i, token in zip(running, tokens, strict=True):
            computed[i] = 0 if whole else len(sequences[i])
            times[i].append(now)
            stopped[i] = token in ends
            if not stopped[i]:
                sequences[i].append(token)
        running = [
            i for i in running if not stopped[i] and len(sequences[i]) < min(len(prompts[i]) + max_new_tokens, context)
        ]

    said = []
    for i, prompt in enumerate(prompts):
        new = sequences[i][len(prompt) :]
        text = model.tokenizer.decode(new) if model.tokenizer else ""
        said.append(Generation(text, new, prompt, times[i][-1] - start, times[i][0] - start, stopped[i]))
    return said
