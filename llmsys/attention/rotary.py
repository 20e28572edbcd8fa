"""Rotary positions: pairs of q and k are turned by an angle that grows with the token's position.

Turn pair i of a query at position m and of a key at position n by mθᵢ and nθᵢ: their product then depends on m − n
alone, so attention sees how far apart two tokens are, and nothing is learnt for it. The first pairs turn fast and tell
near tokens apart, the last ones slowly, and tell far ones (https://arxiv.org/abs/2104.09864).

Who makes the angles and who applies them are two: a model knows its frequencies and makes a `Rotation` once a step; the
backend that attends applies it (`llmsys.cache.backend`), because one that writes keys into a cache can turn them on
the way. `rotate` is the plain way to apply it, and what such a kernel must equal.

Which two elements are a pair is a habit of the checkpoint. Llama's halves: element i and i + R/2. DeepSeek's, and the
paper's, are neighbours: 2i and 2i + 1 (`interleaved`). Both give the same attention if weights are permuted along.
"""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """By which angles a step's q and k are turned.

    The last R elements of each head turn and those before stay: in Llama all do (R = D), in latent attention those
    that were made for the position.
    """

    cos: Float[Tensor, "*B T R"]
    """(T, R), or (B, 1, T, R) where the rows of a batch stand at different positions; element j has its pair's."""
    sin: Float[Tensor, "*B T R"]
    interleaved: bool = False
    """Pairs are (2i, 2i + 1), not (i, i + R/2)."""

    @property
    def size(self) -> int:
        """R, how many elements of a head turn."""
        return self.cos.shape[-1]


def rotation(
    positions: Int[Tensor, "*B T"],
    size: int,
    *,
    base: float = 10_000.0,
    divisors: tuple[float, ...] | None = None,
    interleaved: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Rotation:
    """The rotation of tokens at `positions`, (T,) or (B, T): pair i turns by position · base^(−2i/R) / divisors[i].

    Parameters
    ----------
    size
        R, how many elements of a head turn; even.
    divisors
        One a pair, by which it turns more slowly, for a context longer than the one first trained on.
    dtype
        Of the cosines and sines: q's. The angles are computed in fp32.

    Raises
    ------
    ValueError
        `size` is odd or below 2, or `divisors` are not one a pair.
    """
    if size < 2 or size % 2:
        raise ValueError(f"size must be even and at least 2 (rotary positions turn pairs), got {size}")
    if divisors is not None and len(divisors) != size // 2:
        raise ValueError(f"divisors must be one a pair, {size // 2} in all, got {len(divisors)}")
    frequency = frequencies(size, base, divisors, positions.device)  # (R / 2,)
    angle = positions[..., None].float() * frequency  # (…, T, R / 2)
    angle = angle.repeat_interleave(2, dim=-1) if interleaved else torch.cat((angle, angle), dim=-1)
    if positions.dim() == 2:
        angle = angle[:, None]  # the heads' dimension
    return Rotation(angle.cos().to(dtype), angle.sin().to(dtype), interleaved)


def frequencies(
    size: int, base: float, divisors: tuple[float, ...] | None, device: torch.device
) -> Float[Tensor, " half"]:
    """By which angle each of the R / 2 pairs turns from one position to the next: base^(−2i/R) / divisors[i], fp32."""
    exponent = torch.arange(0, size, 2, device=device, dtype=torch.float32) / size
    frequency = 1.0 / base**exponent
    return frequency if divisors is None else frequency / _on_device(divisors, device)


def _on_device(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """fp32, copied there once: the host waits until such a copy has arrived, which nothing in a step may do."""
    if torch.compiler.is_compiling():
        return torch.tensor(numbers, device=device)
    return _copied(numbers, device)


@functools.lru_cache(maxsize=64)
def _copied(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # whoever asked first: it shall be a tensor like any other
        return torch.tensor(numbers, device=device)


def rotate(x: Float[Tensor, "B H T D"], turn: Rotation | None) -> Float[Tensor, "B H T D"]:
    """x with the last R elements of each head turned; `turn=None` is x itself. ValueError where R is more than D."""
    if turn is None:
        return x
    D, R = x.shape[-1], turn.size
    if R > D:
        raise ValueError(f"turn must be for at most the {D} elements of a head, got {R}")
    if R < D:
        still, turning = x.split((D - R, R), dim=-1)
        return torch.cat((still, rotate(turning, turn)), dim=-1)
    if turn.interleaved:
        partner = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    else:
        first, second = x.chunk(2, dim=-1)
        partner = torch.cat((-second, first), dim=-1)
    return x * turn.cos + partner * turn.sin
