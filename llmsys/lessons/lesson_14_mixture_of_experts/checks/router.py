"""14.router: which experts a token goes to, and how much each counts.

A token's experts may come in any order. Where experts are compared, no two of a token's are as good as each other.
"""

import torch
from torch import Tensor

from llmsys.course.checking.answer import Answer, Run
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_14_mixture_of_experts.plain import plain_route

BEST_TWO = "grouped.topk(min(2, E // groups), dim=-1).values"


@exercise_check(
    "14.router",
    reference="llmsys.moe.router:route_sigmoid",
    forbids=("llmsys.moe.router:route_softmax", "llmsys.lessons.lesson_14_mixture_of_experts.right:*"),
    adapt=plain_route,
    equivalent={
        "kept_groups < groups → kept_groups <= groups": "where all groups are kept, nothing is masked",
        f"{BEST_TWO}.sum → {BEST_TWO}.mean": "all groups have as many, so their order is the same",
        "-1 → +1 (3)": "of a matrix, dimension 1 is the last one",
        "-1 → +1 (4)": "of a matrix, dimension 1 is the last one",
        "-1 → +1 (5)": "of a matrix, dimension 1 is the last one",
        "weights.sum(dim=-1, keepdim=True) + 1e-20 → weights.sum(dim=-1, keepdim=True) - 1e-20": "0 by −1e-20 is 0, "
        "too",
    },
    hints=(
        "Keep two things apart from the beginning: what an expert scores, and what it is chosen by. Which of the two "
        "does each line of equations (3) to (5) have?",
        "The choice is scores + bias, and −∞ for experts of groups that are out. It is only there to say which "
        "experts. Weights are the scores of those experts, gathered: divided by their sum (+ 1e-20), then times "
        "scale.",
        "scores = sigmoid(logits in float32);  choice = scores + bias\n"
        "if there are groups to leave out:\n"
        "    (N, groups, E / groups): the sum of each group's best two (or its only one) says how good it is\n"
        "    the best kept_groups of a token stay, choice is −inf in all others\n"
        "experts = the k best of choice;  weights = scores at experts\n"
        "if normalise: weights / (their sum + 1e-20);  weights · scale",
    ),
)
def router(answer: Answer) -> None:
    def logits(N: int, E: int) -> Tensor:
        return answer.randn(N, E, scale=1.5)

    def chooses(*args, **options) -> Run:
        """The experts alone are compared, as sets."""
        expected, run = answer.reference(*args, **options), answer(*args, **options)
        answer.form(run, expected)
        answer.that(
            run,
            lambda r: torch.equal(r.value[0], expected[0]),
            expected=f"experts {expected[0].tolist()}",
            got=lambda r: f"experts {r.value[0].tolist()}",
        )
        return run

    def gradient(x: Tensor, k: int, **options) -> None:
        """Through the weights, and through the scores."""
        for through, width in (("weights", k), ("scores", x.shape[1])):
            asked = {"told": f"gradient of logits, through {through}", "grad_output": answer.randn(len(x), width)}
            answer.agrees(x, k, **options, **asked)

    some = int(answer.randint(3, 6))

    with answer.property(
        "each token goes to the k experts of its largest logits",
        why="A sigmoid grows with its logit, so without a bias the best scores are those of the largest logits.",
        hint="topk gives the places of the k largest numbers of a row: experts (N, k), int64.",
    ):
        chooses(logits(some, 6), 2)
        chooses(logits(some, 7), 1)

    with answer.property(
        "the scores of all experts are sigmoids, and the weights are those of the chosen ones",
        why="Each expert is scored by itself. A softmax would have each expert's score depend on all the others.",
        hint="Is an expert's score changed where another one's logit is? And normalise=False leaves the weights as "
        "they are.",
    ):
        answer.agrees(logits(some, 6), 2, normalise=False)
        answer.agrees(logits(some, 5), 3, normalise=False)

    with answer.property(
        "the weights are divided by their sum, and then multiplied by scale",
        why="Else the size of the layer's output would depend on how sure the router is. (DeepSeek-V3: scale 2.5.)",
        hint="What do the weights of a token add up to, where scale is 2.5? Over which of the experts is the sum?",
    ):
        answer.agrees(logits(some, 6), 3)
        answer.agrees(logits(some, 6), 3, scale=2.5)
        answer.agrees(logits(some, 6), 1, scale=2.5, normalise=False)

    with answer.property(
        "a bias decides who is chosen",
        why="An expert that was given too little comes in where it would not have. That is all the bias is for.",
        hint="Which numbers does topk see?",
    ):
        chooses(logits(some, 6), 2, bias=answer.randn(6, scale=0.4))
        chooses(logits(some, 6), 2, bias=torch.tensor([-2.0, 0.0, 2.0, 0.0, -1.0, 0.0]))

    with answer.property(
        "and it is in no weight and in no score",
        why="The bias says how busy an expert is, and nothing of what it can do for this token.",
        hint="Choose by scores + bias; then gather from which tensor?",
    ):
        for k in (1, 3):
            answer.agrees(logits(some, 6), k, bias=answer.randn(6, scale=0.4), normalise=False)
            answer.agrees(logits(some, 6), k, bias=answer.randn(6, scale=0.4), scale=2.5)

    with answer.property(
        "a token's experts come from its best groups",
        why="The groups are nodes of a cluster. A token that stays in few of them crosses the network few times.",
        hint="Reshape choice to (N, groups, E / groups): the experts 0 to E/groups − 1 are a group, and so on.",
    ):
        apart = torch.zeros(4, 8) - 3  # whatever makes a group good, this one is: all of its experts are better
        for token, group in enumerate((1, 3, 0, 2)):
            apart[token, 2 * group : 2 * group + 2] = 3
        chooses(apart + answer.randn(4, 8, scale=0.2), 2, groups=4, kept_groups=1)
        chooses(apart + answer.randn(4, 8, scale=0.2), 1, groups=4, kept_groups=1)

    with answer.property(
        "and yet all experts have their scores, those of other groups, too",
        why="A balance loss asks for them (6), and a group that is out for this token is not out for all.",
        hint="What do you mask: what is chosen by, or the scores that you return?",
    ):
        answer.agrees(logits(some, 8), 2, groups=4, kept_groups=1)

    with answer.property(
        "a group is as good as its best two experts together",
        why="A token has several experts in a group. One good expert makes a group less useful than two that are "
        "nearly as good; and its worst ones do not matter.",
        hint="Of each group, take the two best numbers of the choice and add them up: topk(2), sum.",
    ):
        for N, E, groups, kept, k in ((8, 12, 3, 1, 2), (7, 16, 4, 2, 3), (9, 20, 4, 1, 3)):
            chooses(logits(N, E), k, groups=groups, kept_groups=kept)

    with answer.property(
        "the bias counts among the groups, too",
        why="A group whose experts are all overloaded should be avoided as a whole.",
        hint="What is summed of a group's best two: the scores, or what is chosen by?",
    ):
        uneven = torch.tensor([0.5, 0.0, -0.5, 0.3, 0.0]).repeat_interleave(4)
        for N in (6, 8):
            chooses(logits(N, 20), 3, groups=5, kept_groups=2, bias=uneven + 0.05 * answer.randn(20))

    with answer.property(
        "an expert of a group that is out is never chosen, whatever the biases",
        why="Where all biases are negative, so may be the choice of every expert that is in: 0 would then be the "
        "best of all. vLLM had exactly this bug.",
        hint="What stands in the choice for the experts that are out? It must be smaller than anything else.",
    ):
        for level in (-1.5, -40.0):
            bias = level + answer.randn(12, scale=0.2)
            chooses(logits(6, 12), 3, groups=4, kept_groups=2, bias=bias)
            answer.agrees(logits(6, 12), 6, groups=4, kept_groups=2, bias=bias)  # all that are in

    with answer.property(
        "groups of one expert, and groups that all stay",
        why="A small model may have them.",
        hint="How many experts does a group have, where there are as many groups as experts? Its best two are then "
        "one.",
    ):
        answer.agrees(logits(some, 6), 2, groups=6, kept_groups=3, bias=answer.randn(6, scale=0.3))
        answer.agrees(logits(some, 6), 2, groups=3, kept_groups=3, bias=answer.randn(6, scale=0.3))

    with answer.property(
        "as many groups stay as are asked for, also where several are as good as each other",
        why="In fp32 the sigmoid of 20 is 1: such experts are equal. Which of them a token goes to does not matter, "
        "but to how many nodes does.",
        hint="Do you keep the best kept_groups groups, or all that are as good as the last one of these?",
    ):
        for groups, kept, k in ((4, 2, 3), (6, 1, 2)):
            size = 12 // groups
            answer.that(
                answer(torch.full((5, 12), 20.0), k, groups=groups, kept_groups=kept),
                lambda r, size=size, kept=kept, k=k: _groups_and_experts(r, size) <= {(n, k) for n in range(kept + 1)},
                expected=f"{k} different experts of at most {kept} groups for each token",
                got=lambda r: f"experts {r.value[0].tolist()}",
            )

    with answer.property(
        "weights are numbers where all chosen scores are 0, and exact where they are small",
        why="In fp32, the sigmoid of −200 is 0, and a bias chooses that expert all the same. 0/0 is NaN, and one NaN "
        "in a layer is a NaN everywhere.",
        hint="Add 1e-20 to the sum before you divide: zeros stay zeros. More than that would change small weights.",
    ):
        answer.agrees(torch.full((3, 6), -200.0), 2, bias=answer.randn(6, scale=0.3))
        answer.agrees(logits(4, 6) - 18, 2, scale=2.5)

    with answer.property(
        "the weights have gradients, and so have the scores",
        why="It is by the weights that the router learns, and by the scores that a balance loss reaches it. (The "
        "choice itself has no gradient.)",
        hint="Which line detaches, or makes a new tensor out of numbers? Is the gradient NaN? Written out, "
        "1 / (1 + e^−x) has none where e^−x overflows; torch.sigmoid has.",
    ):
        for options in ({}, {"groups": 4, "kept_groups": 2, "scale": 2.5}, {"normalise": False}):
            bias, x = answer.randn(8, scale=0.3), logits(5, 8)
            gradient(x, 3, bias=bias, **options)
        gradient(120 * torch.tanh(logits(5, 8)), 3, bias=answer.randn(8, scale=0.3))

    with answer.property(
        "all of it together: options, sizes, dtypes and strides",
        why="A model sets several at once, and its logits may be a view, or in half precision.",
        hint="Which line assumes something that need not be so: N is 1, logits are float16, k is all that is in?",
    ):
        for N, E, k, groups, kept, normalise, scale, biased, dtype in (  # each pair of options is in one of them
            (1, 12, 4, 3, 2, True, 2.5, True, torch.float32),
            (5, 12, 2, 6, 2, False, 0.5, True, torch.float16),
            (7, 15, 3, 5, 1, False, 2.5, False, torch.float32),
            (3, 9, 6, 3, 2, True, 0.5, False, torch.float32),
            (6, 7, 7, 1, 1, True, 0.5, True, torch.float16),
            (2, 5, 1, 1, 1, False, 1.0, True, torch.float32),
            (4, 16, 4, 2, 1, True, 1.0, True, torch.float16),
        ):
            for _ in range(2):  # of the same shape, and other numbers: nothing may be remembered of the first
                options = {"bias": answer.randn(E, scale=0.4)} if biased else {}
                x = answer.spread(_apart(logits(N, E)).to(dtype))
                answer.agrees(x, k, **options, groups=groups, kept_groups=kept, normalise=normalise, scale=scale)


def _groups_and_experts(run: Run, size: int) -> set[tuple[int, int]]:
    """How many groups, of `size` experts, and how many experts the tokens have."""
    return {(len({e // size for e in each}), len(set(each))) for each in run.value[0].tolist()}


def _apart(x: Tensor) -> Tensor:
    """x with the same order in each row, and no two elements as near each other as float16 would make equal."""
    ranks = x.argsort(dim=-1).argsort(dim=-1).float()
    return (ranks - x.shape[1] / 2) / 4 + 0.1 * torch.tanh(x)
