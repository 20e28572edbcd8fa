"""What is served, in which order, and the record."""

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from llmsys.bench.disaggregate.designs import DESIGNS, ENGINES, GPUS, LIMITS, Sizes, sizes
from llmsys.bench.disaggregate.engines import digits, load, show_stacks, time_link, written_down
from llmsys.bench.disaggregate.read import share_within
from llmsys.bench.goodput import SEED, TRACE, condensed, conversations, percentiles
from llmsys.bench.record import Record, new_record
from llmsys.bench.serving.serve import Waits, serve
from llmsys.parallel.ranks import run
from llmsys.serving import Execution
from llmsys.serving.disaggregate import DisaggregatedEngine, start
from llmsys.serving.simulator import StepLoad, TimedStep


def measure(
    quick: bool = False, *, size: Sizes | None = None, save: Callable[[Record], object] = lambda record: None
) -> Record:
    """Serve with both designs at all rates: on two GPUs at the size of Mistral-7B, else with a tiny model on the CPU.

    size      what to serve instead
    save      called with the record so far, after each row
    """
    with tempfile.TemporaryDirectory() as folder:
        return _Run(size or sizes(quick), Path(folder), save).all()


class NoTime(Exception):
    """What was to be done is not begun any more."""


class _Run:
    """`rows` and `missing` grow from job to job; what engines write down lies in `folder`."""

    def __init__(self, size: Sizes, folder: Path, save: Callable[[Record], object]):
        self.size, self.folder, self._save = size, folder, save
        self.rows: list[dict] = []
        self.missing: dict[str, str] = {} if size.gpu else {"two GPUs": "this machine has none; its CPU was taken"}
        halves = size.rates[:2], size.rates[2:]  # what needs no NCCL comes first, and both are there if time is short
        self._jobs = [(name, rate) for rates in halves for name in DESIGNS for rate in rates]
        self._began = time.perf_counter()
        self._intervals: list[tuple[str, float, float]] = []  # which design served when

    def all(self) -> Record:
        size = self.size
        execution = Execution(few_kernels=False, capture="at start") if size.gpu else None
        try:
            with start(
                partial(load, size.shape, size.max_model_len, self.folder),
                watch=partial(written_down, self.folder), device="cuda" if size.gpu else "cpu",
                silent_after=60.0, timeout=140.0,
                max_tokens_per_step=size.max_tokens_per_step, max_sequences=size.max_sequences,
                max_model_len=size.max_model_len, num_blocks=size.num_blocks, execution=execution,
            ) as engine:  # fmt: skip
                self._serve_all(engine)
        except Exception as error:  # whatever it is, it is said, and what was measured before is not lost
            self._not_done(_in_words(error))
            show_stacks(self.folder)
        try:
            self.rows += run(time_link, GPUS, size.messages, size.gpu, backend="gloo", timeout=30.0)[0]
        except Exception as error:
            self.missing["link"] = _in_words(error)
        return self.record()

    def _serve_all(self, engine: DisaggregatedEngine) -> None:
        """What is done is taken off the jobs."""
        size, waits, warm = self.size, Waits(engine), set()
        while self._jobs:
            name, rate = self._jobs[0]
            try:
                self._in_time()
                if name not in warm:  # kernels are compiled, and a connection is made
                    self._serve(engine, name, max(size.rates), size.window / 3, waits, warm_up=True)
                    warm.add(name)
                self.rows.append(self._serve(engine, name, rate, size.window, waits))
            except Exception as error:  # what an engine is still at would be in the next rows
                self._not_done(_in_words(error))
                if not isinstance(error, NoTime):
                    show_stacks(self.folder)
                return
            del self._jobs[0]
            self._save(self.record())

    def _in_time(self) -> None:
        if time.perf_counter() - self._began > self.size.seconds:
            raise NoTime(f"not begun: {self.size.seconds:.0f} s were over")

    def _not_done(self, why: str) -> None:
        self.missing |= {f"{name}, {rate:g} a second": why for name, rate in self._jobs}
        self._jobs = []

    def record(self) -> Record:
        return new_record("disaggregate", self.rows + self._steps(), dict(self.missing))

    def _serve(
        self, engine: DisaggregatedEngine, name: str, rate: float, window: float, waits: Waits, *, warm_up=False
    ) -> dict:
        size = self.size
        roles, placement = DESIGNS[name]
        engine.scheduler.assign(**roles)
        asked = conversations(rate, window, vocab=size.shape.vocab, shorter=size.shorter)
        called = f"{name}, {rate:g} a second, {len(asked)} requests"
        begun = time.perf_counter()
        found = serve(engine, asked, called, waits=waits, patience=size.patience)
        ended = time.perf_counter()
        if engine.scheduler.alive != set(ENGINES):
            raise RuntimeError(f"an engine died: {', '.join(engine.scheduler.alive) or 'none'} is left")
        if warm_up:
            return {}
        self._intervals.append((name, begun, ended))
        times = {  # of each request, for all have two tokens at least
            "ttft_ms": [digits(1e3 * each) for each in found.first],
            "tpot_ms": [digits(1e3 * each) for each in found.per_token],
        }
        share = share_within(times, LIMITS)
        moved = [row["sent"] for row in self._written() if "sent" in row]
        moved = [(nbytes, end - start) for nbytes, start, end in moved if begun <= end <= ended]
        total, busy = sum(nbytes for nbytes, _ in moved), sum(seconds for _, seconds in moved)
        return {
            "sweep": "served", "name": name, "rate": rate, "requests": len(asked), "gpus": GPUS, "trace": TRACE,
            "seed": SEED, "shorter": size.shorter, "model": size.shape.name, "blocks": size.num_blocks,
            "max_sequences": size.max_sequences, "max_tokens_per_step": size.max_tokens_per_step,
            "prompt_tokens": sum(len(each.prompt) for each in asked),
            **percentiles(found), "ttft_limit_ms": 1e3 * LIMITS.ttft, "tpot_limit_ms": 1e3 * LIMITS.tpot,
            "attainment": digits(share), "goodput_per_gpu": digits(share * rate / GPUS), "moved_bytes": total,
            "messages": len(moved), "moved_s": digits(busy), "moved_gbps": digits(total / busy / 1e9) if moved else 0,
            **times,
        }  # fmt: skip

    def _written(self) -> list[dict]:
        """What both engines have written down so far."""
        lines = [line for name in ENGINES for line in (self.folder / f"{name}.jsonl").read_text().splitlines(True)]
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _steps(self) -> list[dict]:
        """Rows of steps alike, for each role; the warm-up's are left out."""
        if not self._intervals:
            return []
        steps: dict[str, list[TimedStep]] = {}
        filled: dict[str, list[int]] = {"prefill": []}  # whose steps are launched layer by layer
        for row in self._written():
            if "filled" in row:
                filled |= dict.fromkeys(("colocated", "decode"), row["filled"])
            if "step" not in row:
                continue
            design = next((name for name, start, end in self._intervals if start <= row["at"] <= end), None)
            if design is not None:
                role = design if design == "colocated" else row["engine"].split()[0]
                steps.setdefault(role, []).append(TimedStep(StepLoad(*row["step"]), row["seconds"]))
        rows = [{"sweep": "sizes", "name": role, "role": role, "sizes": filled.get(role, [])} for role in steps]
        for role, some in steps.items():
            rows += [row | {"role": role} for row in condensed(some, tuple(filled.get(role, ())))]
        return rows


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:240]
