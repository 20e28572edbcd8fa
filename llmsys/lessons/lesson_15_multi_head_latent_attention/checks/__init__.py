"""The checks of lesson 15, multi-head latent attention. One module an exercise; importing this registers all."""

from llmsys.lessons.lesson_15_multi_head_latent_attention.checks import absorb, expand, keep

__all__ = ["absorb", "expand", "keep"]
