"""20.split_backward: dx at once, and dW when it is asked for.

What is expected is autograd's, of torch's own linear layer in float64, rounded once.
"""

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llmsys.course.checking.answer import Answer, Run
from llmsys.course.checking.checks import exercise_check
from llmsys.course.checking.watch import DERIVATIVES
from llmsys.lessons.common import Products

FEWER = " that torch made: what is multiplied and summed by a loop, or number by number, is slow"
WANTED = "split_backward returns two things, dx and a function that computes dW when it is called"
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 5e-2}  # for sums of some dozen products


def plain_halves(function: Callable) -> Callable:
    """A function that splits a backward pass as one that gives tensors: dx for only="dx", and for only="dW" what the
    other half computes. only="products" has the operations of each half's matrix products, only="number" how many
    things are returned, whatever they are.

    With lists of dy and x, one for each microbatch, all their first halves are done, then the others in `order`: the
    list of their dW, in the microbatches' order.
    """

    def run(dy, x, weight, *, only="dW", order: Sequence[int] = ()):
        if only == "number":
            return len(_pair(function, dy, x, weight))
        if order:
            laters = [_split(function, *each, weight)[1] for each in zip(dy, x, strict=True)]
            found = {n: _called(laters[n]) for n in order}
            return [found[n] for n in range(len(laters))]
        with Products() as first:
            dx, later = _split(function, dy, x, weight)
        if only == "dx":
            with contextlib.suppress(Exception):  # which is for the properties of dW to say
                later()  # for who keeps a list of what waits
            return dx
        with Products() as second:
            dw = _called(later)
        if only == "products":
            return {name: sum(each.report()["summed over"].values()) for name, each in (("I", first), ("W", second))}
        return dw

    return run


def _pair(function: Callable, *given: Tensor) -> Sequence:
    result = function(*given)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise TypeError(f"{WANTED}; got {type(result).__name__}")
    return result


