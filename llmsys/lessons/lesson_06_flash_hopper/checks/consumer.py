"""06.consumer: a step of the hopper kernel's consumer, as simulated warps run it and as a GPU's compiler reads it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from llmsys.attention.hopper.schedule import HopperTiles
from llmsys.attention.hopper.simulated.forward import kernel_here, simulate
from llmsys.course.checking.answer import Answer, Run
from llmsys.course.checking.checks import exercise_check
from llmsys.hardware.compiler import Build
from llmsys.hardware.kernel_source import Source, source_of
from llmsys.lessons.common import exact
from llmsys.lessons.lesson_06_flash_hopper.noted_events import KINDS, NotedRing, noting

STEP = ["start S", "start O", "wait until 1 run", "softmax", "wait until 0 run"]  # but for turns
OTHER_STEPS = ("one_at_a_time", "independent", "ping_pong", "overlapped_alone", "overlapped_held")


def attend(step: Callable) -> Callable:
    """Attention by the hopper kernel with this step, on simulated warps: o and lse, or what is noted of `only`."""

    def attention(q, k, v, *, causal=False, scale=None, seed=0, consumers=2, slots=2, block_n=64, only=""):
        notes: dict[str, list[str]] = {kind: [] for kind in KINDS}
        rings: list[NotedRing] = []
        kernel = kernel_here(step=step, **(noting(notes, rings) if only else {}))
        tiles = HopperTiles(consumers, block_n, slots, 0, 0)
        with warps_unwatched():
            o, lse = simulate(q, k, v, causal=causal, scale=scale, seed=seed, tiles=tiles, kernel=kernel)
        notes["tiles"] += [each for ring in rings for each in ring.unreturned()]
        return notes[only] if only else (o, lse)

    return attention


@contextmanager
def warps_unwatched() -> Iterator[None]:
    """Simulated warps are threads, and make thousands of calls: that each is compared with what is forbidden takes
    three times as long as they do. What a step may not call are the library's steps. As an answer they are refused;
    called by one, they find the real Gluon, which does not run here; and what else a step calls, a compiler refuses."""
    before = threading.getprofile()
    threading.setprofile(None)
    try:
        yield
    finally:
        threading.setprofile(before)


def within_the_kernel(step: Callable, q, k, v, *, causal=False, consumers=2, slots=2, **options) -> Build:
    """The hopper kernel with this step, as a GPU's compiler is given it. Its tiles have another number of keys than a
    head has columns: S and O lie differently then, and what is of one may not be used with the other."""
    block_n = 128 if q.shape[3] == 64 else 64
    element = {torch.float16: "fp16", torch.bfloat16: "bf16"}[q.dtype]
    layout = "NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4, "
    layout += "transposed=False, fp4_padded=False, cga_layout=[])"
    tiles = {rows: f"tensordesc<{element}[1,1,{rows},{q.shape[3]}],{layout}>" for rows in (64, block_n)}
    source = source_of(step)
    text = f"""{source.text}
from llmsys.attention.hopper.fresh_modules import FORWARD, fresh_modules

