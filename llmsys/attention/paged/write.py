"""Writing a step's keys and values into pages: what surrounds the kernel."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmsys.attention.flash.tiles import block_of
from llmsys.attention.paged.arguments import check_written
from llmsys.attention.rotary import Rotation
from llmsys.hardware.tier import interpreting


def write_pages(
    k: Float[Tensor, "N Hkv Dk"],
    v: Float[Tensor, "N Hkv Dv"] | None,
    key_pages: Float[Tensor, "blocks P Hkv Dk"],
    value_pages: Float[Tensor, "blocks P Hkv Dv"] | None,
    slot_mapping: Int[Tensor, " N"],
    *,
    q: Float[Tensor, "N Hq Dk"] | None = None,
    turn: Rotation | None = None,
    q_norm: Float[Tensor, " Dk"] | None = None,
    k_norm: Float[Tensor, " Dk"] | None = None,
    eps: float = 1e-6,
    kernel=None,
) -> Float[Tensor, "N Hq Dk"] | None:
    """Write token n's key, turned, and its value into slot slot_mapping[n], nowhere where that is −1. Returns q turned.

    One launch for all of it, whose grid follows from the shapes. A Triton kernel: on a GPU, or in the interpreter.

    Parameters
    ----------
    k, v, q
        Of the step's tokens, side by side. v is None (and value_pages, too) where the values are in the keys; q may be
        None.
    key_pages, value_pages
        Written in place: all tokens' slots are different.
    slot_mapping
        int32. A slot beyond the pages is not noticed.
    turn
        What gives q and k their positions: token n has row n % rows of its cosines. None: they are as they come.
    q_norm, k_norm, eps
        Weights of the norms that q's and k's heads have before they are turned (`llmsys.attention.head_norms`). None:
        that one has none.
    kernel
        In place of `write_kernels.write_pages_kernel`, with its arguments.
    """
    check_written(k, v, key_pages, value_pages, slot_mapping)
    if q is not None and (q.dim() != 3 or q.shape[::2] != k.shape[::2] or q.dtype != k.dtype):
        raise ValueError(
            f"q must be (N, Hq, Dk) in k's dtype, with k's N = {k.shape[0]} and Dk = {k.shape[2]}, got "
            f"{tuple(q.shape)} in {q.dtype}"
        )
    N, Hkv, Dk = k.shape
    R = turn.size if turn else 0
    if Dk < R:
        raise ValueError(f"turn must be for at most the {Dk} elements of a head, got {R}")
    for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
        if norm is not None and (tuple(norm.shape) != (Dk,) or norm.device != k.device):
            raise ValueError(
                f"{name} must be ({Dk},), a number for each element of a head, on {k.device}, got {tuple(norm.shape)} "
                f"on {norm.device}"
            )
    if kernel is None:
        check_device(k)
        from llmsys.attention.paged.write_kernels import write_pages_kernel as kernel  # Triton: not before now
    for name, pages in (("key_pages", key_pages), ("value_pages", value_pages)):
        if pages is not None and pages.stride(3) != 1:
            raise ValueError(f"{name} must have a stride of 1 in the last dimension, got {pages.stride(3)}")
    turned = None if q is None else torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if N == 0:
        return turned
    q, k, v = (x if x is None or x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    cos, sin = (x.reshape(-1, R) for x in (turn.cos, turn.sin)) if turn else (None, None)
    q_norm, k_norm = (x if x is None else x.contiguous() for x in (q_norm, k_norm))
    Hq, Dv = (q.shape[1] if q is not None else 0), (v.shape[2] if v is not None else 0)
    programs, tile_hq, tile_hkv = _heads_of_a_program(Hq, Hkv, Dk)
    with torch.cuda.device_of(k):
        kernel[(N, programs)](
            q, k, v, turned, key_pages, value_pages, slot_mapping, cos, sin, q_norm, k_norm,
            *_strides(q), *k.stride()[:2], *_strides(v), *key_pages.stride()[:3],
            *(value_pages.stride()[:3] if v is not None else (0, 0, 0)),
            *((cos.stride(0), sin.stride(0), cos.shape[0]) if turn else (0, 0, N)), eps,
            HQ=Hq, HKV=Hkv, DK=Dk, DV=Dv, R=R, INTERLEAVED=bool(turn and turn.interleaved), PAGE=key_pages.shape[1],
            TILE_HQ=tile_hq, TILE_HKV=tile_hkv, BLOCK_DK=block_of(Dk), BLOCK_DV=block_of(Dv or 1), num_warps=WARPS,
        )  # fmt: skip
    return turned


ELEMENTS, WARPS = 512, 1
"""Of q, k and v, what a program has about; and its warps. Chosen on an H200: for Qwen3-0.6B (bf16) 3.2 µs for 256
tokens and 44 for 8,192, where 1,024 elements and 4 warps took 3.8 and 65, and a copy of as many bytes 2.0 and 34."""


def _heads_of_a_program(Hq: int, Hkv: int, Dk: int) -> tuple[int, int, int]:
    """How many programs a token has, and how many heads of q and of k each of them has, powers of two."""
    programs = max(1, (Hq + 2 * Hkv) * Dk // ELEMENTS)
    tile_hq, tile_hkv = (_up(-(-heads // programs)) for heads in (Hq, Hkv))
    return max(-(-Hq // tile_hq), -(-Hkv // tile_hkv)), tile_hq, tile_hkv


def check_device(x: Tensor) -> None:
    """Raises ValueError where no Triton kernel can take x, and says what to do."""
    if interpreting():
        if x.dtype == torch.bfloat16:
            raise ValueError("bfloat16 goes wrong in Triton's interpreter: take float32 or float16 here")
        if x.is_cuda:
            raise ValueError("tensors must be on the CPU for Triton's interpreter, got some on a GPU")
    elif not x.is_cuda:
        raise ValueError(
            f"tensors must be on a GPU for the Triton kernels, got {x.device}; or set TRITON_INTERPRET=1 before Triton "
            "is imported, to run the kernels in the interpreter"
        )


def _strides(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else x.stride()[:2]


def _up(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
