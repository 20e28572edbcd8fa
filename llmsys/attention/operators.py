"""A kernel's gradients, for both ways in which it is called: as an operator of torch, and directly.

An operator (`torch.library.custom_op`) is what `torch.compile` takes as it is, but a call of it costs the host much
more time than the launch of the kernel. So where torch does not trace (`llmsys.attention.contract.needs_operator`), the
kernel is launched by an ordinary function of autograd, which keeps the same tensors and has the same gradients.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def with_gradients(
    operator: torch.library.CustomOpDef,
    launch: Callable[..., tuple[Tensor, Tensor]],
    gradients: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Give an operator its gradients. Returns `launch` with the same gradients, for calls that torch does not trace.

    operator, launch    q, k, v, and options that have no gradient -> o and lse
    gradients           q, k, v, o, lse, do, dlse (None where lse was not used), and the options -> dq, dk and dv
    """

    def keep(ctx, inputs, output) -> None:
        q, k, v, *ctx.options = inputs
        ctx.save_for_backward(q, k, v, *output)
        ctx.set_materialize_grads(False)  # None, and not zeros, for a result that is not used

    def backward(ctx, do, dlse):
        q, k, v, o, lse = ctx.saved_tensors
        if do is None:  # only lse is used
            do = torch.zeros_like(o)
        found = gradients(q, k, v, o, lse, do, dlse, *ctx.options)
        return *found, *[None] * len(ctx.options)

    operator.register_autograd(backward, setup_context=keep)

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            output = launch(*arguments)
            keep(ctx, arguments, output)
            return output

    Differentiable.backward = staticmethod(once_differentiable(backward))
    return Differentiable.apply
