"""What `attention=` means, wherever a model is run: a name, a function or a backend."""

from collections.abc import Callable

from llmsys.attention import get_stage
from llmsys.cache.backend import Backend, NoCache
from llmsys.cache.contiguous import ContiguousCache


def as_backend(
    attention: str | Callable | Backend = "sdpa", *, cache: bool | None = None, capacity: int | None = None
) -> Backend:
    """The backend that `attention=` means.

    Parameters
    ----------
    attention
        A stage's name; any callable with a stage's contract; or a backend, which is handed back as it is.
    cache
        Whether to keep K and V between steps. None: a stage of the library, by its name, gets a cache; a callable of
        yours does not, so that it is only ever called with Tq = Tk.
    capacity
        Tokens that the cache is for. Needed where there is one.

    Raises
    ------
    ValueError
        No stage has that name; or `cache` or `capacity` does not go with the rest.
    """
    if hasattr(attention, "attend"):
        if cache is not None:
            raise ValueError("cache must be left out where attention is a backend: a backend owns its cache")
        return attention
    stage = get_stage(attention)
    if cache is None:
        cache = isinstance(attention, str)
    if not cache:
        return NoCache(stage)
    if capacity is None:
        raise ValueError("capacity must be given for a cache: the most tokens that a sequence will have")
    return ContiguousCache(stage, capacity=capacity)
