"""Wrong answers to the exercises of lesson 15, as people write them. One module an exercise."""

from llmsys.lessons.lesson_15_multi_head_latent_attention.mistakes import absorb, expand, keep

__all__ = ["absorb", "expand", "keep"]