def _split(function: Callable, *given: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    result = _pair(function, *given)
    if not isinstance(result[0], Tensor):
        raise TypeError(f"{WANTED}; dx is to be there at once, as a tensor, and is a {type(result[0]).__name__}")
    if not callable(result[1]):
        raise TypeError(f"{WANTED}; the second one is a {type(result[1]).__name__}, which cannot be called")
    return tuple(result)


def _called(later: Callable[[], Tensor]) -> Tensor:
    dw = later()
    if not isinstance(dw, Tensor):
        raise TypeError(f"the function that split_backward returns must return dW, a tensor; got {dw!r:.60}")
    return dw


@exercise_check(
    "20.split_backward",
    reference="llmsys.parallel.execute.put_off:split_backward",
    forbids=(
        *DERIVATIVES,
        "llmsys.parallel.execute.put_off:*",
        "llmsys.lessons.lesson_20_pipeline_schedules.right:*",
    ),
    adapt=plain_halves,
    hints=(
        "Write each product with its shapes beside it, for R rows in one dimension: dy is (R, outputs), x (R, inputs), "
        "weight (outputs, inputs). Which two of them give (R, inputs), and which two (outputs, inputs)? What has to be "
        "transposed, so that the inner sizes agree?",
        "dx is dy times weight, row by row. dW is a sum over all rows, wherever they are in the leading dimensions, of "
        "a column dy and a row x: one product, of both as matrices of R rows. It is made inside of the function that "
        "is returned, from the dy and x that this call was given.",
        "dx = dy @ weight\n"
        "define later():\n"
        "    return (dy as a matrix of all rows, transposed) @ (x as a matrix of all rows)\n"
        "return dx, later",
    ),
)
def split_backward(answer: Answer) -> None:
    def draw(*rows: int, m: int, n: int, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """dy, x and weight."""
        return tuple(answer.randn(*shape, dtype=dtype) for shape in ((*rows, m), (*rows, n), (m, n)))

    def right(only: str, dy: Tensor, x: Tensor, weight: Tensor) -> None:
        tolerance = TOLERANCES[dy.dtype]
        expected = gradients(dy, x, weight)[only]
        answer.matches(expected, dy, x, weight, only=only, rtol=tolerance, atol=tolerance)

    with answer.property(
        "two things are returned", why="One for each half of the backward.",
        hint="return dx, later, where later is a function that is defined above it.",
    ):  # fmt: skip
        given = draw(1, 1, m=1, n=1)
        answer.matches(2, *given, only="number")

    with answer.property(
        "they are dx, a tensor, and a function that returns dW",
        why="The layer before waits for dx. Nobody waits for dW: whoever calls the function, later, adds what it "
        "returns to the weight's gradient.",
        hint="dx is computed before split_backward returns, dW when somebody calls what it has returned.",
    ):
        for only in ("dx", "dW"):
            answer.that(answer(*given, only=only), lambda r: isinstance(r.value, Tensor), f"{only}, a tensor")

    with answer.property(
        "of a single number, y = w x: dx is w dy", why="It is the chain rule.",
        hint="One number of each: how much does y move with x, and so the loss with x, if it moves by dy with y?",
    ):  # fmt: skip
        right("dx", *draw(1, m=1, n=1))

    with answer.property(
        "dx, of a matrix", why="It has the shape of x. Row by row: each token's is made of its own dy.",
        hint="weight is (outputs, inputs), dy has rows of outputs and dx of inputs. As y = x Wᵀ, the transposed one of "
        "(1) is W itself.",
    ):  # fmt: skip
        for rows, m, n in (((3,), 4, 6), ((5,), 7, 2), ((3,), 4, 4), ((2, 5), 3, 4), ((2, 1, 3), 4, 4)):
            right("dx", *draw(*rows, m=m, n=n))

    with answer.property(
        "dW, of one token: number (i, j) is dy of output i times x of input j",
        why="It has the shape of the weight, whose gradient it is. The rows come in one leading dimension here, and "
        "elsewhere in several.",
        hint="dW is (outputs, inputs), as the weight. From a dy of (1, outputs) and an x of (1, inputs): which one is "
        "transposed?",
    ):
        for m, n in ((4, 6), (7, 2), (5, 5)):
            right("dW", *draw(1, m=m, n=n))

    with answer.property(
        "it is summed over all tokens",
        why="Every token has gone through the same weight, so the loss depends on it by each of them.",
        hint="Two tokens: the sum of two matrices (outputs, inputs), of the one's dy and x and of the other's.",
    ):
        for R, m, n in ((3, 4, 6), (9, 5, 5), (7, 6, 2)):
            right("dW", *draw(R, m=m, n=n))

    with answer.property(
        "of all sequences, in however many leading dimensions",
        why="A microbatch is (sequences, tokens, width), and there is one weight for all tokens of all sequences.",
        hint="dW is (outputs, inputs) for any number of dimensions before the last: make matrices of all rows first.",
    ):
        for rows, m, n in (((2, 5), 3, 4), ((4, 1), 5, 5), ((1, 6), 4, 3), ((2, 3, 2), 4, 4), ((3, 2, 1, 2), 2, 5)):
            right("dW", *draw(*rows, m=m, n=n))

    with answer.property(
        "several microbatches wait, and each gets its own dW",
        why="In ZB-H1 the next microbatch's I comes before this one's W. What is returned is added to the gradient of "
        "the weight by whoever calls.",
        hint="Two calls, and then the two functions that they gave: what did the second call do to what the first one "
        "has kept?",
    ):
        for order in ((0, 1), (1, 0), (2, 0, 3, 1)):
            drawn = [draw(2, 3 + k, m=4, n=4) for k in range(len(order))]
            dys, xs, (weight, *_) = map(list, zip(*drawn, strict=True))
            expected = [gradients(dy, x, weight)["dW"] for dy, x in zip(dys, xs, strict=True)]
            answer.matches(expected, dys, xs, weight, order=list(order), rtol=1e-4, atol=1e-4)

    with answer.property(
        "with any strides, and in the dtype that is given",
        why="Activations are views of others as often as not, and models train in bfloat16.",
        hint="view needs rows that lie one after the other; flatten and reshape copy where they must. And is there a "
        "number or a tensor of a dtype of your own?",
    ):
        for dtype in TOLERANCES:
            for rows, m, n in (((3, 5), 4, 6), ((2, 7), 5, 5)):
                for only in ("dx", "dW"):
                    right(only, *map(answer.spread, draw(*rows, m=m, n=n, dtype=dtype)))

    def products(half: str, said: str) -> None:
        """This half is one matrix product, of 2 R m n operations."""
        for rows, m, n in (((3,), 4, 6), ((2, 5), 7, 3), ((2, 2, 2), 5, 5)):
            run = answer(*draw(*rows, m=m, n=n), only="products")
            enough = 2 * torch.Size(rows).numel() * m * n
            answer.that(
                run, lambda r, enough=enough: made(r, half) == enough,
                f"{enough:,} FLOP in matrix products {said}, 2 · rows · {m} · {n}",
                got=lambda r, enough=enough: f"{made(r, half):,}" + FEWER * (made(r, half) < enough),
            )  # fmt: skip

    with answer.property(
        "I is one product, that of dx: nothing of dW is computed yet",
        why="The rank before waits for dx. If dW is computed first, or at the same time, that is B under another name.",
        hint="When is the product for dW made: as split_backward runs, or as the function runs that it returns?",
    ):
        products("I", "until dx is there")

    with answer.property(
        "W is one product, that of dW", why="All rows at once, as in an ordinary backward.",
        hint="What does the function compute beside dW? dx has gone long ago.",
    ):  # fmt: skip
        products("W", "when dW is asked for")


def made(run: Run, half: str) -> int:
    """The operations of a half's products, in a run that told them."""
    return run.value[half] if isinstance(run.value, dict) else 0


def gradients(dy: Tensor, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """dx and dW as expected."""
    leaves = [each.double().clone().requires_grad_() for each in (x, weight)]
    found = torch.autograd.grad(torch.nn.functional.linear(*leaves), leaves, dy.double())
    return {name: each.to(dy.dtype) for name, each in zip(("dx", "dW"), found, strict=True)}
