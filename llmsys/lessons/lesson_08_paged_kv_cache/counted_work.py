"""What a call of a pool costs, in steps that are counted: the same on every machine, however busy it is.

    with counted(pool) as steps:
        pool.extend(table, 65)
    steps()
    growing(Pool, life, sizes=(60, 2000))       # the calls of a life whose steps grow with the pool

A step is a line of Python that runs, anywhere in the pool's own code, and an element that one of Python's own
functions goes through: `block in free`, `free.remove(block)`, `free.pop(0)` and `min(free)` are a single line, and a
walk along the whole list. To see those, the lists, dicts, sets and deques that the pool keeps are put into the like of
them that count, in place of which nobody can tell them.
"""

import sys
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FunctionType, ModuleType

import numpy as np

from llmsys.cache import BlockTable

_walked = 0  # elements, so far


@contextmanager
def counted(pool: object) -> Iterator[Callable[[], int]]:
    """Count the steps that are done in the block with that pool. What is handed over tells how many they were."""
    global _walked
    _count_containers(pool)
    lines = 0

    def on_line(frame, event, _):
        nonlocal lines
        lines += event == "line"
        return on_line

    def on_call(frame, event, _):
        return None if frame.f_code.co_filename == __file__ else on_line

    before, tracing = _walked, sys.gettrace()
    sys.settrace(on_call)
    try:
        yield lambda: lines + _walked - before
    finally:
        sys.settrace(tracing)


def growing(make: Callable, life: Callable, sizes: tuple[int, int]) -> list[str]:
    """The calls that cost more in the larger pool than in the smaller one, by name; what they cost is printed.

    `life(pool)` prepares a pool, and yields pairs (name, call): each is called and counted. A quarter more, and twenty
    steps more, are not more: where a call meets an empty list or a full one, it may take another branch.
    """
    costs = []
    for size in sizes:
        pool, found = make(size), {}
        for name, call in life(pool):
            with counted(pool) as steps:
                call()
            found[name] = max(found.get(name, 0), steps())
        costs.append(found)
    grown = [name for name, steps in costs[0].items() if costs[1][name] > 1.25 * steps + 20]
    for name in grown:
        few, many = (found[name] for found in costs)
        print(f"{name}: {few:,} steps in a pool of {sizes[0]:,} blocks, {many:,} in one of {sizes[1]:,}")
    return grown


def _walk(elements: int) -> None:
    global _walked
    _walked += elements


# Containers that count


def _counting(kind: type, constant: set[str], costs: dict[str, Callable] | None = None) -> type:
    """A subclass of `kind` whose methods count as many elements as there are, but for those that are `constant`, and
    those that `costs` knows more of."""
    costs = costs or {}
    body = {}
    for name in dir(kind):
        method = getattr(kind, name)
        if name not in constant | _HARMLESS and callable(method):
            body[name] = _method(name, method, costs.get(name, _COMPARED.get(name, lambda self, *given: len(self))))
    body["__iter__"] = _iterating(kind.__iter__)
    if hasattr(kind, "__reversed__"):
        body["__reversed__"] = _iterating(kind.__reversed__)
    if kind in (list, deque):  # which Python asks before it lets a plain one take the elements over
        body["__radd__"] = lambda self, other: _walk(len(self)) or kind.__add__(other, self)
    for name in {"keys", "values", "items"} & set(dir(kind)):
        body[name] = _viewing(getattr(kind, name))
    return type(f"Counted{kind.__name__}", (kind,), body)


def _method(name: str, method: Callable, cost: Callable) -> Callable:
    def counting(self, *given, **options):
        _walk(cost(self, *given))
        return method(self, *given, **options)

    counting.__name__ = name
    return counting


def _iterating(iterate: Callable) -> Callable:
    def iterating(self):
        for each in iterate(self):
            _walk(1)
            yield each

    return iterating


