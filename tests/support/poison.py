"""Memory that nobody has written, made visible."""

import math

import pytest
import torch


def poison_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`x.new_empty(…)` is full of NaN from now on, so that whoever reads what was never written gets NaN."""

    def new_empty(x, *size, **options):
        return x.new_full(size[0] if size and not isinstance(size[0], int) else size, math.nan, **options)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
