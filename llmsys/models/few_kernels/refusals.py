"""What the few-kernel step cannot take: models and caches, and why, in words."""

import torch

from llmsys.cache import Backend, PagedCache
from llmsys.hardware.tier import interpreting, triton_installed
from llmsys.models.llama import Layer, Llama
from llmsys.models.modules import Linear


def takes(model: Llama, cache: Backend | None = None) -> bool:
    """Whether a step of this model, over this cache if one is given, can be run by `FewKernelForward`."""
    return refusal(model, cache) is None


def refusal(model: Llama, cache: Backend | None = None) -> str | None:
    """Why `FewKernelForward` cannot take this model or this cache, in words; None where it can."""
    if not triton_installed():
        return "Triton is not installed"
    if not isinstance(model, Llama) or not model.is_whole or not all(type(layer) is Layer for layer in model.layers):
        return "the model must be a whole Llama with the library's layers, its embedding and its head"
    device, dtype = model.device, model.dtype
    if interpreting():
        if device.type != "cpu" or dtype not in (torch.float32, torch.float16):
            return f"Triton's interpreter takes float32 or float16 on the CPU, and the model is {dtype} on {device}"
    elif device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return f"the kernels take bfloat16 or float16 on a GPU, and the model is {dtype} on {device}"
    return _refused_sizes(model) or _refused_weights(model) or (None if cache is None else refused_cache(model, cache))


def _refused_sizes(model: Llama) -> str | None:
    D, G = model.config.head_size, model.config.heads // model.config.kv_heads
    if D < 16 or D & (D - 1) or D > 256:
        return f"heads must have 16, 32, 64, 128 or 256 elements, and have {D}"
    if G > 16:
        return f"at most 16 query heads may share a key head, and {G} do"
    return None


def _refused_weights(model: Llama) -> str | None:
    for layer in model.layers:
        for name in ("qkv", "output", "gate_up", "down"):
            if type(getattr(layer, name)) is not Linear:
                return f"layers.{layer.index}.{name} is a {type(getattr(layer, name)).__name__}, not a plain matrix"
    if type(model.head) is not Linear:
        return f"the head is a {type(model.head).__name__}, not a plain matrix"
    for name, weight in model.named_parameters():
        if weight.dtype != model.dtype or weight.device != model.device or not weight.is_contiguous():
            return f"{name} must be contiguous and of the dtype and device of the others"
        if weight.data_ptr() % 16:
            return f"{name} must begin at a multiple of 16 bytes"
    return None


def refused_cache(model: Llama, cache: Backend) -> str | None:
    """The same of a cache alone, for a model that can be taken."""
    if not isinstance(cache, PagedCache) or cache.kernel not in (None, "triton"):
        return "the cache must be a PagedCache with the library's kernels"
    if cache.spec not in (None, model.cache_spec()):
        return "the cache must be made from this model's cache_spec()"
    return None
