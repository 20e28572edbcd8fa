"""Nothing may wait for the GPU, watched where there is none.

    with nothing_waits():
        model(step.tokens, backend, step)

On a CPU every number is at hand, so nothing would be noticed: this raises at the operators and functions that on a GPU
stop the host until the answer is there. `x.numpy()` is let through, for it is of CPU tensors alone: what needs it of
others fails on torch's meta device, where there are no numbers to read.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

WAITING = {
    aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select, aten.argwhere,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.allclose,
}  # fmt: skip


@contextlib.contextmanager
def nothing_waits() -> Iterator[None]:
    """Raises RuntimeError at what needs a tensor's numbers on the host, and at a copy that the host waits for."""
    with _Operators(), _Functions():
        yield


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        keywords = keywords or {}
        name = operator.overloadpacket
        if name in WAITING or operator is aten.repeat_interleave.Tensor:
            raise RuntimeError(f"{operator} waits for the GPU")
        if name in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and any(
            x.dtype in (torch.bool, torch.uint8) for x in arguments[1] if x is not None
        ):
            raise RuntimeError(f"{operator} by a mask waits for the GPU, to know how many there are")
        if name in (aten.copy_, aten._to_copy) and not (keywords.get("non_blocking") or True in arguments[2:]):
            places = {x.device.type for x in tree_leaves(arguments) if isinstance(x, torch.Tensor)}
            if len(places | {torch.device(keywords.get("device") or arguments[0].device).type}) > 1:
                raise RuntimeError(f"{operator} from one device to another is waited for")
        return operator(*arguments, **keywords)


class _Functions(TorchFunctionMode):
    """Sees what becomes no operator that the other mode sees."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if function is torch.Tensor.tolist:
            raise RuntimeError("tolist waits for the GPU")
        if function in (torch.tensor, torch.as_tensor) and torch.device(keywords.get("device") or "cpu").type != "cpu":
            raise RuntimeError("Python's numbers, made a tensor on another device, are waited for until they are there")
        return function(*arguments, **keywords)
