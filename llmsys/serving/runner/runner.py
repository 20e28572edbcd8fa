"""The runner: one step of many sequences, from its plan to its result.

    runner = Runner(model, PagedCache(num_blocks=1000, block_size=16, spec=model.cache_spec()))
    result = runner.run(plan)

    StepPlan ──► copies ──► arrays ──► model ──► logits (1, L, V) ──► sampler ──► tokens ──► StepResult
    (host)       (device)   (one copy to the device)     (device)                (one copy back)

A runner knows no request. A plan says which tokens to compute, into which blocks, and how the next one is drawn; what
is kept between steps is the cache's pages, and whose those are is in the plans alone. So it can be replaced by one on
another machine, or in a test by one without a model. (It also remembers what the device has of each request, `rows`, so
as not to send it again; and the newest token, which a plan made before the step's result has to leave to it.)

**Who waits for whom.** `launch` puts everything on the device's queue and comes back; the host first waits in
`Launched.result`, for the tokens. On a CPU nothing is queued, and the time is spent in `launch`.

**How a step is launched** is up to `Execution`: as one graph (`graphs`), or, where there is none for it, one kernel at
a time (`eager`), by one of the model's forms (`forms`).
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from llmsys.cache import PagedCache
from llmsys.hardware.tier import interpreting, triton_installed
from llmsys.serving.execution import Execution
from llmsys.serving.plan import StepPlan, StepResult
from llmsys.serving.runner.eager import EagerStep
from llmsys.serving.runner.forms import Forms
from llmsys.serving.runner.going_on import GoingOn
from llmsys.serving.runner.graphs import Graphs
from llmsys.serving.runner.launched import Launched
from llmsys.serving.runner.packed import Fetched, Packing, Sender
from llmsys.serving.runner.rows import Rows
from llmsys.serving.runner.step import HostStep
from llmsys.serving.sampling.sampler import Chosen, choose


class Runner:
    """Runs plans on one model with one paged cache.

    Parameters
    ----------
    model
        A whole one, as `load_model` makes it. Its weights may be written over, and on a GPU must stay where they are:
        graphs know their addresses.
    cache
        Its pages, as many blocks as the scheduler's pool has, of the same size.
    execution
        How; None for `Execution()`.
    max_sequences, max_model_len
        Sequences of a step, and tokens of a sequence, at most: what there is to be room for. None: as it comes. (More
        are taken, too; then graphs are captured anew.)
    max_tokens
        Of a step: up to so many there are graphs of steps of all kinds. None: of decode steps alone.
    clock
        Seconds.

    Attributes
    ----------
    rows : Rows
    graphs : Graphs or None
    forms : Forms

    Raises
    ------
    ValueError
        Something of `execution` is asked for that cannot be here.
    """

    def __init__(
        self,
        model: nn.Module,
        cache: PagedCache,
        *,
        execution: Execution | None = None,
        max_sequences: int | None = None,
        max_model_len: int | None = None,
        max_tokens: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        if cache.num_blocks is None or cache.num_blocks * cache.block_size >= 2**31:
            raise ValueError(f"cache must have num_blocks, of fewer than 2³¹ tokens in all, got {cache.num_blocks}")
        self.model, self.cache, self.clock = model, cache, clock
        self.execution = execution = Execution() if execution is None else execution
        device = _device_of(model)
        most = 256 if max_sequences is None else max_sequences
        width = 16 if max_model_len is None else min(-(-max_model_len // cache.block_size), cache.num_blocks - 1)
        # Twice as many rows as sequences: those of a step, and those of the one before.
        self.rows = Rows(cache.num_blocks, device, rows=32 if max_sequences is None else 2 * most, width=width)
        self.forms = Forms(model, cache, execution)
        self.graphs: Graphs | None = None
        self._sender, self._free = Sender(device), []
        on_gpu = device.type == "cuda"
        possible = _can_be_graphs(model, cache)
        if execution.graphs and on_gpu and not possible and not callable(cache.kernel):
            raise ValueError(
                "execution.graphs must be None or False for this attention, which waits for the GPU in every step; or "
                'let attention be None or "triton", and the model be float32 or narrower'
            )
        if possible if execution.graphs is None else execution.graphs:
            tokens = 0 if execution.mixed_graphs is False else max_tokens or 0
            self.graphs = Graphs(
                self.rows, cache, self.forms, self._sender, sequences=most, tokens=tokens,
                budget=execution.graph_memory, required=execution.graphs is not None,
            )  # fmt: skip
            if execution.capture == "at start":
                with _on(device):
                    self.graphs.capture_all()
        self._last: GoingOn | None = None
        self._draws = on_gpu or self.graphs is not None

    def run(self, plan: StepPlan) -> StepResult:
        """What comes of a plan."""
        return self.launch(plan).result()

    @torch.inference_mode()
    def launch(self, plan: StepPlan, *, by_layers: bool = False) -> Launched:
        """Everything of the step but its result, which on a GPU is on its way then.

        by_layers      somebody wants to know when each layer is launched (`PagedCache.after_layer`): no graph is taken
                       for this step, which is one launch for all of them, nor few kernels
        """
        try:
            with _on(self.rows.device):
                return self._launch(plan, by_layers)
        except BaseException:
            self.rows.lose()
            raise

    def _launch(self, plan: StepPlan, by_layers: bool) -> Launched:
        start = self.clock()
        last, self._last = self._last, None  # until nothing has been raised
        if plan.copies:
            self.cache.copy_blocks(plan.copies)
        changed = None if last is None or by_layers else last.takes(plan)
        if changed is None:
            return self._launch_any(plan, start, by_layers)
        graph, row = last.graph, last.row
        self.rows.skip(row, plan.ended)
        if changed:
            graph.send_blocks(row, changed, self._sender)
        prepared = self.clock()
        _, drawn = graph.run()
        fetched = Fetched(drawn[: len(row)], self._free)
        self._last = last
        seconds = {"prepare": prepared - start, "launch": self.clock() - prepared}
        return Launched(
            plan, fetched, None, (), seconds, self.clock, form=graph.form.name, one_each=True, bucket=graph.size
        )

    def _launch_any(self, plan: StepPlan, start: float, by_layers: bool) -> Launched:
        seconds = {}
        step = HostStep(plan, self.rows, self.cache.block_size)
        self.rows.known[step.row] = False  # until the model has not raised
        graph = None
        if self.graphs is not None and not by_layers:
            if not self.graphs.has(step):
                captured = self.clock()
                self.graphs.take(step)
                seconds["capture"] = self.clock() - captured
            graph = self.graphs.take(step)
        L = step.logits
        if not self._draws:
            step.special = np.arange(L)
        drawing = len(step.special) < L
        if graph is not None:
            graph.send(step, self._sender)
            form = graph.form
        else:
            form = self.forms.of(L if step.decode and not by_layers else 0)
            eager = EagerStep(step, self.rows, self.cache, self._sender, draw=drawing)
        prepared = self.clock()
        logits, drawn = graph.run() if graph is not None else eager.run(form)
        chosen = self._choose(logits, step, plan) if len(step.special) else None
        fetched = Fetched(drawn[:L], self._free) if drawing and L else None
        self.rows.known[step.row] = step.wanted == 1
        seconds["prepare"] = prepared - start - seconds.get("capture", 0)
        seconds["launch"] = self.clock() - prepared
        if step.decode and graph is not None and not len(step.special):
            self._last = GoingOn(plan, graph, step.row, self.rows, self.cache.block_size)
        return Launched(
            plan, fetched, chosen, step.special.tolist(), seconds, self.clock, form=form.name,
            one_each=step.one_each, bucket=None if graph is None else graph.size,
        )  # fmt: skip

    def _choose(self, logits: Tensor, step: HostStep, plan: StepPlan) -> Chosen:
        """What the sampler says to the special rows. Tokens of requests that have one are kept as their newest."""
        special, row = step.special, step.row[step.owner[step.special]]
        single = step.wanted[step.owner[special]] == 1
        kept = np.zeros(0, np.int64) if single.all() else single.nonzero()[0]
        packing = Packing(special=(np.int64, len(special)), kept=(np.int64, len(kept)), row=(np.int64, single.sum()))
        values = dict(special=special, kept=kept, row=row[single])
        sent = packing.tensors(self._sender.send(packing, values))
        whole = len(special) == step.logits
        logits = logits[: len(special)] if whole else logits.index_select(0, sent["special"])
        chosen = choose(logits, step.draws(plan.work))
        tokens = chosen.on_device[:, 0]
        tokens = tokens if single.all() else tokens.index_select(0, sent["kept"])
        self.rows.newest.index_copy_(0, sent["row"], tokens.int())
        return chosen


def _on(device: torch.device) -> AbstractContextManager:
    """Events and streams are of the device that is torch's current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def _device_of(model: nn.Module) -> torch.device:
    device = model.device
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _can_be_graphs(model: nn.Module, cache: PagedCache) -> bool:
    """Whether a step is made of launches alone: on a GPU with the library's kernels, which never wait."""
    if model.device.type != "cuda" or cache.kernel not in (None, "triton") or not triton_installed():
        return False
    return not interpreting() and (cache.kernel == "triton" or model.dtype != torch.float64)
