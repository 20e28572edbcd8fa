"""Pictures of lesson 03.

overview         what is on the chip, what is not, and what never exists
stepper          tiled attention at work, transfer by transfer
bytes_by_tile    bytes moved against the size of the query tile, predicted and measured
"""

from llmsys.viz.tiled_attention.bytes_by_tile import bytes_by_tile
from llmsys.viz.tiled_attention.overview import overview
from llmsys.viz.tiled_attention.stepper import stepper

__all__ = ["bytes_by_tile", "overview", "stepper"]
