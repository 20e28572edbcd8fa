"""The checks of lesson 06, FlashAttention on Hopper: an order of the work, a ring, 8-bit blocks, a consumer's step."""

from collections.abc import Callable

import torch

from llmsys.attention.hopper.schedule import HopperTiles
from llmsys.attention.hopper.simulated.forward import kernel_here, simulate
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.hardware import mbarrier, sm
from llmsys.hardware.compiler import Build
from llmsys.hardware.kernel_source import Source, source_of
from llmsys.lessons.common import exact
from llmsys.lessons.lesson_06_flash_hopper.noted_events import noting
from llmsys.lessons.lesson_06_flash_hopper.plain_programs import (
    held_up,
    plain_order,
    plain_roles,
    play_roles,
    run_order,
)
from llmsys.precision import fp8

# The order of the work


@exercise_check(
    "06.order",
    reference=sm.overlapped_order,
    forbids=(sm.fa1_order, sm.fa2_order, sm.producer_order, sm.ping_pong_order),
    adapt=plain_order,
    hints=(
        "Look at the timeline of `producer` for two warpgroups, and at what the tensor cores do while both compute "
        "exponentials. Then at one warpgroup: what could its tensor core work be while it computes the softmax of tile "
        "i? Not S_i, which the softmax needs, and not P_i V_i, which needs the softmax.",
        "Shift by half a step: in step i a warpgroup starts S_i and P V of tile i − 1, waits for S_i, and computes "
        "softmax i while P V of tile i − 1 runs. After the last step one P V is left. Turn() before the two products, "
        "Pass() when S_i is there. The producer, a program of its own, loads K and V of each tile in turn.",
        "for i in range(tiles):\n"
        "    Wait K i;  if i: Wait V i − 1\n"
        "    Turn;  Scores i;  if i: Output i − 1\n"
        "    Wait S i;  Pass;  Softmax i;  if i: Wait O i − 1\n"
        "Wait V tiles − 1;  Output tiles − 1;  Wait O tiles − 1\n"
        "one such list for each warpgroup, then [Load K 0, Load V 0, Load K 1, …]",
    ),
)
def order(answer: Answer) -> None:
    def outcome(tiles: int, warpgroups: int, D: int):
        return lambda run: run_order(run.value, warpgroups, tiles, D) if isinstance(run.value, list) else "no list"

    def runs(tiles: int, warpgroups: int, D: int = 128) -> None:
        find = outcome(tiles, warpgroups, D)
        answer.that(
            answer(tiles, warpgroups), lambda run: isinstance(find(run), sm.Timeline),
            "an order that comes to its end, and uses nothing that it has not waited for",
            got=find, by=lambda run: str(find(run))[:60],
        )  # fmt: skip

    def reaches(tensor: float, tiles: int, warpgroups: int, D: int) -> None:
        find = outcome(tiles, warpgroups, D)

        def utilisation(run) -> float:
            timeline = find(run)
            return timeline.utilisation("tensor") if isinstance(timeline, sm.Timeline) else 0.0

        def said(run) -> str:
            timeline = find(run)
            if not isinstance(timeline, sm.Timeline):
                return timeline
            return f"{utilisation(run):.0%}" + (f": {why}" if (why := held_up(run.value)) else "")

        answer.that(
            answer(tiles, warpgroups), lambda run: utilisation(run) >= tensor,
            f"tensor cores that are busy for at least {tensor:.0%} of the time",
            got=said, by=lambda run: round(utilisation(run), 2),
        )  # fmt: skip

    with answer.property(
        "one warpgroup, one tile of keys", why="Copy, scores, softmax, output: each waits for the one before."
    ):
        runs(1, 1)

    with answer.property("one warpgroup, several tiles", why="What is used has been waited for, in every step."):
        for tiles in (2, 3, 7):
            runs(tiles, 1)

    with answer.property("two and three warpgroups", why="A turn that is not passed on is waited for for ever."):
        runs(1, 2)
        runs(5, 2)
        runs(6, 3, D=64)

    with answer.property(
        "a program that computes nothing starts all copies",
        why="It needs hardly any registers, which the others can have, and it is ahead of them as far as slots allow.",
    ):

        def loaders(run) -> list[str]:
            names = [{action[0] for action in program} for program in run.value]
            return ["computes, too" if each & {"Scores", "Softmax", "Output"} else "copies" for each in names
                    if "Load" in each]  # fmt: skip

        answer.that(answer(4, 2), lambda run: loaders(run) == ["copies"], "one program with all Loads, and only those",
                    got=loaders)  # fmt: skip

    with answer.property(
        "two warpgroups, heads of 128: the tensor cores are busy for 90% of the time",
        why='While one computes exponentials, the other multiplies. viz.flash_hopper.sm_timeline({"mine": '
        "run(order(8, 2), attention_costs(D=128))}) shows yours.",
    ):
        reaches(0.90, 16, 2, 128)

    with answer.property(
        "one warpgroup alone, heads of 64: 45%, where one thing after the other has 39%",
        why="Its softmax of tile i runs while its own P V of tile i − 1 does.",
    ):
        reaches(0.45, 16, 1, 64)

    with answer.property("both at once: 95% with heads of 128", why="Nothing is left but the first and the last step."):
        reaches(0.95, 16, 2, 128)
        reaches(0.97, 16, 3, 128)


