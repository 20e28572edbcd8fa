"""What a step's result may say, and what a new token means for its request."""

from collections.abc import Set

from llmsys.serving.plan import Output, StepPlan, StepResult, Work
from llmsys.serving.request import Request


def check_result(plan: StepPlan, result: StepResult) -> dict[str, Output]:
    """The outputs by their requests' ids. ValueError, in words, where they cannot have come of the plan."""
    if result.step != plan.step:
        raise ValueError(f"result must be of step {plan.step}, got one of step {result.step}")
    outputs = {output.request: output for output in result.outputs}
    if len(outputs) < len(result.outputs):
        raise ValueError("result.outputs must have one for each request, got two for one")
    missing, found = [], 0
    for work in plan.work:
        output = outputs.get(work.request)
        if output is not None:
            found += 1
            if output.error is None:
                _check_output(work, output)
        elif work.logits:
            missing.append(work.request)
    if found < len(outputs):
        name = next(iter(outputs.keys() - {work.request for work in plan.work}))
        raise ValueError(f"result.outputs: step {plan.step} has no work for a request {name!r}")
    if missing:
        raise ValueError(f"result.outputs must have one for each request with logits; there is none for {missing}")
    return outputs


def _check_output(work: Work, output: Output) -> None:
    got = len(output.tokens)
    if got > work.logits:
        raise ValueError(
            f"result.outputs: {work.request!r} can have at most {work.logits} tokens of this step, got {got}"
        )
    if got > 1 and tuple(output.tokens[:-1]) != work.guesses[: got - 1]:
        raise ValueError(
            f"result.outputs: the tokens of {work.request!r} must be guesses that were right and one more, got "
            f"{output.tokens} where {work.guesses} were guessed: the cache holds keys and values of the guesses"
        )
    if output.logprobs is not None and len(output.logprobs) != got:
        raise ValueError(
            f"result.outputs: {work.request!r} must have a logprob for each of {got} tokens, got {len(output.logprobs)}"
        )


def accept(request: Request, output: Output, eos_ids: Set[int]) -> tuple[tuple[int, ...], str | None]:
    """Adds what the model said after all known tokens, up to a token that ends the request: what counts of it, and the
    reason to end, if there is one ("stop" or "length"). Sets what is computed now."""
    tokens, said, reason = request.tokens, tuple(output.tokens), None
    for accepted in range(len(said)):
        tokens.append(said[accepted])
        if reason := reason_to_end(request, eos_ids):
            said = said[: accepted + 1]
            if reason == "stop":
                request.stop_token = tokens[-1]
            break
    if output.logprobs is not None:
        request.logprobs += output.logprobs[: len(said)]
    # The newest is not computed yet. If there is none, the last is computed once more, to say what is next.
    request.computed = len(tokens) - 1
    return said, reason


def reason_to_end(request: Request, eos_ids: Set[int]) -> str | None:
    """Whether its newest token is its last: "stop", "length", or None where it goes on."""
    tokens, sampling = request.tokens, request.sampling
    newest = tokens[-1]
    if newest in sampling.stop_token_ids or (newest in eos_ids and not sampling.ignore_eos):
        return "stop"
    return "length" if len(tokens) >= request.limit else None
