"""What a model may add to its own training: further loss terms, and a change of itself after the optimiser's step.

Most models add nothing: they are trained on the next token alone, and have neither of these methods. One that adds
something has

    model.training_step(tokens, backend) -> TrainingStep     in place of the plain forward pass and loss
    model.after_step(loads)                                  once a step, when the optimiser has moved the weights

`training_step` sees a batch (B, T + 1), the tokens and the one after. Its terms are added to the loss: a router's
balance loss, the loss of tokens further ahead. Its loads are counts, of how many tokens each expert was given, say;
nothing is differentiated through them. `after_step` gets their sum over all batches of a step and all ranks, so that
ranks that began alike stay alike: this is where DeepSeek-V3 moves its router's bias (https://arxiv.org/abs/2412.19437,
section 2.1.2). What it changes belongs into buffers of the model, which checkpoints keep.

Loads are *returned*, through the layers, and not added up in a buffer during the forward pass: a layer that is computed
again in the backward pass (`torch.utils.checkpoint`) would count its tokens twice there, and its result is dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TrainingStep:
    """A batch's losses, and its loads."""

    loss: Float[Tensor, ""]
    """−log p of the next token, the mean in fp32: what runs of different models are compared by."""
    terms: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Further losses by name, each with its weight multiplied in. The gradient is that of their sum with `loss`."""
    loads: Mapping[str, Tensor] = field(default_factory=dict)
    """Counts by name, of any shape, which add up over batches and ranks."""


def token_loss(logits: Float[Tensor, "B T V"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    """−log p of each of `tokens` by the logits at its place: the mean, in fp32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
