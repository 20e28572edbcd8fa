"""Tiny random models, microbatches, and what the model that is not split gives: losses and gradients."""

import torch
from torch import Tensor

from llmsys.models import Llama, LlamaConfig
from llmsys.training import next_token_loss

VOCABULARY = 61


def make_model(layers: int = 8, *, tied: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64) -> Llama:
    torch.manual_seed(seed)
    config = LlamaConfig(
        name="tiny", vocab_size=VOCABULARY, hidden_size=12, layers=layers, heads=4, kv_heads=2, head_size=4,
        mlp_size=20, context_length=64, tied_embeddings=tied, qk_norm=True,
    )  # fmt: skip
    return Llama(config).to(dtype)


def make_microbatches(count: int, B: int = 2, T: int = 7, *, seed: int = 1) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (B, T + 1), generator=random) for _ in range(count)]


def unsplit(model: Llama, microbatches: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Each microbatch's part of the mean loss over all tokens, and the gradients of their sum, by autograd alone."""
    counts = [tokens[:, 1:].numel() for tokens in microbatches]
    model.requires_grad_(True).zero_grad()
    losses = []
    for tokens, count in zip(microbatches, counts, strict=True):
        loss = next_token_loss(model, tokens) / (sum(counts) / count)
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses), {name: weight.grad.clone() for name, weight in model.named_parameters()}
