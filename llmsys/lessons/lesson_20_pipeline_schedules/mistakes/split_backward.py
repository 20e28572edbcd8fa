"""Wrong answers to 20.split_backward: a right one with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_20_pipeline_schedules.right import split_backward

wrong = Mistakes("20.split_backward", split_backward)

DX = "dx = dy @ weight"
DW = "dy.flatten(0, -2).T @ x.flatten(0, -2)"
LATER = "    def later():\n        return " + DW + "\n"

wrong(
    "the_weight_is_transposed",
    "You take the transposed weight for dx.",
    (DX, "dx = dy @ weight.T"),
    why="weight is (outputs, inputs), and y = x Wᵀ. dy has one number for each output: it meets the first dimension.",
)
wrong(
    "transposed",
    "Your dW is transposed: (inputs, outputs).",
    (DW, "x.flatten(0, -2).T @ dy.flatten(0, -2)"),
    why="(1) is for y = x W. Here y = x Wᵀ, and dW has the shape of the weight as it is stored, (outputs, inputs).",
)
wrong(
    "a_gradient_for_each_sequence",
    "You make a dW for each sequence.",
    (DW, "dy.mT @ x"),
    why="There is one weight, and its gradient is the sum over all sequences as well as over their tokens.",
)
wrong(
    "the_first_dimension_only",
    "You sum over the first dimension and the tokens, and not over the dimensions between them.",
    (DW, "(dy.mT @ x).sum(0) if dy.dim() > 2 else dy.T @ x"),
    why="There may be any number of leading dimensions. All but the last one are rows.",
)
wrong(
    "the_first_sequence_only",
    "You take the first sequence's gradient for that of all.",
    (DW, "dy.flatten(0, -3)[0].T @ x.flatten(0, -3)[0] if dy.dim() > 2 else dy.T @ x"),
    why="Every sequence has gone through the weight.",
)
wrong(
    "mean_over_tokens",
    "You take the mean over the tokens.",
    (DW, DW + " / dy.flatten(0, -2).shape[0]"),
    why="If the loss is a mean, its 1/N is in dy already. dW is the plain sum.",
)
wrong(
    "sums_before_the_product",
    "You sum dy and x over the tokens before you multiply them.",
    (DW, "dy.flatten(0, -2).sum(0)[:, None] * x.flatten(0, -2).sum(0)"),
    why="A sum of products is no product of sums: each token's dy belongs to its own x.",
)
wrong(
    "without_a_sum",
    "You multiply the sum of dy by the x of one token.",
    (DW, "dy.flatten(0, -2).sum(0)[:, None] * x.flatten(0, -2)[-1]"),
    why="Each token's dy belongs to its own x, so both are kept for every token.",
)
wrong(
    "the_wrong_gradient",
    "You make dW of dx and x.",
    (DW, "dx.flatten(0, -2).T @ x.flatten(0, -2)"),
    why="dx is the gradient of this matrix's input, for the layer before. dW is made of its output's, dy.",
)
wrong(
    "keeps_the_output",
    "You make dW of dy and the output y.",
    (DX, DX + "\n    y = x @ weight.T"),
    (DW, "dy.flatten(0, -2).T @ y.flatten(0, -2)"),
    why="The derivative of x Wᵀ by W is x. That is why a forward has to keep its input.",
)
wrong(
    "both_at_once",
    "You compute dW before anybody asks for it, and return it later.",
    (LATER, "    dw = " + DW + "\n\n    def later():\n        return dw\n"),
    why="The function has nothing to do then, and I takes as long as B. The product belongs inside of it.",
)
wrong(
    "the_whole_backward_twice",
    "You do the whole backward in each half, and use one half of it.",
    (DX, "def both():\n        return dy @ weight, " + DW + "\n\n    dx = both()[0]"),
    (LATER, "    def later():\n        return both()[1]\n"),
    why="I and W are then as long as B, each. One product belongs into each of them.",
)
wrong(
    "dx_again_in_w",
    "You compute dx once more, when dW is asked for.",
    (LATER, "    def later():\n        dx = dy @ weight\n        return " + DW + "\n"),
    why="Nobody waits for it any more, and W takes twice as long.",
)
wrong(
    "one_place_for_all",
    "You keep dy and x in one place, and the next call overwrites them.",
    (DX, DX + "\n    one_place_for_all.kept = dy, x"),
    (LATER, "    def later():\n        dy, x = one_place_for_all.kept\n        return " + DW + "\n"),
    why="Several I may come before the first W. Each function has to have the dy and x of its own call.",
)
wrong(
    "in_the_order_of_the_calls",
    "You keep all dy and x in one list, and take those that have waited longest.",
    (DX, DX + '\n    in_the_order_of_the_calls.__dict__.setdefault("kept", []).append((dy, x))'),
    (LATER, "    def later():\n        dy, x = in_the_order_of_the_calls.kept.pop(0)\n        return " + DW + "\n"),
    why="A schedule may do a later microbatch's W first, and a rank may have several stages. Each function has to have "
    "the dy and x of its own call.",
)
wrong(
    "adds_up_by_itself",
    "You add dW to weight.grad, and return the sum of all microbatches.",
    (LATER, "    def later():\n        dw = " + DW + "\n"
     "        weight.grad = dw if weight.grad is None else weight.grad + dw\n        return weight.grad\n"),
    why="Whoever calls the function adds what it returns to the gradient. What you added counts twice then.",
)  # fmt: skip
