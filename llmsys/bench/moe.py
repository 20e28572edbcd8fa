"""Mixtures of experts: the grouped products and whole layers, against torch's grouped product and a loop.

- *product*, and its two gradients, *dx* and *dweight*: rows times the matrix of their expert, at loads that are even,
  skewed (the n-th expert has 1/n of the first one's), in one expert of eight alone, and those of a decode step, where
  experts have a few rows and it is the matrices that take time to read. The peer is `torch._grouped_mm`, which is given
  the rows sorted, as ours are.
- *layer*: router, experts and shared expert, forward, and forward with backward, against the same layer whose experts
  are built of torch's operations around `torch._grouped_mm`, and a loop over experts. The first two are timed
  as CUDA graphs, so that it is the GPU's work that is compared, and not Python's; the loop reads the loads on the host,
  and no graph can hold it.

Figures are TFLOP/s, for a decode step bytes of the used matrices a second. A ratio says how many times as fast a form
is as `torch._grouped_mm`, or, where that is not there, as the loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from llmsys.bench.record import Record, new_record
from llmsys.bench.timing import interleaved
from llmsys.moe import MixtureOfExperts, RouterConfig
from llmsys.moe.experts import Groups, experts_loop, experts_torch, group_by_expert, grouped_matmul, run_experts
from llmsys.moe.experts.hopper import tile_rows
from llmsys.moe.experts.matmul import weight_gradient

OURS, TORCH, LOOP, CPU = "llmsys", "torch._grouped_mm", "loop", "torch's products"
NO_GPU = "no GPU: in Triton's interpreter a kernel's speed means nothing"


@dataclass(frozen=True)
class Shape:
    """R rows of E experts, whose matrices take IN numbers to OUT."""

    E: int
    R: int
    IN: int
    OUT: int
    load: str

    def loads(self) -> list[int]:
        """Rows of each expert."""
        if self.load == "decode":  # as chance has it
            chosen = torch.randint(0, self.E, (self.R,), generator=torch.Generator().manual_seed(0))
            return torch.bincount(chosen, minlength=self.E).tolist()
        share = {
            "even": torch.ones(self.E),
            "skewed": 1 / torch.arange(1, self.E + 1),
            "one in eight": (torch.arange(self.E) % 8 == 0).float(),
        }[self.load].double()
        rows = (share / share.sum() * self.R).long()
        rows[0] += self.R - rows.sum()
        return rows.tolist()


SHAPES = (
    Shape(64, 65_536, 2048, 1408, "even"),
    Shape(64, 65_536, 2048, 1408, "skewed"),
    Shape(256, 65_536, 2048, 1408, "one in eight"),
    Shape(64, 32_768, 7168, 4096, "even"),  # DeepSeek-V3's gate and up, on one of four ranks
    Shape(64, 32_768, 7168, 4096, "skewed"),
    Shape(128, 512, 2048, 1536, "decode"),  # Qwen3-30B-A3B, 64 sequences
    Shape(64, 256, 7168, 4096, "decode"),  # DeepSeek-V3 on one of four ranks, 128 sequences
    Shape(64, 2048, 7168, 4096, "decode"),  # 1024 sequences
)
QUICK = (Shape(4, 96, 64, 48, "skewed"),)


@dataclass(frozen=True)
class LayerShape:
    """N tokens of C numbers; K of E experts of width I, and a shared one."""

    N: int
    C: int
    I: int
    E: int
    K: int
    load: str


LAYERS = (
    LayerShape(8192, 2048, 1408, 64, 8, "even"),
    LayerShape(8192, 2048, 1408, 64, 8, "skewed"),
    LayerShape(64, 2048, 768, 128, 8, "decode"),
)
QUICK_LAYERS = (LayerShape(24, 32, 16, 4, 2, "even"),)


def measure(quick: bool = False) -> Record:
    """All of it on a GPU; on a CPU a small layer of torch's products against the loop."""
    gpu = torch.cuda.is_available()
    rows: list[dict] = []
    missing: dict[str, str] = {}
    for shape in QUICK if quick else SHAPES:
        if gpu:
            rows += _products(shape, missing, repeats=5 if quick else 20)
            torch.cuda.empty_cache()
    for shape in QUICK_LAYERS if quick or not gpu else LAYERS:
        rows += _layers(shape, missing, repeats=5 if quick else 20)
    if not gpu:
        missing |= dict.fromkeys((OURS, TORCH), NO_GPU)
    return new_record("moe", rows, missing)


