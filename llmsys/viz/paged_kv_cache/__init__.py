"""Pictures of lesson 08.

overview         three sequences in rows, and five in blocks of the same memory, with their tables
fragmentation    what the slots of a cache are used for, by how the memory is divided
stepper          a pool, its tables and reference counts, as a small chat service runs on it
chat             the chat service, and the moments that it makes of a pool
pool_frame       one moment as a picture
busy             who walks over which keys, and for how long: a step's programs on the multiprocessors
decode_speed     each kernel's share of a copy's speed, and what small pages cost
"""

from llmsys.viz.paged_kv_cache.busy import busy
from llmsys.viz.paged_kv_cache.decode_speed import decode_speed
from llmsys.viz.paged_kv_cache.fragmentation import fragmentation
from llmsys.viz.paged_kv_cache.overview import overview
from llmsys.viz.paged_kv_cache.stepper import stepper

__all__ = ["busy", "decode_speed", "fragmentation", "overview", "stepper"]
