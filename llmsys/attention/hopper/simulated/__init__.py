"""The hopper kernels on a laptop: their own text, run by warps and engines that take turns at random.

    processor    one SM: each warp is a thread, one of which runs at a time, and copies happen early or late
    gluon        what the kernels find in the place of `llmsys.attention.hopper.gluon`: the same names, made of torch
    forward      `simulate`: the whole forward pass
    backward     `simulate_backward`: the whole backward pass

This shows whether a kernel is right: numbers, deadlocks, races. It knows nothing of time. How long an SM takes is
another model, which runs lists of actions and no kernel: `llmsys.hardware.sm`.
"""
