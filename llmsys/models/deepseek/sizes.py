"""How large a model is: counted in the model itself, made on the meta device, where weights have shapes and no bytes.

count_parameters(DEEPSEEK_V3).total          671,026,404,352
count_parameters(DEEPSEEK_V3).active          37,552,282,624 of a token
"""

from dataclasses import dataclass

import torch

from llmsys.models.deepseek.config import DeepSeekConfig
from llmsys.models.deepseek.model import DeepSeek


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters."""

    total: int
    """All, without the routers' biases."""
    router_biases: int
    """Numbers that steer the choice of experts, and that no gradient reaches: one an expert."""
    active: int
    """Those that one token meets: of the experts k, and all else, its embedding's whole matrix included."""
    embedding: int
    """Of the matrix of embeddings; a token reads one of its rows."""


def count_parameters(config: DeepSeekConfig) -> Parameters:
    """The parameters of a model of this config."""
    with torch.device("meta"):
        model = DeepSeek(config)
    total = sum(weight.numel() for weight in model.parameters())
    idle = 0
    for moe in model.mixtures.values():
        experts = sum(weight.numel() for weight in moe.experts.parameters())
        idle += experts // config.experts * (config.experts - config.router.k)
    biases = sum(bias.numel() for bias in model.buffers())
    return Parameters(total, biases, total - idle, model.embedding.weight.numel())
