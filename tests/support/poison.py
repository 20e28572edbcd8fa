"""Memory that nobody has written, made visible."""

import math

import pytest
import torch


def poison_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`x.new_empty(…)` is full of NaN from now on, so that whoever reads what was never written gets NaN."""
    before = torch.Tensor.new_empty

    def new_empty(x, *size, **options):
        if not x.is_floating_point():  # Triton's interpreter makes some of whole numbers
            return before(x, *size, **options)
        return x.new_full(size[0] if size and not isinstance(size[0], int) else size, math.nan, **options)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
