"""Decoding over pages on one GPU, the H100 (and H200), in Gluon. The chapter, in the order in which to read it:

    kernel      the roles of the warps, the producer, and what lies where
    line        which keys are whose: a line of all of them, cut into equal runs
    ring        tiles of keys and values, put together from pages
    consumer    products and softmax, transposed
    parts       heads that several programs share
    decode      which steps are taken; descriptors, and the launch
    counters    what says who is last
    simulated   the same kernel on a laptop

`llmsys.attention.hopper` explains what it builds on: rings and barriers, roles, descriptors.
"""

from llmsys.attention.paged.hopper.decode import DecodeTiles, decode_tiles, hopper_decode, hopper_takes

__all__ = ["DecodeTiles", "decode_tiles", "hopper_decode", "hopper_takes"]
