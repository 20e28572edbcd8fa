"""MLA decode on one GPU, the H100 (and H200), in Gluon. The chapter, in the order in which to read it:

    kernel      the roles of the warps, who copies, and what lies where
    line        which keys are whose: a line of all of them, cut into equal runs
    ring        tiles of latents, put together from pages, and what is noted on them
    consumers   the scores' warpgroup, and the two that accumulate
    decode      which steps are taken; descriptors, and the launch
    simulated   the same kernel on a laptop

`llmsys.attention.hopper` explains what it builds on: rings and barriers, roles, descriptors;
`llmsys.attention.paged.hopper` the line, and pages.
"""

from llmsys.attention.latent.hopper.decode import hopper_latent_decode, hopper_takes

__all__ = ["hopper_latent_decode", "hopper_takes"]