class _View:
    """A dict's keys, values or items."""

    def __init__(self, view, keys: bool):
        self.view, self.keys = view, keys

    def __len__(self):
        return len(self.view)

    def __iter__(self):
        return _iterating(iter)(self.view)

    def __reversed__(self):
        return _iterating(reversed)(self.view)

    def __contains__(self, each):
        _walk(1 if self.keys else len(self.view))
        return each in self.view

    def __getattr__(self, name):  # isdisjoint, mapping
        _walk(len(self.view))
        return getattr(self.view, name)


def _as_a_set(operator: str) -> Callable:
    def combine(self, other):
        _walk(len(self.view))
        return getattr(set(self.view), operator)(set(other))

    return combine


for _name in ("and", "or", "sub", "xor", "rand", "ror", "rsub", "rxor"):
    setattr(_View, f"__{_name}__", _as_a_set(f"__{_name}__"))


def _viewing(view: Callable) -> Callable:
    def viewing(self):
        return _View(view(self), view.__name__ != "values")

    return viewing


def _found(self, value, *bounds) -> int:
    """How far a search in a list goes."""
    return next((n for n, each in enumerate(list.__iter__(self), 1) if each is value or each == value), len(self))


def _behind(self, index=-1, *_) -> int:
    """What moves up where a list loses or gains that element."""
    try:
        return max(len(self) - range(len(self) + 1)[index], 0) if index != -1 else 0
    except (IndexError, TypeError):
        return 0


def _sliced(self, index) -> int:
    return len(range(*index.indices(len(self)))) if isinstance(index, slice) else 0


def _replaced(self, index, *_) -> int:
    return len(self) - index.indices(len(self))[0] if isinstance(index, slice) else 0


def _deleted(self, index) -> int:
    return len(self) if isinstance(index, slice) else _behind(self, index)


def _if_as_long(self, other) -> int:
    return len(self) if hasattr(other, "__len__") and len(other) == len(self) else 0


def _shorter(self, *others) -> int:
    return min([len(self), *(len(each) for each in others if hasattr(each, "__len__"))])


def _ends(self, index, *_) -> int:
    """How far an element of a deque is from its nearer end."""
    at = index if index >= 0 else len(self) + index
    return max(min(at, len(self) - 1 - at), 0)


def _given(self, *others) -> int:
    return sum(len(each) for each in others if hasattr(each, "__len__"))


_HARMLESS = {
    "__new__", "__init__", "__class__", "__getattribute__", "__setattr__", "__delattr__", "__init_subclass__",
    "__subclasshook__", "__class_getitem__", "__len__", "__sizeof__", "__hash__", "__doc__", "__format__", "__dir__",
    "__missing__", "__reduce__", "__reduce_ex__", "__getstate__", "__iter__", "__reversed__", "fromkeys", "__repr__",
    "__str__", "keys", "values", "items",
}  # fmt: skip
_OF_DICTS = {"__getitem__", "__setitem__", "__delitem__", "__contains__", "get", "pop", "popitem", "setdefault",
             "move_to_end"}  # fmt: skip
_SETS = {"__contains__", "add", "discard", "remove", "pop"}
_COMPARED = {"__eq__": _if_as_long, "__ne__": _if_as_long}
_UPDATES = {"update": _given, "__ior__": _given}
_COUNTING = {
    list: _counting(list, {"append"}, {
        "__contains__": _found, "index": _found, "remove": lambda self, value: len(self), "pop": _behind,
        "insert": _behind, "__getitem__": _sliced, "__setitem__": _replaced, "__delitem__": _deleted, "extend": _given,
        "__iadd__": _given,
    }),
    deque: _counting(deque, {"append", "appendleft", "pop", "popleft"}, {
        "extend": _given, "extendleft": _given, "__iadd__": _given, "__getitem__": _ends, "__setitem__": _ends,
        "rotate": lambda self, steps=1: min(abs(steps), len(self)),
    }),
    dict: _counting(dict, _OF_DICTS, _UPDATES),
    OrderedDict: _counting(OrderedDict, _OF_DICTS, _UPDATES),
    defaultdict: _counting(defaultdict, _OF_DICTS, _UPDATES),
    Counter: _counting(Counter, _OF_DICTS, _UPDATES),
    set: _counting(set, _SETS, {
        **dict.fromkeys(("update", "__ior__", "difference_update", "__isub__", "__rsub__", "issuperset"), _given),
        **dict.fromkeys(("__and__", "__rand__", "intersection", "isdisjoint", "__le__", "__lt__", "__ge__", "__gt__"),
                        _shorter),
    }),
    bytearray: _counting(bytearray, {"append"}, {"__getitem__": _sliced, "__setitem__": _replaced, "pop": _behind}),
}  # fmt: skip


