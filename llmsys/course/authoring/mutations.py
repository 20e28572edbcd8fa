"""Small changes of a right answer that ought to make it wrong: what a check is tested with.

    for each in mutations(cell):
        each.text, each.kind, each.source     # "a + b → a - b", "statements", the whole cell with that change

Every mutation is of the lines between the solution's marks, of a class between those of each method. Its kind says
which habit of a check it tries:

    statements   < for <=, + for -, a constant off by one, min for max, a statement left out
    types        fp16 for fp32, a cast removed; in a kernel, an operand of a product or a running sum rounded to fp16
    strides      a stride swapped with another one, left out, or taken for a size
    masks        what a masked load gives instead is not said; a mask that forgets one of its conditions
    options      an option that is forgotten, but only where another one is set, or where B > 1, or Hq ≠ Hkv, …
"""

import ast
import copy
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmsys.course.authoring.option_pairs import Options, become

MUTANTS = 5  # of each exercise's solution, where not all are asked for
KINDS = ("statements", "types", "strides", "masks", "options")
MARKS = ("### BEGIN SOLUTION", "### END SOLUTION")


class Mutation(NamedTuple):
    """What was changed, the cell with that change, and the kind of change."""

    text: str
    source: str
    kind: str = "statements"


def mutations(cell: str) -> Iterator[Mutation]:
    """Every mutation of the solution in a cell. Where a text occurs a second time, it ends in (2)."""
    begins, ends = ([n for n, line in enumerate(cell.splitlines(), 1) if mark in line] for mark in MARKS)
    parts = list(zip(begins, ends, strict=True))  # of a class, one a method
    first, last = begins[0], ends[-1]
    tree = ast.parse(cell)
    answer = Solution.of(tree, first, last)
    seen, times = set(), Counter()

    def made(text: str, mutant: ast.AST, kind: str) -> Iterator[Mutation]:
        source = ast.unparse(ast.fix_missing_locations(mutant))
        if source not in seen:
            seen.add(source)
            times[text] += 1
            yield Mutation(text if times[text] == 1 else f"{text} ({times[text]})", source, kind)

    def is_solution(node: ast.AST) -> bool:
        return any(begin < getattr(node, "lineno", 0) < end for begin, end in parts)

    nodes = [(i, node) for i, node in enumerate(ast.walk(tree)) if is_solution(node)]
    for index, node in sorted(nodes, key=lambda each: (each[1].lineno, each[1].col_offset)):
        for kind, change in _changes(node, answer):
            mutant = copy.deepcopy(tree)
            target = next(itertools.islice(ast.walk(mutant), index, None))
            before = _short(target)
            change(target)
            yield from made(f"{before} → {_short(target)}", mutant, kind)
    for option, otherwise, condition in answer.options.pairs():
        mutant = copy.deepcopy(tree)
        if answer.options.forget(answer.within(mutant), first, option, otherwise, condition):
            yield from made(f"{option} → {otherwise} where {condition}", mutant, "options")


def draw(seed: int, id: str, mutants: Sequence[Mutation]) -> list[Mutation]:
    """MUTANTS of an exercise's mutations, of each kind in turn, by the seed."""

    def order(each: Mutation) -> bytes:
        return hashlib.sha256(f"{seed} {id} {each.text}".encode()).digest()

    kinds = [sorted((each for each in mutants if each.kind == kind), key=order) for kind in KINDS]
    kinds.sort(key=lambda those: order(those[0]) if those else b"")  # no kind is always the one that comes too late
    turns = itertools.zip_longest(*filter(None, kinds))
    return [each for turn in turns for each in turn if each is not None][:MUTANTS]


# What is known of the answer


@dataclass(frozen=True)
class Solution:
    """The function in which the solution is: its name and its options; of a kernel the names of its strides and of the
    length of a row, and the lines that add to what a loop carries."""

    name: str = ""
    options: Options = Options()
    strides: tuple[str, ...] = ()
    lengths: tuple[str, ...] = ()
    sums: frozenset[int] = frozenset()

    @classmethod
    def of(cls, tree: ast.Module, first: int, last: int) -> "Solution":
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.lineno < first]
        if not functions:
            return cls()
        function = functions[-1]
        options = Options.of(function)
        strides = tuple(name for name in options.arguments if "stride" in name)
        lengths = tuple(name for name in options.arguments if re.fullmatch(r"D[KVkv]?|n_\w+", name))
        sums = _sums(function, first, last) if options.kernel else frozenset()
        return cls(function.name, options, strides, lengths, sums)

    def within(self, tree: ast.Module) -> ast.FunctionDef:
        """The same function in a copy of its tree."""
        return next(each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == self.name)


def _sums(function: ast.FunctionDef, first: int, last: int) -> frozenset[int]:
    """The lines in a loop of the solution that make a variable's value of its last one. Masks are none."""
    lines = set()
    for loop in (node for node in ast.walk(function) if isinstance(node, ast.For) and first < node.lineno < last):
        for node in ast.walk(loop):
            if isinstance(node, ast.AugAssign):
                lines.add(node.lineno)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                used = {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}
                if node.targets[0].id in used and "&" not in ast.unparse(node.value):
                    lines.add(node.lineno)
    return frozenset(lines)


