"""Row softmax: ours against torch's, in the same run as the ceiling, a copy of the tensor.

A softmax has to read its input once and to write its output once, like a copy, so a copy's bandwidth is what it can
reach at best. The figure is bytes in plus bytes out over time, however often a kernel really reads. Two things are
measured:

- ours, torch's and torch.compile's softmax over rows of 256 to 131,072 columns;
- two passes against three, with the same tiles, over rows too long for any cache: what online softmax is about.
"""

import torch

from llmsys.bench.record import Record, new_record
from llmsys.bench.timing import interleaved

OURS, TORCH, COMPILED, COPY = "llmsys (Triton)", "torch.softmax", "torch.compile", "copy"
TWO, THREE = "two passes", "three passes"


def measure(quick: bool = False) -> Record:
    """Run it on the GPU, or in a small form on the CPU, where the Triton kernel is checked but not timed."""
    gpu = torch.cuda.is_available()
    elements = 1 << (26 if gpu else 20) >> (3 if quick else 0)
    lengths = [1 << p for p in range(8, 18, 3 if quick else 1)] + ([] if quick else [128_256])  # Llama 3's vocabulary
    dtypes = (torch.float32, torch.bfloat16) if gpu else (torch.float32,)
    rows, missing = [], {}
    if not gpu:
        missing[OURS] = "no GPU: in Triton's interpreter a kernel's speed means nothing"
        missing[COMPILED] = "not compared on a CPU"
    for dtype in dtypes:
        for n in lengths:
            peers = {TORCH: lambda x: torch.softmax(x, -1), COPY: torch.clone}
            if gpu:
                peers[OURS], peers[COMPILED] = _ours(), _compiled()
            rows += _compare(peers, max(elements // n, 1), n, dtype, repeats=10 if quick else 50, missing=missing)
        if gpu:
            n = 1 << 20
            passes = {name: _tiled(name) for name in (TWO, THREE)} | {COPY: torch.clone}
            rows += _compare(passes, max(elements * 4 // n, 1), n, dtype, repeats=10 if quick else 50, missing=missing)
    return new_record("softmax", rows, missing)


def table(record: Record):
    """The record as a rich table: GB/s and the fraction of the copy's, one line a shape."""
    from rich.table import Table

    names = list(dict.fromkeys(row["name"] for row in record.rows))
    shown = Table("rows", "columns", "dtype", *names, title=f"softmax, GB/s (of the copy's) on {record.device}")
    memory = all("extra_bytes" in row for row in record.rows)
    shapes = dict.fromkeys((row["rows"], row["cols"], row["dtype"]) for row in record.rows)
    for shape in shapes:
        here = {r["name"]: r for r in record.rows if (r["rows"], r["cols"], r["dtype"]) == shape}
        figures = [f"{here[n]['gbps']:.0f} ({here[n]['ratio']:.2f})" if n in here else "–" for n in names]
        shown.add_row(f"{shape[0]:,}", f"{shape[1]:,}", shape[2], *figures)
    extra = {n: max(r["extra_bytes"] for r in record.rows if r["name"] == n) for n in names if memory}
    shown.caption = "; ".join(f"{name}: {n / 2**20:.1f} MiB beyond input and output" for name, n in extra.items())
    return shown


def _compare(peers: dict, rows: int, n: int, dtype: torch.dtype, *, repeats: int, missing: dict) -> list[dict]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = [((torch.randn(rows, n, device=device) * 4).to(dtype),) for _ in range(2)]
    exact = torch.softmax(inputs[0][0][:64].double(), -1)
    right, extra = {}, {}
    for name, function in peers.items():
        try:
            y, extra[name] = _with_extra_memory(function, inputs[0])
        except Exception as error:  # a peer that cannot run here is listed with its reason, the others go on
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        error = (y[:64].double() - exact).abs().max().item()
        if name != COPY and not error <= (1e-4 if dtype == torch.float32 else 8e-3) * exact.max().item():
            raise RuntimeError(f"{name} is wrong by {error:.2e} at {rows} × {n}, {dtype}: not timed")
        right[name] = function
    moved = 2 * rows * n * inputs[0][0].element_size()
    timings = interleaved(right, inputs, repeats=repeats, warmup=3)
    return [
        {
            "name": name,
            "rows": rows,
            "cols": n,
            "dtype": str(dtype).removeprefix("torch."),
            "ms": round(timing.median * 1e3, 5),
            "spread": round(timing.spread, 4),
            "gbps": round(moved / timing.median / 1e9, 1),
            "ratio": round(timings[COPY].median / timing.median, 4),
        }
        | ({"extra_bytes": extra[name]} if extra[name] is not None else {})
        for name, timing in timings.items()
    ]


def _with_extra_memory(function, arguments: tuple) -> tuple[torch.Tensor, int | None]:
    """The result, and the bytes that it took for a while beyond input and result; None on a CPU, which does not say."""
    if not torch.cuda.is_available():
        return function(*arguments), None
    function(*arguments)  # whatever is set up once is not part of the cost
    torch.cuda.reset_peak_memory_stats()
    y = function(*arguments)
    return y, torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()  # y, rounded up, is in both


def _ours():
    from llmsys.attention.row_softmax import softmax_rows

    return softmax_rows


def _compiled():
    torch.compiler.reset()  # after eight shapes it would give up and quietly run the eager softmax
    return torch.compile(lambda x: torch.softmax(x, -1), dynamic=False)


def _tiled(name: str):
    from llmsys.attention.row_softmax import softmax_kernel, softmax_rows
    from llmsys.bench.three_pass_softmax import three_pass_kernel

    kernel = {TWO: softmax_kernel, THREE: three_pass_kernel}[name]
    return lambda x: softmax_rows(x, kernel=kernel)