# The ring


@exercise_check(
    "06.ring",
    reference="llmsys.lessons.lesson_06_flash_hopper.checks:ring_warp",
    equivalent={"use + 1 → use - 1": "they differ by two, and what counts is the parity"},
    forbids=(mbarrier.producer, mbarrier.consumer),
    adapt=plain_roles,
    hints=(
        "Write down, for two slots and five tiles, which slot tile i goes into, and how many tiles have been in that "
        "slot before. In which phase is its full barrier then, and in which its empty one?",
        "Tile i goes into slot i % slots, as its use number i // slots. That use's copy ends phase number use of full, "
        "so the consumer waits for parity use % 2. The slot is free for it when phase use − 1 of empty has ended: "
        "parity (use − 1) % 2, which is (use + 1) % 2, and right for the first use, too.",
        "for i in range(tiles):\n"
        "    slot, use = i % ring.slots, i // ring.slots\n"
        '    if role == "producer":\n'
        "        Wait(empty[slot], (use + 1) % 2);  Expect(full[slot], tile_bytes);  Copy(i, slot)\n"
        "    else:\n"
        "        Wait(full[slot], use % 2);  Read(slot);  Arrive(empty[slot])",
    ),
)
def ring(answer: Answer) -> None:
    def right(slots: int, consumers: int, tiles: int, seeds: int = 12) -> None:
        def outcome(run) -> str:
            said = (play_roles(run.value, slots, consumers, tiles, seed) for seed in range(seeds))
            return next((each for each in said if each != "every tile was read"), "every tile was read")

        answer.that(
            answer(slots, consumers, tiles), lambda run: outcome(run) == "every tile was read",
            f"every one of {tiles} tiles read by {consumers} consumers, whoever is faster",
            got=outcome, by=lambda run: outcome(run)[:24],
        )  # fmt: skip

    with answer.property("tile i goes through slot i % slots", why="Both go round the ring in the same order."):

        def places(run) -> list:
            copies = [action[1:] for action in run.value["producer"] if action[0] == "Copy"]
            return [copies, [action[1] for action in run.value["consumer"] if action[0] == "Read"]]

        expected = [[[i, i % 3] for i in range(7)], [i % 3 for i in range(7)]]
        answer.that(answer(3, 1, 7), lambda run: places(run) == expected, "Copy(0, 0), Copy(1, 1), … and Read(0), …",
                    got=places)  # fmt: skip

    with answer.property("one tile", why="The first wait for an empty slot does not wait: parity 1 has been."):
        right(1, 1, 1)

    with answer.property("as many tiles as slots", why="Each slot is used once: in phase 0."):
        right(3, 1, 3)

    with answer.property("one slot, used twice", why="Phase 0, then phase 1: the second time, the parity is another."):
        right(1, 1, 2)

    with answer.property("many rounds", why="Parities go on: 0, 1, 0, 1, with every use of a slot."):
        right(1, 1, 5)
        right(2, 1, 9)
        right(3, 1, 11)

    with answer.property(
        "two and three consumers", why="A slot is empty when all have given it back: each arrives once."
    ):
        right(2, 2, 9, seeds=30)
        right(3, 3, 10, seeds=30)

    with answer.property(
        "every tile's slot is given back, the last ones' too",
        why="The real ring goes on to the next queries' tiles: a slot that is not given back stops it there.",
    ):

        def given_back(run) -> list[int]:
            return [action[2] for action in run.value["consumer"] if action[:2] == ["Arrive", "empty"]]

        answer.that(answer(3, 1, 7), lambda run: given_back(run) == [i % 3 for i in range(7)],
                    "an arrival at empty for each of 7 tiles, in slots 0, 1, 2, 0, …", got=given_back)  # fmt: skip


