"""What a model wants kept of each token: `model.cache_spec()`, from which a cache is made and its bytes are counted.

    model.cache_spec().bytes_per_token          46,080 for SmolLM2 in fp32: 30 layers · 3 heads · (64 + 64) · 4
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Entry:
    """Something more that a layer keeps of each token, as the keys by which an indexer chooses what is attended to."""

    name: str
    size: int  #  elements a token
    dtype: torch.dtype

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size of the entry {self.name!r} must be at least 1, got {self.size}")

    @property
    def bytes_per_token(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class LayerCache:
    """What one layer keeps of a token: in each of `heads` heads a key of Dk and a value of Dv elements."""

    layer: int  #  its number in the whole model
    heads: int  #  Hkv
    Dk: int
    Dv: int
    dtype: torch.dtype
    values_in_keys: bool = False
    """The value is the key's first Dv elements and is not kept again: absorbed latent attention, one head of 576."""
    entries: tuple[Entry, ...] = ()

    def __post_init__(self):
        for name, least in (("layer", 0), ("heads", 1), ("Dk", 1), ("Dv", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.values_in_keys and self.Dv > self.Dk:
            raise ValueError(f"Dv must be at most Dk = {self.Dk} where values are in the keys, got {self.Dv}")

    @property
    def bytes_per_token(self) -> int:
        own = self.heads * (self.Dk + (0 if self.values_in_keys else self.Dv)) * self.dtype.itemsize
        return own + sum(entry.bytes_per_token for entry in self.entries)


@dataclass(frozen=True)
class CacheSpec:
    """What a model, or the part of it that is here, keeps: one `LayerCache` for each layer that attends."""

    layers: tuple[LayerCache, ...]

    def __post_init__(self):
        numbers = [each.layer for each in self.layers]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"layers must be described once each, got {numbers}")

    @property
    def bytes_per_token(self) -> int:
        """Of one sequence, all layers and heads together."""
        return sum(each.bytes_per_token for each in self.layers)
