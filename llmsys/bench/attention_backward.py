"""Attention's backward pass: every fused stage against every peer, on the rows of the forward's table.

Each function's forward pass is run once, with its graph kept; what is timed is the backward pass through it. Gradients
are first compared with those of attention in float64, for the first head of the first sequence, by the rule that the
error may be at most twice that of eager code in the same precision (`low_precision`).

"hopper deterministic" is the same graph's backward pass with `torch.use_deterministic_algorithms`. (The stage flash is
deterministic by itself; FA2 and cuDNN as they are called here are not.)

TFLOP/s count 2.5 times the operations of the forward pass: five products of the same size instead of two.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llmsys.attention import STAGES, naive_attention
from llmsys.bench.attention import BASELINE, NO_GPU, peak_memory, table
from llmsys.bench.attention_peers import EAGER, fused
from llmsys.bench.low_precision import eager_attention
from llmsys.bench.record import Record, new_record
from llmsys.bench.timing import interleaved

__all__ = ["DETERMINISTIC", "forward_graph", "measure", "run_backward", "table"]

DETERMINISTIC = "hopper deterministic"


def measure(quick: bool = False) -> Record:
    """Run the table on the GPU; on a CPU one short length in float32, of the stages that are PyTorch."""
    rows: list[dict] = []
    missing: dict[str, str] = {}
    if torch.cuda.is_available():
        for D in (64, 128):
            for T in (1024,) if quick else (1024, 4096, 16384):
                for causal in (False, True):
                    shape = (16384 // T, 2048 // D, T, D)
                    rows += _compare(fused(), shape, torch.bfloat16, causal, missing)
    else:
        stages = {name: STAGES[name] for name in (*EAGER, "sdpa") if name != "online"}
        rows += _compare(stages, (1, 2, 256, 64), torch.float32, True, missing)
        missing |= dict.fromkeys(("flash", "hopper"), NO_GPU)
    return new_record("attention_backward", rows, missing)


def _compare(
    stages: dict[str, Callable], shape, dtype: torch.dtype, causal: bool, missing: dict[str, str]
) -> list[dict]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    B, H, T, D = shape
    sets = [[torch.randn(shape, device=device).to(dtype) for _ in range(4)] for _ in range(2)]
    right, extra = {}, {}
    for name, stage in stages.items():
        try:
            graphs = [forward_graph(stage, *each[:3], causal) for each in sets]
            with peak_memory() as peak:
                gradients = run_backward(*graphs[0], sets[0][3])
        except (RuntimeError, ValueError) as error:  # it cannot run here: said, not hidden
            missing[f"{name} at {shape}{' causal' if causal else ''}"] = str(error).splitlines()[0][:160]
            continue
        extra[name] = None if peak() is None else max(peak() - sum(x.nbytes for x in gradients), 0)
        _check(name, gradients, *sets[0], causal)
        right[name] = lambda do, i, graphs=graphs: run_backward(*graphs[i], do)
        if name == "hopper":
            extra[DETERMINISTIC] = extra[name]
            right[DETERMINISTIC] = lambda do, i, graphs=graphs: _deterministic(*graphs[i], do)
            _check(DETERMINISTIC, right[DETERMINISTIC](sets[0][3], 0), *sets[0], causal)
        del gradients
    timings = interleaved(right, [(each[3], i) for i, each in enumerate(sets)], repeats=20, warmup=2)
    flops = 10 * B * H * T * T * D / (2 if causal else 1)
    return [
        {
            "name": name, "pass": "backward", "sweep": "table", "B": B, "H": H, "Hkv": H, "T": T, "D": D,
            "dtype": str(dtype).removeprefix("torch."), "causal": causal,
            "ms": round(timing.median * 1e3, 5), "spread": round(timing.spread, 4),
            "tflops": float(f"{flops / timing.median / 1e12:.4g}"),
            "ratio": round(timings[BASELINE].median / timing.median, 4) if BASELINE in timings else None,
            "extra_bytes": extra[name],
        }
        for name, timing in timings.items()
    ]  # fmt: skip


def forward_graph(stage: Callable, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, list[Tensor]]:
    """A forward pass: its output, which has a graph, and the copies of q, k and v whose gradients the graph gives."""
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    return stage(*inputs, causal=causal), inputs


def run_backward(o: Tensor, inputs: list[Tensor], do: Tensor) -> tuple[Tensor, ...]:
    """The backward pass through what `forward_graph` returned: the gradients of q, k and v. The graph is kept."""
    return torch.autograd.grad(o, inputs, do, retain_graph=True)


def _deterministic(o: Tensor, inputs: list[Tensor], do: Tensor) -> tuple[Tensor, ...]:
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # which is for finding bugs, and takes time
    try:
        return run_backward(o, inputs, do)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def _check(name: str, gradients, q: Tensor, k: Tensor, v: Tensor, do: Tensor, causal: bool) -> None:
    one = [x[:1, :1] for x in (q, k, v, do)]
    exact, eager = (
        run_backward(*forward_graph(stage, *(x.to(dtype) for x in one[:3]), causal), one[3].to(dtype))
        for stage, dtype in ((naive_attention, torch.float64), (eager_attention, q.dtype))
    )
    for which, mine, low, true in zip("qkv", gradients, eager, exact, strict=True):
        error, allowed = ((x[:1, :1].double() - true).abs().max().item() for x in (mine, low))
        if not error <= 2 * allowed + 1e-6:
            raise RuntimeError(
                f"{name}: d{which} is off by {error:.2e}, eager code's by {allowed:.2e}, at T = {q.shape[2]}"
            )
