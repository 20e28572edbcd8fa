"""The products of attention in one decode step: shapes, what they read from memory and write there, operations.

One layer, B sequences of T tokens, n new tokens of each, two bytes a number. Three ways:

    kept        keys and values of Hkv heads are in the cache: scores, then the weighted sum
    naive       the cache has latents; keys and values of all heads are made of them, written, and read again
    absorbed    the cache has latents: q takes the keys' matrix, attention is to the latents, o takes the values'

Scores and sum are fused, so scores are in no memory; and the latents, which are keys and values, are read once for
both. Queries and outputs themselves are small, and are left out.
"""

from dataclasses import dataclass

from llmsys.hardware.roofline import Operation
from llmsys.models.deepseek import DEEPSEEK_V2_LITE, DEEPSEEK_V3, DeepSeekConfig
from llmsys.models.shapes import SHAPES, ModelShape

KEPT, NAIVE, ABSORBED = "kept", "naive", "absorbed"
BYTES = 2  # of a number in bf16


@dataclass(frozen=True)
class Design:
    """A model's attention, and the way in which a step computes it."""

    name: str
    way: str
    layers: int
    heads: int
    kv_heads: int
    Dk: int
    Dv: int
    L: int = 0
    R: int = 0

    @property
    def numbers(self) -> int:
        """That a layer keeps of a token."""
        return self.kv_heads * (self.Dk + self.Dv) if self.way == KEPT else self.L + self.R

    @property
    def bytes_per_token(self) -> int:
        """Of cache, in all layers."""
        return self.layers * self.numbers * BYTES

    @property
    def expanded(self) -> int:
        """Numbers a layer would keep of a token if every head had a key and a value of its own."""
        return self.heads * (self.Dk + self.Dv)


@dataclass(frozen=True)
class Product:
    """One product of matrices, made `count` times."""

    name: str
    part: str  #            what it is a part of, on the roofline
    shape: tuple[int, int, int]  #    rows, inner, columns
    count: int
    read: int  #            bytes, of all of them
    written: int = 0
    of: str = "cache"  #    what is read: "cache", "weights", "latents" and matrices, "made", "nothing new"

    @property
    def flops(self) -> int:
        rows, inner, columns = self.shape
        return 2 * self.count * rows * inner * columns


def kept_design(shape: ModelShape) -> Design:
    """A model whose cache has keys and values."""
    kind = "MHA" if shape.kv_heads == shape.heads else "GQA"
    D = shape.head_dim
    return Design(f"{shape.name}, {kind}", KEPT, shape.layers, shape.heads, shape.kv_heads, D, D)


def latent_design(config: DeepSeekConfig, way: str) -> Design:
    """A model whose cache has latents, or with KEPT the same heads with keys and values of their own."""
    name = f"{config.name}, {'MHA' if way == KEPT else way}"
    L, R = config.latent_size, config.head_size
    return Design(name, way, config.layers, config.heads, config.heads, config.query_size, config.value_size, L, R)


DESIGNS = (
    latent_design(DEEPSEEK_V3, ABSORBED),
    latent_design(DEEPSEEK_V3, NAIVE),
    latent_design(DEEPSEEK_V3, KEPT),
    latent_design(DEEPSEEK_V2_LITE, ABSORBED),
    kept_design(SHAPES["Llama-3.1-405B"]),
    kept_design(SHAPES["Llama-2-7B"]),
)
"""What the stepper has to choose from."""


def products(design: Design, *, batch: int, context: int, queries: int = 1) -> list[Product]:
    """A layer's products in a step in which each of `batch` sequences of `context` tokens brings `queries` new ones."""
    d, B, T = design, batch, context
    each, rows = B * d.heads, queries
    if d.way == ABSORBED:
        latents = B * T * (d.L + d.R) * BYTES
        Dn = d.Dk - d.R
        return [
            Product("absorb:  q_nope U", "absorb", (rows * B, Dn, d.L), d.heads, d.heads * Dn * d.L * BYTES, 0,
                    "weights"),
            Product("scores:  q [c ; r]ᵀ", "attention", (rows * d.heads, d.L + d.R, T), B, latents),
            Product("sum:  P c", "attention", (rows * d.heads, T, d.L), B, 0, 0, "nothing new"),
            Product("outputs:  o Vᵀ", "outputs", (rows * B, d.L, d.Dv), d.heads, d.heads * d.Dv * d.L * BYTES, 0,
                    "weights"),
        ]  # fmt: skip
    made = {}
    found = []
    if d.way == NAIVE:
        Dn = d.Dk - d.R
        latents = B * T * (d.L + d.R) * BYTES
        made = {"of": "made"}
        found = [
            Product("expand keys:  c Uᵀ", "expand", (B * T, d.L, Dn), d.heads, latents + d.heads * Dn * d.L * BYTES,
                    B * T * d.heads * d.Dk * BYTES, "latents"),
            Product("expand values:  c Vᵀ", "expand", (B * T, d.L, d.Dv), d.heads,
                    B * T * d.L * BYTES + d.heads * d.Dv * d.L * BYTES, B * T * d.heads * d.Dv * BYTES, "latents"),
        ]  # fmt: skip
    group = d.heads // d.kv_heads
    of_kv = each // group
    return [
        *found,
        Product("scores:  q Kᵀ", "attention", (rows * group, d.Dk, T), of_kv, of_kv * T * d.Dk * BYTES, **made),
        Product("sum:  P V", "attention", (rows * group, T, d.Dv), of_kv, of_kv * T * d.Dv * BYTES, **made),
    ]


def operations(done: list[Product]) -> list[Operation]:
    """Products as operations on a roofline: those of one part together."""
    parts = dict.fromkeys(each.part for each in done)
    return [
        Operation(
            part,
            sum(each.flops for each in done if each.part == part),
            sum(each.read + each.written for each in done if each.part == part),
        )
        for part in parts
    ]
