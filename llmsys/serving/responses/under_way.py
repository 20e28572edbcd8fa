"""Answers that are under way: from the tokens that their requests gained to text, and to what is said of it.

A step may bring an answer several tokens (guesses that held), and end it in the middle of them in two ways that do not
know of each other: the scheduler sees an end token, or that there are enough; here a stop string is seen, in the text.
What comes first counts. The scheduler has then taken in what came after a stop string, and the answer has not.
"""

from collections.abc import Iterable, Sequence

from llmsys.serving.guard import Guard
from llmsys.serving.request import Request, Status
from llmsys.serving.responses.detokenize import Detokenizer
from llmsys.serving.responses.response import Answer, Response, Update
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.metrics import Metrics


class UnderWay:
    """An answer that has not ended, its request, and whose it is."""

    def __init__(self, request: Request, text: Detokenizer, answer: Answer, response: Response):
        self.request, self.text, self.answer, self.response = request, text, answer, response
        self._id, self._prompt = response.id, len(request.prompt)
        self._taken = self._prompt  # of the request's tokens, those that are looked at
        self._plain = answer.logprobs is None and not text.stops

    def take(self, scheduler: Scheduler, metrics: Metrics) -> Update | None:
        """Brings the answer up to date. None if there is nothing new.

        The scheduler is told where a stop string ends the request; the metrics are asked for the request's at its end.
        """
        request, answer, text = self.request, self.answer, self.text
        if self._plain and len(request.tokens) == self._taken + 1 and request.status is Status.RUNNING:
            self._taken += 1  # as nearly always: one more token, and it goes on
            token = request.tokens[-1]
            answer.tokens.append(token)
            piece = text.push(token)
            answer.text += piece
            return Update(self._id, answer.index, piece, (token,))
        first, piece = len(answer.tokens), ""
        new = request.tokens[self._prompt + first :]
        self._taken = len(request.tokens)
        if request.stop_token is not None:
            new.pop()
        for taken, token in enumerate(new, 1):
            piece += text.push(token)
            if text.stopped is not None:
                scheduler.finish(request.id)  # if it goes on: this may have been its last token anyhow
                del new[taken:]
                break
        answer.tokens += new
        if request.ended:
            piece += text.finish()
            self._end(metrics)
        elif not new:
            return None
        logprobs = None
        if answer.logprobs is not None:
            logprobs = tuple(request.logprobs[first : len(answer.tokens)])
            answer.logprobs += logprobs
        answer.text += piece
        return Update(self.response.id, answer.index, piece, tuple(new), logprobs, answer.reason, answer.error)

    def _end(self, metrics: Metrics) -> None:
        request, answer = self.request, self.answer
        if self.text.stopped is not None and request.status is Status.FINISHED:
            answer.reason, answer.stopped_by = "stop", self.text.stopped
        else:
            answer.reason = {Status.FAILED: "error", Status.ABORTED: "abort"}.get(request.status, request.reason)
            answer.stopped_by, answer.error = request.stop_token, request.error
        answer.metrics = metrics.take(request.id)


class Answers:
    """All that are under way in an engine.

    Attributes
    ----------
    under_way : dict
        By the request's id, an answer each.
    responses : dict
        By their ids, those of which an answer is under way.
    """

    def __init__(self, scheduler: Scheduler, metrics: Metrics, guard: Guard):
        self.under_way: dict[str, UnderWay] = {}
        self.responses: dict[str, Response] = {}
        self._scheduler, self._metrics, self._guard = scheduler, metrics, guard

    def add(self, response: Response, requests: Sequence[Request], texts: Sequence[Detokenizer]) -> None:
        """One that begins; its answers, their requests and texts in one order."""
        self.responses[response.id] = response
        for request, text, answer in zip(requests, texts, response.answers, strict=True):
            self.under_way[request.id] = UnderWay(request, text, answer, response)

    def requests_of(self, response: Response) -> list[str]:
        """The ids of those that have not ended."""
        return [id for id, each in self.under_way.items() if each.response is response]

    def take(self, requests: Iterable[str]) -> list[Update]:
        """Brings the answers of these requests up to date, and tells their listeners. If one raises, the others are
        told, too, before it is raised."""
        updates: list[Update] = []
        raised: BaseException | None = None
        for one in map(self.under_way.get, requests):  # one by one: a listener may end the next
            update = one and one.take(self._scheduler, self._metrics)
            if update is None:
                continue
            updates.append(update)
            response = one.response
            if update.reason is not None:
                del self.under_way[one.request.id]
                if response.finished:
                    del self.responses[response.id]
            if response.listener is None:
                continue
            try:
                with self._guard.pause():
                    response.listener(update)
            except BaseException as error:
                raised = raised or error
        if raised is not None:
            raise raised
        return updates
