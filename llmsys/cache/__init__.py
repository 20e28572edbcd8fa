"""Who attends, and who keeps the keys and values: a model's attention is a backend (`backend`).

    from llmsys.cache import as_backend
    as_backend("flash", capacity=1024)       # a stage by name, with a cache
    as_backend(my_attention)                 # a function with a stage's contract, without one
"""

from llmsys.cache.backend import Backend, Batch, NoCache
from llmsys.cache.contiguous import ContiguousCache
from llmsys.cache.resolve import as_backend

__all__ = ["Backend", "Batch", "ContiguousCache", "NoCache", "as_backend"]
