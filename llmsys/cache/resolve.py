"""What `attention=` means, wherever a model is run: a name, a function or a backend."""

from collections.abc import Callable

from llmsys.attention import get_stage
from llmsys.cache.backend import Backend, check_backend
from llmsys.cache.contiguous import ContiguousCache
from llmsys.cache.no_cache import NoCache
from llmsys.cache.paged import PagedCache
from llmsys.cache.spec import CacheSpec

BACKENDS: dict[str, Callable[..., Backend]] = {"contiguous": ContiguousCache, "paged": PagedCache}
"""Backends with a name: each is made with `capacity=`, `sequences=` and `spec=`, and attends by torch's fused
attention, the paged one by kernels of its own on a GPU."""


def as_backend(
    attention: str | Callable | Backend = "sdpa",
    *,
    cache: bool | None = None,
    capacity: int | None = None,
    sequences: int | None = None,
    spec: CacheSpec | None = None,
) -> Backend:
    """The backend that `attention=` means.

    Parameters
    ----------
    attention
        A stage's name (`llmsys.attention.STAGES`) or a backend's (`BACKENDS`); any callable with a stage's contract,
        which gets q and k rotated; or a backend, which is handed back as it is.
    cache
        Whether to keep K and V between steps. None: a stage of the library, by its name, gets a cache where there is a
        `capacity`; a callable of yours does not, so that it is only ever called with Tq = Tk.
    capacity
        Tokens of a sequence that the cache is for. Needed where there is one.
    sequences
        How many sequences it is for. None: as many as the first step has rows.
    spec
        The model's `cache_spec()`: what the cache is made for.

    Raises
    ------
    ValueError
        No stage and no backend has that name; a backend does not keep the contract (`check_backend`); or `cache` or
        `capacity` does not go with the rest.
    """
    if hasattr(attention, "attend"):
        check_backend(attention)
        if cache is not None:
            raise ValueError("cache must be left out where attention is a backend: a backend owns its cache")
        return attention
    if isinstance(attention, str) and attention in BACKENDS:
        if cache is False:
            raise ValueError(f"cache must not be False where attention is {attention!r}, which is a cache")
        return BACKENDS[attention](capacity=_needed(capacity, attention), sequences=sequences, spec=spec)
    stage = get_stage(attention, backends=BACKENDS)
    if cache is None:
        cache = isinstance(attention, str) and capacity is not None
    if not cache:
        return NoCache(stage, spec=spec)
    return ContiguousCache(stage, capacity=_needed(capacity, attention), sequences=sequences, spec=spec)


def _needed(capacity: int | None, attention: str | Callable) -> int:
    if capacity is None:
        raise ValueError(
            "capacity must be given for a cache, the most tokens that a sequence will have; in training, where there "
            f"is none, attention must be a stage or a callable, got {attention!r}"
        )
    return capacity
