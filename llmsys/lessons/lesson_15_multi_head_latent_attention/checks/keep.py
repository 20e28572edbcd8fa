"""15.keep: what is kept of a token, with a position in the part that is not expanded."""

import torch
from torch import Tensor

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check


@exercise_check(
    "15.keep",
    reference="llmsys.lessons.lesson_15_multi_head_latent_attention.plain:kept",
    forbids=(
        "llmsys.attention.rotary:*", "llmsys.models.modules:*",
        "llmsys.lessons.lesson_15_multi_head_latent_attention.right:*",
    ),
    hints=(
        "Two vectors of each token, with different fates: which of them is normalised, and which is turned?",
        "c is normalised and has no position. r has one, and no norm: its columns 2i and 2i + 1 are turned by "
        "position · base^(−2i / R).",
        "c, r = x times down, transposed, split at L\n"
        "c = c / √(mean of c² + eps) · weight\n"
        "angle = positions (T, 1) · base ** (−(0, 2, 4, …, R − 2) / R)     (T, R / 2)\n"
        "(even, odd) → (even · cos − odd · sin, even · sin + odd · cos), put back in turn\n"
        "side by side, and a dimension of one head: (B, 1, T, L + R)",
    ),
)  # fmt: skip
def keep(answer: Answer) -> None:
    def tensors(B: int, T: int, L: int, R: int, C: int = 9) -> tuple[Tensor, Tensor, Tensor]:
        """x, down, weight."""
        return answer.randn(B, T, C), answer.randn(L + R, C, scale=C**-0.5), answer.randn(L).abs() + 0.5

    def at(*positions: int) -> Tensor:
        return torch.tensor(positions)

    with answer.property(
        "of each token L + R numbers, for one head",
        why="They are kept in place of keys and values, and all heads share them.",
        hint="(B, T, L + R), and then a dimension of 1 where caches have their heads.",
    ):
        for B, T in ((1, 3), (2, 5)):
            x, down, weight = tensors(B, T, 6, 4)
            answer.form(answer(x, down, weight, torch.arange(T)), answer.reference(x, down, weight, torch.arange(T)))

    with answer.property(
        "at position 0 nothing is turned: r is its part of the product with x",
        why="The angle is 0 there. And r has no norm, nor has x: r is the last R rows of down times x.",
        hint="The last R columns of x times down, transposed, are r, as they are.",
    ):
        x, down, weight = tensors(2, 1, 6, 4)
        run, right = answer(x, down, weight, at(0)), answer.reference(x, down, weight, at(0))
        answer.that(
            run,
            lambda r: torch.allclose(r.value[..., 6:], right[..., 6:], atol=1e-5),
            expected=f"the last 4 columns to be {right[0, 0, 0, 6:].tolist()}",
            got=lambda r: f"{r.value[0, 0, 0, 6:].tolist()}",
        )

    with answer.property(
        "the latent is normalised over its L numbers, and multiplied by the norm's weight",
        why="RMSNorm: c / √(mean(c²) + eps) · weight. The matrices that expand it were trained on such vectors.",
        hint="Over which columns is the mean? Is it a mean of squares, without anything subtracted? And eps is inside "
        "the root.",
    ):
        for T, L, R, size, eps in ((1, 6, 4, 1.0, 1e-6), (1, 12, 2, 1.0, 1e-6), (3, 6, 2, 1e-3, 1e-5)):
            x, down, weight = tensors(2, T, L, R)
            given = size * x, down, weight, torch.zeros(T, dtype=torch.int64)
            run, right = answer(*given, eps=eps), answer.reference(*given, eps=eps)[..., :L]
            answer.that(
                run,
                lambda r, L=L, right=right: torch.allclose(r.value[..., :L], right, rtol=1e-4, atol=1e-5),
                expected=f"the first {L} columns to be {_short(right[0, 0, 0])}",
                got=lambda r, L=L: _short(r.value[0, 0, 0, :L]),
            )

    with answer.property(
        "the latent has no position: it is the same at every one",
        why="Keys and values of all heads are made of it. Of a turned latent they would be others at every position, "
        "and with queries that are turned as ever, scores would not depend on the distance alone.",
        hint="Which columns does your rotation touch? Only the last R may depend on positions.",
    ):
        x, down, weight = tensors(1, 3, 8, 4)
        right = answer.reference(x, down, weight, at(0, 0, 0))
        for positions in (at(1, 2, 3), at(40, 41, 42)):
            run = answer(x, down, weight, positions)
            answer.that(
                run,
                lambda r: torch.allclose(r.value[..., :8], right[..., :8], atol=1e-4),
                expected=f"the first 8 columns to stay as they are at position 0, {_short(right[0, 0, 0, :8])}",
                got=lambda r: _short(r.value[0, 0, 0, :8]),
            )

    with answer.property(
        "r is turned by its position: two columns, by an angle of as many radians",
        why="With R = 2 there is one pair, whose frequency is base⁰ = 1.",
        hint="(a, b) turned by θ is (a cos θ − b sin θ, a sin θ + b cos θ).",
    ):
        x, down, weight = tensors(2, 4, 6, 2)
        answer.agrees(x, down, weight, torch.arange(4), rtol=1e-4, atol=1e-4)

    with answer.property(
        "pairs are neighbours, columns 2i and 2i + 1",
        why="Each pair has a frequency of its own. And Llama's checkpoints pair i with i + R/2, DeepSeek's do not: "
        "with the wrong one nothing fails but the quality of the answers.",
        hint="r[..., 0::2] and r[..., 1::2] are the first and the second of each pair. Pair i turns by base^(−2i / R) "
        "a token. Put them back in turn.",
    ):
        for R in (4, 10):
            answer.agrees(*tensors(1, 5, 4, R), torch.arange(5), rtol=1e-4, atol=1e-4)

    with answer.property(
        "positions are those that were given, and base is, too",
        why="In a cache the step's tokens stand at the end of the sequence, not at its beginning. The "
        "base is the model's.",
        hint="Nothing in the function may count tokens by itself.",
    ):
        answer.agrees(*tensors(2, 3, 6, 6), at(17, 3, 99), rtol=1e-3, atol=1e-3)
        answer.agrees(*tensors(1, 3, 6, 6), at(5, 6, 7), base=50.0, rtol=1e-4, atol=1e-4)

    with answer.property(
        "all of it together: options, sizes and strides",
        why="A model's tensors are views of others, of several sequences.",
        hint="Which line assumes something that need not be so: B is 1, or T is 1?",
    ):
        for B, T, L, R, base, eps in (  # L even, as view_as_complex wants it
            (1, 1, 2, 2, 10_000.0, 1e-6),
            (3, 2, 6, 8, 500.0, 1e-2),
            (2, 6, 4, 4, 10_000.0, 1e-2),
            (2, 5, 10, 2, 50.0, 1e-6),
        ):
            for _ in range(2):  # of the same shape, and other numbers: nothing may be remembered of the first
                given = (answer.spread(each) for each in tensors(B, T, L, R, C=5))
                positions = answer.spread(answer.randint(0, 300, (T,)))
                answer.agrees(*given, positions, base=base, eps=eps, rtol=1e-3, atol=1e-3)


def _short(x: Tensor) -> str:
    return f"[{', '.join(f'{each:.2f}' for each in x.tolist())}]"