def ring_warp(role: str, ring: mbarrier.Ring, tiles: int):
    """Both roles of `llmsys.hardware.mbarrier` in one function, which is what the exercise asks for."""
    return (mbarrier.producer if role == "producer" else mbarrier.consumer)(ring, tiles)


# Blocks of eight bits


@exercise_check(
    "06.quantize_blocks",
    reference=fp8.quantize_blocks,
    equivalent={
        "448 → 449 (2)": "the cast rounds what is less than 464 in size to 448",
        "448 → 449 (3)": "the cast rounds what is less than 464 in size to 448",
    },
    hints=(
        "One number a block: what must x be divided by, so that the largest of the block becomes the largest that "
        "e4m3 has? And which blocks have no such number?",
        "Pad T to whole blocks, view (..., blocks, rows, D). amax over the last two dimensions, of finite numbers; "
        "scale = amax / 448, or 1 where amax is 0. Divide, clamp to ±448 before the cast (which may make NaN of more), "
        "cast to torch.float8_e4m3fn, and cut off the padding.",
        "blocks = pad(x.float(), (0, 0, 0, −T % rows)).unflatten(-2, (-1, rows))\n"
        "amax = where(blocks.isfinite(), blocks.abs(), 0).amax((-2, -1))\n"
        "scales = where(amax > 0, amax / 448, 1)\n"
        "codes = (blocks / scales[..., None, None]).clamp(−448, 448).to(float8_e4m3fn)\n"
        "return codes.flatten(-3, -2)[..., :T, :], scales",
    ),
)
def quantize_blocks(answer: Answer) -> None:
    def close(x: torch.Tensor, rows: int) -> None:
        bound = fp8.error_bound(x, fp8.quantize_blocks(x, rows)[1], rows) * (1 + 1e-5)

        def error(run) -> torch.Tensor:
            return (fp8.dequantize_blocks(*run.value, rows) - x.float()).abs()

        run = answer(x, rows)
        answer.form(run, fp8.quantize_blocks(x, rows))
        scales = fp8.quantize_blocks(x, rows)[1]
        answer.that(
            run, lambda r: torch.allclose(r.value[1], scales, rtol=1e-6, atol=0),
            f"scales {scales.flatten()[:4].tolist()}", got=lambda r: r.value[1].flatten()[:4].tolist(),
        )  # fmt: skip
        answer.that(
            run, lambda r: bool((error(r) <= bound)[x.isfinite()].all()),
            "codes · scale within max(|x| / 16, scale / 1024) of x", got=lambda r: _worst(error(r), bound),
        )  # fmt: skip

    with answer.property("codes in 8 bits, scales in float32", why="(..., T, D), and one scale for each block."):
        for shape in ((8, 4), (2, 10, 4)):
            x = answer.randn(*shape)
            answer.form(answer(x, 4), fp8.quantize_blocks(x, 4))

    with answer.property("one block: its scale is its largest number / 448", why="448 is the largest that e4m3 has."):
        close(answer.randn(8, 4), 8)

    with answer.property("several blocks, each with a scale of its own", why="That is the point of blocks."):
        size = torch.tensor([1.0, 100.0, 0.01]).repeat_interleave(4)[:, None]
        close(answer.randn(12, 6) * size, 4)

    with answer.property("a last block that is shorter", why="128 rows a block, and T is not a multiple of it."):
        for T in (1, 5, 9):
            close(answer.randn(T, 4), 4)

    with answer.property("a block of tiny numbers", why="Its scale is as tiny: nothing but 0 needs a smallest one."):
        x = answer.randn(8, 4)
        x[:4] *= 1e-30
        close(x, 4)

    with answer.property("heads and sequences", why="Blocks are rows of one head: (B, H, T, D) gives (B, H, blocks)."):
        close(answer.randn(2, 3, 10, 4), 4)

    with answer.property("a block of zeros", why="0 / 0 is NaN, and one NaN in K is NaN in every output."):
        x = answer.randn(8, 4)
        x[:4] = 0
        close(x, 4)

    with answer.property("bfloat16 and float16 come in", why="Scales are float32, whatever x is."):
        close(answer.randn(8, 4, dtype=torch.bfloat16), 4)
        close(answer.randn(8, 4, dtype=torch.float16), 4)

    with answer.property(
        "infinity and NaN leave their neighbours alone", why="An infinite scale would make 0 of everything else."
    ):
        x = answer.randn(8, 4, scale=0.01)
        x[1, 2], x[6, 0], x[6, 1] = float("inf"), float("nan"), -float("inf")
        close(x, 4)

        def marks(run) -> list:
            codes = run.value[0].float()
            return [codes[1, 2].item(), codes[6, 1].item(), str(codes[6, 0].item())]

        answer.that(
            answer(x, 4), lambda r: marks(r) == [448.0, -448.0, "nan"], "448, −448 and NaN in their places", got=marks
        )


