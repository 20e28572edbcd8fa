"""The pictures of lesson 14, Mixture of experts.

overview    what will be built, at one glance
stepper     the sum grows, a tile at a time
"""

from llmsys.viz.mixture_of_experts.overview import overview
from llmsys.viz.mixture_of_experts.stepper import stepper

__all__ = ["overview", "stepper"]
