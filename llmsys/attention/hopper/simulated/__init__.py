"""The hopper kernels on a laptop: their own text, run by warps and engines that take turns at random.

    processor    one SM: warps as threads, of which one runs at a time, and copies that happen early or late
    engines      what the kernels find in place of Gluon: its words, made of torch
    forward      the forward kernel, whole
    backward     the backward kernels, whole
"""
