"""By what each rotated pair's frequency is divided, so that a context longer than the one trained on fits its turns.

"linear" slows all pairs down alike. "llama3" leaves those alone that turn often within the old context, slows those
down that never complete a turn, and blends in between (Llama 3.1; https://arxiv.org/abs/2407.21783). Others, such as
yarn and dynamic, also change with the length of the text or scale the scores, and are refused by name.

Both formats have older spellings of the same. config.json: rope_parameters (transformers 5), or rope_scaling and
rope_theta beside it, in which the kind is "rope_type" or "type". GGUF: rope.scaling.type, which is linear where it is
missing, with rope.scaling.factor or rope.scale_linear; Llama 3's comes as a tensor of divisors.
"""

import math

from llmsys.models.checkpoints.settings import Settings, shown


def from_config(settings: Settings, head_size: int) -> tuple[float, tuple[float, ...] | None]:
    """The base of the rotary positions and the divisors, one a pair or None, of a config.json."""
    empty = Settings({}, settings.where)
    rope = settings.table("rope_scaling", empty)  # the older key comes first where both are there, as in transformers
    if not rope.values:
        rope = settings.table("rope_parameters", empty)
    for key, value in rope.values.items():
        if isinstance(value, dict):
            raise rope.wrong(key, "no object (this model turns all its layers alike)")
    base = rope.number("rope_theta", None, above=1.0, or_equal=True)
    if base is None:
        base = settings.number("rope_theta", 10_000.0, above=1.0, or_equal=True)
    for each in (rope, settings):
        if each.number("partial_rotary_factor", 1.0) != 1.0:
            raise each.wrong("partial_rotary_factor", "1 (this model turns whole heads)")
    kind = rope.text("rope_type", rope.text("type", "default"))
    return base, _divisors(kind, rope, settings, base, head_size // 2)


def _divisors(kind: str, rope: Settings, settings: Settings, base: float, pairs: int) -> tuple[float, ...] | None:
    if kind == "default":
        return None
    if kind == "divisors":  # as `llmsys.models.checkpoints.save` writes them
        divisors = tuple(rope.numbers("divisors"))
        if len(divisors) != pairs:
            raise rope.wrong("divisors", f"one a pair, {pairs} in all")
        return divisors
    if kind not in ("linear", "llama3"):
        raise ValueError(
            f"{rope.where}: rotary positions are scaled by {shown(kind)}, by {rope.prefix}"
            f"{'rope_type' if 'rope_type' in rope else 'type'}; load_model knows linear and llama3"
        )
    for key in ("factor", "low_freq_factor", "high_freq_factor") if kind == "llama3" else ("factor",):
        if key not in rope:
            raise ValueError(f"{rope.where}: rotary positions are scaled by {kind!r}, and its {key} is missing")
    factor = rope.number("factor")
    if kind == "linear":
        return (factor,) * pairs
    slow, fast = rope.number("low_freq_factor"), rope.number("high_freq_factor")  # in turns within the old context
    if fast <= slow:
        raise rope.wrong("high_freq_factor", f"above low_freq_factor, which is {slow:g}")
    key = "original_max_position_embeddings"
    old_context = settings.number(key, None) or rope.number(key, None) or settings.number("max_position_embeddings")
    divisors = []
    for i in range(pairs):
        turns = old_context / (2 * math.pi) * base ** (-i / pairs)
        kept = min(max((turns - slow) / (fast - slow), 0.0), 1.0)
        divisors.append(1 / ((1 - kept) / factor + kept))
    return tuple(divisors)


def from_gguf(
    settings: Settings, architecture: str, pairs: int, tensor: tuple[float, ...] | None
) -> tuple[float, ...] | None:
    """The divisors of a GGUF file, one a pair or None. `tensor` is what its rope_freqs.weight holds."""
    rope = f"{architecture}.rope."
    kind = settings.text(f"{rope}scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise ValueError(
            f"{settings.where}: {rope}scaling.type: rotary positions are scaled by {shown(kind)}; load_model knows "
            "linear and llama3"
        )
    if settings.number(f"{rope}scaling.attn_factor", 1.0) != 1.0:
        raise settings.wrong(f"{rope}scaling.attn_factor", "1 (this model does not scale its scores)")
    key = f"{rope}scaling.factor" if f"{rope}scaling.factor" in settings else f"{rope}scale_linear"
    factor = settings.number(key, 0.0, or_equal=True) or 1.0  # 0 says that there is none
    if kind == "none":
        factor = 1.0
    if tensor is not None and len(tensor) != pairs:
        raise ValueError(
            f"{settings.where}: the tensor rope_freqs.weight must hold one number a pair, {pairs} in all, got "
            f"{len(tensor)}"
        )
    if tensor is None and factor == 1.0:
        return None
    return tuple(factor * each for each in tensor or (1.0,) * pairs)
