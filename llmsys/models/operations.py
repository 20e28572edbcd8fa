"""The operations of one step of a model, and what each asks of a machine: FLOP, bytes, exponentials.

A step takes `queries` new tokens of each of `batch` sequences through the model; each sequence then has `context`
tokens, the new ones included. Prefill is a step with queries = context, decoding one with queries = 1, and a chunk of a
prefill lies between.

    step = operations(SHAPES["Llama-3-8B"], batch=1, queries=1, context=1024)
    total_seconds(step, DEVICES["H100 SXM"])        # 0.0045: what reading 15 GB takes
    {op.name: op.intensity for op in step}          # one FLOP for each byte, nearly everywhere

Weights are read once for all tokens of a step, and that is the whole difference between the two phases: a product with
n tokens does about n FLOP for each byte of a 16-bit weight. Attention has no weights. It reads the cache of each
sequence for that sequence alone, so a larger batch does not help it.

What is left out: the rotation of q and k and the embedding's lookup, which are small, and everything between GPUs.
Scores, cache and activations are as wide as the weights (`dtype`). The logits are those of each sequence's last token.
"""

from dataclasses import dataclass

from llmsys.hardware.roofline import Operation
from llmsys.models.shapes import ITEMSIZE, SHAPES, Experts, Latent, ModelShape, shape_of

__all__ = [
    "ITEMSIZE",
    "QUERY_TILE",
    "SHAPES",
    "Experts",
    "Latent",
    "ModelOperation",
    "ModelShape",
    "operations",
    "shape_of",
]

QUERY_TILE = 128
"""Rows that one program of a flash kernel works on: as often the keys and values come from the L2 cache."""


@dataclass(frozen=True)
class ModelOperation(Operation):
    """An operation of a model. `weight_bytes` of its `bytes` are weights: the others grow with the tokens."""

    weight_bytes: int | float = 0


def operations(
    shape: ModelShape, *, batch: int, queries: int, context: int, attention: str = "flash", dtype: str = "bfloat16"
) -> list[ModelOperation]:
    """The operations of one step, in order; each has a `count`, how often it is in the model.

    `attention` is "flash" (one operation that reads q, k, v and writes o, and computes only what causality lets be
    seen) or "naive" (three, with the whole matrix of scores between them). `dtype` is that of the weights, of the
    cache and of the products: "bfloat16", "float16", "float32" or "float8".

    Latent attention is computed in whichever of its two forms takes fewer FLOP: for a few queries on the cached latents
    themselves, the projections of keys and values being absorbed into q and o; for many on keys and values expanded
    from the latents (https://arxiv.org/abs/2405.04434, section 2.1). A mixture of experts reads each expert that some
    token chose; how many that are is the expectation for tokens that choose evenly and independently.
    """
    if min(batch, queries) < 1 or context < queries:
        raise ValueError(
            f"batch and queries must be at least 1 and context at least queries (it counts them, too), got batch "
            f"{batch}, queries {queries}, context {context}"
        )
    if attention not in ("flash", "naive"):
        raise ValueError(f'attention must be "flash" or "naive", got {attention!r}')
    if dtype not in ITEMSIZE:
        raise ValueError(f"dtype must be one of {', '.join(ITEMSIZE)}, got {dtype!r}")
    step = _Step(shape, batch, queries, context, attention, dtype)
    return [step.norm(), *step.attention_layer(), *step.mlp_layers(), step.head()]


