"""What is asked of the engine: requests of given lengths, made of random tokens, and the least time that they can take.

    mixed(256, shortest=100, longest=1024, vocab=151_936)      142,827 tokens of prompts, 133,966 of answers
    conversations(256, rate=32, vocab=151_936)                 as long as a real service's, one after the other

The mixed ones are those of nano-vllm's benchmark (https://github.com/GeeeekExplorer/nano-vllm, bench.py): lengths are
uniform, and lengths and tokens are drawn in its order by Python's generator with seed 0, so they are the same requests.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from llmsys.models.decode_cost import bytes_per_token, weights_of_step
from llmsys.models.shapes import ModelShape
from llmsys.serving import draw_lengths

TOKENS = 10_001
"""Prompts are of tokens below this, in any vocabulary that is as large."""


class Asked(NamedTuple):
    """A request: its prompt, how many tokens its answer has, and how many seconds after the first one it comes."""

    prompt: list[int]
    output: int
    at: float = 0.0


def mixed(count: int, *, shortest: int, longest: int, vocab: int) -> list[Asked]:
    """Requests that are all there at the beginning, prompts and outputs of `shortest` to `longest` tokens."""
    draw = random.Random(0)
    top = min(TOKENS, vocab) - 1
    prompts = [[draw.randint(0, top) for _ in range(draw.randint(shortest, longest))] for _ in range(count)]
    return [Asked(prompt, draw.randint(shortest, longest)) for prompt in prompts]


def equal(count: int, *, prompt: int, output: int, vocab: int) -> list[Asked]:
    """Requests of equal lengths, all there at the beginning."""
    draw = random.Random(0)
    top = min(TOKENS, vocab) - 1
    return [Asked([draw.randint(0, top) for _ in range(prompt)], output) for _ in range(count)]


def conversations(count: int, *, rate: float, vocab: int, shorter: int = 1) -> list[Asked]:
    """Requests as long as those of the trace azure-conversation (divided by `shorter`), which come at random: `rate` of
    them a second, on average."""
    draw, pause = random.Random(0), random.Random(1)
    top, at, found = min(TOKENS, vocab) - 1, 0.0, []
    for each in draw_lengths("azure-conversation", count, seed=0):
        prompt = [draw.randint(0, top) for _ in range(max(1, each.prompt // shorter))]
        found.append(Asked(prompt, max(2, each.output // shorter), at))
        at += pause.expovariate(rate)
    return found


def least_seconds(asked: Sequence[Asked], shape: ModelShape, *, bandwidth: float, dtype: str) -> float:
    """The time of reading alone: the weights once a step, in as many steps as the longest answer has tokens, and in
    each the keys and values of those that still go on. Arithmetic, and with it the prompts, is left out."""
    weight_bytes, _ = weights_of_step(shape, batch=len(asked), dtype=dtype)
    attended = sum(n * len(prompt) + n * (n - 1) // 2 for prompt, n, _ in asked)
    read = max(n for _, n, _ in asked) * weight_bytes + attended * bytes_per_token(shape, dtype)
    return read / bandwidth
