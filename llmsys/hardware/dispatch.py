"""Watching torch's operations: every one of them goes through the dispatcher, in Python or hidden in C++.

An `Observer` is a mode whose `__torch_dispatch__(operator, types, args, kwargs)` is called for each operation in its
block. The functions below answer what `llmsys.hardware.meters` and `llmsys.hardware.memory` ask of an operator (an
`OpOverload` such as `torch.ops.aten.add.Tensor`) and of its arguments.
"""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Observer(TorchDispatchMode):
    """A dispatch mode for instruments: they watch operations and leave their results as they are."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would keep torch's compiler out of `__torch_dispatch__` by importing it, at the first operation seen.
        # That takes two seconds; and it imports Triton, in a mode that `load_triton` could no longer change.
        return False


def tensors_in(value) -> list[Tensor]:
    """The tensors in an operator's arguments or results, which may be tuples, lists and dicts of them."""
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def storage_id(x: Tensor) -> int:
    """A number that x's memory has as long as it is alive: views of one tensor have the same."""
    return x.untyped_storage()._cdata


def is_view(operator) -> bool:
    """Whether the operator's result is a view of an argument, for which no element is read."""
    # In its schema, a view's result aliases an argument and does not write to it: "Tensor(a) self -> Tensor(a)".
    return any(r.alias_info is not None and not r.alias_info.is_write for r in operator._schema.returns)


def only_takes_the_shape(operator) -> bool:
    """Whether the operator takes no more of its argument than shape and dtype: `zeros_like`, `new_empty` and others."""
    name = operator._schema.name.removeprefix("aten::")
    return name.startswith("new_") or name.endswith("_like")


def overwritten(operator) -> set[str]:
    """Names of the arguments that the operator writes to and does not read: out=, and self of copy_, fill_, zero_."""
    name = operator._schema.name.removeprefix("aten::")
    overwrites = name in ("copy_", "fill_", "zero_", "normal_", "uniform_", "random_")
    return {
        argument.name
        for argument in operator._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write and (overwrites or argument.is_out)
    }
