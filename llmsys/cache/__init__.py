"""Who attends, and who keeps the keys and values: a model's attention is a backend (`backend`).

    from llmsys.cache import as_backend
    as_backend("flash", capacity=1024)       # a stage by name, with a cache
    as_backend("contiguous", capacity=1024)  # a backend by name
    as_backend(my_attention)                 # a function with a stage's contract, without a cache

`Backend`          the contract: `begin` says where a step's tokens stand, `attend` attends in a layer
`Batch`            a step's tokens, whose they are and where they stand: what `begin` returns, or its caller made
`batch_of`         the step of many sequences, their tokens side by side
`padded_batch_of`  the same, a row for each, padded on the left
`Chunk`            the tokens of one sequence in such a step
`Layout`           where the parts of a step lie in the one buffer that is copied to the device
`check_token_ids`  refuses ids that a model does not know, where they enter: inside a step nobody looks
`NoCache`          the tokens of a step are the whole sequence
`ContiguousCache`  K and V of a sequence in one buffer a layer
`PagedCache`       K and V of a sequence in pages, wherever there is room
`BACKENDS`         the backends that have a name
`as_backend`       what `attention=` means: a name, a function or a backend; the one place that decides it
`check_backend`    refuses, in words, what does not keep the contract
`check_batch`      lets a backend refuse a batch that its caller made, before anything is computed
`CacheSpec`        what a model's layers keep of a token: `model.cache_spec()`
`LayerCache`       that of one layer: heads, Dk, Dv, dtype
`Entry`            what a layer keeps besides keys and values
`BlockPool`        who has which block of a paged cache: references, prefix hits, copy on write, the order of reuse
`BlockTable`       the blocks of one sequence
`PrefixHit`        the cached blocks with which a sequence may begin
`Copy`             a block to be copied before a step writes
`PoolStats`        how many blocks are used, free, cached; hits and evictions so far
`OutOfBlocks`      there is no room: preempt somebody
"""

from llmsys.cache.backend import Backend, check_backend, check_batch
from llmsys.cache.batch import Batch, batch_of, padded_batch_of
from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import AnyCopy, BlockTable, Copy, CopyIn, CopyOut, OutOfBlocks, PoolStats, PrefixHit
from llmsys.cache.chunk import Chunk, check_token_ids
from llmsys.cache.contiguous import ContiguousCache
from llmsys.cache.host_pages import HostPages
from llmsys.cache.host_tier import HostStats, HostTier, Offer, TakesBack
from llmsys.cache.layout import Layout
from llmsys.cache.no_cache import NoCache
from llmsys.cache.paged import PagedCache
from llmsys.cache.resolve import BACKENDS, as_backend
from llmsys.cache.spec import CacheSpec, Entry, LayerCache

__all__ = [
    "BACKENDS",
    "AnyCopy",
    "Backend",
    "Batch",
    "BlockPool",
    "BlockTable",
    "CacheSpec",
    "Chunk",
    "ContiguousCache",
    "Copy",
    "CopyIn",
    "CopyOut",
    "Entry",
    "HostPages",
    "HostStats",
    "HostTier",
    "LayerCache",
    "Layout",
    "NoCache",
    "Offer",
    "OutOfBlocks",
    "PagedCache",
    "PoolStats",
    "PrefixHit",
    "TakesBack",
    "as_backend",
    "batch_of",
    "check_backend",
    "check_batch",
    "check_token_ids",
    "padded_batch_of",
]
