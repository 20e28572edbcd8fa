"""Who is compared in the benchmarks of attention: the fused stages of this library, and their peers.

FA2 and cuDNN are torch's `scaled_dot_product_attention` with that backend and no other; `sdpa` is whatever torch picks.
FlexAttention is torch's template in Triton, compiled for each shape, with a block mask where the mask is causal: the
same language as our kernel, written by experts.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmsys.attention import STAGES

EAGER = ("naive", "online", "tiled")
"""The stages in plain PyTorch, of which every operation is a kernel of its own."""


def fused() -> dict[str, Callable]:
    """Name -> f(q, k, v, *, causal) of the fused stages and of their peers; on a GPU, for as many queries as keys."""
    stages = {name: stage for name, stage in STAGES.items() if name not in (*EAGER, "sdpa")}
    backends = {"FA2": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
    torchs = {name: partial(_sdpa, backend=backend) for name, backend in backends.items()}
    return {**stages, "sdpa": STAGES["sdpa"], **torchs, "FlexAttention": _flex}


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):  # as many queries as keys: torch's top-left mask is the bottom-right one
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def _flex(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    return _compiled_flex()(q, k, v, block_mask=_causal_blocks(q.shape[2]) if causal else None)


@cache
def _compiled_flex() -> Callable:
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    config.recompile_limit = 64  # each shape is compiled for itself
    return torch.compile(flex_attention, dynamic=False)


@cache
def _causal_blocks(T: int):
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, query, key: query >= key, None, None, T, T, device="cuda")
