"""Rooflines: what a device can do at most, and where operations stand below that.

chart       a few operations on the roofline of a device
explorer    the operations of a real model's step on a real device, while its batch or context grows (a stepper)
frame       one frame of the explorer
axes        the axes, the roofs and the dots that both draw
names       finds places for the names of the dots
"""

from llmsys.viz.roofline.chart import chart
from llmsys.viz.roofline.explorer import explorer

__all__ = ["chart", "explorer"]
