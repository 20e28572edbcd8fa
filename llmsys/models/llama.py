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
(`llmsys.cache.backend`). Nor does it know of ranks or of precision: every matrix comes from a factory
(`llmsys.models.modules`), and a model can be a part of itself, some of the layers with or without the two ends, as a
stage of a pipeline is. The matrices for q, k and v are one matrix here, and so are gate and up: the same weights are
read in fewer, longer products.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmsys.attention.rotary import Rotation, rotation
from llmsys.cache import Backend, Batch, NoCache, check_backend, check_batch, check_token_ids
from llmsys.cache.spec import CacheSpec, LayerCache
from llmsys.models.modules import Embedding, Linear, LinearFactory, RMSNorm

if TYPE_CHECKING:
    from llmsys.models.text.tokenizer import Tokenizer


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

    def has_experts(self, layer: int) -> bool:
        """Whether the layer of that number has a mixture of experts: in this family none has."""
        return False

    def __post_init__(self):
        sizes = "vocab_size hidden_size layers heads kv_heads head_size mlp_size context_length".split()
        for size in sizes:
            if getattr(self, size) < 1:
                raise ValueError(f"{size} must be at least 1, got {getattr(self, size)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}")
        if self.head_size % 2:
            raise ValueError(f"head_size must be even (rotary positions turn pairs), got {self.head_size}")
        if self.rope_divisors is not None:
            if len(self.rope_divisors) != self.head_size // 2:
                raise ValueError(
                    f"rope_divisors must be one a pair, {self.head_size // 2} in all, got {len(self.rope_divisors)}"
                )
            if not all(0 < divisor < math.inf for divisor in self.rope_divisors):
                raise ValueError("rope_divisors must be finite and above 0")


