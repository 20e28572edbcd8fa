"""The engine: prompts in, text out, as many at a time as there is room for.

    engine = Engine(load_model())
    for response in engine.generate(["What is 2 + 2?", "Name a colour."], SamplingParams(max_tokens=20)):
        print(response.text)

    for update in engine.stream("Tell me a story.", SamplingParams(temperature=0.8, seed=1)):
        print(update.text, end="", flush=True)

It is four parts, each of which knows nothing of the next but what it is handed:

    add ──► Scheduler ──── StepPlan ────► Runner                  which tokens, in which blocks │ the model, the sampler
               ▲                            │
               └──────── StepResult ────────┤
    Update ◄── Detokenizer ◄── tokens ──────┘                     whole characters, stop strings

`step` is one turn around this loop (`loop`), in which the next step may be planned while one runs (`execution`).
`generate` and `stream` take as many as they need, and whoever else has requests in the engine is served by the same
steps. An engine is used by one thread at a time (`async_engine` sees to that).

Greedy answers are the ones that `llmsys.models.generate` gives to each prompt alone: what else is in a batch, how a
prompt is cut, what is hit, shared or preempted changes no token. (But for the last bits of the logits, which a sum in
another order may change, where two tokens are that close.)
"""

import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import nn

from llmsys.attention import STAGES
from llmsys.attention.paged import PagedAttention
from llmsys.cache import BlockPool, PagedCache
from llmsys.models.modules import unwrapped
from llmsys.models.sampling import whole_number
from llmsys.models.text.prompt import Prompt, token_ids
from llmsys.serving.execution import Execution
from llmsys.serving.guard import Guard
from llmsys.serving.host_cache import HostCache, host_tier
from llmsys.serving.loop import Loop
from llmsys.serving.memory import blocks_that_fit
from llmsys.serving.policies import Policy
from llmsys.serving.request import Request
from llmsys.serving.responses.detokenize import Detokenizer
from llmsys.serving.responses.response import Answer, Response, Update
from llmsys.serving.responses.under_way import Answers
from llmsys.serving.runner import Runner
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.events import EventLog
from llmsys.serving.telemetry.metrics import Metrics
from llmsys.serving.telemetry.progress import Progress


