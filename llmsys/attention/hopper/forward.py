"""Stage 5, hopper: FlashAttention's forward written for one GPU, the H100 (and H200), in Gluon.

`flash` is the same algorithm for any GPU: its warps load a tile, multiply, and compute exponentials, one after another,
and an H100's tensor cores are busy for half of the time. Here, copies, products and exponentials overlap. The chapter,
in the order in which to read it:

    ring           how warps wait for each other: rings of tiles, barriers and their phases, turns
    kernels        the roles of the warps, the producer, and a grid with one program an SM
    consumer       the consumer: products and softmax at the same time
    schedule       which program computes which tile, made on the host
    descriptors    what the copy engine must know of a tensor
    gluon          the language, and the one difference between versions of Triton
    simulated/     the same kernel on a laptop: warps take turns at random, and deadlocks and races are named
    fresh_modules  the kernel's modules loaded anew, over a simulated Gluon or with another function in them

This file checks the arguments and launches the kernel; what the kernel cannot do is refused, with the stage that can.
Heads have 64 or 128 elements, the same number in keys and values: tiles, registers and the slots of the rings are sized
for these two. Heads of 96, 192 or 256, and values of another width than keys (192 and 128 in latent attention), are
refused: stage flash takes any up to 256, and `attention="auto"` goes there by itself, or to torch's own above 128.

TFLOP/s and, in brackets, the ratio to cuDNN, timed in turns with it on an H100 80GB HBM3 (16k tokens in all, 2048 wide,
bf16; torch 2.11.0+cu130, triton 3.6.0, 2026-11-28; `llmsys.bench.recorded("attention")`):

    T               1k            4k            16k
    D 64   full     434 (1.00)    537 (1.12)    570 (1.20)
    D 64   causal   290 (0.88)    448 (1.02)    511 (1.09)
    D 128  full     608 (1.03)    695 (1.03)    700 (1.05)
    D 128  causal   422 (1.00)    615 (1.08)    678 (1.08)

What limits it, by `recorded("attention_counters")`: at D 128, full, 16k, the tensor cores are active for 80% of the
time (cuDNN's kernel: 75%), and the GPU is at its 700 W, which lowers its clock to 1.7 GHz. At 1k, a tile of queries
meets 8 tiles of keys at most, and its first scores, first softmax and last product, which overlap with nothing of the
same consumer, weigh the most: 69%. At D 64 a score takes half as many products and still an exponential: that unit is
as busy as the tensor cores, 62% and 60% at 16k, and neither is full. Causal at 1k and D 64 is where cuDNN is ahead
(tensor cores 40%, ours 34%): masks keep the units for integers and comparisons busy for 34% of the time (cuDNN's: 25%;
unmasked: 22%).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from llmsys.attention.contract import check_arguments, needs_gradient, needs_operator
from llmsys.attention.flash.tiles import LOG2_E
from llmsys.attention.hopper.backward import backward, hopper_backward
from llmsys.attention.hopper.descriptors import descriptor
from llmsys.attention.hopper.schedule import ROWS, HopperTiles, hopper_schedule, hopper_tiles
from llmsys.attention.operators import with_gradients
from llmsys.hardware.tier import interpreting

HEADS = (64, 128)


def hopper_attention(
    q: Float[Tensor, "B Hq Tq D"],
    k: Float[Tensor, "B Hkv Tk D"],
    v: Float[Tensor, "B Hkv Tk D"],
    *,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
) -> Float[Tensor, "B Hq Tq D"] | tuple[Float[Tensor, "B Hq Tq D"], Float[Tensor, "B Hq Tq"]]:
    """FlashAttention on a Hopper GPU. The contract is `llmsys.attention.contract`'s, for float16 and bfloat16, with
    heads of 64 or 128, the same size for keys and values. Its gradients are computed by `hopper.backward`.

    Raises
    ------
    ValueError
        An argument breaks the contract, or is not one that this stage takes (heads of 96, 192 or 256, values of another
        width than keys, float32); the message names it, and `flash`, which takes it.
    RuntimeError
        This GPU is no Hopper (compute capability 9.0).
    """
    scale = check_arguments(q, k, v, scale=scale)
    _check_supported(q, v)
    if needs_operator(q, k, v):
        o, lse = hopper_forward(q, k, v, causal, scale)
    else:
        o, lse = (differentiable if needs_gradient(q, k, v) else launch)(q, k, v, causal, scale)
    return (o, lse) if return_lse else o


@torch.library.custom_op("llmsys::hopper_forward", mutates_args=())
def hopper_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """The operator: o (B, Hq, Tq, D) in q's dtype and lse (B, Hq, Tq) in fp32. Arguments have been checked."""
    return launch(q, k, v, causal, scale)


