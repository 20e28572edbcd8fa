"""Multi-head latent attention: of a token one latent is kept, from which the keys and values of all heads follow. The
chapter, in the order in which to read it:

    forms         what is computed, in two equal forms: expand the latent, or absorb the expansion into the query
    paged         the absorbed form over pages of latents, as a model's cache asks for it
    decode        the same, of latents alone: what surrounds the kernels
    kernels       the kernel in Triton: each latent is read once, and is key and value
    merge_kernel  how parts are added up, of this kernel and of the next
    hopper/       the kernel for an H100 or H200, in Gluon
"""

from llmsys.attention.latent.decode import LARGEST_LATENT, LARGEST_ROPE, latent_decode
from llmsys.attention.latent.forms import (
    absorb_queries,
    absorbed_latent_attention,
    expand_latent,
    expand_outputs,
    naive_latent_attention,
)
from llmsys.attention.latent.paged import paged_latent_attention

__all__ = [
    "LARGEST_LATENT",
    "LARGEST_ROPE",
    "absorb_queries",
    "absorbed_latent_attention",
    "expand_latent",
    "expand_outputs",
    "latent_decode",
    "naive_latent_attention",
    "paged_latent_attention",
]