def table(record: Record):
    """The record as a rich table: one line a shape."""
    from rich.table import Table

    names = list(dict.fromkeys(row["name"] for row in record.rows))
    shown = Table("what", "load", "shape", *names, title=f"mixtures of experts on {record.device}")
    for key in dict.fromkeys((row["what"], row["load"], row["shape"]) for row in record.rows):
        here = {row["name"]: row for row in record.rows if (row["what"], row["load"], row["shape"]) == key}
        shown.add_row(*key, *(_figure(here[name]) if name in here else "–" for name in names))
    shown.caption = f"in brackets: how many times as fast as {TORCH if TORCH in names else LOOP}"
    return shown


def _figure(row: dict) -> str:
    speed = f"{row['gbps']:.0f} GB/s" if row["load"] == "decode" else f"{row['tflops']:.3g} TFLOP/s"
    return speed if row["ratio"] is None else f"{speed} ({row['ratio']:.2f})"


# Products


def _products(shape: Shape, missing: dict[str, str], *, repeats: int) -> list[dict]:
    E, R, IN, OUT = shape.E, shape.R, shape.IN, shape.OUT
    loads = shape.loads()
    experts = torch.repeat_interleave(torch.arange(E), torch.tensor(loads)).cuda()[torch.randperm(R, device="cuda")]
    dtype = torch.bfloat16
    sets = []
    for _ in range(2):
        x, y = (torch.randn(R, n, device="cuda", dtype=dtype) for n in (IN, OUT))
        sets.append((x, y, torch.randn(E, OUT, IN, device="cuda", dtype=dtype) * IN**-0.5))
    groups = group_by_expert(experts[:, None], E, block_m=tile_rows(x, R, E))
    ends = groups.starts[1:].contiguous()
    products = {
        "product": (
            lambda x, y, w: grouped_matmul(x, w, groups),
            lambda x, y, w: torch._grouped_mm(x, w.transpose(1, 2), offs=ends),
            lambda x, y, w: x @ w.t(),
        ),
        "dx": (
            lambda x, y, w: grouped_matmul(y, w.transpose(1, 2), groups),
            lambda x, y, w: torch._grouped_mm(y, w, offs=ends),
            lambda x, y, w: y @ w,
        ),
        "dweight": (
            lambda x, y, w: weight_gradient(y, x, groups),
            lambda x, y, w: torch._grouped_mm(y.t(), x, offs=ends),
            lambda x, y, w: y.t() @ x,
        ),
    }
    if shape.load == "decode":  # nobody trains there
        products = {"product": products["product"]}
    rows = []
    used = sum(load > 0 for load in loads) * IN * OUT * 2
    for what, (ours, torchs, one) in products.items():
        peers = {TORCH: torchs, OURS: ours}
        for name in list(peers):
            try:
                _check(f"{name}, {what}", peers[name](*sets[0]), one, groups, sets[0])
            except (RuntimeError, ValueError, AttributeError) as error:
                if "is off by" in str(error):
                    raise
                missing[f"{name}, {what} of {shape}"] = str(error).splitlines()[0][:160]
                del peers[name]
        timings = interleaved(peers, sets, repeats=repeats, warmup=2)
        rows += [
            {
                "name": name, "what": what, "shape": f"{E} experts, {R:,} rows, {IN} → {OUT}", "load": shape.load,
                "E": E, "R": R, "IN": IN, "OUT": OUT, "dtype": "bfloat16", "ms": round(timing.median * 1e3, 5),
                "spread": round(timing.spread, 4), "tflops": float(f"{2 * R * IN * OUT / timing.median / 1e12:.4g}"),
                "gbps": round(used / timing.median / 1e9, 1), "ratio": _ratio(timings, name),
            }
            for name, timing in timings.items()
        ]  # fmt: skip
    return rows


def _check(name: str, found: Tensor, one: Callable, groups: Groups, given: Sequence[Tensor]) -> None:
    """An expert's result errs at most twice as much as torch's product in the same dtype: for the one with most rows,
    one with fewest, and the last."""
    x, y, weight = given
    starts = groups.starts.tolist()
    rows = [stop - start for start, stop in zip(starts, starts[1:], strict=False)]
    for e in {rows.index(max(rows)), rows.index(min(rows)), len(rows) - 1}:
        at = slice(starts[e], starts[e + 1])
        exact = one(x[at].float(), y[at].float(), weight[e].float())
        plain = one(x[at], y[at], weight[e])
        mine = found[e] if found.dim() == 3 else found[at]
        if exact.numel():
            error, allowed = (float((each.float() - exact).abs().max()) for each in (mine, plain))
            if not error <= 2 * allowed + 1e-6:
                raise RuntimeError(f"{name}: is off by {error:.2e}, torch's product by {allowed:.2e}, for expert {e}")


# Layers


