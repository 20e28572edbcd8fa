"""A memory of a stated size on a machine that has more: every allocation counts, and one too many is refused.

    with Budget(2**30, taken=weights) as budget:
        cache = Rows(attend, spec, rows=11, capacity=1024)
        budget.taken

A CPU's system hands out memory that it may not have, and a laptop that fills up swaps for minutes before anything
fails. A GPU refuses at once, and says how much it was asked for. So does this.
"""

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from llmsys.hardware.dispatch import Observer, is_view, tensors_in


class OutOfBudget(MemoryError):
    """An operation allocated more than is left. The message says how much."""


class Budget(Observer):
    """Context manager: tensors that operations in the block make may have, while they are alive, `size` bytes together
    with the `taken` ones that were there before. `taken` then grows and shrinks with them.

    What is alive when the block ends is not counted any more. Raises OutOfBudget in the operation that is too much, and
    ValueError at once where what was there before is.
    """

    def __init__(self, size: int, *, taken: int = 0):
        if not 0 <= taken <= size:
            raise ValueError(f"taken must be from 0 to the budget's {size:,} bytes, got {taken:,}")
        super().__init__()
        self.size, self.before = size, taken
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def taken(self) -> int:
        """Bytes in use."""
        for key in [key for key, (memory, _) in self._alive.items() if memory.expired()]:
            del self._alive[key]
        return self.before + sum(size for _, size in self._alive.values())

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tensors_in((args, kwargs))}
        result = operator(*args, **(kwargs or {}))
        if not is_view(operator):
            for x in tensors_in(result):
                if x.untyped_storage()._cdata not in given:
                    self._made(x.untyped_storage())
        return result

    def _made(self, storage: torch.UntypedStorage) -> None:
        taken = self.taken
        if storage._cdata in self._alive:
            return
        if taken + storage.nbytes() > self.size:
            raise OutOfBudget(
                f"tried to allocate {storage.nbytes():,} bytes, and {self.size - taken:,} of {self.size:,} are left"
            )
        self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
