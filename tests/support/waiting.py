"""Nothing may wait for the GPU, watched where there is none.

    with nothing_waits():
        model(step.tokens, backend, step)

On a CPU every number is at hand, so nothing would be noticed: this mode raises at the operators that on a GPU stop the
host until the answer is there. What reads a CPU tensor's memory without an operator (`.tolist()`, `.numpy()`) it cannot
see; a step on torch's meta device, where there are no numbers to read, shows those.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

WAITING = {
    aten._local_scalar_dense, aten.item, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select, aten.argwhere,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.allclose,
}  # fmt: skip


class nothing_waits(TorchDispatchMode):
    """Raises RuntimeError at what needs a tensor's numbers on the host, or a copy that the host waits for."""

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        keywords = keywords or {}
        name = operator.overloadpacket
        tensors = [x for x in torch.utils._pytree.tree_leaves((arguments, keywords)) if isinstance(x, torch.Tensor)]
        if name in WAITING or operator is aten.repeat_interleave.Tensor:
            raise RuntimeError(f"{operator} waits for the GPU")
        if name in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and any(
            x.dtype in (torch.bool, torch.uint8) for x in arguments[1] if x is not None
        ):
            raise RuntimeError(f"{operator} by a mask waits for the GPU, to know how many there are")
        if name in (aten.copy_, aten._to_copy) and not (keywords.get("non_blocking") or True in arguments[2:]):
            places = {x.device.type for x in tensors} | {torch.device(keywords.get("device") or tensors[0].device).type}
            if len(places) > 1:
                raise RuntimeError(f"{operator} from one device to another is waited for")
        return operator(*arguments, **keywords)