def _worst(error: torch.Tensor, bound: torch.Tensor) -> str:
    ratio = (error / bound).nan_to_num(float("inf")).max().item()
    return f"an error of {ratio:.3g} times that"


# The consumer's step, as the simulated kernel runs it


def attend(step: Callable) -> Callable:
    """Attention by the hopper kernel with this step, on simulated warps: o and lse, or what happens in a step."""

    def attention(q, k, v, *, causal=False, scale=None, seed=0, consumers=2, slots=2, block_n=64, only=""):
        events: list[str] = []
        kernel = kernel_here(step=step, **(noting(events) if only == "events" else {}))
        tiles = HopperTiles(consumers, block_n, slots, 0, 0)
        o, lse = simulate(q, k, v, causal=causal, scale=scale, seed=seed, tiles=tiles, kernel=kernel)
        return events if only == "events" else (o, lse)

    return attention


def within_the_kernel(step: Callable, q, k, v, *, causal=False, **options) -> Build:
    """The hopper kernel with this step, in its smallest form, as a GPU's compiler is given it."""
    layout = "NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4, "
    layout += "transposed=False, fp4_padded=False, cga_layout=[])"
    tile = f"tensordesc<fp16[1,1,64,{q.shape[3]}],{layout}>"  # 64 rows of queries, or as many keys
    source = source_of(step)
    text = f"""{source.text}
from llmsys.attention.hopper.fresh_modules import FORWARD, fresh_modules

hopper_forward_kernel = fresh_modules(*FORWARD, functions={{"step": {source.name}}}).hopper_forward_kernel
"""
    signature = dict.fromkeys(("q_desc", "k_desc", "v_desc", "o_desc"), tile)
    signature |= {"lse_ptr": "*fp32", "schedule_ptr": "*i64", "scale_log2": "fp32"}
    signature |= dict.fromkeys(("Hq", "G", "Tq", "Tk"), "i32")
    constants = {"CAUSAL": causal, "CONSUMERS": 2, "SLOTS": 2, "CONSUMER_REGISTERS": 240, "PRODUCER_REGISTERS": 24}
    return Build(Source(text, "hopper_forward_kernel"), signature, constants)


