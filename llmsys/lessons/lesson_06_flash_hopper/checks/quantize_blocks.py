"""06.quantize_blocks: eight bits a number, and a scale for each block of rows."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llmsys.course.checking.answer import Answer, Run
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_06_flash_hopper.strict_cast import strict_cast
from llmsys.precision import fp8

LARGEST = 448.0  # of e4m3
TINY = torch.finfo(torch.float32).tiny  # the smallest number of fp32 with all of its bits, 2⁻¹²⁶
STEP = 2.0**-149  # the smallest that it has, and the distance of those below TINY
INF, NAN = float("inf"), float("nan")


def cast_strictly(function: Callable) -> Callable:
    """The function, in which a cast to e4m3 makes NaN of what is above 448, as it does in some versions of torch."""

    def quantize_blocks(x: Tensor, *rows: int) -> object:
        with strict_cast():
            return function(x, *rows)

    return quantize_blocks


def blocks(x: Tensor, rows: int) -> Iterator[Tensor]:
    """The blocks of x (..., T, D), (..., rows, D) each, in float64; the last may be shorter."""
    for start in range(0, x.shape[-2], rows):
        yield x[..., start : start + rows, :].double()


def exact_scales(x: Tensor, rows: int) -> Tensor:
    """What equation (1) and the exercise say, in float64: (..., blocks)."""
    sizes = (torch.where(each.isfinite(), each.abs(), 0.0).flatten(-2).amax(-1) for each in blocks(x, rows))
    return torch.stack([torch.where(size > 0, (size / LARGEST).clamp(min=TINY), 1.0) for size in sizes], -1)


@exercise_check(
    "06.quantize_blocks",
    reference=fp8.quantize_blocks,
    forbids=(
        "llmsys.precision.fp8:*",
        "llmsys.attention.hopper.fp8*:*",
        "llmsys.lessons.lesson_06_flash_hopper.mistakes:*",
        "aten::*quantize*",
        "torch.ao*:*",
    ),
    adapt=cast_strictly,
    equivalent={
        "448 → 449 (2)": "the cast rounds what is less than 464 in size to 448",
        "448 → 449 (3)": "the cast rounds what is less than 464 in size to 448",
    },
    hints=(
        "One number a block: what must x be divided by, so that the largest of the block becomes the largest that "
        "e4m3 has? And which blocks have no such number?",
        "Pad T to whole blocks, view (..., blocks, rows, D). amax over the last two dimensions, of finite numbers; "
        "scale = amax / 448, but at least the smallest normal number of float32; or 1 where amax is 0. Divide, clamp "
        "to ±448 before the cast (which may make NaN of more), cast to torch.float8_e4m3fn, and cut off the padding.",
        "blocks = pad(x.float(), (0, 0, 0, −T % rows)).unflatten(-2, (-1, rows))\n"
        "amax = where(blocks.isfinite(), blocks.abs(), 0).amax((-2, -1))\n"
        "scales = where(amax > 0, (amax / 448).clamp(min=finfo(float32).tiny), 1)\n"
        "codes = (blocks / scales[..., None, None]).clamp(−448, 448).to(float8_e4m3fn)\n"
        "return codes.flatten(-3, -2)[..., :T, :], scales",
    ),
)
def quantize_blocks(answer: Answer) -> None:
    def close(x: Tensor, *rows: int) -> None:
        a_block = rows[0] if rows else fp8.ROWS
        scales = exact_scales(x, a_block)

        def right_scales(run: Run) -> bool:
            return bool(((run.value[1].double() - scales).abs() <= 1e-6 * scales).all())

        def excess(run: Run) -> Tensor:
            """The error of each number, over what equation (1) allows with the answer's own scales."""
            scale = run.value[1].double().repeat_interleave(a_block, -1)[..., : x.shape[-2], None]
            allowed = torch.maximum(x.double().abs() / 16, scale / 1024) * (1 + 1e-5) + STEP
            return ((run.value[0].double() * scale - x.double()).abs() / allowed)[x.isfinite()]

        run = answer(x, *rows)
        form(run, x, scales)
        answer.that(
            run, right_scales, f"scales {scales.flatten()[:4].tolist()}",
            got=lambda r: r.value[1].flatten()[:4].tolist(),
        )  # fmt: skip
        answer.that(
            run, lambda r: bool((excess(r) <= 1).all()), "codes · scale within max(|x| / 16, scale / 1024) of x",
            got=lambda r: f"an error of {excess(r).nan_to_num(INF).max().item():.3g} times that",
        )  # fmt: skip

    def form(run: Run, x: Tensor, scales: Tensor) -> None:
        answer.form(run, (torch.empty(x.shape, dtype=torch.float8_e4m3fn), scales.float()))

    with answer.property(
        "codes in 8 bits, scales in float32", why="(..., T, D), and one scale for each block.",
        hint="Two tensors: one of x's shape, in torch.float8_e4m3fn, and one with ceil(T / rows) numbers a head, in "
        "torch.float32.",
    ):  # fmt: skip
        x = answer.randn(8, 4)
        form(answer(x, 8), x, exact_scales(x, 8))
        x = answer.randn(2, 10, 4)
        form(answer(x), x, exact_scales(x, fp8.ROWS))

    with answer.property("one block: its scale is its largest number / 448", why="448 is the largest that e4m3 has."):
        close(answer.randn(8, 4), 8)

    with answer.property(
        "several blocks, each with a scale of its own", why="That is the point of blocks.",
        hint="Over which dimensions does the maximum go? A block is rows × D: give it two dimensions of its own first.",
    ):  # fmt: skip
        size = torch.tensor([1.0, 100.0, 0.01]).repeat_interleave(4)[:, None]
        close(answer.randn(12, 6) * size, 4)

    with answer.property(
        "a last block that is shorter", why="128 rows a block, and T is not a multiple of it.",
        hint="How many rows are missing in the last block, and what may stand in their place so that its scale stays "
        "what it is?",
    ):  # fmt: skip
        for T in (1, 5, 9):
            close(answer.randn(T, 4), 4)

    with answer.property(
        "blocks of any number of rows, 128 where none is named", why="rows is an argument, with a default.",
        hint="Is there a 128, or another number of rows, in the function's lines? And is there a block of one row?",
    ):  # fmt: skip
        for T, D, rows in ((7, 5, 3), (6, 1, 1), (11, 7, 5), (3, 9, 20)):
            close(answer.randn(T, D), rows)
        close(answer.randn(300, 3))

    with answer.property("a block of tiny numbers", why="Its scale is as tiny: float32 has numbers down to 10⁻³⁸."):
        x = answer.randn(8, 4)
        x[:4] *= 1e-30
        close(x, 4)

    with answer.property("heads and sequences", why="Blocks are rows of one head: (B, H, T, D) gives (B, H, blocks)."):
        close(answer.randn(2, 3, 10, 4), 4)
        close(answer.randn(3, 1, 2, 7, 5) * answer.randn(3, 1, 2, 1, 1), 3)

    with answer.property(
        "a block of zeros", why="0 / 0 is NaN, and one NaN in K is NaN in every output.",
        hint="What is the scale of a block without a largest number, and what comes of 0 divided by it?",
    ):  # fmt: skip
        x = answer.randn(8, 4)
        x[:4] = 0
        close(x, 4)
        x = answer.randn(2, 7, 3)
        x[0], x[1, 6:] = 0, -0.0
        close(x, 3)

    with answer.property(
        "bfloat16, float16 and float64 come in", why="Scales are float32, whatever x is.",
        hint="In which type are the maximum, the division and the scale computed? Half precision has too few bits.",
    ):  # fmt: skip
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            close(answer.randn(8, 4, dtype=dtype), 4)
            close(answer.randn(2, 11, 3, dtype=dtype, scale=100.0), 5)

    with answer.property(
        "infinity and NaN leave their neighbours alone", why="An infinite scale would make 0 of everything else.",
        hint="Which numbers of a block may its scale be made of? And what becomes of infinity in a cast to 8 bits? "
        "Some versions of torch make NaN of it, and so does this check.",
    ):  # fmt: skip
        x = answer.randn(8, 4, scale=0.01)
        x[1, 2], x[6, 0], x[6, 1] = INF, NAN, -INF
        close(x, 4)

        def marks(run: Run) -> list:
            codes = run.value[0].float()
            return [codes[1, 2].item(), codes[6, 1].item(), str(codes[6, 0].item())]

        answer.that(
            answer(x, 4), lambda r: marks(r) == [448.0, -448.0, "nan"], "448, −448 and NaN in their places", got=marks
        )
        x = torch.zeros(7, 2)
        x[0, 1], x[3, 0], x[4] = -INF, NAN, answer.randn(2)
        close(x.to(torch.bfloat16), 3)  # of the first block's numbers, none is finite but zeros
        answer.that(
            answer(x, 3), lambda r: r.value[0][:3].float().tolist() == [[0, -LARGEST], [0, 0], [0, 0]],
            "−448 in its place, and zeros around it", got=lambda r: r.value[0][:3].float().tolist(),
        )  # fmt: skip

    with answer.property(
        "numbers at both ends of float32", why="Its largest number is 3.4·10³⁸, and nothing on the way may be larger.",
        hint="Which intermediate result is larger than float32's largest number, 3.4·10³⁸, or becomes 0: x · 448, or "
        "448 / amax, or a square?",
    ):  # fmt: skip
        for size, rows in ((1e38, 4), (1e-35, 3)):  # of the second, scales are just above the smallest one
            x = answer.randn(10, 4).clamp(-3, 3) * size
            x[:, 0] = size
            close(torch.cat([x, answer.randn(2, 4)]), rows)

    with answer.property(
        "blocks so tiny that their scale would have few bits, or be 0",
        why="Of 10⁻⁴³ / 448 float32 keeps nothing, and 0 / 0 is NaN.",
        hint="What is 1e-44 / 448 in float32? The docstring says how small a scale may be. And is it the scale that "
        "you return by which you divide?",
    ):  # fmt: skip
        for size, rows in ((5e-38, 3), (1e-39, 5), (1e-43, 2), (STEP, 4)):
            x = answer.randn(10, 4).clamp(-3, 3) * size
            x[::2, 0] = size  # the least number, times a number below 1/2, is 0: no block is of zeros alone
            close(torch.cat([x, answer.randn(2, 4)]), rows)
            close(torch.cat([x, torch.zeros(rows, 4)]).double(), rows)
        x = answer.randn(2, 8, 3)
        x[0, :4], x[1, 4:] = x[0, :4] * 1e-38, 0  # a tiny block, and one of zeros
        close(x.bfloat16(), 4)

    with answer.property(
        "tensors whose elements lie apart", why="k is a slice of a wider tensor, or lies as (B, T, H, D).",
        hint="Which of your lines asks how the elements lie in memory? view does, and reshape does not.",
    ):  # fmt: skip
        close(answer.randn(6, 12).mT, 4)
        close(answer.randn(2, 9, 3, 4).transpose(1, 2), 3)
        close(answer.spread(answer.randn(3, 8, 5)), 4)

    with answer.property(
        "the same shape again, with other numbers", why="Keys change with every token.",
        hint="What does the function keep from one call to the next?",
    ):  # fmt: skip
        first, second = answer.randn(9, 4), answer.randn(9, 4, scale=50.0)
        for x in (first, second, first):
            close(x, 4)
