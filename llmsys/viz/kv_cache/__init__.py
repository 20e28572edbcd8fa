"""Pictures of lesson 07.

overview            what a token computes without a cache and with one; prefill and decode
stepper             a decode step on the roofline, and in memory, as batch and context grow
step_frame          one frame of it
memory_map          what lies in memory and what a step reads of it, as areas
step_cost           what a decode step reads and computes, from the library's costs
causal_alignment    which keys each query sees: bottom-right and top-left
bytes_per_token     how much of the cache a token takes in named models
decode_time         time a token against batch: measured, and by the roofline
"""

from llmsys.viz.kv_cache.bytes_per_token import bytes_per_token
from llmsys.viz.kv_cache.causal_alignment import causal_alignment
from llmsys.viz.kv_cache.decode_time import decode_time
from llmsys.viz.kv_cache.overview import overview
from llmsys.viz.kv_cache.stepper import stepper

__all__ = ["bytes_per_token", "causal_alignment", "decode_time", "overview", "stepper"]