@exercise_check(
    "06.consumer",
    reference="llmsys.attention.hopper.consumer:step",
    adapt=attend,
    build=within_the_kernel,
    equivalent={
        "1 → 2 (4)": "it is an argument of a layout, and simulated warps have none; compiled, it is an error",
        "i + 1 → i - 1 (2)": "every slot is given back as often, and late enough; compiled, slot −1 is none",
    },
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
    def draw(Tq: int, Tk: int, *, G=1, Hkv=1, scale=1.0):
        q = answer.randn(1, G * Hkv, Tq, 64, scale=scale).half()
        return q, *(answer.randn(1, Hkv, Tk, 64).half() for _ in range(2))

    def right(q, k, v, *, causal=False, tolerance=4e-3, **options):
        expected = exact(q, k, v, causal=causal)
        answer.matches(expected, q, k, v, causal=causal, rtol=tolerance, atol=tolerance, **options)

    with answer.property("one tile of keys: no step at all", why="The kernel does the first tile and the last P V."):
        right(*draw(64, 64))

    with answer.property("two tiles of keys: one step", why="P V of one tile, and scores and softmax of the next."):
        q, k, v = draw(64, 128)
        k[:, :, :64] = 0  # the second tile, for keys come from the last to the first: the maximum stays as it is
        right(q, k, v)

    with answer.property("many tiles, through few slots", why="A slot that is not given back is waited for."):
        for seed in range(2):
            right(*draw(64, 448), seed=seed, slots=2 + seed % 2)

    with answer.property("scores that grow", why="O is multiplied with shrink, in every step, after P V is done."):
        q, k, v = draw(64, 256, scale=2.0)
        right(q, k * torch.arange(1, 257)[:, None].div(64).half(), v, tolerance=1e-2)

    def step_of(run) -> list[str]:  # between the kernel's first softmax and its last product
        value = run.value if isinstance(run.value, list) else []
        return value[value.index("softmax") + 1 : -2] if "softmax" in value else value

    def in_turn(run) -> bool:
        before = step_of(run)[: step_of(run).index("softmax")] if "softmax" in step_of(run) else step_of(run)
        starts = [n for n, each in enumerate(before) if each.startswith("start")]
        if not starts or not {"turn", "pass on"} <= set(before):
            return False
        return before.index("turn") < starts[0] and starts[-1] < before.index("pass on")

    with answer.property(
        "products are started in one's turn", why="Without turns, chance decides whether consumers overlap."
    ):
        answer.that(
            answer(*draw(64, 128), only="events"), in_turn,
            "the turn is waited for, then products are started, then it is passed on, all before the softmax",
            got=step_of, by=step_of,
        )  # fmt: skip

    with answer.property(
        "two consumers, in whatever order the SM runs them", why="Nothing may be read that was not waited for."
    ):
        for seed in range(8):
            right(*draw(128, 320), seed=seed)

    with answer.property("three consumers, and ends that fill no tile", why="Turns go round; masks are the kernel's."):
        for seed in range(2):
            right(*draw(180, 150), consumers=3, seed=seed)

    with answer.property("causal, grouped queries", why="MASKED and key go through to the softmax."):
        right(*draw(70, 100, G=3), causal=True)

    with answer.property(
        "the softmax is computed while P V runs", why="Otherwise the tensor cores wait for these exponentials."
    ):
        run = answer(*draw(64, 128), only="events")

        def without_turns(run) -> list[str]:
            return [each for each in step_of(run) if each not in ("turn", "pass on")]

        expected = ["start S", "start O", "wait until 1 run", "softmax", "wait until 0 run"]
        answer.that(
            run, lambda r: without_turns(r) == expected,
            "scores, then P V; wait for the scores alone; softmax; wait for P V", got=step_of, by=step_of,
        )  # fmt: skip