# Changes of one node: functions that change a copy of it

Changes = Iterator[tuple[str, Callable[[ast.AST], None]]]

_OTHER_OPERATOR = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_OTHER_NAME = {"max": "min", "amax": "amin", "maximum": "minimum", "argmax": "argmin", "zeros": "ones", "sum": "mean"}
_OTHER_NAME |= {other: name for name, other in _OTHER_NAME.items()} | {"zeros_like": "ones_like", "exp": "exp2"}
_CASTS = ("float", "double", "half", "to")
_ROUNDED = "({0}).to(tl.float16).to(({0}).dtype)"


def _changes(node: ast.AST, answer: Solution) -> Changes:
    """The ways to get this node wrong: the kind of each, and the change."""
    for change in _statements(node):
        yield "statements", change
    for change in _types(node, answer):
        yield "types", change
    for change in _strides(node, answer):
        yield "strides", change
    for change in _masks(node):
        yield "masks", change


def _statements(node: ast.AST) -> Iterator[Callable[[ast.AST], None]]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _OTHER_OPERATOR:
        yield lambda n: n.ops.__setitem__(0, _OTHER_OPERATOR[type(n.ops[0])]())
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in _OTHER_OPERATOR:
        yield lambda n: setattr(n, "op", _OTHER_OPERATOR[type(n.op)]())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield lambda n: setattr(n, "op", ast.UAdd())
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        yield lambda n: setattr(n, "value", not n.value)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield lambda n: setattr(n, "value", n.value + 1)
    if isinstance(node, ast.Attribute) and node.attr in _OTHER_NAME:
        yield lambda n: setattr(n, "attr", _OTHER_NAME[n.attr])
    if isinstance(node, ast.Name) and node.id in _OTHER_NAME:
        yield lambda n: setattr(n, "id", _OTHER_NAME[n.id])
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.Expr)):
        yield _leave_out


def _types(node: ast.AST, answer: Solution) -> Iterator[Callable[[ast.AST], None]]:
    if isinstance(node, ast.Attribute) and node.attr == "float32":
        yield lambda n: setattr(n, "attr", "float16")
    cast = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CASTS
    if cast and not ast.unparse(node).endswith(".element_ty)"):  # to a pointer's own type a store casts anyway
        yield lambda n: become(n, n.func.value)
    if not answer.options.kernel:
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.dot":
        for operand in (0, 1):
            yield lambda n, operand=operand: _rounded(n.args, operand)
    if isinstance(node, (ast.Assign, ast.AugAssign)) and node.lineno in answer.sums:
        yield _rounded_sum


def _strides(node: ast.AST, answer: Solution) -> Iterator[Callable[[ast.AST], None]]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        for side, other in (("left", "right"), ("right", "left")):
            if isinstance(getattr(node, side), ast.Name) and getattr(node, side).id in answer.strides:
                yield lambda n, other=other: become(n, getattr(n, other))
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in answer.strides:
        for other in (*_neighbours(node.id, answer.strides), *answer.lengths):
            yield lambda n, other=other: setattr(n, "id", other)


def _neighbours(stride: str, strides: Sequence[str]) -> list[str]:
    """The strides that this one is easily taken for: of the next tensor's same dimension, and of the same tensor's next
    dimension, by their names (q_stride_h, x_row_stride)."""
    found = []
    for part in (2, 0):
        alike = [each for each in strides if each.partition("_")[part] == stride.partition("_")[part]]
        found += [alike[(alike.index(stride) + 1) % len(alike)]] if len(alike) > 1 else []
    return found


def _masks(node: ast.AST) -> Iterator[Callable[[ast.AST], None]]:
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".load"):
        for keyword in node.keywords:
            if keyword.arg == "other":
                yield lambda n: n.keywords.__setitem__(slice(None), [k for k in n.keywords if k.arg != "other"])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        yield lambda n: become(n, n.left)
        yield lambda n: become(n, n.right)


def _leave_out(statement: ast.AST) -> None:
    statement.__class__ = ast.Pass
    statement.__dict__ = {name: value for name, value in vars(statement).items() if name.endswith(("lineno", "offset"))}


def _rounded(operands: list[ast.expr], which: int) -> None:
    operands[which] = ast.parse(_ROUNDED.format(ast.unparse(operands[which])), mode="eval").body


def _rounded_sum(statement: ast.Assign | ast.AugAssign) -> None:
    """Let a running sum be rounded to fp16 in each turn."""
    if isinstance(statement, ast.AugAssign):
        name = ast.unparse(statement.target)
        value = ast.BinOp(ast.Name(name, ast.Load()), statement.op, statement.value)
        become(statement, ast.copy_location(ast.Assign([ast.Name(name, ast.Store())], value), statement))
    statement.value = ast.parse(f"({ast.unparse(statement.value)}).to(tl.float16).to(tl.float32)", mode="eval").body


def _short(node: ast.AST) -> str:
    if isinstance(node, ast.Pass):
        return "left out"
    return ast.unparse(node).partition("\n")[0].rstrip(":")  # of an `if`, the condition
