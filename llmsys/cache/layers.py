"""Whether a layer hands over what it said it would: the one check that all caches make of k and v."""

from torch import Tensor

from llmsys.attention.rotary import Rotation
from llmsys.cache.backend import value_size
from llmsys.cache.spec import CacheSpec, LayerCache


class Layers:
    """What each layer keeps: as the model's spec says, or as its first step showed.

    Raises ValueError where the spec has further entries: `cache` says in words who has no place for these.
    """

    def __init__(self, spec: CacheSpec | None, cache: str):
        for each in spec.layers if spec else ():
            if each.entries:
                raise ValueError(
                    f"{cache} keeps keys and values alone, and layer {each.layer} wants "
                    f"{', '.join(entry.name for entry in each.entries)} kept, too: take a backend that knows these"
                )
        self._spec = spec
        self._said: dict[int, LayerCache] = {each.layer: each for each in spec.layers} if spec else {}

    def check(self, layer: int, k: Tensor, v: Tensor | None, turn: Rotation | None) -> int:
        """Dv, the size of a value. Raises ValueError where k and v are not what was said; (B, Hkv, T, D) each."""
        said = self._said.get(layer)
        if said is None and self._spec is not None:
            raise ValueError(f"layer {layer} is not in the spec that the cache was made from")
        if v is not None:
            Dv = v.shape[3]
        elif said is not None and k.shape[3] != said.Dk:  # refused below, with the keys' sizes
            Dv = min(said.Dv, k.shape[3])
        else:
            Dv = value_size(k, turn, said and said.Dv)
        if said is None:
            self._said[layer] = LayerCache(layer, k.shape[1], k.shape[3], Dv, k.dtype, v is None)
        elif (k.shape[1], k.shape[3], Dv, k.dtype, v is None) != (
            said.heads, said.Dk, said.Dv, said.dtype, said.values_in_keys,
        ):  # fmt: skip
            raise ValueError(
                f"layer {layer} must hand over {_words(said)}; got "
                f"{_words(LayerCache(layer, k.shape[1], k.shape[3], Dv, k.dtype, v is None))}"
            )
        return Dv


def _words(layer: LayerCache) -> str:
    values = "their first Dv columns as values (v=None)" if layer.values_in_keys else "values of their own"
    return f"keys of {layer.heads} heads in {layer.dtype}, Dk = {layer.Dk}, Dv = {layer.Dv}, {values}"