@hopper_forward.register_fake
def _(q, k, v, causal, scale):
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


def launch(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float,
    kernel: Callable | None = None, tiles: HopperTiles | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the kernel, or another with its arguments, and return o and lse as `hopper_forward` does.

    There is one program for each SM, or for each tile of queries where there are fewer. Arguments have been checked.
    """
    if kernel is None:
        from llmsys.attention.hopper.kernels import hopper_forward_kernel as kernel  # Triton: not before now

    B, Hq, Tq, D = q.shape
    Hkv, Tk = k.shape[1:3]
    o, lse = q.new_empty(B, Hq, Tq, D), q.new_empty(B, Hq, Tq, dtype=torch.float32)
    if Tk == 0:
        return o.zero_(), lse.fill_(float("-inf"))
    if o.numel() == 0:
        return o, lse
    tiles = tiles or hopper_tiles(D, Tq, causal)
    programs = min(B * Hq * -(-Tq // tiles.block_m), torch.cuda.get_device_properties(q.device).multi_processor_count)
    schedule = hopper_schedule(B, Hq, Hkv, Tq, Tk, D, causal, tiles, programs, q.device)
    with torch.cuda.device_of(q):
        kernel[(programs,)](
            descriptor(q, ROWS), descriptor(k, tiles.block_n), descriptor(v, tiles.block_n), descriptor(o, ROWS),
            lse, schedule, Hq, Hq // Hkv, Tq, Tk, scale * LOG2_E,
            CAUSAL=causal, CONSUMERS=tiles.consumers, SLOTS=tiles.slots,
            CONSUMER_REGISTERS=tiles.consumer_registers, PRODUCER_REGISTERS=tiles.producer_registers, num_warps=4,
        )  # fmt: skip
    return o, lse


def _gradients(q, k, v, o, lse, do, dlse, causal, scale):
    run = hopper_backward if needs_operator(q, do) else backward
    exact = torch.are_deterministic_algorithms_enabled()
    return run(q, k, v, o, lse, do, dlse, causal, scale, exact)


differentiable = with_gradients(hopper_forward, launch, _gradients)


def _check_supported(q: Tensor, v: Tensor) -> None:
    D = q.shape[3]
    if D not in HEADS:
        raise ValueError(f"q must have heads of 64 or 128 for stage hopper, got {D}; stage flash takes any up to 256")
    if v.shape[3] != D:
        raise ValueError(f"v must have q's head size, {D}, for stage hopper, got {v.shape[3]}; stage flash takes both")
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"q must be float16 or bfloat16 for stage hopper, got {q.dtype}; stage flash takes float32, too"
        )
    check_gpu(q)


def check_gpu(q: Tensor) -> None:
    """Raises ValueError if q is not on a GPU, RuntimeError if that is no Hopper GPU or Triton does not compile."""
    if not q.is_cuda:
        raise ValueError(
            f"q must be on a Hopper GPU for stage hopper, got {q.device}; q.cuda(), or stage flash or tiled"
        )
    if (capability := torch.cuda.get_device_capability(q.device)) != (9, 0):
        raise RuntimeError(
            "stage hopper needs a GPU of compute capability 9.0 (H100, H200), and "
            f"{torch.cuda.get_device_name(q.device)} has {capability[0]}.{capability[1]}; use stage flash"
        )
    if interpreting():
        raise RuntimeError(
            "stage hopper does not run in Triton's interpreter; unset TRITON_INTERPRET, or use stage flash"
        )
