"""A second tier for the cache: how much main memory it gets, and which of its blocks are worth the way back.

    Engine(model, host_cache="8 GiB")

Evicted blocks go to main memory (`llmsys.cache.host_tier` says which, `host_pages` how). A request that hits them there
may have them back over the link, or compute them again. **Whichever takes less time:**

    back        blocks · block_size · bytes per token / link
    again       T(start) − T(end),  T(c) = a step of the tokens from c to the last known one, by the roofline

where `start` and `end` are where computing begins without the blocks, and with them. T is that of
`llmsys.models.operations`: the arithmetic of each token, attention to all before it, and the weights, which are read in
both cases. So three things decide. For a long run of blocks, with P weights by which a token is multiplied, the two are

    bytes per token / link   against   (2 · P + 4 · layers · Hq · D · context) / peak         seconds a token

    Llama-3-8B on an H100 in bf16    131,072 B over half of PCIe 5's 128 GB/s: 2.0 µs     13 µs and more: back
    SmolLM2 on the same               23,040 B: 0.36 µs                                   0.23 µs, 0.36 for a prefix of
                                                                                          2,550 tokens, 0.57 of 8,192

A small model with much cache is sooner computed than fetched, until attention has grown with the context. And of a few
tokens the computing is nearly free: as long as a step waits for its weights (fewer than 295 tokens on an H100), some
more of them cost their activations' bytes alone, 1.9 µs each for Llama-3-8B, and fetching them costs 2.0.

Both sides are estimates. T is a bound from below, which real steps exceed (a prefill on an H100 comes to a half or
three quarters of the peak), so the rule errs towards computing; it counts the request as alone in its steps, as if the
others' tokens did not fill them; launches and the gathering of pages are left out. The link is measured, for what a
machine gives is not what its slot promises.
"""

import functools
import re
import time
from dataclasses import dataclass

import torch
from torch import nn

from llmsys.cache.host_pages import HostPages, parts_of, slots_of
from llmsys.cache.host_tier import Offer, TakesBack, always
from llmsys.hardware.devices import DeviceSpec, detect, this_machine
from llmsys.hardware.roofline import total_seconds
from llmsys.models.operations import operations
from llmsys.models.shapes import ITEMSIZE, ModelShape, shape_of
from llmsys.serving.memory import available_memory

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
AT_ONCE = 32 << 20  # bytes, by which a link is measured


@dataclass(frozen=True)
class HostCache:
    """What an engine's `host_cache` says in full. ValueError where `budget` is no size."""

    budget: int | str
    """Of main memory: bytes, or a size such as "2 GiB"."""
    takes_back: TakesBack | None = None
    """Which hits come back. None: those that take less time so, see above."""

    def __post_init__(self):
        object.__setattr__(self, "budget", size_in_bytes("host_cache", self.budget))


def size_in_bytes(name: str, size: int | str) -> int:
    """Bytes: a whole number of them, or a text with a unit, "2 GiB", "1.5 GiB", "500 MiB". ValueError names `name`."""
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])i)?B\s*", size)
        size = int(float(found[1]) * UNITS[found[2] or ""]) if found else size
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(f'{name} must be bytes, a whole number from 0 on, or a size such as "2 GiB", got {size!r}')
    return size


def host_tier(
    model: nn.Module, setting: int | str | HostCache | None, *, block_size: int
) -> tuple[HostPages | None, TakesBack]:
    """The memory that an engine's `host_cache` asks for, and the rule. (None, always) where it asks for none.

    Raises
    ------
    ValueError
        It is no size, more than main memory has free, or too little for a block; or the model's device or cache is one
        that has no such tier.
    """
    setting = HostCache(setting or 0) if not isinstance(setting, HostCache) else setting
    budget, spec, device = setting.budget, model.cache_spec(), model.device
    if not budget:
        return None, always
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"host_cache must be None where the model is on {device}: there is a host tier for CUDA alone")
    slots = slots_of(budget, spec, block_size)
    # Pinned memory is taken in powers of two (`host_pages`).
    takes = slots * parts_of(spec, block_size)[1]
    takes = 1 << (takes - 1).bit_length() if device.type == "cuda" else takes
    if takes > (free := available_memory()):
        more = f", which takes {takes:,} of pinned memory" if takes > budget else ""
        raise ValueError(
            f"host_cache must be at most the {free:,} bytes that main memory has free, got {budget:,}{more}"
        )
    takes_back = setting.takes_back or cheaper_here(model, block_size)
    return HostPages(slots, spec, block_size, device=device), takes_back


class Cheaper:
    """The rule: blocks come back where that takes less time than computing them.

    Parameters
    ----------
    shape
        The model's.
    device
        On which it computes.
    link
        B/s from main memory to the device.
    block_bytes
        Of a block, in all layers.
    dtype
        Of the products. One for which the device has no figure counts as float32.
    """

    def __init__(
        self, shape: ModelShape, device: DeviceSpec, *, link: float, block_bytes: int, dtype: str = "bfloat16"
    ):
        if not link > 0:
            raise ValueError(f"link must be above 0 B/s, got {link}")
        self.shape, self.device, self.link, self.block_bytes = shape, device, link, block_bytes
        self.dtype = dtype if dtype in ITEMSIZE and dtype in device.flops else "float32"
        self._step_seconds = functools.lru_cache(maxsize=4096)(self._prefill)  # who waits for room asks in each step

    def __call__(self, offer: Offer) -> bool:
        return self.back_seconds(offer) < self.again_seconds(offer)

    def back_seconds(self, offer: Offer) -> float:
        """To copy the blocks."""
        return offer.blocks * self.block_bytes / self.link

    def again_seconds(self, offer: Offer) -> float:
        """That computing takes longer without them."""
        return self._step_seconds(offer.start, offer.known) - self._step_seconds(offer.end, offer.known)

    def _prefill(self, computed: int, known: int) -> float:
        step = operations(self.shape, batch=1, queries=known - computed, context=known, dtype=self.dtype)
        return total_seconds(step, self.device)


def cheaper_here(model: nn.Module, block_size: int) -> TakesBack:
    """The rule for a model where it is: of a device by its data sheet, else as measured, and of the link as measured.
    (On a CPU beside a GPU, of which nobody measures how fast it computes, everything comes back.)"""
    device = model.device
    if device.type == "cpu" and torch.cuda.is_available():
        return always
    spec = detect(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return Cheaper(
        shape_of(model.config), spec or this_machine(), link=measured_link(device),
        block_bytes=block_size * model.cache_spec().bytes_per_token, dtype=str(model.dtype).removeprefix("torch."),
    )  # fmt: skip


def measured_link(device: torch.device) -> float:
    """B/s that a copy from main memory to the device moves, the best of three. To a CPU: from memory to memory."""
    on_gpu = device.type == "cuda"
    source = torch.ones(AT_ONCE, dtype=torch.uint8, pin_memory=on_gpu)
    target = torch.empty_like(source, device=device)
    seconds = []
    for _ in range(4):  # the first touches the memory
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return AT_ONCE / min(seconds[1:])
