"""Wrong answers to 14.router: a right one with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_14_mixture_of_experts.right import route

wrong = Mistakes("14.router", route)

wrong(
    "out_is_zero",
    "You give experts of groups that are out a 0, and a 0 is more than a negative number.",
    ('float("-inf")', "0.0"),
    why="With negative biases an expert that is in may have a choice below 0, and then those that are out are chosen.",
)
wrong(
    "out_is_minus_one",
    "You give experts of groups that are out a −1, and biases may be lower than that.",
    ('float("-inf")', "-1.0"),
    why="Only −∞ is smaller than anything else.",
)
wrong(
    "no_groups",
    "You choose among all groups.",
    ("if kept_groups < groups:", "if False:"),
    why="A token may only go to experts of its best kept_groups groups.",
)
wrong(
    "bias_on_the_logits",
    "You add the bias to the logits.",
    ("scores if bias is None else scores + bias", "scores if bias is None else torch.sigmoid(logits.float() + bias)"),
    why="It is added to the scores: a step of it then means the same, wherever on the sigmoid an expert is.",
)
wrong(
    "bias_in_the_sigmoid",
    "You add the bias to the logits, and with them it is in the weights and in the scores that are returned.",
    ("torch.sigmoid(logits.float())", "torch.sigmoid(logits.float() + (0 if bias is None else bias))"),
    ("scores if bias is None else scores + bias", "scores"),
    why="The bias is added to the scores, to choose, and nowhere else.",
)
wrong(
    "all_in_half",
    "You compute in the type of the logits.",
    ("torch.sigmoid(logits.float())", "torch.sigmoid(logits)"),
    why="Scores and weights are float32, whatever the logits are. In float16, two experts may have one score.",
)
wrong(
    "sigmoid_in_half",
    "You compute the scores in the type of the logits, and make them float32 only then.",
    ("torch.sigmoid(logits.float())", "torch.sigmoid(logits).float()"),
    why="In float16 a score has eleven bits: experts that are near each other change places.",
)
wrong(
    "bias_in_the_weights",
    "You weigh with the bias: the weights are gathered from what was chosen by.",
    ("scores.gather(1, experts)", "choice.gather(1, experts)"),
    why="The bias says how busy an expert is. How much its answer counts is said by its score alone.",
)
wrong(
    "bias_in_the_scores",
    "You add the bias to the scores themselves, and so it is in the weights and in the scores that are returned.",
    ("choice = scores if bias is None else", "choice = scores = scores if bias is None else"),
    why="The bias steers the choice and nothing else. Keep what is chosen by in a tensor of its own.",
)
wrong(
    "best_one",
    "You take a group for as good as its best expert.",
    ("topk(min(2, E // groups), dim=-1).values.sum(dim=-1)", "amax(dim=-1)"),
    why="DeepSeek-V3's groups count by their best two together.",
)
wrong(
    "whole_group",
    "You take a group for as good as all of its experts together.",
    ("topk(min(2, E // groups), dim=-1).values.sum(dim=-1)", "sum(dim=-1)"),
    why="Experts that will not be chosen should not matter. The best two say what a group has to offer.",
)
wrong(
    "two_of_one",
    "You ask each group for its best two experts, and a group may have one.",
    ("topk(min(2, E // groups), dim=-1)", "topk(2, dim=-1)"),
    why="topk(2) of one number is an error. Such a group is as good as its only expert: min(2, E // groups).",
)
wrong(
    "masks_the_scores",
    "You return scores of 0 for the experts of groups that are out.",
    (
        "    weights = scores.gather(1, experts)\n",
        '    weights = scores.gather(1, experts)\n    scores = scores.masked_fill(choice == float("-inf"), 0.0)\n',
    ),
    why="The scores are those of all experts (3). Mask what is chosen by, in a tensor of its own.",
)
wrong(
    "groups_without_bias",
    "You choose the groups by the scores, without the bias.",
    ("grouped.topk(min", "scores.view(N, groups, E // groups).topk(min"),
    why="Then a group whose experts are all overloaded stays as popular as it was, whatever their biases.",
)
wrong(
    "every_nth_expert",
    "You take every groups-th expert for a group.",
    ("choice.view(N, groups, E // groups)", "choice.view(N, E // groups, groups).mT"),
    (".view(N, E)\n    experts", ".mT.reshape(N, E)\n    experts"),
    why="The experts of a node are consecutive: 0 to E/groups − 1 are the first group.",
)
wrong(
    "zero_by_zero",
    "You divide by the sum of the weights as it is, and it may be 0.",
    (" + 1e-20", ""),
    why="A bias may choose experts whose scores are all 0 in fp32: 0/0 is NaN.",
)
wrong(
    "small_sum_is_cut",
    "What you add to the sum is not small beside small scores.",
    ("1e-20", "1e-6"),
    why="The sigmoid of −15 is 3e-7. Such weights are divided by their sum like any others.",
)
wrong(
    "softmax",
    "You score by a softmax, as Mixtral does.",
    ("torch.sigmoid(logits.float())", "torch.softmax(logits.float(), dim=-1)"),
    why="DeepSeek-V3's scores are sigmoids: each expert's is made of its own logit alone.",
)
wrong(
    "scale_before",
    "The weights of a token add up to 1 and not to scale: it is not multiplied at all, or before the division.",
    ("scores.gather(1, experts)\n", "scores.gather(1, experts) * scale\n"),
    ("weights * scale, scores", "weights, scores"),
    why="They are divided by their sum, and then multiplied.",
)
wrong(
    "scale_where_normalised",
    "You multiply by the scale only where the weights are normalised.",
    ("/ (weights.sum(dim=-1, keepdim=True) + 1e-20)", "/ (weights.sum(dim=-1, keepdim=True) + 1e-20) * scale"),
    ("weights * scale, scores", "weights, scores"),
    why="The two are independent: normalise=False leaves out the division alone.",
)
wrong(
    "sum_of_all",
    "You divide by the sum of all scores, and not of those that were chosen.",
    ("(weights.sum(dim=-1", "(scores.sum(dim=-1"),
    why="Then the weights of a token add up to less, and to how much depends on experts that it never sees.",
)
wrong(
    "softmax_of_the_chosen",
    "You normalise by a softmax over the chosen scores.",
    ("weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)", "weights = torch.softmax(weights, dim=-1)"),
    why="The chosen scores are divided by their sum. A softmax of numbers between 0 and 1 is nearly even.",
)
wrong(
    "no_gradient",
    "You detach the scores before the weights are taken from them.",
    ("weights = scores.gather", "weights = scores.detach().gather"),
    why="The choice has no gradient. Only by its weights does the router learn.",
)
