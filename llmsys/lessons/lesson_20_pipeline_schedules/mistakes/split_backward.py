"""Wrong answers to 20.split_backward: a right one with an edit."""

import torch

from llmsys.course.checking.diagnosis import misconception
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
wrong(
    "dx_later_too",
    "You return a function for dx as well.",
    (DX, "def dx():\n        return dy @ weight\n"),
    why="Only dW may wait. The layer before needs dx now, and I is over when it is there.",
)
wrong(
    "dw_itself",
    "You return dW itself, and not a function that computes it.",
    (LATER, "    later = " + DW + "\n"),
    why="dW is computed before dx is handed on, then, and I takes as long as B. A function computes when it is called.",
)
wrong(
    "returns_nothing",
    "Your function puts dW into weight.grad and returns nothing.",
    ("return " + DW, "weight.grad = " + DW),
    why="Whoever calls it adds what it returns to the gradient: it returns dW, and changes nothing.",
)
wrong(
    "dx_of_all_rows",
    "You leave dx as one matrix of all rows.",
    (DX, "dx = dy.flatten(0, -2) @ weight"),
    why="The layer before has its output in the shape of x. A product with weight takes any leading dimensions as they "
    "are; where you make one matrix of all rows, its leading dimensions have to be given back.",
)


@misconception(
    "20.split_backward",
    "You have a letter for each of exactly two leading dimensions.",
    why="There may be one or several. In einsum, ... stands for as many as there are.",
)
def two_leading_dimensions(dy, x, weight):
    return dy @ weight, lambda: torch.einsum("btm,btn->mn", dy, x)


wrong(
    "two_leading_dimensions_by_name",
    "You unpack exactly two leading dimensions.",
    (DX, "sequences, tokens, _ = dy.shape\n    " + DX),
    (DW, "dy.reshape(sequences * tokens, -1).T @ x.reshape(sequences * tokens, -1)"),
    why="There may be one or several. flatten(0, -2) and reshape(-1, …) make rows of as many as there are.",
)
wrong(
    "two_leading_dimensions_in_w",
    "Your function unpacks exactly two leading dimensions.",
    (LATER, "    def later():\n        sequences, tokens, _ = dy.shape\n"
     "        return dy.reshape(sequences * tokens, -1).T @ x.reshape(sequences * tokens, -1)\n"),
    why="There may be one or several. flatten(0, -2) and reshape(-1, …) make rows of as many as there are.",
)  # fmt: skip
wrong(
    "a_sum_over_one_dimension",
    "You take for granted that there is exactly one dimension before the tokens, and sum over it.",
    (DW, "(dy.mT @ x).sum(0)"),
    why="There may be none, as here, or several. Make a matrix of all rows first: its product sums over all of them.",
)
wrong(
    "no_matrix_product",
    "You multiply number by number, or row by row in a loop, and add up.",
    (DW, "sum(one[:, None] * other for one, other in zip(dy.flatten(0, -2), x.flatten(0, -2), strict=True))"),
    why="It is right, and slow. A matrix product sums over its rows: dyᵀ x does it in one go, all rows at once.",
)
