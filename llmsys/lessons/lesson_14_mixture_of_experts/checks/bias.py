"""14.bias: the router's bias, a step against the loads."""

import torch
from torch import Tensor

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_14_mixture_of_experts.plain import plain_bias


@exercise_check(
    "14.bias",
    reference="llmsys.moe.losses:move_bias",
    forbids=("llmsys.lessons.lesson_14_mixture_of_experts.right:*",),
    adapt=plain_bias,
    hints=(
        "Take an expert that nobody chose. Should its bias go up or down, so that it is chosen next time?",
        "Three cases for each expert: more than the mean, fewer, exactly as many. The step has one size, rate, or "
        "none.",
        "missing = mean of loads − loads, or E times that, which is a whole number\nbias += rate · sign(missing)",
    ),
)
def bias(answer: Answer) -> None:
    E = int(answer.randint(5, 9))

    def loads(count: int) -> Tensor:
        """None of them is within 1 of the mean."""
        while True:
            found = answer.randint(0, 100, (count,))
            if (count * found - found.sum()).abs().min() > count:
                return found

    with answer.property(
        "at a rate of 0 nothing moves",
        why="At the end of its training, DeepSeek-V3 sets the rate to 0, and the biases stay as they are.",
        hint="What is the step multiplied with?",
    ):
        biases = answer.randn(E)
        answer.agrees(biases - biases.mean(), loads(E), 0.0)

    with answer.property(
        "up where an expert had fewer tokens than the mean, down where it had more",
        why="The bias is added to its score: who had too few is to be chosen more often.",
        hint="Compare the signs of your change with the loads. Is it the tensor that was given that changes?",
    ):
        for _ in range(2):
            before, given = answer.randn(E), loads(E)
            run = answer(before, given, 0.25)
            right = answer.reference(before, given, 0.25)
            answer.form(run, right)
            answer.that(
                run,
                lambda r, before=before, right=right: torch.equal((r.value - before).sign(), (right - before).sign()),
                expected=f"that the biases go {_ways(right - before)}",
                got=lambda r, before=before: _ways(r.value - before),
            )

    with answer.property(
        "by the rate, however far from the mean",
        why="One batch says little about how far. Steps of one size cannot be thrown off by a batch that is an "
        "exception.",
        hint="How far does an expert move that has ten times the mean, and how far one that has a little more than "
        "that?",
    ):
        answer.agrees(answer.randn(E), loads(E), 0.001)
        answer.agrees(torch.zeros(4), torch.tensor([1000, 3, 2, 1]), 0.01)

    with answer.property(
        "it is the mean that loads are compared with",
        why="The mean is what each would have if all were even. Where few have most, the median expert has far less.",
        hint="Add up all loads, and divide by their number, those of 0 included.",
    ):
        answer.agrees(torch.zeros(6), torch.tensor([0, 0, 9, 12, 17, 31]), 0.01)  # 11.5; the middle of all is 15.5
        answer.agrees(torch.zeros(5), torch.tensor([0, 0, 9, 11, 31]), 0.01)
        answer.agrees(torch.zeros(4), torch.tensor([2, 2, 2, 4]), 0.01)  # 2.5
        answer.agrees(torch.zeros(6), torch.tensor([0, 0, 0, 8, 7, 9]), 0.01)

    with answer.property(
        "who has exactly the mean stays where it is",
        why="sign(0) is 0: there is nothing to correct.",
        hint="What does your comparison do with equal numbers?",
    ):
        answer.agrees(answer.randn(4), torch.tensor([5, 5, 9, 1]), 0.1)
        answer.agrees(answer.randn(3), torch.tensor([7, 7, 7]), 0.1)

    with answer.property(
        "equal is equal, also where loads are large",
        why="Loads are sums over batches and GPUs, millions for each expert. float32 has whole numbers up to "
        "16,777,216, and a mean that is rounded is no longer the one that somebody has.",
        hint="Loads are int64. Keep them whole: compare E · load with the sum of all. Or compute the mean in float64.",
    ):
        large = int(answer.randint(10_000_000, 20_000_000)) * 2 + 1
        answer.agrees(torch.zeros(3), torch.tensor([large, large, large]), 0.1)
        answer.agrees(torch.zeros(5), torch.tensor([large - 1, large, large + 1, large, large]), 0.1)

    with answer.property(
        "any number of experts, and calls one after the other",
        why="After each step of the optimiser it is called again.",
        hint="Is anything kept from one call to the next?",
    ):
        for count in (1, 2, 17, 64):
            for _ in range(2):
                answer.agrees(answer.spread(answer.randn(count)), answer.spread(answer.randint(0, 9, (count,))), 0.001)


def _ways(change: Tensor) -> str:
    return ", ".join({1: "up", -1: "down"}.get(int(each), "nowhere") for each in change.sign())
