"""A step that is under way, and what the host makes of it when it is done.

**Guesses.** Where the last k tokens of a work are guesses, the token after each of k + 1 places is drawn as it would be
if there were no guesses, by the random number of its place. A guess holds if it is that token. So what a request says
does not depend on who guesses, also where it is drawn: of a guess that comes with probability p, p of all draws agree.
(Speculative sampling, https://arxiv.org/abs/2211.17192, accepts more where guesses are drawn from probabilities that it
is told, and as many where they are not drawn.)
"""

from collections.abc import Callable, Sequence

from llmsys.serving.plan import Output, StepPlan, StepResult, TokenLogprobs, Work
from llmsys.serving.runner.packed import Fetched
from llmsys.serving.sampling.sampler import Choice, Chosen

NOT_FINITE = (
    "the model's logits for this request are not finite (NaN, +∞, or −∞ all of them), so there is no next token: a "
    "weight or an activation has overflowed. A model in float16 may do better in bfloat16 or float32"
)


class Launched:
    """A step that is under way.

    Parameters
    ----------
    drawn, chosen
        The tokens of all rows of logits, and what came of those whose numbers are in `special`: either may be missing.
    one_each
        There is one row of logits for each work.

    Attributes
    ----------
    seconds : dict
        What the host spent: "prepare" (the batch), "launch" (the model and the sampler; on a CPU all of the computing),
        and after `result` "wait" (for the device). Where a graph was captured for this step, "capture" as well.
    form : str
        Of the model's forward: "plain", "fused" or "few kernels".
    bucket : int or None
        For how many sequences (of a decode step) or tokens (of another) the graph is that was replayed; None: there
        was none.
    """

    def __init__(
        self,
        plan: StepPlan,
        drawn: Fetched | None,
        chosen: Chosen | None,
        special: Sequence[int],
        seconds: dict[str, float],
        clock: Callable[[], float],
        *,
        one_each: bool,
        form: str = "plain",
        bucket: int | None = None,
    ):
        self.plan, self.seconds, self.form, self.bucket = plan, seconds, form, bucket
        self._drawn, self._chosen, self._special, self._clock = drawn, chosen, special, clock
        self._one_each = one_each

    def result(self) -> StepResult:
        """The tokens, once they are here."""
        start = self._clock()
        tokens = self._drawn.tokens() if self._drawn is not None else []
        choices = self._chosen.fetch() if self._chosen is not None else []
        self.seconds["wait"] = self._clock() - start
        works = self.plan.work
        if self._one_each and not choices:  # as nearly always
            pairs = zip(works, tokens, strict=True)
            return StepResult(self.plan.step, tuple([_plain_output(work, token) for work, token in pairs]))
        rows: list[int | Choice] = tokens or [0] * len(choices)
        for row, choice in zip(self._special, choices, strict=True):
            rows[row] = choice
        each = iter(rows)
        outputs = (_output(work, [next(each) for _ in range(work.logits)]) for work in works if work.logits)
        return StepResult(self.plan.step, tuple(outputs))


def all_failed(plan: StepPlan, error: BaseException) -> StepResult:
    """What comes of a plan whose step raised: of every request, that error."""
    said = f"the step of this request failed: {type(error).__name__}: {error}"
    return StepResult(plan.step, tuple(Output(work.request, error=said) for work in plan.work))


def _plain_output(work: Work, token: int) -> Output:
    return Output(work.request, (token,)) if token >= 0 else Output(work.request, error=NOT_FINITE)


def _output(work: Work, rows: Sequence[int | Choice]) -> Output:
    """The tokens up to the first that is not what was guessed, this one included."""
    tokens, logprobs = [], []
    for row, guess in zip(rows, (*work.guesses, None), strict=True):
        token = row.token if isinstance(row, Choice) else row
        if token < 0:
            return Output(work.request, error=NOT_FINITE)
        tokens.append(token)
        if work.sampling.logprobs is not None:
            logprobs.append(TokenLogprobs(row.logprob, row.top_logprobs))
        if token != guess:
            break
    asked = work.sampling.logprobs is not None
    return Output(work.request, tuple(tokens), tuple(logprobs) if asked else None)
