"""DeepSeek's models: a Llama whose attention keeps one latent a token (https://arxiv.org/abs/2405.04434, V2;
https://arxiv.org/abs/2412.19437, V3).

    each layer:   x = x + attention(norm(x))     latent attention, `llmsys.attention.latent`
                  x = x + moe(norm(x))           a mixture of experts, `llmsys.moe`; in the first layers an MLP

    q = W_q x, or U_q norm(W_dq x)               (B, H, T, Dn + R)    its own latent saves parameters, not cache
    [c ; r] = W_d x, c normalised                (B, 1, T, L + R)     what is kept
    k, v of all heads = U c, and r               in the naive form

Which form attends depends on the backend. Where the step's tokens are all there are (`NoCache`, so in training), K and
V are expanded. A cache is handed the latents and absorbed queries, v=None, and keeps L + R numbers a token: any backend
with a cache that knows v=None serves this model.

All else is `llmsys.models.mixture`'s: parts of a model, the factory of its matrices, `dispatch` of experts, training
with a balance loss and moving biases.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from llmsys.attention.latent import absorb_queries, expand_outputs
from llmsys.attention.rotary import Rotation, rotate, rotation
from llmsys.cache import Backend, Batch, NoCache
from llmsys.cache.spec import LayerCache
from llmsys.models.deepseek.config import DeepSeekConfig
from llmsys.models.llama import Layer
from llmsys.models.mixture.model import MixtureLayer, MixtureLlama
from llmsys.models.modules import LinearFactory, RMSNorm

if TYPE_CHECKING:
    from llmsys.models.text.tokenizer import Tokenizer

EPS_OF_LATENTS = 1e-6
"""Of the norms of latents, whatever a model's `norm_eps` is."""
FORMS = ("auto", "naive", "absorbed")


class LatentLayer(Layer):
    """A layer with latent attention and an MLP. Its heads are those that the factory's matrices have."""

    form = "auto"
    """Of attention: "naive", "absorbed", or by the backend."""

    def add_attention(self, config: DeepSeekConfig, linear: LinearFactory, name: str) -> None:
        C, H, L, R = config.hidden_size, config.heads, config.latent_size, config.head_size
        self.config = config
        if config.query_latent_size is None:
            self.query = linear(C, H * config.query_size, name=f"{name}.query")
        else:
            self.query_down = linear(C, config.query_latent_size, name=f"{name}.query_down")
            self.query_norm = RMSNorm(config.query_latent_size, EPS_OF_LATENTS)
            self.query_up = linear(config.query_latent_size, H * config.query_size, name=f"{name}.query_up")
        self.latent_down = linear(C, L + R, name=f"{name}.latent_down")
        self.latent_norm = RMSNorm(L, EPS_OF_LATENTS)
        self.latent_up = linear(L, H * config.expanded_size, name=f"{name}.latent_up")
        self.output = linear(H * config.value_size, C, name=f"{name}.output")

    def attention(self, x: Tensor, turn: Rotation, backend: Backend, batch: Batch) -> Tensor:
        B, T, _ = x.shape
        config = self.config
        if config.query_latent_size is None:
            q = self.query(x)
        else:
            q = self.query_up(self.query_norm(self.query_down(x)))
        q = q.view(B, T, -1, config.query_size).transpose(1, 2)  # (B, H, T, Dn + R)
        c, r = self.latent_down(x).split((config.latent_size, config.head_size), dim=-1)
        c, r = self.latent_norm(c), r[:, None]  # (B, T, L), (B, 1, T, R)
        naive = isinstance(backend, NoCache) if self.form == "auto" else self.form == "naive"
        attend = self.attend_naive if naive else self.attend_absorbed
        o = attend(q, c, r, turn, backend, batch)  # (B, H, T, Dv)
        return self.output(o.transpose(1, 2).reshape(B, T, -1))

    def attend_naive(self, q: Tensor, c: Tensor, r: Tensor, turn: Rotation, backend: Backend, batch: Batch) -> Tensor:
        """K and V of all heads are made. r is turned here, once and not in each head."""
        config = self.config
        heads = self.latent_up(c).unflatten(-1, (-1, config.expanded_size)).transpose(1, 2)  # (B, H, T, Dn + Dv)
        k, v = heads.split((config.nope_size, config.value_size), dim=-1)
        k = torch.cat((k, rotate(r, turn).expand(-1, k.shape[1], -1, -1)), dim=-1)  # (B, H, T, Dn + R)
        scale = None if config.yarn is None else config.scale  # a stage's own is 1/√(Dn + R), and not all take another
        return backend.attend(self.index, rotate(q, turn), k, v, batch, scale=scale)

    def attend_absorbed(
        self, q: Tensor, c: Tensor, r: Tensor, turn: Rotation, backend: Backend, batch: Batch
    ) -> Tensor:
        """Queries and outputs take the expansion's matrices; the backend sees latents alone."""
        config = self.config
        up = self.latent_up.weight.view(-1, config.expanded_size, config.latent_size)  # (H, Dn + Dv, L)
        key_up, value_up = up.split((config.nope_size, config.value_size), dim=1)
        latent = torch.cat((c[:, None], r), dim=-1)  # (B, 1, T, L + R)
        q = absorb_queries(q, key_up)  # (B, H, T, L + R)
        o = backend.attend(self.index, q, latent, None, batch, turn=turn, scale=config.scale)  # (B, H, T, L)
        return expand_outputs(o, value_up)

    def cache_spec(self, dtype: torch.dtype) -> LayerCache:
        config = self.config
        return LayerCache(self.index, 1, config.kept_size, config.latent_size, dtype, values_in_keys=True)


class LatentMixtureLayer(LatentLayer, MixtureLayer):
    """A layer with latent attention and a mixture of experts."""


class DeepSeek(MixtureLlama):
    """A model of DeepSeek's, or a part of one.

    Parameters
    ----------
    config, tokenizer, and all of `MixtureLlama`'s
        As there.
    latent
        The form of attention: "naive" expands K and V and so caches them, too; "absorbed" attends to latents; "auto"
        is naive without a cache, and absorbed with one.

    Raises
    ------
    ValueError
        As `MixtureLlama`, and for an unknown form.
    """

    dense_layer, mixture_layer = LatentLayer, LatentMixtureLayer

    def __init__(
        self, config: DeepSeekConfig, tokenizer: "Tokenizer | None" = None, *, latent: str = "auto", **options
    ):
        if latent not in FORMS:
            raise ValueError(f"latent must be one of {', '.join(FORMS)}, got {latent!r}")
        super().__init__(config, tokenizer, **options)
        for layer in self.layers:
            layer.form = latent

    def turn(self, positions: Int[Tensor, "*B T"], dtype: torch.dtype) -> Rotation:
        config = self.config
        divisors, factor = config.rope_divisors, 1.0
        if config.yarn is not None:
            divisors = config.yarn.divisors(config.head_size, config.rope_base)
            factor = config.yarn.of_turning
        turn = rotation(
            positions, config.head_size, base=config.rope_base, divisors=divisors, interleaved=config.interleaved
        )
        return replace(turn, cos=(turn.cos * factor).to(dtype), sin=(turn.sin * factor).to(dtype))
