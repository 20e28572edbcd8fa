"""How many bytes of cache a token takes in named models, and what that has to do with their heads."""

from collections.abc import Sequence

from llmsys.models.decode_cost import bytes_per_token as cost
from llmsys.models.decode_cost import with_kv_heads
from llmsys.models.shapes import SHAPES, ModelShape
from llmsys.viz.kit.numbers import number, size_in_words
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

KINDS = {
    "MHA": ("multi-head: a key and a value for each query head", "orange"),
    "GQA": ("grouped-query: shared by a group of query heads", "blue"),
    "MQA": ("multi-query: one for all query heads", "purple"),
    "MLA": ("multi-head latent: one vector for the keys and values of all heads", "green"),
}
LEFT, LONGEST, WIDTH = 262, 272, 760
ROW = 40


def bytes_per_token(names: Sequence[str | ModelShape] | None = None, *, dtype: str = "bfloat16") -> Picture:
    """Bars of the bytes that a token takes in the cache, model by model, and how much it would be with MHA.

    names    names in `SHAPES`, or shapes of your own; by default all of `SHAPES`, by kind of heads

    Raises ValueError for a name or a dtype that is not there.
    """
    shapes = [_shape(name) for name in (SHAPES if names is None else names)]
    if not shapes:
        raise ValueError("names must have at least one model, got none")
    if names is None:
        order = list(KINDS)
        shapes.sort(key=lambda shape: (order.index(kind_of(shape)), cost(shape)))
    sizes = {shape: cost(shape, dtype) for shape in shapes}
    shares = {shape: size / cost(with_kv_heads(shape, shape.heads), dtype) for shape, size in sizes.items()}
    kinds = [kind for kind in KINDS if kind in map(kind_of, shapes)]
    said = "; ".join(
        f"{shape.name}, {kind_of(shape)}, {size:,} bytes" + (f", {_share(shares[shape])}" if shares[shape] < 1 else "")
        for shape, size in sizes.items()
    )
    svg = Svg(WIDTH, 34 + ROW * len(shapes) + 18 * len(kinds), alt=(
        f"Bytes that a token takes in the cache, {dtype}: {said}. MHA would keep keys and values of every query head."
    ))  # fmt: skip
    svg.text(0, 16, [("Bytes of cache for each token", "bold"), (f" · {dtype}, all layers", "muted")])
    svg.text(WIDTH, 16, "beside the share of what the same model would take with MHA", "end small muted")
    scale = LONGEST / max(sizes.values())
    for n, (shape, size) in enumerate(sizes.items()):
        y, colour = 30 + ROW * n, KINDS[kind_of(shape)][1]
        svg.text(0, y + 14, [(shape.name, "bold"), (f" · {kind_of(shape)}", f"bold {colour}")])
        svg.text(0, y + 29, _heads(shape), "small muted")
        width = max(scale * size, 1)
        svg.rect(LEFT, y + 4, width, 22, colour, rx=2)
        tail = f" · {_share(shares[shape])}" if shares[shape] < 1 else ""
        svg.text(LEFT + width + 8, y + 19, [(f"{size:,}", "bold"), f" = {size_in_words(size)}{tail}"], "small")
    for n, kind in enumerate(kinds):
        words, colour = KINDS[kind]
        y = 30 + ROW * len(shapes) + 18 * n
        svg.text(0, y + 12, [(kind, f"bold {colour}"), f" {words}"], "small")
    return svg.picture()


def kind_of(shape: ModelShape) -> str:
    """What a model's heads are called: "MHA", "GQA", "MQA" or "MLA"."""
    if shape.latent:
        return "MLA"
    if shape.kv_heads == shape.heads:
        return "MHA"
    return "MQA" if shape.kv_heads == 1 else "GQA"


def _heads(shape: ModelShape) -> str:
    if shape.latent:
        kept = f"latent of {shape.latent.kv_rank} + {shape.latent.rope_dim}"
    else:
        kept = f"{shape.kv_heads} of {shape.heads} heads × 2 × {shape.head_dim}"
    return f"{shape.layers} layers × {kept}"


def _share(share: float) -> str:
    return f"1/{number(1 / share, 2)} of MHA"


def _shape(name: str | ModelShape) -> ModelShape:
    if isinstance(name, ModelShape):
        return name
    if name not in SHAPES:
        raise ValueError(f"names must be of {', '.join(SHAPES)}, or shapes of your own; got {name!r}")
    return SHAPES[name]
