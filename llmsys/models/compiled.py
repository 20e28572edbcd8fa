"""A compiled model is the model in a wrapper, which shows in two places.

`torch.compile(model)` runs as the model does and has its attributes, but it is no `Llama` for `isinstance`, and its
weights are named `_orig_mod.embedding.weight` …, as those of a compiled layer are `layers.0._orig_mod.qkv.weight`. What
trains, saves or loads a model calls its weights by their plain names, so that a checkpoint does not depend on who
compiled what.
"""

from torch import nn

Model = nn.Module
"""A `Llama`, or what torch.compile made of one."""

_WRAPPED = "_orig_mod"


def uncompiled(model: Model) -> Model:
    """The model in torch.compile's wrapper, which has the same weights; a model that is in none is handed back."""
    return getattr(model, _WRAPPED, model)


def plain_name(name: str) -> str:
    """The name of a weight or buffer without the wrapper's part."""
    return name.replace(f"{_WRAPPED}.", "")
