"""The forward of a Llama, with one kernel between any two of its matrices.

    forward = FusedForward(model)
    logits = forward(step.tokens, cache, step)        # as model(step.tokens, cache, step)

It is `llmsys.models.llama`, its operations in another order. A layer adds to what flows past, and what comes next is
always a norm; so the sum is left to whoever normalises:

    y = none yet
    each layer:   h = norm(x ← x + y)      y = output(attention(qkv(h)))
                  h = norm(x ← x + y)      y = down(silu(gate) · up), gate and up from gate_up(h)
    logits = head(norm(x ← x + y))

The matrices are the model's own modules, whatever factory they are from: those of a rank, or in FP8. Norms of q's and
k's heads go to the cache where it takes them (`takes_norms`), which then does all that lies between qkv and attention
in one kernel. So a layer is four products, four small kernels, and attention. A mixture of experts has kernels of its
own.

Kernels are compiled, and the frequencies made, in the first call: a CUDA graph is captured after one.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmsys.attention.head_norms import HeadNorms
from llmsys.cache import Backend, Batch, NoCache, check_backend, check_batch
from llmsys.cache.backend import takes_norms
from llmsys.models.fused.operations import add_norm, step_rotation, swiglu
from llmsys.models.llama import Layer, Llama
from llmsys.models.mixture.model import MixtureLayer
from llmsys.models.modules import RMSNorm, unwrapped


class FusedForward:
    """A model's forward by fused kernels: on a GPU, or in Triton's interpreter. It has no weights of its own.

    Parameters
    ----------
    model
        A `Llama`, or a part of one. Its weights may be changed later, or be moved.

    Raises
    ------
    ValueError
        The model is no `Llama`, or has layers or norms of other classes, whose forward would not be this one.
    """

    def __init__(self, model: nn.Module):
        bare = unwrapped(model)
        norms = [bare.norm] if getattr(bare, "norm", None) is not None else []
        for layer in getattr(bare, "layers", ()):
            some = (getattr(layer, name, None) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm"))
            norms += [norm for norm in some if norm is not None]
        if not isinstance(bare, Llama) or not all(type(layer) in (Layer, MixtureLayer) for layer in bare.layers):
            raise ValueError(
                "model must be a Llama, its layers those of llmsys.models, for this form of the forward; call "
                f"the model itself, which is a {type(bare).__name__}"
            )
        if others := {type(norm).__name__ for norm in norms if type(norm) is not RMSNorm}:
            raise ValueError(f"model must have norms that are RMSNorm, got {', '.join(sorted(others))}")
        self.model = bare
        self.config = bare.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def __call__(
        self,
        tokens: Int[Tensor, "B T"] | Float[Tensor, "B T C"],
        backend: Backend | None = None,
        batch: Batch | None = None,
    ) -> Float[Tensor, "rows L V"]:
        """What `Llama.forward` returns, without gradients. Arguments and errors as there."""
        return self._head(self.hidden(tokens, backend, batch), batch)

    @torch.no_grad()
    def hidden(
        self,
        tokens: Int[Tensor, "B T"] | Float[Tensor, "B T C"],
        backend: Backend | None = None,
        batch: Batch | None = None,
        *,
        taps: Sequence[int] = (),
    ) -> Float[Tensor, "B T C"] | tuple[Float[Tensor, "B T C"], tuple[Float[Tensor, "B T C"], ...]]:
        """What `Llama.hidden` returns, without gradients. Arguments and errors as there."""
        model, config = self.model, self.config
        model.check_arguments(tokens, batch, taps)
        backend = NoCache() if backend is None else backend
        check_backend(backend)
        if batch is not None:
            check_batch(backend, batch)
        batch = backend.begin(tokens) if batch is None else batch
        if model.embedding is None:
            x = tokens.clone(memory_format=torch.contiguous_format)  # what was given is not ours to change
        else:
            x = model.embedding(tokens)  # (B, T, C)
        turn = step_rotation(
            batch.positions, config.head_size, base=config.rope_base, divisors=config.rope_divisors, dtype=x.dtype
        )
        y, tapped = None, {}
        for layer in model.layers:
            h = add_norm(x, y, layer.attention_norm.weight, layer.attention_norm.eps)
            if layer.index in taps:
                tapped[layer.index] = x.clone()
            y = _attention(layer, h, turn, backend, batch)
            h = add_norm(x, y, layer.mlp_norm.weight, layer.mlp_norm.eps)
            y = layer.down(swiglu(layer.gate_up(h))) if type(layer) is Layer else layer.mlp(h)
        if model.norm is None:
            x = out = x if y is None else x.add_(y)
        else:
            out = add_norm(x, y, model.norm.weight, model.norm.eps)
        tapped[model.layer_range.stop] = x
        return (out, tuple(tapped[tap] for tap in taps)) if taps else out

    @torch.no_grad()
    def _head(self, x: Tensor, batch: Batch | None) -> Tensor:
        if self.model.head is None:
            return x
        if batch is not None and batch.logits_indices is not None:
            x = x.flatten(0, 1).index_select(0, batch.logits_indices)[None]
        return self.model.head(x)


def _attention(layer: Layer, h: Tensor, turn, backend: Backend, batch: Batch) -> Tensor:
    B, T, _ = h.shape
    heads = layer.qkv(h).view(B, T, -1, layer.head_size).transpose(1, 2)  # (B, Hq + 2 Hkv, T, D)
    q, k, v = heads.split(layer.heads_of_qkv, dim=1)
    norms = {}
    if layer.q_norm is not None:
        if takes_norms(backend):
            norms = {"norms": HeadNorms(layer.q_norm.weight, layer.k_norm.weight, layer.q_norm.eps)}
        else:
            q, k = layer.q_norm(q), layer.k_norm(k)
    o = backend.attend(layer.index, q, k, v, batch, turn=turn, **norms)  # (B, Hq, T, D)
    return layer.output(o.transpose(1, 2).reshape(B, T, -1))
