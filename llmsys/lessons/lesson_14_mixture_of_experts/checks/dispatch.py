"""14.dispatch: tokens sorted by expert, a product for each expert, and the weighted sums back at their tokens."""

import torch
from torch import Tensor

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_14_mixture_of_experts.plain import plain_experts
from llmsys.moe.experts.reference import experts_loop

SEARCHES = 10
"""How often the experts' numbers may be looked through. A sort needs a few; a search for each expert, E."""

HALF = 1e-2
"""How near results in float16 must be, whose products are rounded."""


@exercise_check(
    "14.dispatch",
    forbids=(
        "llmsys.moe.experts.forward:*",
        "llmsys.moe.experts.groups:*",
        "llmsys.moe.experts.rows:*",
        "llmsys.moe.experts.matmul:*",
        "llmsys.moe.experts.reference:experts_loop",
        "llmsys.moe.experts.reference:experts_torch",
        "llmsys.lessons.lesson_14_mixture_of_experts.right:*",
    ),
    adapt=plain_experts,
    equivalent={
        "True → False": "rows of an expert may be in any order",
        "True → False (2)": "there are as many of each",
        "torch.cat(done).float() → torch.cat(done)": "a product with float32 is float32",
    },
    hints=(
        "Write down order, token and counts for the worked example above, on paper. In which order are the rows when "
        "the products are done, and whose is each of them?",
        "Of row r, whatever is looked up goes by the same order: its token is order[r] // K, its weight that of "
        "assignment order[r]. Counts have a place for each of the E experts, also for those without a row; and a token "
        "has up to K rows, which must be added up and not overwrite each other.",
        "numbers = experts, flattened;  order = argsort of numbers, without those of −1\n"
        "counts = how often each of 0 … E − 1 is among them;  token = order // K\n"
        "rows = x at token, split by counts\n"
        "done = for each expert: one_expert(its rows, its gate_up, its down);  all of them joined\n"
        "weighted = done in float32 · the weight of each row\n"
        "out = zeros in float32; index_add weighted at token; in x's dtype",
    ),
)
def dispatch(answer: Answer) -> None:
    def matrices(E: int, C: int, I: int) -> tuple[Tensor, Tensor]:  # noqa: E741
        return answer.randn(E, 2 * I, C, scale=C**-0.5), answer.randn(E, C, I, scale=I**-0.5)

    def chosen(N: int, K: int, E: int) -> Tensor:
        """K different experts for each token."""
        return answer.randn(N, E).argsort(dim=-1)[:, :K].contiguous()

    def weights(N: int, K: int) -> Tensor:
        return answer.randn(N, K).abs() + 0.1

    def right(x: Tensor, experts: Tensor, w: Tensor, gate_up: Tensor, down: Tensor, layout=lambda x: x) -> None:
        expected = experts_loop(x.double(), experts, w, gate_up.double(), down.double()).to(x.dtype)
        near = HALF if x.dtype == torch.float16 else None
        answer.matches(expected, *map(layout, (x, experts, w, gate_up, down)), rtol=near, atol=near)

    N = int(answer.randint(4, 8))

    with answer.property(
        "one token and one expert",
        why="Then a mixture of experts is an MLP.",
        hint="one_expert(rows, gate_up[e], down[e]) takes a matrix of rows: here it has one.",
    ):
        right(answer.randn(1, 6), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), *matrices(1, 6, 5))

    with answer.property(
        "one expert, and every token goes to it",
        why="Then there is nothing to sort, and all rows are in one product.",
        hint="one_expert(rows, gate_up[e], down[e]) computes all rows of an expert at once.",
    ):
        right(answer.randn(N, 6), torch.zeros(N, 1, dtype=torch.int64), torch.ones(N, 1), *matrices(1, 6, 5))

    with answer.property(
        "each token's result comes back to its place",
        why="Sorted by expert, the rows are in another order than the tokens.",
        hint="Row r was made of token order[r] // K. So to which row of the result does it belong?",
    ):
        for E in (2, 4):
            experts = torch.arange(E).flip(0).repeat(4)[:, None]
            right(answer.randn(4 * E, 6), experts, torch.ones(4 * E, 1), *matrices(E, 6, 5))

    with answer.property(
        "each row is multiplied by the weight of its own assignment",
        why="Weights are in the order of the tokens, as experts are.",
        hint="weights has a number for each assignment, and the rows are assignments in another order.",
    ):
        experts = torch.arange(3).flip(0).repeat(4)[:, None]
        right(answer.randn(12, 6), experts, weights(12, 1), *matrices(3, 6, 5))

    with answer.property(
        "a token with several experts gets the sum of what they say",
        why="out is Σ over j of weights_j · expert_j(x): equation (2).",
        hint="A token's number is there K times in `token`. What does out[token] += … do with a number that is there "
        "twice?",
    ):
        right(answer.randn(3, 6), torch.tensor([[0, 1], [1, 0], [1, 0]]), weights(3, 2), *matrices(2, 6, 5))
        right(answer.randn(9, 6), chosen(9, 3, 3), weights(9, 3), *matrices(3, 6, 5))

    with answer.property(
        "experts without a token, in the middle and at the end",
        why="With 256 experts and few tokens, most have none. The next expert's rows must not go to their matrices.",
        hint="How long is your list of counts, where the last experts have none? And what has it for one in the middle "
        "that has none?",
    ):
        for numbers in ([3, 3, 1], [0, 2, 2], [4, 1, 4]):
            right(answer.randn(3, 6), torch.tensor(numbers)[:, None], weights(3, 1), *matrices(6, 6, 5))

    with answer.property(
        "one expert takes all",
        why="Nothing limits how many rows a group has.",
        hint="Is there a size in your function that a group of N rows does not fit?",
    ):
        right(answer.randn(11, 6), torch.full((11, 1), 2), weights(11, 1), *matrices(5, 6, 5))

    with answer.property(
        "−1 is nowhere: it adds nothing, also where all are",
        why="That is how an expert is marked that is on another GPU (lesson 21). Python takes index −1 for the last "
        "one.",
        hint="Where do the −1 come in a sort, and where do the rows of expert 0 begin then?",
    ):
        experts = torch.tensor([[1, -1], [-1, 0], [-1, -1], [2, 1], [0, -1]])
        right(answer.randn(5, 6), experts, weights(5, 2), *matrices(3, 6, 5))
        right(answer.randn(2, 6), torch.full((2, 2), -1), weights(2, 2), *matrices(3, 6, 5))

    with answer.property(
        "no row is multiplied that nobody asked for",
        why="Sparse is fewer operations: for each assignment 2 · 3 · C · I, whatever the loads are. Every token "
        "through every expert is E / K times as many, and so are, at worst, groups filled up to the longest. A product "
        "with zeros and ones, to gather rows or to add them up, grows with the square of the tokens.",
        hint="How many rows does each expert's product have, and how many tokens did it get?",
    ):
        C, I, E, K = 6, 5, 8, 2  # noqa: E741
        for experts in (chosen(12, K, E), torch.tensor([[0, 1]]).repeat(12, 1)):
            run = answer(
                answer.randn(12, C), experts, weights(12, K), *matrices(E, C, I), told="operations of its products"
            )
            needed = 2 * 3 * C * I * experts.numel()
            answer.that(
                run,
                lambda r, needed=needed: isinstance(r.value, int) and 0 < r.value <= needed,
                expected=f"products of {needed:,} operations for 24 rows",
                got=lambda r: f"{r.value:,} operations",
                by=lambda r: r.value,
            )

    with answer.property(
        "each expert's matrices are read once",
        why="They are what a decoding step waits for: in DeepSeek-V3 an expert is 88 MB in bf16, for each layer.",
        hint="How many products does an expert make, where it has many rows?",
    ):
        C, I = 16, 16  # noqa: E741
        gate_up, down = matrices(4, C, I)
        run = answer(answer.randn(24, C), chosen(24, 2, 4), weights(24, 2), gate_up=gate_up, down=down)
        answer.reads(run, 1.0, of="gate_up")
        answer.reads(run, 1.0, of="down")
        answer.keeps(run, 12 * 48 * (C + I) * 4, "a dozen vectors for each of 48 rows, and no matrix")

    with answer.property(
        "the assignments are sorted, and not searched for each expert",
        why="256 searches are 256 small kernels, each of which looks at every assignment. One sort says it all.",
        hint="What do you ask `experts` inside the loop over experts? With order and counts you need not ask it again.",
    ):
        x, experts, w, (gate_up, down) = answer.randn(30, 6), chosen(30, 2, 24), weights(30, 2), matrices(24, 6, 5)
        run = answer(x, weights=w, experts=experts, gate_up=gate_up, down=down)
        answer.reads(run, SEARCHES, of="experts")

    with answer.property(
        "what a token's experts say is summed in fp32",
        why="In fp16 what is small next to a large term is rounded away, and the next term may take the large one "
        "back.",
        hint="What type have the rows where they are multiplied with the weights, and where they are added up?",
    ):
        gate_up, down = (each.expand(3, -1, -1).contiguous().half() for each in matrices(1, 6, 5))
        x, w = answer.randn(7, 6, scale=4.0).half(), torch.tensor([[2049.0, 1.0, -2047.0]]).repeat(7, 1)
        experts = torch.tensor([[0, 1, 2]]).repeat(7, 1)
        left = experts_loop(x, experts[:, :1], torch.full((7, 1), 3.0), gate_up, down)  # all three are the same expert
        answer.matches(left, x, experts, w, gate_up, down, rtol=HALF, atol=HALF)

    with answer.property(
        "tokens, weights and matrices get their gradients",
        why="It is to be trained. Experts without a token get zeros.",
        hint="Which line takes a tensor out of the graph (.data, .detach(), .tolist(), torch.tensor)?",
    ):
        experts = torch.tensor([[1, 3], [3, 0], [-1, 3], [0, 1], [1, 0]])
        for of in ("x", "weights", "gate_up", "down"):
            tensors = answer.randn(5, 6), experts, weights(5, 2), *matrices(5, 6, 4)
            asked = {"told": f"gradient of {of}", "grad_output": answer.randn(5, 6)}
            expected = plain_experts(experts_loop)(*(each.clone() for each in tensors), **asked)
            answer.matches(expected, *tensors, **asked)

    with answer.property(
        "all of it together: sizes, dtypes and strides",
        why="A layer's tensors are views of larger ones, of any size.",
        hint="Which line assumes something that need not be so: a size, a dtype, how a tensor lies in memory?",
    ):
        for N, K, E, C, I, dtype in (  # noqa: E741
            (1, 1, 1, 3, 7, torch.float32),
            (1, 4, 9, 5, 2, torch.float16),
            (13, 3, 5, 7, 4, torch.float32),
            (17, 2, 31, 4, 3, torch.float16),
            (6, 5, 5, 1, 1, torch.float32),
        ):
            for _ in range(2):
                experts = torch.where(answer.randn(N, K) < -1.3, -1, chosen(N, K, E))
                tensors = (each.to(dtype) for each in (answer.randn(N, C), *matrices(E, C, I)))
                x, gate_up, down = tensors
                right(x, experts, weights(N, K), gate_up, down, layout=answer.spread)
