"""Where the exponential leaves a format: the picture agrees with the format's own arithmetic."""

import math

import pytest
import torch

from llmsys.viz.online_softmax import exp_overflow


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_exponential_ends_where_the_picture_says(dtype):
    name = str(dtype).removeprefix("torch.")
    alt = exp_overflow([dtype]).alt
    low, high = (float(alt.split(f"{part} x = ")[1].split()[0].strip(".;")) for part in ("from", "to"))
    # The exponential of the format's own neighbours of those x, to the precision in which they are printed
    step = 0.02 + 2 * torch.finfo(dtype).eps * abs(torch.tensor([low, high]))
    inside = torch.tensor([low + step[0], high - step[1]]).double().exp().to(dtype)
    outside = torch.tensor([low - step[0], high + step[1]]).double().exp().to(dtype)
    assert (inside > 0).all() and inside.isfinite().all(), name
    assert outside[0] == 0 and outside[1] == math.inf, name


def test_the_x_of_each_overflow_is_written_in_the_picture(words):
    picture = exp_overflow()
    assert "11.09" in words(picture) and "88.72" in words(picture)
    assert "float16 holds e^x" in picture.alt
