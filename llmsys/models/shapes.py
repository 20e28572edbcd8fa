"""The sizes of real models, from which follows what they cost: their operations, their bytes, their caches.

    SHAPES["Llama-3-8B"].parameters         8,030,261,248
    shape_of(model.config)                  the shape of a model that `load_model` loaded

A shape is less than a configuration: no rotary base, no epsilon, nothing that changes a result and not its price.
`llmsys.models.operations` takes a shape apart into the operations of a step, `llmsys.models.decode_cost` says what it
keeps in a cache and how fast it can decode.
"""

from dataclasses import dataclass

import torch

from llmsys.models.deepseek.config import DeepSeekConfig
from llmsys.models.llama import LlamaConfig
from llmsys.models.mixture.model import MixtureConfig

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.float8_e4m3fn,
}
"""What weights and caches are stored in, by the names that `DeviceSpec.flops` has for them."""
ITEMSIZE = {name: dtype.itemsize for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Experts:
    """The MLPs of a mixture of experts: `active` of the `routed` ones and all `shared` ones work on a token."""

    routed: int
    active: int
    shared: int
    width: int
    """Inside each expert, as `ModelShape.ffn` is inside a dense layer's MLP."""
    dense_layers: int
    """Layers at the bottom that have one MLP instead."""
    router_bias: bool = True
    """Whether the router has a bias for each routed expert."""


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: keys and values of all heads are projections of one vector of `kv_rank`, and that is
    cached, with one key of `rope_dim` for the position, which all heads share. A query has head_dim + rope_dim."""

    q_rank: int
    kv_rank: int
    rope_dim: int


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a transformer. Of biases only those of q, k and v are known here."""

    name: str
    layers: int
    width: int
    """C, how many numbers a token has between two layers."""
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    """How many numbers a token has inside the MLP."""
    vocab: int
    tied: bool = False
    """Whether the head is the embedding's matrix."""
    experts: Experts | None = None
    latent: Latent | None = None
    source: str = ""
    gated: bool = True
    """Whether the MLP has a gate, three matrices in all; otherwise it has two."""
    qkv_bias: bool = False
    qk_norm: bool = False
    """Whether the heads of q and of k have a norm."""

    @property
    def mlp_matrices(self) -> int:
        return 3 if self.gated else 2

    @property
    def qkv_extras(self) -> int:
        """Weights of a layer that belong to q, k and v and are no matrix: the bias, the norms of their heads."""
        bias = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        return bias + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def parameters(self) -> int:
        """All weights: of the embedding, the layers, the norms, and the head where it has a matrix of its own."""
        attention = self.layers * (self._attention_weights() + 2 * self.width)  # with the two norms
        ends = self.vocab * self.width * (1 if self.tied else 2) + self.width
        return attention + self._mlp_weights() + ends

    def _attention_weights(self) -> int:
        C, H, D, latent = self.width, self.heads, self.head_dim, self.latent
        if latent is None:
            return C * (H + 2 * self.kv_heads) * D + self.qkv_extras + H * D * C
        down = C * (latent.q_rank + latent.kv_rank + latent.rope_dim)
        norms = latent.q_rank + latent.kv_rank
        up = latent.q_rank * H * (D + latent.rope_dim) + latent.kv_rank * 2 * H * D
        return down + norms + up + H * D * C

    def _mlp_weights(self) -> int:
        """Of all layers; with each layer of experts the router, which has a row for each routed one."""
        matrix, experts = self.mlp_matrices * self.width, self.experts
        if experts is None:
            return self.layers * matrix * self.ffn
        router = experts.routed * (self.width + experts.router_bias)
        of_one = (experts.routed + experts.shared) * matrix * experts.width + router
        return experts.dense_layers * matrix * self.ffn + (self.layers - experts.dense_layers) * of_one


_SHAPES = (
    ModelShape(
        name="SmolLM2-135M",
        layers=30,
        width=576,
        heads=9,
        kv_heads=3,
        head_dim=64,
        ffn=1536,
        vocab=49_152,
        tied=True,
        source="the checkpoint's metadata; Ben Allal et al., https://arxiv.org/abs/2502.02737",
    ),
    ModelShape(
        name="Qwen3-0.6B",
        layers=28,
        width=1024,
        heads=16,
        kv_heads=8,
        head_dim=128,
        ffn=3072,
        vocab=151_936,
        tied=True,
        qk_norm=True,
        source="Qwen3 technical report, table 1, https://arxiv.org/abs/2505.09388, and the config.json of the model",
    ),
    ModelShape(
        name="Llama-2-7B",
        layers=32,
        width=4096,
        heads=32,
        kv_heads=32,
        head_dim=128,
        ffn=11_008,
        vocab=32_000,
        source="Llama 2, https://arxiv.org/abs/2307.09288, and the config.json of the released model",
    ),
    ModelShape(
        name="Falcon-7B",
        layers=32,
        width=4544,
        heads=71,
        kv_heads=1,
        head_dim=64,
        ffn=18_176,
        vocab=65_024,
        tied=True,
        gated=False,
        source="The Falcon series of open language models, https://arxiv.org/abs/2311.16867, and the config.json of "
        "the released model. A layer has one norm with a bias, which is as many weights as two without; the last "
        "norm's bias, 4,544 weights, is left out",
    ),
    ModelShape(
        name="Llama-3-8B",
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn=14_336,
        vocab=128_256,
        source="The Llama 3 herd of models, table 3, https://arxiv.org/abs/2407.21783",
    ),
    ModelShape(
        name="Qwen2.5-72B",
        layers=80,
        width=8192,
        heads=64,
        kv_heads=8,
        head_dim=128,
        ffn=29_568,
        vocab=152_064,
        qkv_bias=True,
        source="Qwen2.5 technical report, table 1, https://arxiv.org/abs/2412.15115, and the config.json of the model",
    ),
    ModelShape(
        name="Llama-3.1-405B",
        layers=126,
        width=16_384,
        heads=128,
        kv_heads=8,
        head_dim=128,
        ffn=53_248,
        vocab=128_256,
        source="The Llama 3 herd of models, table 3, https://arxiv.org/abs/2407.21783",
    ),
    ModelShape(
        name="DeepSeek-V3",
        layers=61,
        width=7168,
        heads=128,
        kv_heads=128,
        head_dim=128,
        ffn=18_432,
        vocab=129_280,
        experts=Experts(routed=256, active=8, shared=1, width=2048, dense_layers=3),
        latent=Latent(q_rank=1536, kv_rank=512, rope_dim=64),
        source="DeepSeek-V3 technical report, section 4.2, https://arxiv.org/abs/2412.19437, and the config.json of "
        "the released model; without its module for multi-token prediction",
    ),
)

SHAPES: dict[str, ModelShape] = {shape.name: shape for shape in _SHAPES}
"""Real models, by name, the smallest first."""


def shape_of(config: LlamaConfig) -> ModelShape:
    """The shape of a model that `load_model` loads: `shape_of(model.config)`.

    Raises ValueError for a mixture of experts that this has no words for: dense layers that are not at the bottom, or
    something shared that is not as wide as so many experts; and for such latent attention: queries without a latent, or
    values of another size than keys.
    """
    latent = _latent_of(config) if isinstance(config, DeepSeekConfig) else None
    return ModelShape(
        name=config.name,
        layers=config.layers,
        width=config.hidden_size,
        heads=config.heads,
        kv_heads=config.heads if latent else config.kv_heads,
        head_dim=config.nope_size if latent else config.head_size,
        ffn=config.mlp_size,
        vocab=config.vocab_size,
        tied=config.tied_embeddings,
        source="the checkpoint's configuration",
        qk_norm=config.qk_norm,
        experts=_experts_of(config) if isinstance(config, MixtureConfig) else None,
        latent=latent,
    )


def _latent_of(config: DeepSeekConfig) -> Latent:
    if config.query_latent_size is None or config.nope_size != config.value_size:
        raise ValueError(
            "config must have a query_latent_size, and values as large as the part of a key without a position, got "
            f"{config.query_latent_size}, {config.value_size} and {config.nope_size}"
        )
    return Latent(config.query_latent_size, config.latent_size, config.head_size)


def _experts_of(config: MixtureConfig) -> Experts:
    shared, rest = divmod(config.shared_size, config.expert_size)
    dense = len(config.dense_layers)
    if rest or config.dense_layers != tuple(range(dense)):
        raise ValueError(
            "config must have its dense layers at the bottom, and a shared_size that is a multiple of expert_size, got "
            f"layers {config.dense_layers} and {config.shared_size} of {config.expert_size}"
        )
    return Experts(config.experts, config.router.k, shared, config.expert_size, dense, config.router.bias)


def config_of(shape: ModelShape, *, context_length: int) -> LlamaConfig:
    """The configuration of a `Llama` of this shape, to be run with random weights: its time is the real model's.

    Raises ValueError where the shape is no Llama's: latent attention, experts, an MLP without a gate, a bias.
    """
    others = {"latent attention": shape.latent, "experts": shape.experts, "biases": shape.qkv_bias}
    others["an MLP without a gate"] = not shape.gated
    if strange := [name for name, there in others.items() if there]:
        raise ValueError(f"shape must be one that llmsys.models.Llama can have, and {shape.name} has {strange[0]}")
    return LlamaConfig(
        name=shape.name,
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_size=shape.head_dim,
        mlp_size=shape.ffn,
        context_length=context_length,
        qk_norm=shape.qk_norm,
        tied_embeddings=shape.tied,
    )