def experts_of_torchs_operations(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The contract of `llmsys.moe.experts.reference`, in torch's operations alone, without reading a size on the host:
    rows sorted by expert, grouped products, rows put back, weighted, added up."""
    N, K = experts.shape
    order = experts.flatten().argsort(stable=True)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(N * K, device=x.device))
    counts = torch.zeros(len(gate_up), dtype=torch.int32, device=x.device)
    counts.scatter_add_(0, experts.flatten(), torch.ones_like(order, dtype=torch.int32))
    ends = counts.cumsum(0, dtype=torch.int32)
    rows = x[order // K]  # (N · K, C)
    gate, up = torch._grouped_mm(rows, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    done = torch._grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)
    return (done[back].view(N, K, -1) * weights[..., None].to(x.dtype)).sum(1)


def _layers(shape: LayerShape, missing: dict[str, str], *, repeats: int) -> list[dict]:
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    # On a GPU by expert: the reference goes token by token, and one pass over 8,192 of them is half a million launches.
    forms = {LOOP: experts_torch if gpu else experts_loop} | (
        {TORCH: experts_of_torchs_operations, OURS: _ours} if gpu else {CPU: _torchs_products}
    )
    layers = {name: _layer(shape, form, device, dtype) for name, form in forms.items()}
    for layer in layers.values():
        layer.load_state_dict(layers[LOOP].state_dict())
    sets = [torch.randn(shape.N, shape.C, device=device).to(dtype) for _ in range(2)]
    expected = _forward(layers[LOOP], sets[0]).float()
    for name, layer in layers.items():
        error = float((_forward(layer, sets[0]).float() - expected).abs().max() / expected.abs().max())
        if not error <= 0.03:
            raise RuntimeError(f"{name}: the layer's output is off by {error:.2e} of the largest, at {shape}")
    rows = []
    for what, step in (("layer forward", _forward), ("layer forward and backward", _both)):
        if shape.load == "decode" and step is _both:  # nobody trains there
            continue
        runs = {}
        for name, layer in layers.items():
            graphs = gpu and name != LOOP
            runs[name] = [_captured(step, layer, x) if graphs else partial(step, layer, x) for x in sets]
        turns = {name: (lambda x, i, each=each: each[i]()) for name, each in runs.items()}
        timings = interleaved(turns, [(x, i) for i, x in enumerate(sets)], repeats=repeats, warmup=2)
        flops = shape.N * 6 * shape.C * shape.I * (shape.K + 1) * (1 if step is _forward else 3)
        read = 2 * 3 * shape.C * shape.I * (len(_chosen(layers[LOOP], sets[0])) + 1)
        rows += [
            {
                "name": name, "what": what, "load": shape.load,
                "shape": f"{shape.N:,} tokens of {shape.C}, {shape.K} of {shape.E} experts of {shape.I}",
                "N": shape.N, "C": shape.C, "I": shape.I, "E": shape.E, "K": shape.K,
                "dtype": str(dtype).removeprefix("torch."), "ms": round(timing.median * 1e3, 5),
                "spread": round(timing.spread, 4), "tflops": float(f"{flops / timing.median / 1e12:.4g}"),
                "gbps": round(read / timing.median / 1e9, 1), "ratio": _ratio(timings, name),
            }
            for name, timing in timings.items()
        ]  # fmt: skip
    return rows


def _layer(shape: LayerShape, form: Callable, device: str, dtype: torch.dtype) -> MixtureOfExperts:
    router = RouterConfig(shape.E, shape.K, "sigmoid", bias=True)
    with torch.device(device):  # where weights are drawn in no time
        layer = MixtureOfExperts(shape.C, shape.I, router, shared_size=shape.I, form=form).to(dtype)
    if shape.load == "skewed":  # experts that are chosen more and more often
        layer.router.bias.copy_(torch.linspace(-0.3, 0.3, shape.E))
    return layer


def _ours(*arguments: Tensor) -> Tensor:
    return run_experts(*arguments, form="triton")


def _torchs_products(*arguments: Tensor) -> Tensor:
    return run_experts(*arguments, form="torch")


def _forward(layer: MixtureOfExperts, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)[0]


def _both(layer: MixtureOfExperts, x: Tensor) -> tuple[Tensor, ...]:
    x = x.detach().requires_grad_()
    y, _ = layer(x)
    return torch.autograd.grad(y, [x, *layer.parameters()], y.detach())


def _chosen(layer: MixtureOfExperts, x: Tensor) -> list[int]:
    with torch.no_grad():
        return layer(x)[1].experts.unique().tolist()


def _captured(step: Callable, layer: MixtureOfExperts, x: Tensor) -> Callable[[], None]:
    """The step as a CUDA graph, to be replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(layer, x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(layer, x)
    return graph.replay


def _ratio(timings: dict, name: str) -> float | None:
    base = timings.get(TORCH) or timings.get(LOOP)
    return round(base.median / timings[name].median, 4) if base else None
