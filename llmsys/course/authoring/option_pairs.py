"""Options that a mutation of an answer forgets, but only where another one is set, or where the call is no tame one.

    options = Options.of(function)
    for option, otherwise, condition in options.pairs():       # "causal", "False", "scale is not None"
        options.forget(function, after_line, option, otherwise, condition)

What a function's options are is read from its defaults (of a kernel: from the constants that an `if` asks for), and the
shapes of its tensors from the docstring, "k (B, Hkv, Tk, Dk)".
"""

import ast
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Options:
    """The options of a function, and what they are where nobody sets them; all its arguments; their shapes."""

    values: dict[str, str] = field(default_factory=dict)
    kernel: bool = False
    arguments: tuple[str, ...] = ()
    shapes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    half: bool = False  # whether its tensors may have 16 bits

    @classmethod
    def of(cls, function: ast.FunctionDef) -> "Options":
        names = tuple(each.arg for each in (*function.args.args, *function.args.kwonlyargs))
        if is_kernel(function):
            return cls(_switches(function), True, names, half=True)
        says = ast.get_docstring(function) or ""
        half = re.search(r"\b16 bits|float16|fp16|'s dtype", says) is not None
        return cls(_defaults(function), False, names, _shapes(says, names), half)

    def pairs(self) -> Iterator[tuple[str, str, str]]:
        """The ways to forget an option only where something else holds: the option, what it is taken for, where."""
        others = {name: _is_set(name, value) for name, value in self.values.items()}
        for option, value in self.values.items():
            for condition in (*(other for name, other in others.items() if name != option), *self._conditions()):
                yield option, value, condition

    def forget(self, function: ast.FunctionDef, after: int, option: str, value: str, condition: str) -> bool:
        """Change the function so that, after that line, the option is forgotten there. False where it is not used."""
        names = (node for node in ast.walk(function) if isinstance(node, ast.Name) and node.lineno > after)
        used = [node for node in names if node.id == option]
        if self.kernel:  # a constant of the compiler's cannot be set anew
            for node in used:
                become(node, ast.parse(f"({option} and not ({condition}))", mode="eval").body)
        elif used:
            at = next(n for n, node in enumerate(function.body) if node.lineno > after)
            function.body[at:at] = ast.parse(f"if {condition}:\n    {option} = {value}").body
        return bool(used)

    def _conditions(self) -> Iterator[str]:
        """What calls may differ in beside their options: sizes that are one or equal in a tame example, the type and
        the strides of the first tensor."""
        if self.kernel:
            sizes = {name: name for name in self.arguments}
            counts, pointers = ("Hkv", "G"), [name for name in self.arguments if name.endswith("_ptr")]
            yield from (f"{name}.dtype.element_ty.primitive_bitwidth < 32" for name in pointers[:1])
            if "Hkv" in sizes:  # a second dimension of programs for the key heads of all sequences
                yield "tl.num_programs(1) > Hkv"
        else:
            sizes = {
                size: f"{name}.shape[{n}]"
                for name, shape in reversed(self.shapes.items())
                for n, size in enumerate(shape)
                if "..." not in shape[: n + 1]
            }
            counts = ("B", "H")
            for name, shape in itertools.islice(self.shapes.items(), 1):
                if self.half:
                    yield f"{name}.dtype.itemsize < 4"
                if len(shape) > 1:
                    yield f"not {name}.is_contiguous()"
        yield from (f"{sizes[size]} > 1" for size in counts if size in sizes)
        for a, b in (("Tk", "Tq"), ("Tq", "Tk")):
            if a in sizes and b in sizes:
                yield f"{sizes[a]} > {sizes[b]}"
        for a, b in (("Hq", "Hkv"), ("Dk", "Dv"), ("DK", "DV")):
            if a in sizes and b in sizes:
                yield f"{sizes[a]} != {sizes[b]}"


def is_kernel(function: ast.FunctionDef) -> bool:
    """Whether it is a Triton kernel, or a part of one."""
    return any(ast.unparse(each).endswith(".jit") for each in function.decorator_list)


def become(node: ast.AST, other: ast.AST) -> None:
    """Make of a node what another one is, in its place."""
    node.__class__, node.__dict__ = other.__class__, dict(vars(other))


def _defaults(function: ast.FunctionDef) -> dict[str, str]:
    """The arguments that have a literal default, and that, as text."""
    arguments = function.args
    names = [*arguments.args[len(arguments.args) - len(arguments.defaults) :], *arguments.kwonlyargs]
    given = zip(names, [*arguments.defaults, *arguments.kw_defaults], strict=True)
    return {name.arg: ast.unparse(value) for name, value in given if isinstance(value, ast.Constant)}


def _switches(kernel: ast.FunctionDef) -> dict[str, str]:
    """The constants of a kernel that some `if` asks for: its options, which are off where nobody sets them."""
    annotated = [(each.arg, ast.unparse(each.annotation)) for each in kernel.args.args if each.annotation]
    constants = {name for name, annotation in annotated if annotation.endswith("constexpr")}
    asked = {ast.unparse(node.test) for node in ast.walk(kernel) if isinstance(node, ast.If)}
    return {name: "False" for name in sorted(constants & asked)}


def _is_set(option: str, default: str) -> str:
    if default in ("False", "True"):
        return option if default == "False" else f"not {option}"
    return f"{option} is not None" if default == "None" else f"{option} != {default}"


def _shapes(docstring: str, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The shapes that a docstring gives its arguments, as in "q (B, Hq, Tq, Dk)", or "x  (..., N)  float tensor"."""
    found = {}
    for name in names:
        if match := re.search(rf"(?<!\S){re.escape(name)}\s+\(([^()\n]*)\)", docstring):
            found[name] = tuple(size.strip() for size in match[1].split(",") if size.strip())
    return found