hopper_forward_kernel = fresh_modules(*FORWARD, functions={{"step": {source.name}}}).hopper_forward_kernel
"""
    signature = {"q_desc": tiles[64], "k_desc": tiles[block_n], "v_desc": tiles[block_n], "o_desc": tiles[64]}
    signature |= {"lse_ptr": "*fp32", "schedule_ptr": "*i64", "scale_log2": "fp32"}
    signature |= dict.fromkeys(("Hq", "G", "Tq", "Tk"), "i32")
    registers = {2: (240, 24), 3: (160, 32)}[consumers]
    constants = {"CAUSAL": causal, "CONSUMERS": consumers, "SLOTS": slots}
    constants |= dict(zip(("CONSUMER_REGISTERS", "PRODUCER_REGISTERS"), registers, strict=True))
    return Build(Source(text, "hopper_forward_kernel"), signature, constants)


@exercise_check(
    "06.consumer",
    reference="llmsys.attention.hopper.consumer:step",
    forbids=(*(f"llmsys.bench.hopper_orders_kernels:step_{order}" for order in OTHER_STEPS),),
    adapt=attend,
    build=within_the_kernel,
    hints=(
        "It is a step of your order in exercise (a), and of the ring in (b): which tile of K, which of V? When does "
        "nothing of this warpgroup read them any more?",
        "k is tile i + 1, V tile i. Wait for the turn, start the scores and then P V; pass the turn on, now or when "
        "the scores are there. "
        "warpgroup_mma_wait(1, [s]) leaves the last of the two running: then K's slot can be given back, and the "
        "softmax be computed. warpgroup_mma_wait(0, [o]) before o is used; then V's slot. p goes back as the operand: "
        "gl.convert_layout(p.to(o_desc.dtype), P). What o is multiplied with is shrink, in o's layout.",
        "k = keys.take(i + 1);  turns.wait(J, turn)\n"
        "s = start_scores(q, k, S);  o = warpgroup_mma(p, values.take(i), o, is_async=True);  turns.pass_on(J)\n"
        "s = warpgroup_mma_wait(1, [s]);  keys.give_back(i + 1)\n"
        "p, m, l, shrink = softmax(s, m, l, seen, key, scale_log2, MASKED)\n"
        "o = warpgroup_mma_wait(0, [o]);  values.give_back(i)\n"
        "p = gl.convert_layout(p.to(o_desc.dtype), P)\n"
        "return p, m, l, o * gl.convert_layout(shrink, gl.SliceLayout(1, o.type.layout))[:, None]",
    ),
)
def consumer(answer: Answer) -> None:
    def draw(Tq: int, Tk: int, *, B=1, G=1, Hkv=1, D=64, scale=1.0, dtype=torch.float16):
        q = answer.randn(B, G * Hkv, Tq, D, scale=scale).to(dtype)
        return q, *(answer.randn(B, Hkv, Tk, D).to(dtype) for _ in range(2))

    def right(q, k, v, *, causal=False, scale=None, tolerance=0.0, **options):
        tolerance = tolerance or (4e-3 if q.dtype is torch.float16 else 2e-2)
        expected = exact(q, k, v, causal=causal, scale=scale)
        options |= {"causal": causal} | ({"scale": scale} if scale else {})
        answer.matches(expected, q, k, v, rtol=tolerance, atol=tolerance, **options)

    with answer.property("one tile of keys: no step at all", why="The kernel does the first tile and the last P V."):
        right(*draw(64, 64))

    with answer.property(
        "two tiles of keys: one step", why="P V of one tile, and scores and softmax of the next.",
        hint="Which tile's weights are in p when the step begins, and which tile's have to be in it when it ends? Then "
        "which tile of V is needed, and which of K?",
    ):  # fmt: skip
        q, k, v = draw(64, 128)
        k[:, :, :64] = 0  # the second tile, for keys come from the last to the first: the maximum stays as it is
        right(q, k, v)

    with answer.property(
        "what was taken is given back, once, when nothing reads it any more",
        why="A slot that is not given back is waited for. One that is given back too early may be overwritten.",
        hint="keys.take and keys.give_back are told a tile's number: is it the same one? And after which line does "
        "nothing of this consumer read tile i + 1 of K any more, and after which tile i of V?",
    ):
        for Tk, slots in ((128, 2), (256, 3)):
            answer.that(
                answer(*draw(64, Tk), slots=slots, only="tiles"), lambda run: run.value == [],
                "each tile given back once, by the number under which it was taken, after the product that reads it",
                got=lambda run: sorted(run.value)[:1], by=lambda run: sorted(run.value),
            )  # fmt: skip

    with answer.property(
        "scores that grow", why="O is multiplied with shrink, in every step, after P V is done.",
        hint="Under which maximum was p computed that came into the step, and under which o? And which one holds after "
        "this step's softmax?",
    ):  # fmt: skip
        q, k, v = draw(64, 256, scale=2.0)
        larger = torch.arange(256, 0, -1)[:, None].div(64).half()  # keys come from the last to the first
        right(q, k * larger, v, tolerance=1e-2)

    with answer.property(
        "many tiles, through few slots", why="A slot is used again as soon as all consumers have given it back.",
        hint="What of this step is only right in the first steps, while the ring has slots that nobody has used?",
    ):  # fmt: skip
        for slots in (2, 3, 1):
            right(*draw(64, 256), seed=slots, slots=slots)

    with answer.property(
        "products are started in one's turn", why="Without turns, chance decides whether consumers overlap.",
        hint="What must be started between turns.wait and turns.pass_on, and what need not be waited for there?",
    ):  # fmt: skip
        answer.that(
            answer(*draw(64, 128), only="events"), in_turn,
            "the turn is waited for, then products are started, then it is passed on, all before the softmax",
            got=step_of, by=step_of,
        )  # fmt: skip

    with answer.property(
        "the softmax is computed while P V runs", why="Otherwise the tensor cores wait for these exponentials.",
        hint="Two products are running. Which of them does the softmax need, and what does warpgroup_mma_wait's number "
        "mean?",
    ):  # fmt: skip

        def without_turns(run: Run) -> list[str]:
            return [each.removesuffix(" with a mask") for each in step_of(run) if each not in ("turn", "pass on")]

        for steps, qkv in ((1, draw(64, 128)), (3, draw(64, 200))):
            answer.that(
                answer(*qkv, causal=steps > 1, only="events"), lambda run, n=steps: without_turns(run) == STEP * n,
                "in every step: scores, then P V; wait for the scores alone; softmax; wait for P V", got=step_of,
                by=step_of,
            )  # fmt: skip

    with answer.property(
        "where nothing is hidden, nothing is masked", why="A mask costs an instruction for each score.",
        hint="MASKED says which steps need a mask: where does it go?",
    ):  # fmt: skip

        def masks(run: Run) -> list[str]:
            return [each for each in step_of(run) if each.startswith("softmax")][1:]

        answer.that(
            answer(*draw(64, 200), causal=True, only="events"), lambda run: masks(run) == ["softmax"] * 2,
            "a mask in the first step, which the diagonal cuts, and none in the other two", got=masks, by=step_of,
        )  # fmt: skip

    with answer.property(
        "one turn after the other, over many tiles of queries",
        why="The kernel counts turns apart from tiles: a tile of queries begins without a turn.",
        hint="Which argument says the number of your turn? The tile's number i is it at first, and not later.",
    ):  # fmt: skip
        answer.that(
            answer(*draw(64, 100, G=4), only="turns"), lambda run: out_of_turn(run.value) == "",
            "turns that go round: 0, 1, 0, 1, …", got=lambda run: out_of_turn(run.value),
        )  # fmt: skip

    with answer.property(
        "two consumers, in whatever order the SM runs them", why="Nothing may be read that was not waited for.",
        hint="What is read by a product that is still running, and who may overwrite it? Follow a consumer that is "
        "much slower than the producer.",
    ):  # fmt: skip
        for seed in range(4):
            right(*draw(128, 256), seed=seed)

    with answer.property(
        "three consumers, and ends that fill no tile", why="Turns go round; masks are the kernel's.",
        hint="Whose turn is it after consumer J's? And what goes into softmax as it is?",
    ):  # fmt: skip
        right(*draw(180, 120), consumers=3)
        right(*draw(100, 130, G=2), consumers=3, seed=1, causal=True, scale=0.2)

    with answer.property(
        "causal, grouped queries", why="MASKED and key go through to the softmax.",
        hint="softmax wants seven things: which of them are the step's own arguments, unchanged?",
    ):  # fmt: skip
        right(*draw(70, 100, G=3), causal=True)

    with answer.property(
        "other types, other tiles, a scale of its own", why="o_desc.dtype, BLOCK_N and scale_log2 are the kernel's.",
        hint="Which numbers and types are in your lines that the arguments could say instead?",
    ):  # fmt: skip
        right(*draw(64, 200, dtype=torch.bfloat16), scale=0.3, causal=True)
        right(*draw(50, 150, D=128, B=2), scale=0.05, slots=3, block_n=128)

    with answer.property(
        "a sum of many small weights", why="m, l and o are the state: float32, in every step.",
        hint="Which types do l and o have when the step ends? They came in float32.",
    ):  # fmt: skip
        right(*fading(answer), tolerance=1e-3)


def fading(answer: Answer) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v in float16, 1024 keys, of which the last 64 weigh 1, and the others so little that a sum of 64 in half
    precision takes in nothing of a tile of them, though together they are more than half a hundredth of it."""
    q, k, v = (answer.randn(1, 1, T, 64) for T in (64, 1024, 1024))
    last = (torch.arange(1024) >= 960)[:, None]  # the tile that comes first
    q, k, v = q / 64, torch.where(last, 0.0, k), torch.where(last, 1.0, 3.0) + v.abs() / 8
    q[..., 0], k[..., 0] = 8.0, torch.where(last[:, 0], 0.0, -7.8)
    return q.half(), k.half(), v.half()


def step_of(run: Run) -> list[str]:
    """The events of all steps: those between the kernel's first softmax and its last product."""
    value = run.value if isinstance(run.value, list) else []
    first = next((n for n, each in enumerate(value) if each.startswith("softmax")), None)
    return value if first is None else value[first + 1 : -2]


def in_turn(run: Run) -> bool:
    """Whether the one step's products are started in the turn, and the turn passed on before the softmax."""
    events = step_of(run)
    before = events[: next((n for n, each in enumerate(events) if each.startswith("softmax")), None)]
    starts = [n for n, each in enumerate(before) if each.startswith("start")]
    if not starts or not {"turn", "pass on"} <= set(before):
        return False
    return before.index("turn") < starts[0] and starts[-1] < before.index("pass on")


def out_of_turn(notes: list[str]) -> str:
    """The first of these notes of two consumers that is out of turn, with the one before it; "" for none."""
    expected = [f"{j} {what}" for j in range(2) for what in ("has the turn", "passes on")]
    for n, note in enumerate(notes):
        if note != expected[n % len(expected)]:
            return ", then ".join(notes[max(n - 1, 0) : n + 1])
    return ""
