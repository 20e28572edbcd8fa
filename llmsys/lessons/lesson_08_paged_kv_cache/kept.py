"""How much a pool keeps: what grows with every call, though nothing is in use any more, is a leak."""

from collections import deque
from collections.abc import Iterator
from types import FunctionType, ModuleType


def kept(pool: object) -> int:
    """How many elements are in the containers that can be reached from the pool's attributes."""
    seen: set[int] = set()
    todo, elements = [pool], 0
    while todo:  # no recursion: a list may be linked through a thousand objects
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            elements += len(value)
            todo += [*value, *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            elements += len(value)
            todo += value
        elif not isinstance(value, (type, FunctionType, ModuleType)):
            todo += _attributes(value)
    return elements


def _attributes(value: object) -> Iterator[object]:
    yield from getattr(value, "__dict__", {}).values()
    for kind in type(value).__mro__:
        slots = getattr(kind, "__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield getattr(value, name)