class Llama(nn.Module):
    """A model of the Llama family, or a part of one. `load_model` makes one with a checkpoint's weights; by itself it
    has random ones.

    Parameters
    ----------
    config
        The whole model's, also where this is a part.
    layers
        Which layers are here, numbered from 0; None for all. Weights have the names that they have in the whole model.
    embedding, head
        Whether the embedding is here, and whether the last norm and the head are. None: the embedding with layer 0, the
        head with the last layer. A part that has only the head of a model with tied embeddings has that matrix as a
        copy, `head.weight`; who trains both parts adds the gradient of one to the other's (`tied_copy`).
    linear
        Makes the matrices, the head's, too.
    layer
        Makes each layer of the whole model's config, the layer's number and `linear`; by default a `Layer`.

    Attributes
    ----------
    config : LlamaConfig
    tokenizer : Tokenizer or None
        What the checkpoint brought along.
    layer_range : range
        Which layers are here.
    tied_copy : str or None
        The name of a weight of this part that is the same matrix as one in another part.

    Raises
    ------
    ValueError
        `layers` are no consecutive layers of this model.
    """

    def __init__(
        self,
        config: LlamaConfig,
        tokenizer: "Tokenizer | None" = None,
        *,
        layers: range | None = None,
        embedding: bool | None = None,
        head: bool | None = None,
        linear: "LinearFactory | None" = None,
        layer: "Callable[[LlamaConfig, int, LinearFactory], Layer] | None" = None,
    ):
        super().__init__()
        layers = range(config.layers) if layers is None else layers
        if layers.step != 1 or not 0 <= layers.start <= layers.stop <= config.layers:
            raise ValueError(f"layers must be consecutive ones of range(0, {config.layers}), got {layers}")
        linear = Linear if linear is None else linear
        layer = Layer if layer is None else layer
        self.config = config
        self.tokenizer = tokenizer
        self.layer_range = layers
        has_embedding = layers.start == 0 if embedding is None else embedding
        has_head = layers.stop == config.layers if head is None else head
        self.embedding = Embedding(config.vocab_size, config.hidden_size) if has_embedding else None
        self.layers = Layers()
        for i in layers:
            self.layers.add_module(str(i), layer(config, i, linear))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps) if has_head else None
        self.head = None
        if has_head:
            self.head = linear(config.hidden_size, config.vocab_size, (config.vocab_size,), name="head")
        self.tie()

    def tie(self) -> None:
        """Make the head's matrix the embedding's, if the model's are one and both are here."""
        if self.config.tied_embeddings and self.embedding is not None and self.head is not None:
            if self.head.weight.shape != self.embedding.weight.shape:
                raise ValueError(
                    f"the head's matrix is the embedding's in this model, and the factory made it "
                    f"{tuple(self.head.weight.shape)} where the embedding's is {tuple(self.embedding.weight.shape)}: "
                    "build the two ends as parts of their own, with head=False and embedding=False"
                )
            self.head.weight = self.embedding.weight

    @property
    def is_whole(self) -> bool:
        """Whether all layers and both ends are here."""
        return len(self.layers) == self.config.layers and self.embedding is not None and self.head is not None

    @property
    def tied_copy(self) -> str | None:
        if not self.config.tied_embeddings or (self.embedding is None) == (self.head is None):
            return None
        return "embedding.weight" if self.head is None else "head.weight"

    def cache_spec(self) -> CacheSpec:
        """What a cache keeps for the layers that are here, in the dtype of their weights."""
        return CacheSpec(tuple(layer.cache_spec(self.dtype) for layer in self.layers))

    def forward(
        self,
        tokens: Int[Tensor, "B T"] | Float[Tensor, "B T C"],
        backend: Backend | None = None,
        batch: Batch | None = None,
    ) -> Float[Tensor, "rows L V"]:
        """The logits of the token after each of `tokens`, (B, T, V). Where `batch` says which of them are wanted, of
        these alone, (1, L, V). Of a part without the head what `hidden` returns, (B, T, C).

        Arguments and errors as for `hidden`.
        """
        x = self.hidden(tokens, backend, batch)
        if self.head is None:
            return x
        if batch is not None and batch.logits_indices is not None:
            x = x.flatten(0, 1).index_select(0, batch.logits_indices)[None]
        return self.head(x)

    def hidden(
        self,
        tokens: Int[Tensor, "B T"] | Float[Tensor, "B T C"],
        backend: Backend | None = None,
        batch: Batch | None = None,
        *,
        taps: Sequence[int] = (),
    ) -> Float[Tensor, "B T C"] | tuple[Float[Tensor, "B T C"], tuple[Float[Tensor, "B T C"], ...]]:
        """What `forward` feeds the head, whose V rows are worth leaving out where only the last token's are wanted.

        Of a part without the head it is what leaves the last of its layers, for the next part to take.

        Parameters
        ----------
        tokens
            Token ids. All rows are of one length, and with a cache they continue what it holds; or else `batch` says
            what they are, and these are its tokens. A part without the embedding takes in their place what the part
            before it returned.
        backend
            Who attends, and owns the cache if there is one; None is torch's fused attention over these tokens alone.
        batch
            Whose the tokens are, and where they stand (`llmsys.cache.batch`); None asks the backend.
        taps
            Numbers of layers. If there are any, what enters these layers is returned as well, a tuple in the order
            asked for. One more than the last layer's number stands for what leaves it, before the last norm.

        Raises
        ------
        ValueError
            `tokens` has another shape, is empty, or holds ids outside the vocabulary; a tap is not here; or `backend`
            does not keep the contract, or cannot take this batch. Ids are looked at on the CPU alone: on a GPU the
            answer would have to be waited for, so they are checked where they enter (`batch_of(vocab_size=)`,
            `check_token_ids`).
        """
        self.check_arguments(tokens, batch, taps)
        x, *around = self.begin(tokens, backend, batch)
        tapped = {}
        for layer in self.layers:
            if layer.index in taps:
                tapped[layer.index] = x
            x = layer(x, *around)
        tapped[self.layer_range.stop] = x
        x = x if self.norm is None else self.norm(x)
        return (x, tuple(tapped[tap] for tap in taps)) if taps else x

    def begin(
        self, tokens: Tensor, backend: Backend | None, batch: Batch | None
    ) -> tuple[Float[Tensor, "B T C"], Rotation, Backend, Batch]:
        """What the first layer is called with, of `hidden`'s arguments."""
        backend = NoCache() if backend is None else backend
        if not torch.compiler.is_compiling():
            check_backend(backend)
            if batch is not None:
                check_batch(backend, batch)
        batch = backend.begin(tokens) if batch is None else batch
        x = tokens if self.embedding is None else self.embedding(tokens)  # (B, T, C)
        return x, self.turn(batch.positions, x.dtype), backend, batch  # the same in all layers

    def turn(self, positions: Int[Tensor, "*B T"], dtype: torch.dtype) -> Rotation:
        """What gives q and k of tokens at these positions theirs."""
        config = self.config
        return rotation(
            positions, config.head_size, base=config.rope_base, divisors=config.rope_divisors, dtype=dtype
        )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def check_arguments(self, tokens: Tensor, batch: Batch | None, taps: Sequence[int]) -> None:
        """Refuse, as `hidden` does, what this model cannot compute. Raises ValueError."""
        if away := [tap for tap in taps if not self.layer_range.start <= tap <= self.layer_range.stop]:
            raise ValueError(f"taps must be from {self.layer_range.start} to {self.layer_range.stop}, got {away[0]}")
        if batch is not None and batch.tokens is not None and tokens.shape[:2] != batch.tokens.shape:
            raise ValueError(
                f"tokens must be the batch's, of shape {tuple(batch.tokens.shape)}, got {tuple(tokens.shape[:2])}"
            )
        C = self.config.hidden_size
        if self.embedding is None:
            if tokens.dim() != 3 or tokens.shape[2] != C or tokens.numel() == 0 or not tokens.is_floating_point():
                raise ValueError(
                    "this part of a model has no embedding: in place of tokens it takes hidden states "
                    f"(B, T, {C}), got {tokens.dtype} of shape {tuple(tokens.shape)}"
                )
            return
        if tokens.dim() != 2 or tokens.numel() == 0:
            raise ValueError(f"tokens must be (B, T) with at least one token, got shape {tuple(tokens.shape)}")
        if tokens.device.type == "cpu" and type(tokens) is Tensor and not torch.compiler.is_compiling():
            check_token_ids(tokens.numpy(), self.config.vocab_size)


