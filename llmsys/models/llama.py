"""A Llama, as it is run today: Llama 2 and 3, SmolLM2, Qwen3 and their many relatives are this file with other numbers.

    x = embedding of the tokens                           (B, T, C)
    each layer:   x = x + attention(norm(x))
                  x = x + mlp(norm(x))
    logits = norm(x) · headᵀ                              (B, T, V)

What sets it apart from the first transformer: RMSNorm in place of LayerNorm, before and not after each block
(https://arxiv.org/abs/1910.07467); rotary positions, applied to q and k in every layer
(https://arxiv.org/abs/2104.09864); grouped queries, so that a cache holds Hkv < Hq heads
(https://arxiv.org/abs/2305.13245); a gated SiLU as the MLP (https://arxiv.org/abs/2002.05202); no biases. Qwen3 also
normalises each head of q and k.

The model does not know how attention is computed, nor whether there is a cache: it hands q, k and v to a backend
(`llmsys.cache.backend`). The matrices for q, k and v are one matrix here, and so are gate and up: the same weights
are read in fewer, longer products.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmsys.cache.backend import Backend, Batch, NoCache

if TYPE_CHECKING:
    from llmsys.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class LlamaConfig:
    """Everything about a model of this family that is not a weight."""

    name: str
    vocab_size: int  #      V
    hidden_size: int  #     C
    layers: int
    heads: int  #           Hq, query heads
    kv_heads: int  #        Hkv, key and value heads
    head_size: int  #       D; Hq · D need not be C
    mlp_size: int  #        the width inside the MLP
    context_length: int  #  tokens that the model was trained to see
    rope_base: float = 10_000.0
    rope_divisors: tuple[float, ...] | None = field(default=None, repr=False)  # one a pair, for a stretched context
    norm_eps: float = 1e-5
    qk_norm: bool = False  #         Qwen3: each head of q and k has an RMSNorm
    tied_embeddings: bool = True  #  the head is the embedding's matrix

    def __post_init__(self):
        sizes = "vocab_size hidden_size layers heads kv_heads head_size mlp_size context_length".split()
        for size in sizes:
            if getattr(self, size) < 1:
                raise ValueError(f"{size} must be at least 1, got {getattr(self, size)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}")
        if self.head_size % 2:
            raise ValueError(f"head_size must be even (rotary positions turn pairs), got {self.head_size}")
        if self.rope_divisors is not None and len(self.rope_divisors) != self.head_size // 2:
            raise ValueError(
                f"rope_divisors must be one a pair, {self.head_size // 2} in all, got {len(self.rope_divisors)}"
            )


class Llama(nn.Module):
    """A model of the Llama family. `load_model` makes one with a checkpoint's weights; by itself it has random ones.

    Attributes
    ----------
    config : LlamaConfig
    tokenizer : Tokenizer or None
        What the checkpoint brought along.
    """

    def __init__(self, config: LlamaConfig, tokenizer: "Tokenizer | None" = None):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = Linear(config.hidden_size, config.vocab_size)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight

    def forward(
        self, tokens: Int[Tensor, "B T"], backend: Backend | None = None, batch: Batch | None = None
    ) -> Float[Tensor, "B T V"]:
        """The logits of the token after each of `tokens`. Arguments and errors as for `hidden`."""
        return self.head(self.hidden(tokens, backend, batch))

    def hidden(
        self, tokens: Int[Tensor, "B T"], backend: Backend | None = None, batch: Batch | None = None
    ) -> Float[Tensor, "B T C"]:
        """What `forward` feeds the head, whose V rows are worth leaving out where only the last token's are wanted.

        Parameters
        ----------
        tokens
            Token ids. All rows are of one length, and with a cache they continue what it holds.
        backend
            Who attends, and owns the cache if there is one; None is torch's fused attention over these tokens alone.
        batch
            Where the tokens stand; None asks the backend.

        Raises
        ------
        ValueError
            `tokens` has another shape, is empty, or holds ids outside the vocabulary.
        """
        self._check(tokens)
        backend = NoCache() if backend is None else backend
        batch = backend.begin(tokens) if batch is None else batch
        x = self.embedding(tokens)  # (B, T, C)
        turn = rotation(batch.positions, self.config, x.dtype)  # the same in all layers
        for layer in self.layers:
            x = layer(x, turn, backend, batch)
        return self.norm(x)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    def _check(self, tokens: Tensor) -> None:
        if tokens.dim() != 2 or tokens.numel() == 0:
            raise ValueError(f"tokens must be (B, T) with at least one token, got shape {tuple(tokens.shape)}")
        low, high = tokens.aminmax()
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(f"tokens must be from 0 to {self.config.vocab_size - 1}, got {int(low)} to {int(high)}")


class Layer(nn.Module):
    """One layer: attention and an MLP, each added to what flows past."""

    def __init__(self, config: LlamaConfig, index: int):
        super().__init__()
        C, D, Hq, Hkv = config.hidden_size, config.head_size, config.heads, config.kv_heads
        self.index = index
        self.head_size = D
        self.heads_of_qkv = (Hq, Hkv, Hkv)
        self.attention_norm = RMSNorm(C, config.norm_eps)
        self.qkv = Linear(C, (Hq + 2 * Hkv) * D)
        self.q_norm = RMSNorm(D, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(D, config.norm_eps) if config.qk_norm else None
        self.output = Linear(Hq * D, C)
        self.mlp_norm = RMSNorm(C, config.norm_eps)
        self.gate_up = Linear(C, 2 * config.mlp_size)
        self.down = Linear(config.mlp_size, C)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], backend: Backend, batch: Batch) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turn, backend, batch)
        return x + self.mlp(self.mlp_norm(x))

    def attention(self, x: Tensor, turn: tuple[Tensor, Tensor], backend: Backend, batch: Batch) -> Tensor:
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, Hq + 2 Hkv, T, D)
        q, k, v = heads.split(self.heads_of_qkv, dim=1)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        o = backend.attend(self.index, rotate(q, turn), rotate(k, turn), v, batch)  # (B, Hq, T, D)
        return self.output(o.transpose(1, 2).reshape(B, T, -1))

    def mlp(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Linear(nn.Linear):
    """x Wᵀ, W (outputs, inputs). No bias."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        _initialise(self.weight)


