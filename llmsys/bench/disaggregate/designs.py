"""What is compared, and at which size: two engines, which of them is told to do what, and how much is asked."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from llmsys.bench.goodput import MISTRAL_7B, TINY
from llmsys.models.shapes import ModelShape
from llmsys.serving.goodput import Limits
from llmsys.serving.simulator import Placement

GPUS = 2
ENGINES = ("prefill 0", "decode 0")
DESIGNS = {
    "colocated": (dict(prefill=(), decode=ENGINES), Placement(colocated=GPUS)),
    "divided": (dict(prefill=ENGINES[:1], decode=ENGINES[1:]), Placement(prefill=1, decode=1)),
}
"""What the router is told, and what a simulator is."""
LIMITS = Limits(ttft=0.5, tpot=0.010)
"""Lesson 11's."""
SMALL = ModelShape("small", layers=4, width=256, heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=1000)


@dataclass(frozen=True)
class Sizes:
    """How much is asked, and the seconds after which nothing new is begun."""

    shape: ModelShape = MISTRAL_7B
    max_model_len: int = 16_384
    max_sequences: int = 256
    max_tokens_per_step: int = 2048
    num_blocks: int = 40_000
    rates: tuple[float, ...] = (32.0, 20.0, 38.0, 26.0)
    """Of both GPUs together."""
    window: float = 10.0
    """Seconds in which the conversations come."""
    shorter: int = 1
    messages: tuple[int, ...] = (2**21, 2**23, 2**28)
    """Bytes: of 512 and of 2,048 tokens, what a layer keeps of them; and many."""
    patience: float = 40.0
    """Seconds after which a workload is taken to hang."""
    seconds: float = 240.0
    gpu: bool = True


def sizes(quick: bool) -> Sizes:
    gpu = torch.cuda.is_available() and torch.cuda.device_count() >= GPUS and dist.is_nccl_available()
    if gpu and not quick:
        return Sizes()
    return Sizes(
        SMALL if gpu else TINY, max_model_len=512, max_sequences=4, max_tokens_per_step=64, num_blocks=400,
        rates=(40.0,), window=0.15, shorter=32, messages=(2**16,), gpu=gpu,
    )  # fmt: skip
