"""The runner: one step of many sequences, from its plan to its result.

    runner = Runner(model, PagedCache(num_blocks=1000, block_size=16, spec=model.cache_spec()))
    result = runner.run(plan)

    StepPlan ──► copies ──► Batch ──► model ──► logits (1, L, V) ──► sampler ──► tokens ──► StepResult
    (host)       (device)   (one copy to the device)     (device)                (one copy back)

A runner knows no request. A plan says which tokens to compute, into which blocks, and how the next one is drawn; what
is kept between steps is the cache's pages, and whose those are is in the plans alone. So it can be replaced by one on
another machine, or in a test by one without a model.

**Who waits for whom.** `launch` puts everything on the device's queue and comes back; the host first waits in
`Launched.result`, for the tokens. On a CPU nothing is queued, and the time is spent in `launch`.

**Guesses.** Where the last k tokens of a work are guesses, the token after each of k + 1 places is drawn as it would be
if there were no guesses, by the random number of its place. A guess holds if it is that token. So what a request says
does not depend on who guesses, also where it is drawn: of a guess that comes with probability p, p of all draws agree.
(Speculative sampling, https://arxiv.org/abs/2211.17192, accepts more where guesses are drawn from probabilities that it
is told, and as many where they are not drawn.)
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from llmsys.cache import Chunk, PagedCache, batch_of
from llmsys.serving.plan import PLACEHOLDER, Output, StepPlan, StepResult, TokenLogprobs, Work
from llmsys.serving.sampler import Choice, Chosen, Draw, choose

NOT_FINITE = (
    "the model's logits for this request are not finite (NaN, +∞, or −∞ all of them), so there is no next token: a "
    "weight or an activation has overflowed. A model in float16 may do better in bfloat16 or float32"
)


class Runner:
    """Runs plans on one model with one paged cache.

    Parameters
    ----------
    model
        A whole one, as `load_model` makes it.
    cache
        Its pages, as many blocks as the scheduler's pool has, of the same size.
    clock
        Seconds.
    """

    def __init__(self, model: nn.Module, cache: PagedCache, *, clock: Callable[[], float] = time.perf_counter):
        self.model, self.cache, self.clock = model, cache, clock
        self._newest: dict[str, Tensor] = {}  # of each request whose newest token is on the device, that, (1,)

    def run(self, plan: StepPlan) -> StepResult:
        """What comes of a plan."""
        return self.launch(plan).result()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> "Launched":
        """Everything of the step but its result, which on a GPU is on its way then."""
        start = self.clock()
        self.cache.copy_blocks(plan.copies)
        for request in plan.ended:
            self._newest.pop(request, None)
        batch = batch_of(
            [Chunk(_known(work), work.computed, work.blocks, logits=work.logits) for work in plan.work],
            block_size=self.cache.block_size,
            device=self.model.device,
        )
        self._fill(batch.tokens[0], plan)
        prepared = self.clock()
        chosen = None
        if any(work.logits for work in plan.work):
            logits = self.model(batch.tokens, self.cache, batch)[0]  # (L, V)
            chosen = choose(logits, [draw for work in plan.work for draw in _draws(work)])
            self._keep(chosen.on_device[:, 0], plan)
        else:
            self.model.hidden(batch.tokens, self.cache, batch)  # chunks alone, of which nobody wants logits
        return Launched(plan, chosen, {"prepare": prepared - start, "launch": self.clock() - prepared}, self.clock)

    def _fill(self, tokens: Tensor, plan: StepPlan) -> None:
        """Put drawn tokens in the place of place-holders."""
        end = 0
        for work in plan.work:
            end += len(work.tokens)
            if work.tokens[-1] == PLACEHOLDER:
                if work.request not in self._newest:
                    raise ValueError(f"work of {work.request!r} has a place-holder, and no step has drawn its token")
                tokens[end - 1 : end] = self._newest[work.request]

    def _keep(self, drawn: Tensor, plan: StepPlan) -> None:
        """Keep each request's newest token."""
        end = 0
        for work in plan.work:
            end += work.logits
            if work.logits == 1:
                self._newest[work.request] = drawn[end - 1 : end].clamp(min=0)  # −1 is no token, and nobody's concern


class Launched:
    """A step that is under way.

    Attributes
    ----------
    seconds : dict
        What the host spent: "prepare" (the batch), "launch" (the model and the sampler; on a CPU all of the computing),
        and after `result` "wait" (for the device).
    """

    def __init__(self, plan: StepPlan, chosen: Chosen | None, seconds: dict[str, float], clock: Callable[[], float]):
        self.plan, self.seconds = plan, seconds
        self._chosen, self._clock = chosen, clock

    def result(self) -> StepResult:
        """The tokens, once they are here."""
        start = self._clock()
        choices = iter(self._chosen.fetch() if self._chosen is not None else ())
        self.seconds["wait"] = self._clock() - start
        outputs = (_output(work, [next(choices) for _ in range(work.logits)]) for work in self.plan.work if work.logits)
        return StepResult(self.plan.step, tuple(outputs))


def all_failed(plan: StepPlan, error: BaseException) -> StepResult:
    """What comes of a plan whose step raised: of every request, that error."""
    said = f"the step of this request failed: {type(error).__name__}: {error}"
    return StepResult(plan.step, tuple(Output(work.request, error=said) for work in plan.work))


def _known(work: Work) -> tuple[int, ...]:
    return (*work.tokens[:-1], 0) if work.tokens[-1] == PLACEHOLDER else work.tokens


def _draws(work: Work) -> list[Draw]:
    """How the token after each of the last `logits` tokens is drawn."""
    seed = work.sampling.seed or 0
    return [Draw(work.sampling, place, seed) for place in range(work.end - work.logits + 1, work.end + 1)]


def _output(work: Work, choices: Sequence[Choice]) -> Output:
    """The tokens up to the first that is not what was guessed, this one included."""
    accepted: list[Choice] = []
    for choice, guess in zip(choices, (*work.guesses, None), strict=True):
        if not choice.finite:
            return Output(work.request, error=NOT_FINITE)
        accepted.append(choice)
        if choice.token != guess:
            break
    logprobs = None
    if work.sampling.logprobs is not None:
        logprobs = tuple(TokenLogprobs(choice.logprob, choice.top_logprobs) for choice in accepted)
    return Output(work.request, tuple(choice.token for choice in accepted), logprobs)
