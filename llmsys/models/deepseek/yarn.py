"""YaRN: rotary positions for a context longer than the one first trained on (https://arxiv.org/abs/2309.00071).

A pair that turned often within the old context tells near tokens apart, and is left as it is. One that never completed
a turn would meet angles that it has not seen, so all its angles are divided by `factor`. Between the two the share of
the division grows evenly from pair to pair. And because attention over more tokens is flatter, scores are made larger:
by the paper's rule, queries and keys each by 0.1 · ln(factor) + 1.

DeepSeek splits that in two. What `mscale` says is multiplied into the cosines and sines, and so reaches only the
columns that turn; what `mscale_all_dim` says is divided out there again, and multiplied into the softmax's scale, where
it reaches all columns. With both the same, as in V2 and V3, only the scale is left.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Yarn:
    """How a context is stretched. Raises ValueError for numbers that stretch nothing."""

    factor: float
    old_context: int  #             tokens of the context first trained on
    beta_fast: float = 32.0  #      turns within it above which a pair is left alone,
    beta_slow: float = 1.0  #       and below which its angles are divided by all of `factor`
    mscale: float = 0.0  #          0 says, of both, that nothing is said
    mscale_all_dim: float = 0.0

    def __post_init__(self):
        if not self.factor >= 1 or self.old_context < 1:
            raise ValueError(f"factor and old_context must be at least 1, got {self.factor} and {self.old_context}")
        if not 0 < self.beta_slow < self.beta_fast:
            raise ValueError(f"beta_fast must be above beta_slow, and both above 0, got {self.beta_fast} and "
                             f"{self.beta_slow}")  # fmt: skip
        if self.mscale < 0 or self.mscale_all_dim < 0:
            raise ValueError(f"mscale and mscale_all_dim must be at least 0, got {self.mscale} and "
                             f"{self.mscale_all_dim}")  # fmt: skip

    def divisors(self, size: int, base: float) -> tuple[float, ...]:
        """By what each of the size / 2 pairs' angles is divided, as `llmsys.attention.rotary.rotation` wants it."""
        first = max(math.floor(self._pair_that_turns(self.beta_fast, size, base)), 0)
        last = min(math.ceil(self._pair_that_turns(self.beta_slow, size, base)), size - 1)
        span = last - first or 0.001  # one pair alone is the border: a step
        shares = (min(max((i - first) / span, 0.0), 1.0) for i in range(size // 2))
        return tuple(1 / (1 - share + share / self.factor) for share in shares)

    def _pair_that_turns(self, turns: float, size: int, base: float) -> float:
        """The number i, a fraction, of the pair that turns so often in the old context: base^(−2i/size) a token."""
        return size * math.log(self.old_context / (2 * math.pi * turns)) / (2 * math.log(base))

    @property
    def of_turning(self) -> float:
        """By what cosines and sines are multiplied."""
        if self.mscale and self.mscale_all_dim:
            return self._magnitude(self.mscale) / self._magnitude(self.mscale_all_dim)
        return self._magnitude(1.0)

    @property
    def of_scale(self) -> float:
        """By what the softmax's scale is multiplied."""
        return self._magnitude(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _magnitude(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0