class Layers(nn.ModuleList):
    """A model's layers, or those of them that are here: `layers[5]` is number 5 of the whole model."""

    def __getitem__(self, number):
        if isinstance(number, int):
            if number < 0:
                return list(self)[number]
            if str(number) not in self._modules:
                raise IndexError(f"layer {number} is not here; here are {', '.join(self._modules) or 'none'}")
            return self._modules[str(number)]
        return super().__getitem__(number)


class Layer(nn.Module):
    """One layer: attention and an MLP, each added to what flows past.

    Its heads and the MLP's width are those that the factory's matrices have: on a rank of several, a share of them.
    """

    def __init__(self, config: LlamaConfig, index: int, linear: LinearFactory):
        super().__init__()
        name = f"layers.{index}"
        self.index = index
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.add_attention(config, linear, name)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.add_mlp(config, linear, name)

    def add_attention(self, config: LlamaConfig, linear: LinearFactory, name: str) -> None:
        """Make what `attention` computes with; `name` is the layer's."""
        C, D, Hq, Hkv = config.hidden_size, config.head_size, config.heads, config.kv_heads
        heads = (Hq * D, Hkv * D, Hkv * D)
        self.head_size = D
        self.qkv = linear(C, sum(heads), heads, name=f"{name}.qkv")
        self.heads_of_qkv = _whole_heads(getattr(self.qkv, "sections", heads), D)
        self.q_norm = RMSNorm(D, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(D, config.norm_eps) if config.qk_norm else None
        self.output = linear(Hq * D, C, name=f"{name}.output")

    def add_mlp(self, config: LlamaConfig, linear: LinearFactory, name: str) -> None:
        """Make what `mlp` computes with; `name` is the layer's."""
        C, widths = config.hidden_size, (config.mlp_size, config.mlp_size)
        self.gate_up = linear(C, sum(widths), widths, name=f"{name}.gate_up")
        self.widths_of_gate_up = tuple(getattr(self.gate_up, "sections", widths))
        self.down = linear(config.mlp_size, C, name=f"{name}.down")

    def forward(self, x: Tensor, turn: Rotation, backend: Backend, batch: Batch) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turn, backend, batch)
        return x + self.mlp(self.mlp_norm(x))

    def attention(self, x: Tensor, turn: Rotation, backend: Backend, batch: Batch) -> Tensor:
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, Hq + 2 Hkv, T, D)
        q, k, v = heads.split(self.heads_of_qkv, dim=1)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        o = backend.attend(self.index, q, k, v, batch, turn=turn)  # (B, Hq, T, D)
        return self.output(o.transpose(1, 2).reshape(B, T, -1))

    def mlp(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).split(self.widths_of_gate_up, dim=-1)
        return self.down(F.silu(gate) * up)

    def cache_spec(self, dtype: torch.dtype) -> LayerCache:
        D = self.head_size
        return LayerCache(self.index, heads=self.heads_of_qkv[1], Dk=D, Dv=D, dtype=dtype)


def _whole_heads(sections: Sequence[int], head_size: int) -> tuple[int, ...]:
    """How many heads of q, k and v there are in sections of that many elements."""
    if any(each % head_size for each in sections) or len(sections) != 3:
        raise ValueError(f"q, k and v must be whole heads of {head_size} elements, got sections {tuple(sections)}")
    return tuple(each // head_size for each in sections)
