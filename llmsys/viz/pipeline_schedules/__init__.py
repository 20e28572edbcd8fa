"""The pictures of lesson 20, Pipeline schedules.

overview    what will be built, at one glance
stepper     the sum grows, a tile at a time
"""

from llmsys.viz.pipeline_schedules.overview import overview
from llmsys.viz.pipeline_schedules.stepper import stepper

__all__ = ["overview", "stepper"]