class Engine:
    """Serves many requests on one model.

    Parameters
    ----------
    model
        Any that `load_model` takes, on a CPU or a GPU.
    attention
        Who attends to the pages: None for the fastest that runs here, "torch", "triton", a stage's name, or a function
        of your own with the contract of `llmsys.attention.paged.arguments`.
    block_size
        Tokens in a block.
    num_blocks, memory
        How large the cache is, in blocks or in bytes. Neither: what is measured to be free (`llmsys.serving.memory`).
    host_cache
        Main memory for blocks that the cache has no room for: bytes, or a size such as "2 GiB"; they come back where
        that takes less time than computing them (`llmsys.serving.host_cache`). None or 0: they are lost.
    max_tokens_per_step, max_sequences, policy, watermark
        The scheduler's (`llmsys.serving.scheduler`).
    max_model_len
        Tokens in a sequence at most, prompt included. None: the model's context.
    scheduler
        Makes the scheduler, as `Scheduler` does: one of your own. One that does not say that it `plans_ahead` is asked
        for a plan when the result of the one before has been taken in.
    execution
        How steps are executed, part by part. None: by all that helps here.
    events
        Where to write down what happens. None: a log of the last 100,000 events.
    clock
        Seconds.

    Attributes
    ----------
    scheduler, runner, pool
    metrics : Metrics
    events : EventLog

    Raises
    ------
    ValueError
        An argument is out of its range, the model is a part of one, or there is no memory for two blocks.
    """

    broken = False
    """It cannot serve anything any more, whatever is asked."""

    def __init__(
        self,
        model: nn.Module,
        *,
        attention: str | PagedAttention | None = None,
        block_size: int = 16,
        num_blocks: int | None = None,
        memory: int | None = None,
        host_cache: int | str | HostCache | None = None,
        max_tokens_per_step: int = 2048,
        max_sequences: int = 256,
        max_model_len: int | None = None,
        policy: str | Policy = "stall-free",
        watermark: float = 0.01,
        scheduler: Callable[..., Scheduler] = Scheduler,
        execution: Execution | None = None,
        events: EventLog | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        model = unwrapped(model)
        if not hasattr(model, "is_whole"):
            raise ValueError(f"model must be one that load_model made, got {type(model).__name__}")
        if not model.is_whole:
            raise ValueError("model must be a whole one to serve, and this is a part, without some layers or an end")
        if num_blocks is not None and memory is not None:
            raise ValueError("num_blocks and memory cannot both be given: either says how large the cache is")
        context = model.config.context_length
        if max_model_len is not None and not 2 <= whole_number("max_model_len", max_model_len, at_least=0) <= context:
            raise ValueError(f"max_model_len must be from 2 to the model's context of {context}, got {max_model_len}")
        self.model, self.max_model_len, self.clock = model, max_model_len or context, clock
        execution = Execution() if execution is None else execution
        if not isinstance(execution, Execution):
            raise ValueError(f"execution must be an Execution, got {type(execution).__name__}")
        limits = dict(max_tokens_per_step=max_tokens_per_step, max_sequences=max_sequences)
        for name, value in (limits | dict(block_size=block_size)).items():
            whole_number(name, value, at_least=1)
        if num_blocks is not None:
            whole_number("num_blocks", num_blocks, at_least=2)
        else:
            sizes = limits | dict(block_size=block_size, max_model_len=self.max_model_len)
            num_blocks = blocks_that_fit(model, memory=memory, execution=execution, **sizes)
        host, takes_back = host_tier(model, host_cache, block_size=block_size)
        self.pool = BlockPool(num_blocks, block_size, host_blocks=host.slots if host else 0, takes_back=takes_back)
        self.events = EventLog(keep=100_000) if events is None else events
        self.metrics = Metrics()
        self.events.listen(self.metrics.on, progress=self.metrics.on_progress)
        self.scheduler = scheduler(
            self.pool, **limits, policy=policy, watermark=watermark, max_model_len=self.max_model_len,
            eos_ids=model.tokenizer.eos_ids if model.tokenizer else (), events=self.events, clock=clock,
        )  # fmt: skip
        if host and not isinstance(self.scheduler, Scheduler):
            raise ValueError("host_cache must be None where scheduler makes no Scheduler: plans must have its copies")
        stage = STAGES[attention] if isinstance(attention, str) and attention in STAGES else None
        cache = PagedCache(
            None if stage else attention, stage=stage, num_blocks=num_blocks, block_size=block_size,
            spec=model.cache_spec(), host=host,
        )  # fmt: skip
        room = dict(max_sequences=max_sequences, max_model_len=self.max_model_len, max_tokens=max_tokens_per_step)
        self.runner = Runner(model, cache, execution=execution, clock=clock, **room)
        self._numbers = itertools.count()
        self._guard = Guard(self.abort)
        self._answers = Answers(self.scheduler, self.metrics, self._guard)
        # On a CPU the host is the device, and nothing runs while it plans.
        ahead = model.device.type != "cpu" if execution.ahead is None else execution.ahead
        self._loop = Loop(self.scheduler, self.metrics, self._guard, clock, self._answers.take, ahead=ahead)

    # Many at once, or one as it comes

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
    ) -> list[Response]:
        """The answers to all prompts, in their order.

        Parameters
        ----------
        prompts
            As for `llmsys.models.generate`, each.
        params
            For all of them, or one for each; None for `SamplingParams()`.
        progress
            Whether a bar is shown. None: where somebody may be looking, and it takes longer than a few seconds.

        Raises
        ------
        ValueError
            A prompt or its params are refused, see `add`: then nothing is computed.
        Exception
            Whatever the model raises: then all of these prompts are aborted. (A request whose logits are not finite
            fails alone: its answer has an `error`, the others are as they would be.)
        """
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise ValueError(f"prompts must be a list of prompts, got {type(prompts).__name__}: put one into a list")
        each = params if isinstance(params, Sequence) else [params] * len(prompts)
        if len(each) != len(prompts):
            raise ValueError(f"params must be one for all prompts, or one for each of {len(prompts)}, got {len(each)}")
        responses: list[Response] = []
        try:
            for prompt, its in zip(prompts, each, strict=True):
                with self._guard.interrupts.later():
                    responses.append(self.add(prompt, its))
            left = {response.id: response for response in responses}
            with Progress(len(left), show=progress) as bar:
                while left and self.has_unfinished:
                    updates = self.step()
                    bar.tokens(sum(len(update.tokens) for update in updates))
                    for update in updates:
                        if update.reason is not None and update.id in left and left[update.id].finished:
                            del left[update.id]
                            bar.done()
                    while left and left[next(iter(left))].finished:  # a listener aborted it, or took its last steps
                        del left[next(iter(left))]
                        bar.done()
        finally:
            for response in responses:
                self.abort(response.id)  # nothing, where all is well
        return responses

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Update]:
        """The answers to one prompt, a piece at a time, as soon as it is there.

        Errors as for `add`, at the call. A stream that is closed, or that nobody holds any more, aborts its request.
        """
        arrived: deque[Update] = deque()
        with self._guard.interrupts.later():
            updates = self._stream(self.add(prompt, params, listener=arrived.append), arrived)
            next(updates)  # into the `try`: of a generator that was never begun, nothing is run when it is given up
        return updates

    def _stream(self, response: Response, arrived: deque[Update]) -> Iterator[Update | None]:
        try:
            yield None
            while arrived or not response.finished:
                while arrived:
                    yield arrived.popleft()
                if not response.finished:
                    self.step()
        finally:
            self.abort(response.id)

    # What these are made of

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished

    def add(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        id: str | None = None,
        salt: str | None = None,
        listener: Callable[[Update], object] | None = None,
    ) -> Response:
        """Puts a prompt in the queue. The response grows with every `step`.

        Parameters
        ----------
        id
            For `abort`; None for a new one.
        salt
            Prompts share cached prefixes with those of the same salt alone.
        listener
            Called with every update. It may abort and add. What it raises, `step` raises when it is done.

        Raises
        ------
        ValueError
            The prompt is none (`llmsys.models.text.prompt`), or with its answer is longer than the model or the cache
            has room for; there are stop strings or stop tokens that cannot come; or the id is in use.
        RuntimeError
            Another thread uses the engine; `step` raises this, too.
        """
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise ValueError(f"params must be SamplingParams, got {type(params).__name__}")
        tokens = token_ids(self.model, prompt)
        V = self.model.config.vocab_size
        if beyond := [token for token in params.stop_token_ids if token >= V]:
            raise ValueError(f"stop_token_ids must be below the vocabulary's {V} tokens, got {beyond[0]}")
        if listener is not None and not callable(listener):
            raise ValueError(f"listener must be a function of an Update, got {listener!r}")
        texts = [Detokenizer(self.model.tokenizer, params.stop) for _ in range(params.n)]
        if params.seed is None and params.temperature > 0:
            params = replace(params, seed=secrets.randbits(63))  # kept by the request: a preempted one draws on
        asked = params.logprobs is not None
        answers = [Answer(i, logprobs=[] if asked else None) for i in range(params.n)]
        with self._guard.alone(), self._guard.work():
            request = Request(id or self._new_id(), tokens, params, salt=salt)
            if request.id in self._answers.responses:  # its first answer may have ended
                raise ValueError(f"id {request.id!r} is in use by a response that has not ended: give another id")
            response = Response(request.id, request.prompt, answers, listener)
            self._answers.add(response, self.scheduler.add(request), texts)
        return response

    def abort(self, id: str) -> bool:
        """Ends a response; its answers keep what they have. False where there is none of that id, or no more."""
        with self._guard.thread:  # which waits for another thread's step: a request is not left behind
            response = self._answers.responses.get(id)
            if response is None:
                return False
            if self._guard.at_work:  # the garbage collector found a stream that nobody holds: it may come at any moment
                self._guard.given_up.append(id)
                return True
            with self._guard.work():
                requests = self._answers.requests_of(response)
                for each in requests:
                    self.scheduler.abort(each)
                self._answers.take(requests)
                self._loop.forget_ended()
        return True

    def step(self) -> list[Update]:
        """Lands a step, and says what it added. [] where there is nothing to do, or prompts were read only.

        Where the model raises, every request of its step fails, the others go on, and the exception is raised.
        RuntimeError where there are requests, and the scheduler or policy, your own, has nothing for any of them.
        """
        with self._guard.alone():
            return self._loop.step(self.runner)

    def _new_id(self) -> str:
        answers = self._answers
        names = (f"request-{n}" for n in self._numbers)
        return next(id for id in names if id not in answers.under_way and id not in answers.responses)