class Embedding(nn.Embedding):
    """A row of the matrix for each token id."""

    def reset_parameters(self) -> None:
        _initialise(self.weight)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · weight over the last dimension, the mean in fp32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


def rotation(positions: Int[Tensor, "*B T"], config: LlamaConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The cosines and sines by which q and k are turned: each (T, D), or (B, 1, T, D) for positions (B, T).

    Pair i of a head turns by position · base^(−2i/D): the first pairs tell near tokens apart, the last ones far ones.
    """
    D = config.head_size
    exponent = torch.arange(0, D, 2, device=positions.device, dtype=torch.float32) / D
    frequency = 1.0 / config.rope_base**exponent  # (D / 2,)
    if config.rope_divisors is not None:
        frequency = frequency / torch.tensor(config.rope_divisors, device=positions.device)
    angle = positions[..., None].float() * frequency  # (…, T, D / 2)
    angle = torch.cat((angle, angle), dim=-1)
    if positions.dim() == 2:
        angle = angle[:, None]  # the heads' dimension
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Float[Tensor, "B H T D"], turn: tuple[Tensor, Tensor]) -> Float[Tensor, "B H T D"]:
    """Turn each pair of a head by its angle. Element i's partner is element i + D/2 (not i + 1, as in the paper)."""
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _initialise(weight: Tensor) -> None:
    # On the meta device there are no numbers to draw; asking all the same makes torch import its compiler, and Triton.
    if not weight.is_meta:
        nn.init.normal_(weight, std=0.02)
