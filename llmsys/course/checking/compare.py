"""Plain data: what goes into a learner's function and comes out, how it is compared, and how it is shown.

A check believes nothing that an object says about itself, since a class may answer `True` to every comparison. So
arguments and results are **plain data** only: tensors of exactly the type `torch.Tensor`, numbers, bools, strings,
None, and tuples, lists and dicts of these. `plain` makes such a copy or refuses; `compare` then looks at types, shapes
and dtypes before values, knows NaN and infinity, and says where the first difference is.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TOLERANCES = {  # (relative, absolute): room for another order of summation, not for another formula
    torch.float64: (1e-7, 1e-9),
    torch.float32: (2e-5, 2e-6),
    torch.bfloat16: (2e-2, 2e-3),
    torch.float16: (2e-3, 2e-4),
}
_LEAVES = (bool, int, float, str, type(None))


class NotPlain(TypeError):
    """A value that is not plain data. The message says what it was and what to return instead."""


def plain(value, where: str = ""):
    """A copy of `value` in plain data: tensors detached, contiguous and on the CPU; named tuples become tuples.

    Raises
    ------
    NotPlain
        Something in it is of another type, be it a subclass of an allowed one.
    """
    kind = type(value)
    if kind is Tensor:
        if value.layout is not torch.strided or value.device.type == "meta":
            raise NotPlain(f"{where or 'the result'} is a {value.layout} tensor on {value.device}: return a dense one")
        if value.is_nested or value.is_quantized:
            kind = "nested" if value.is_nested else "quantized"
            raise NotPlain(f"{where or 'the result'} is a {kind} tensor: return an ordinary one")
        return value.detach().to("cpu").resolve_conj().resolve_neg().contiguous().clone()
    if kind in _LEAVES:
        return value
    if isinstance(value, tuple):
        return tuple(plain(x, f"{where}[{i}]") for i, x in enumerate(tuple.__iter__(value)))
    if kind is list:
        return [plain(x, f"{where}[{i}]") for i, x in enumerate(value)]
    if kind is dict:
        return {plain(k, f"a key of {where}"): plain(x, f"{where}[{k!r}]") for k, x in value.items()}
    raise NotPlain(f"{where or 'the result'} is of type {_type_name(kind)}: {_remedy(value)}")


def copy_arguments(value):
    """A copy of plain data that shares no memory with it; every tensor keeps its strides, offset and device."""
    if type(value) is Tensor:
        storage = value.detach().untyped_storage().clone()
        copy = torch.empty(0, dtype=value.dtype, device=value.device)
        copy.set_(storage, value.storage_offset(), value.shape, value.stride())
        return copy.requires_grad_(value.requires_grad)
    if isinstance(value, tuple):
        return tuple(copy_arguments(x) for x in value)
    if type(value) is list:
        return [copy_arguments(x) for x in value]
    if type(value) is dict:
        return {key: copy_arguments(x) for key, x in value.items()}
    if type(value) in _LEAVES:
        return value
    raise NotPlain(f"a check may only pass plain data, got {_type_name(type(value))}")


def unchanged(before, after) -> bool:
    """Whether an argument is what it was: the same shape, strides and elements (NaN equals NaN), all the way down."""
    if type(before) is Tensor:
        if type(after) is not Tensor or before.shape != after.shape or before.stride() != after.stride():
            return False
        return before.dtype == after.dtype and bool(_same_elements(before.detach(), after.detach()).all())
    if isinstance(before, (tuple, list)):
        return type(before) is type(after) and len(before) == len(after) and all(map(unchanged, before, after))
    if isinstance(before, dict):
        same_keys = type(after) is dict and list(before) == list(after)
        return same_keys and all(unchanged(before[key], after[key]) for key in before)
    return type(before) is type(after) and (before == after or before != before)


@dataclass(frozen=True)
class Difference:
    """Why two values are not the same: one sentence, and what each of them was."""

    message: str
    got: str
    expected: str


def compare(
    got, expected, *, rtol: float | None = None, atol: float | None = None, values: bool = True
) -> Difference | None:
    """None where `got` is `expected` up to tolerance, otherwise the first difference. Both are plain data.

    Tensors must agree in shape and dtype. `rtol` and `atol` default to what suits the expected dtype (`TOLERANCES`).
    A tuple may be a list, and a float may be an int; a number is never a tensor, nor a bool a number. With values=False
    only types, shapes and dtypes are compared.
    """
    problem = _difference(got, expected, (rtol, atol) if values else None, "")
    return Difference(problem, show(got), show(expected)) if problem else None


def _difference(got, expected, tolerance, where: str) -> str:
    at = f"result{where}: " if where else ""
    if isinstance(expected, Tensor):
        if type(got) is not Tensor:
            return f"{at}expected a tensor of shape {_shape(expected)}, got {_describe(got)}"
        if got.shape != expected.shape:
            return f"{at}the shape is {_shape(got)}, expected {_shape(expected)}"
        if got.dtype != expected.dtype:
            return f"{at}the dtype is {_dtype(got)}, expected {_dtype(expected)}"
        return _tensor_difference(got, expected, *tolerance, at) if tolerance else ""
    if isinstance(expected, (tuple, list)):
        if type(got) not in (tuple, list):
            return f"{at}expected a tuple of {len(expected)}, got {_describe(got)}"
        if len(got) != len(expected):
            return f"{at}expected {len(expected)} values, got {len(got)}"
        pairs = ((g, e, f"{where}[{i}]") for i, (g, e) in enumerate(zip(got, expected, strict=True)))
    elif isinstance(expected, dict):
        if type(got) is not dict or list(sorted(map(repr, got))) != list(sorted(map(repr, expected))):
            return f"{at}expected a dict with the keys {list(expected)}, got {_describe(got)}"
        pairs = ((got[key], value, f"{where}[{key!r}]") for key, value in expected.items())
    else:
        return _leaf_difference(got, expected, tolerance, at)
    return next(filter(None, (_difference(g, e, tolerance, path) for g, e, path in pairs)), "")


def _leaf_difference(got, expected, tolerance, at: str) -> str:
    right_type = type(got) is type(expected) or (type(expected) is float and type(got) is int)
    if not right_type:
        wanted = f"a value of type {_type_name(type(expected))}" if tolerance is None else _describe(expected)
        return f"{at}expected {wanted}, got {_describe(got)}"
    if tolerance is None:
        return ""
    if type(expected) is float:
        a, b = torch.tensor(float(got), dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
        return _tensor_difference(a, b, *tolerance, at)
    return "" if got == expected else f"{at}{got!r}, expected {expected!r}"


def _tensor_difference(got: Tensor, expected: Tensor, rtol, atol, at: str) -> str:
    default = TOLERANCES.get(expected.dtype, (0.0, 0.0))
    rtol, atol = default[0] if rtol is None else rtol, default[1] if atol is None else atol
    if expected.is_floating_point() or expected.is_complex():
        wide = torch.complex128 if expected.is_complex() else torch.float64
        right = _close(got.to(wide), expected.to(wide), rtol, atol)
    else:
        right = got == expected
    if bool(right.all()):
        return ""
    first = tuple(torch.nonzero(~right)[0].tolist())
    wrong, count = int((~right).sum()), right.numel()
    place = f"first at {list(first)}: " if first else ""
    parts = [f"{place}{_number(got[first])}, expected {_number(expected[first])}"]
    if count > 1:
        parts.append(f"{wrong} of {count} elements differ")
    if got.is_floating_point():
        error = (got.double() - expected.double()).abs()
        nan = int((got.isnan() & ~expected.isnan()).sum())
        finite = error[~right & error.isfinite()]
        if nan and count > 1:
            parts.append(f"{nan} of them NaN")
        elif finite.numel() and not nan:
            parts.append(f"largest error {finite.max():.3g}")
    return at + "; ".join(parts)


def _close(a: Tensor, b: Tensor, rtol: float, atol: float) -> Tensor:
    # Where both are infinite of one sign a == b; where only one is, the difference is infinite, and so it must not be
    # excused by rtol * inf.
    near = ((a - b).abs() <= atol + rtol * b.abs()) & b.isfinite()
    return near | (a == b) | (a.isnan() & b.isnan())


def _same_elements(a: Tensor, b: Tensor) -> Tensor:
    same = a == b
    return same | ((a != a) & (b != b)) if a.is_floating_point() or a.is_complex() else same


# How values are shown


def show(value, limit: int = 400) -> str:
    """A value in a line or a few, for people: short tensors whole, long ones by their corners."""
    text = _text(value)
    return text if len(text) <= limit else text[: limit - 2].rstrip() + " …"


def show_call(name: str, args: tuple, kwargs: dict, arguments: Collection[str] | None = None) -> str:
    """The call in a line: `merge((3, 5) float32, tile=4)`, tensors by their shapes.

    The check's own argument `only`, which names a part of the result, is shown as that: `dq of backward(…)`. Where
    `arguments` are those of the learner's function, the others are told apart from them, for they are an adapter's;
    `block` stands for a kernel's BLOCK: `softmax_kernel((3, 24) float32, BLOCK=16); for the check: columns=16`. Where
    all are the adapter's, it calls the function several times, with arguments of its own: `fill(…); for the check: …`.
    """
    given, others = [_brief(x) for x in args], []
    for key, x in kwargs.items():
        known = key if not arguments or key in arguments else key.upper() if key.upper() in arguments else ""
        if key != "only":
            (given if known else others).append(f"{known or key}={_brief(x)}")
    part = f"{kwargs['only']} of " if kwargs.get("only") else ""
    aside = f"; for the check: {', '.join(others)}" if others else ""
    return f"{part}{name}({', '.join(given) or '…' * bool(others)}){aside}"


def _text(value) -> str:
    if isinstance(value, Tensor):
        array = value.detach().cpu()
        array = (array.float() if array.is_floating_point() and array.itemsize < 4 else array).numpy()
        body = np.array2string(array, threshold=40, edgeitems=3, precision=5, separator=", ", max_line_width=100)
        return body if value.numel() <= 40 else f"{body}  {_brief(value)}"
    if isinstance(value, (tuple, list)):
        left, right = ("(", ")") if isinstance(value, tuple) else ("[", "]")
        apart = ",\n " if any(isinstance(x, Tensor) and x.dim() for x in value) else ", "
        return left + apart.join(map(_text, value)) + right
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_text(x)}" for k, x in value.items()) + "}"
    return repr(value)


def _brief(value) -> str:
    if isinstance(value, Tensor):
        kind = "" if value.is_contiguous() else " not contiguous"
        return f"{_shape(value)} {_dtype(value)}{kind}"
    if isinstance(value, (tuple, list)) and len(value) <= 8:
        items = ", ".join(map(_brief, value))
        return f"[{items}]" if isinstance(value, list) else f"({items},)" if len(value) == 1 else f"({items})"
    text = repr(value)
    return text if len(text) <= 60 else text[:58] + " …"


def _describe(value) -> str:
    if isinstance(value, Tensor):
        return f"a {_dtype(value)} tensor of shape {_shape(value)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if value is None:
        return "None (is a `return` missing?)"
    return f"the {_type_name(type(value))} {show(value, 60)}"


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _number(x: Tensor) -> str:
    return f"{x.item():.6g}" if x.is_floating_point() else str(x.item())


def _type_name(kind: type) -> str:
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"


def _remedy(value) -> str:
    if isinstance(value, Tensor):
        return "return a plain torch.Tensor, not a subclass of it"
    if isinstance(value, (np.generic, np.ndarray)):
        return "return torch tensors and Python numbers, not NumPy's"
    if hasattr(value, "__next__"):
        return "return the value itself, not a generator of it (a stray `yield`?)"
    return "return tensors, numbers, strings, None, or tuples, lists and dicts of them"