class CountedArray(np.ndarray):
    """A view of an array, of which every operation goes through all elements that it is given."""

    def __array_ufunc__(self, function, method, *given, out=None, **options):
        _walk(sum(each.size for each in given if isinstance(each, np.ndarray)))
        if out is not None:
            options["out"] = tuple(_bare(each) for each in out)
        return getattr(function, method)(*(_bare(each) for each in given), **options)

    def __array_function__(self, function, types, given, options):
        _walk(self.size)
        return super().__array_function__(function, types, given, options)


def _bare(x):
    return x.view(np.ndarray) if isinstance(x, np.ndarray) else x


# Putting them in place


def _count_containers(pool: object) -> None:
    """Replace the containers that can be reached from the pool's attributes, those within containers and objects of the
    pool's own, too. What two names mean stays one thing."""
    new: dict[int, object] = {}  # of those that were seen, what takes their place
    old: list[object] = []  # kept, so that an id stays good
    todo: list[Callable[[], None]] = []

    def counting(value: object) -> object:
        if id(value) in new:
            return new[id(value)]
        kind = type(value)
        if kind in _COUNTING:
            replaced = _empty(value)
        elif kind is np.ndarray:
            replaced = value.view(CountedArray)
        else:
            replaced = value
        new[id(value)] = replaced
        old.append(value)
        if kind in _COUNTING:
            todo.append(lambda: _fill(replaced, value, counting))
        elif kind in _COUNTING.values() or _is_of_the_pools_own(value):
            todo.append(lambda: _renew(value, counting))
        return replaced

    counting(pool)
    while todo:  # no recursion: a list may be linked through a thousand objects
        todo.pop()()


def _empty(value):
    kind = _COUNTING[type(value)]
    if type(value) is defaultdict:
        return kind(value.default_factory)
    return kind(maxlen=value.maxlen) if type(value) is deque else kind()


def _fill(replaced, value, counting: Callable) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            type(value).__setitem__(replaced, key, counting(each))
    elif isinstance(value, (set, bytearray)):
        (set.update if isinstance(value, set) else bytearray.extend)(replaced, value)
        if isinstance(value, set):
            for each in value:
                counting(each)
    else:
        type(value).extend(replaced, [counting(each) for each in value])


def _renew(value, counting: Callable) -> None:
    """The same for what is in a container that counts already, or in an object's attributes."""
    if isinstance(value, dict):
        plain = next(kind for kind, other in _COUNTING.items() if type(value) is other)
        for key, each in list(dict.items(value)):
            plain.__setitem__(value, key, counting(each))
    elif isinstance(value, list):
        list.__setitem__(value, slice(None), [counting(each) for each in list.__iter__(value)])
    elif isinstance(value, (set, deque, bytearray)):
        for each in list(next(kind for kind in _COUNTING if isinstance(value, kind)).__iter__(value)):
            counting(each)
    else:
        for name in _attributes(value):
            each = getattr(value, name)
            if (replaced := counting(each)) is not each:
                with suppress(AttributeError):  # that may not be set
                    setattr(value, name, replaced)


def _attributes(value: object) -> list[str]:
    slots = [name for kind in type(value).__mro__ for name in _names(getattr(kind, "__slots__", ()))]
    return [name for name in (*getattr(value, "__dict__", {}), *slots) if hasattr(value, name)]


def _names(slots) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _is_of_the_pools_own(value: object) -> bool:
    """An object with attributes: no number, function or module, and no table, which is as long as its sequence."""
    plain = (type, FunctionType, ModuleType, BlockTable, np.ndarray, array, str, bytes, int, float, tuple, frozenset)
    return not isinstance(value, plain) and value is not None and bool(_attributes(value))
