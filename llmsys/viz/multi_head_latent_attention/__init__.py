"""The pictures of lesson 15, Multi-head latent attention.

overview    what is kept of a token, and the two forms of attention to it
stepper     the products of one decode step, by model, batch and context, on a device's roofline
products    what the stepper shows: shapes, bytes and operations
frame       one frame of it
decode_roofline    the kernels' speed on a GPU, under its roofs, and beside the other forms
decode_sizes       their time by batch, by context and by heads
"""

from llmsys.viz.multi_head_latent_attention.decode_roofline import decode_roofline
from llmsys.viz.multi_head_latent_attention.decode_sizes import decode_sizes
from llmsys.viz.multi_head_latent_attention.overview import overview
from llmsys.viz.multi_head_latent_attention.stepper import stepper

__all__ = ["decode_roofline", "decode_sizes", "overview", "stepper"]
