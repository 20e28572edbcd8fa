"""A cast to eight bits that is as strict as any version of torch makes it.

e4m3 has no infinity. Of a number above its largest, 448, older versions of torch make NaN in
`x.to(torch.float8_e4m3fn)`, newer ones 448. So an answer that does not clamp is right on one machine and wrong on the
next one. In a block of `strict_cast()` it is wrong everywhere:

    with strict_cast():
        torch.tensor([450.0, 1000.0]).to(torch.float8_e4m3fn)       # 448, NaN
"""

import torch

from llmsys.hardware.dispatch import Observer

ROUNDS_DOWN = 464.0
"""Up to here a number is rounded to 448: halfway to 480, which would be the next, and is NaN."""


class strict_cast(Observer):
    """Context manager: casts to torch.float8_e4m3fn make NaN of what does not round to a number of that format."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        source = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}.get(operator)
        if source is not None and result.dtype is torch.float8_e4m3fn:
            given = args[source]
            if given.dtype is not result.dtype and given.is_floating_point():
                too_large = given.double().abs() > ROUNDS_DOWN
                result.view(torch.uint8).masked_fill_(too_large.expand(result.shape), 0x7F)
        return result
