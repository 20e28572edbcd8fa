"""Pictures of lesson 05.

overview    what the forward pass keeps for the backward pass, and what is made again
stepper     the tiled backward pass, pair of tiles by pair of tiles
"""

from llmsys.viz.backward_pass.overview import overview
from llmsys.viz.backward_pass.stepper import stepper

__all__ = ["overview", "stepper"]