@dataclass(frozen=True)
class _Step:
    shape: ModelShape
    batch: int
    queries: int
    context: int
    attention: str
    dtype: str

    @property
    def tokens(self) -> int:
        return self.batch * self.queries

    def make(
        self, name: str, count: int, *, flops, weights=0, elements=0, dtype=None, l2_elements=None, exponentials=0
    ):
        """Elements are turned into bytes: of the weights, of what else crosses, and of what the L2 cache delivers."""
        size = ITEMSIZE[self.dtype]
        return ModelOperation(
            name=name,
            flops=flops,
            bytes=size * (weights + elements),
            dtype=dtype or self.dtype,
            exponentials=exponentials,
            l2_bytes=None if l2_elements is None else size * l2_elements,
            count=count,
            weight_bytes=size * weights,
        )

    def linear(self, name: str, wide: int, out: int, *, count: int, rows: int | None = None, extra_weights: int = 0):
        """A product of (rows, wide) with weights (wide, out)."""
        rows = rows or self.tokens
        weights = wide * out + extra_weights
        return self.make(name, count, flops=2 * rows * wide * out, weights=weights, elements=rows * (wide + out))

    def per_head(self, name: str, wide: int, out: int):
        """A product of each head's (tokens, wide) with a matrix of its own."""
        rows = self.tokens * self.shape.heads
        weights = self.shape.heads * wide * out
        elements = rows * (wide + out)
        return self.make(name, self.shape.layers, flops=2 * rows * wide * out, weights=weights, elements=elements)

    def norm(self):
        """x and a layer's result are read; their sum and its norm are written. Twice a layer, and before the head."""
        n = self.tokens * self.shape.width
        count = 2 * self.shape.layers + 1
        return self.make(
            "norm, residual", count, flops=5 * n, weights=self.shape.width, elements=4 * n, dtype="float32"
        )

    def attention_layer(self):
        shape, latent = self.shape, self.shape.latent
        layers, C, H, D = shape.layers, shape.width, shape.heads, shape.head_dim
        if latent is None:
            yield self.linear("q, k, v", C, (H + 2 * shape.kv_heads) * D, count=layers, extra_weights=shape.qkv_extras)
            yield from self.attend(shape.kv_heads, D, D, cached=2 * D)
        else:
            q_rank, rank, rope = latent.q_rank, latent.kv_rank, latent.rope_dim
            norms = q_rank + rank
            yield self.linear("latents", C, q_rank + rank + rope, count=layers, extra_weights=norms)
            yield self.linear("q", q_rank, H * (D + rope), count=layers)
            if self.absorbs():
                yield self.per_head("absorb k", D, rank)
                yield from self.attend(1, rank + rope, rank, cached=rank + rope)  # the latent is key and value
                yield self.per_head("absorb v", rank, D)
            else:
                yield self.linear("k, v", rank, 2 * H * D, count=layers, rows=self.batch * self.context)
                yield from self.attend(H, D + rope, D, cached=2 * D + rope)
        yield self.linear("output", H * D, C, count=layers)

    def seen(self) -> int:
        """Pairs of a query and a key that it may see, in one head: a query sees itself and all before it."""
        return self.queries * self.context - self.queries * (self.queries - 1) // 2

    def absorbs(self) -> bool:
        D, rank, rope = self.shape.head_dim, self.shape.latent.kv_rank, self.shape.latent.rope_dim
        pairs = self.queries * self.context if self.attention == "naive" else self.seen()
        absorbed = pairs * (2 * rank + rope) + self.queries * 2 * D * rank
        expanded = pairs * (2 * D + rope) + self.context * 2 * D * rank
        return absorbed <= expanded

    def attend(self, kv_heads: int, Dk: int, Dv: int, *, cached: int):
        """Attention over `kv_heads` heads whose keys and values are `cached` elements a token."""
        H, layers = self.shape.heads, self.shape.layers
        rows = self.tokens * H
        keys = self.batch * kv_heads * self.context
        if self.attention == "flash":
            pairs = self.batch * H * self.seen()
            tiles = -(-self.queries * H // kv_heads // QUERY_TILE)
            yield self.make(
                "attention",
                layers,
                flops=2 * pairs * (Dk + Dv),
                elements=rows * (Dk + Dv) + keys * cached,
                l2_elements=rows * (Dk + Dv) + tiles * keys * cached * self.seen() / (self.queries * self.context),
                exponentials=pairs,
            )
            return
        scores = rows * self.context
        yield self.make("scores", layers, flops=2 * scores * Dk, elements=rows * Dk + keys * Dk + scores)
        yield self.make("softmax", layers, flops=6 * scores, elements=2 * scores, dtype="float32", exponentials=scores)
        yield self.make("weighted sum", layers, flops=2 * scores * Dv, elements=scores + keys * Dv + rows * Dv)

    def mlp(self, name: str, width: int, *, count: int, copies: int = 1, matrices: float = 1):
        """gate (if there is one), up and down, with what is between them written and read once. Each token passes
        through `copies` of them, and the weights of `matrices` are read."""
        C, n, each = self.shape.width, self.tokens * copies, self.shape.mlp_matrices
        return self.make(
            name,
            count,
            flops=2 * each * n * C * width,
            weights=matrices * each * C * width,
            elements=2 * n * (C + width),
            exponentials=n * width,
        )

    def mlp_layers(self):
        shape, experts = self.shape, self.shape.experts
        dense = experts.dense_layers if experts else shape.layers
        if dense:
            yield self.mlp("MLP", shape.ffn, count=dense)
        if experts:
            sparse = shape.layers - dense
            untouched = (1 - experts.active / experts.routed) ** self.tokens
            yield self.linear("router", shape.width, experts.routed, count=sparse, extra_weights=experts.routed)
            yield self.mlp(
                "experts",
                experts.width,
                count=sparse,
                copies=experts.active,
                matrices=experts.routed * (1 - untouched),
            )
            if experts.shared:
                yield self.mlp("shared expert", experts.shared * experts.width, count=sparse)

    def head(self):
        return self.linear("head", self.shape.width, self.shape.vocab, count=1, rows=self.batch)
