"""An answer that is under way: from the tokens that its request gained to text, and to what is said of it.

A step may bring an answer several tokens (guesses that held), and end it in the middle of them in two ways that do not
know of each other: the scheduler sees an end token, or that there are enough; here a stop string is seen, in the text.
What comes first counts. The scheduler has then taken in what came after a stop string, and the answer has not.
"""

from dataclasses import dataclass

from llmsys.serving.detokenize import Detokenizer
from llmsys.serving.metrics import Metrics
from llmsys.serving.request import Request, Status
from llmsys.serving.response import Answer, Response, Update
from llmsys.serving.scheduler import Scheduler


@dataclass(eq=False)
class UnderWay:
    """An answer that has not ended, its request, and whose it is."""

    request: Request
    text: Detokenizer
    answer: Answer
    response: Response

    def take(self, scheduler: Scheduler, metrics: Metrics) -> Update | None:
        """Brings the answer up to date. None if there is nothing new.

        The scheduler is told where a stop string ends the request; the metrics are asked for the request's at its end.
        """
        request, answer, text = self.request, self.answer, self.text
        generated = request.generated
        if request.stop_token is not None:
            generated = generated[:-1]
        first, piece = len(answer.tokens), ""
        for token in generated[first:]:
            answer.tokens.append(token)
            piece += text.push(token)
            if text.stopped is not None:
                scheduler.finish(request.id)  # if it goes on: this may have been its last token anyhow
                break
        if request.ended:
            piece += text.finish()
            self._end(metrics)
        elif len(answer.tokens) == first:
            return None
        logprobs = None
        if answer.logprobs is not None:
            logprobs = tuple(request.logprobs[first : len(answer.tokens)])
            answer.logprobs += logprobs
        answer.text += piece
        new = tuple(answer.tokens[first:])
        return Update(self.response.id, answer.index, piece, new, logprobs, answer.reason, answer.error)

    def _end(self, metrics: Metrics) -> None:
        request, answer = self.request, self.answer
        if self.text.stopped is not None and request.status is Status.FINISHED:
            answer.reason, answer.stopped_by = "stop", self.text.stopped
        else:
            answer.reason = {Status.FAILED: "error", Status.ABORTED: "abort"}.get(request.status, request.reason)
            answer.stopped_by, answer.error = request.stop_token, request.error
        answer.metrics = metrics.take(request.id)
