"""The check of attention with a cache."""

import torch

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_07_kv_cache.plain_steps import expected, expected_kept, on_rows
from llmsys.lessons.lesson_07_kv_cache.rows import attend_in_rows


@exercise_check(
    "07.cached_attend",
    reference=attend_in_rows,
    forbids=("llmsys.cache.contiguous:*", "llmsys.cache.groups:*"),
    adapt=on_rows,
    hints=(
        "Two things happen, in this order: the step's K and V go into their slots, then each sequence's queries look "
        "at everything that is in its row by now. Which of the row's slots are that, and which are nobody's yet?",
        "After the step, the row of a chunk holds tokens 0 to computed + T − 1, in slots that follow one another from "
        "row · capacity on. Its T queries are the last T of these tokens, which is what causal=True means to "
        "cache.stage. Sequences do not see each other: one call of the stage for each.",
        "q, k = rotate(q, turn), rotate(k, turn)\n"
        "keys, values = cache.keys[layer], cache.values[layer]\n"
        "keys[batch.slot_mapping] = k[0].transpose(0, 1);  values the same with v\n"
        "for each chunk, its T tokens being q's columns start … start + T:\n"
        "    first = chunk.blocks[0] * cache.capacity\n"
        "    K, V = keys[first : first + computed + T], values[the same], as (1, Hkv, Tk, D)\n"
        "    o's columns = cache.stage(q's columns, K, V, causal=True, scale=scale)",
    ),
)
def cached_attend(answer: Answer) -> None:
    def draw(*tokens: int, layers=1, G=1, Hkv=1, Dk=4, Dv=None, dtype=torch.float32, scale=1.0):
        return (
            [answer.randn(layers, G * Hkv, T, Dk, scale=scale, dtype=dtype) for T in tokens],
            [answer.randn(layers, Hkv, T, Dk, dtype=dtype) for T in tokens],
            [answer.randn(layers, Hkv, T, Dv or Dk, dtype=dtype) for T in tokens],
        )

    def matches(q, k, v, *, steps, places=(0,), capacity, **options) -> None:
        wanted = expected(q, k, v, **options)
        answer.matches(wanted, q, k, v, steps=steps, places=list(places), capacity=capacity, **options)

    def keeps(q, k, v, *, steps, **options) -> None:
        answer.matches(expected_kept(k, v, **options), q, k, v, steps=steps, report="kept", **options)

    with answer.property(
        "a first token's key and value go into its slot",
        why="Where that is, the batch says.",
        hint="What is in cache.keys[layer] and cache.values[layer] after the step?",
    ):
        keeps(*draw(1), steps=[[[0, 1]]], places=[1], capacity=2)

    with answer.property("a first token: o is its value", why="It sees itself, and nothing else is there."):
        q, k, v = draw(1)
        matches(q, k, v, steps=[[[0, 1]]], capacity=1)

    with answer.property("a prompt in one step, which fills its row", why="Nothing was kept before: Tq = Tk."):
        q, k, v = draw(7, Hkv=2)  # with one head, a reshape does what a transposition does
        matches(q, k, v, steps=[[[0, 7]]], capacity=7)

    with answer.property(
        "each step's keys and values go into the next slots of the row",
        why="Token i lies in slot row · capacity + i, and stays there.",
        hint="In which slot does the first token of the second step belong? The batch says it.",
    ):  # before anything is read from there: who writes to the wrong place is told from who reads at the wrong one
        keeps(*draw(7, Hkv=2), steps=[[[0, 4]], [[0, 2]], [[0, 1]]], places=[1], capacity=9)

    with answer.property(
        "then a token at a time: each sees all before it, and itself",
        why="One query, and as many keys as there are tokens by now.",
        hint="After this step, which slots of the row hold a token? Where do your K and V begin and end, and is the "
        "step's own key among them?",
    ):
        q, k, v = draw(9, Hkv=2)
        matches(q, k, v, steps=[[[0, 5]], *[[[0, 1]]] * 4], capacity=12)
        q, k, v = draw(4)
        matches(q, k, v, steps=[[[0, 1]]] * 4, capacity=5)

    with answer.property(
        "a prompt in chunks: the queries are the last of the keys",
        why="Tq < Tk, and both more than one: query i of the chunk sees the keys up to i + Tk − Tq.",
        hint="Three queries come after four tokens. Up to which key does each of them see, and where is the corner of "
        "the triangle that you ask for?",
    ):
        for counts in ((4, 3, 2), (1, 5, 1), (2, 6)):
            q, k, v = draw(sum(counts), scale=2.0)
            matches(q, k, v, steps=[[[0, n]] for n in counts], capacity=16)

    with answer.property(
        "each layer has keys and values of its own",
        why="The spec has as many buffers as layers.",
        hint="Which of your lines depend on the layer?",
    ):
        q, k, v = draw(6, layers=3)
        matches(q, k, v, steps=[[[0, 3]], [[0, 2]], [[0, 1]]], capacity=8)

    with answer.property(
        "q and k are turned, each token by its own position, once",
        why="A key is turned when it comes, and kept turned: its position will not change any more.",
        hint="Follow one key: how often does it pass through rotate, from the step that brings it to the last "
        "one that reads it?",
    ):
        q, k, v = draw(8, Dk=6)
        matches(q, k, v, steps=[[[0, 3]], [[0, 3]], [[0, 1]], [[0, 1]]], capacity=8, turned=True)

    with answer.property(
        "grouped queries, a scale of the model's own, values of another size",
        why="A backend hands on what the model says; the stage knows what to do with it.",
    ):
        q, k, v = draw(7, layers=2, G=3, Hkv=2, Dv=5)
        matches(q, k, v, steps=[[[0, 4]], [[0, 1]], [[0, 2]]], capacity=9, scale=0.3)
        q, k, v = draw(5, G=2, Dv=7, scale=2.0)  # the default scale is of Dk
        matches(q, k, v, steps=[[[0, 3]], [[0, 2]]], capacity=5)

    with answer.property(
        "two sequences side by side, each in its row",
        why="They share the step, and see nothing of each other.",
        hint="For the second sequence of the step: which columns of q are its own, and at which slot does its row "
        "begin?",
    ):
        q, k, v = draw(5, 5)
        matches(q, k, v, steps=[[[0, 3], [1, 3]], [[0, 1], [1, 1]], [[0, 1], [1, 1]]], places=[0, 1], capacity=6)

    with answer.property(
        "of different lengths, in any rows and any order",
        why="Requests come as they come. Where a sequence lies is in its chunk, not in its place in the step.",
    ):
        q, k, v = draw(9, 4, 6, Hkv=2)
        steps = [[[1, 2], [0, 6], [2, 3]], [[2, 1], [1, 1], [0, 1]], [[0, 2], [2, 2], [1, 1]]]
        matches(q, k, v, steps=steps, places=[3, 0, 1], capacity=10)

    with answer.property(
        "a step that decodes one, begins another and goes on with a third",
        why="There are no phases: every sequence has tokens that are computed, and some that are not yet.",
    ):
        q, k, v = draw(7, 8, 5, layers=2, G=2, Hkv=2, Dk=6, Dv=3)
        steps = [[[0, 4]], [[1, 3], [0, 1]], [[0, 1], [2, 5], [1, 4]], [[1, 1], [0, 1]]]
        matches(q, k, v, steps=steps, places=[1, 2, 0], capacity=8, turned=True, scale=0.7)

    with answer.property(
        "all of it together", why="A model has layers, groups, positions, 16 bits and a scale at the same time, or not."
    ):
        for shape, turned, scale, dtype in (  # each pair of options is in one of them
            ({"layers": 2, "G": 3, "Dk": 8, "Dv": 5}, True, None, torch.float32),
            ({"layers": 2, "Hkv": 3, "Dk": 6, "Dv": 7}, False, 0.4, torch.bfloat16),
            ({"G": 2, "Hkv": 2, "Dk": 10}, True, 0.9, torch.bfloat16),
            ({"layers": 2, "G": 2, "Dk": 4, "Dv": 9}, False, None, torch.float16),
        ):
            for _ in range(1 if scale else 2):  # the same shapes, and other numbers
                q, k, v = draw(5, 3, 5, dtype=dtype, **shape)
                steps = [[[2, 4], [0, 3]], [[0, 2], [1, 3], [2, 1]]]
                matches(q, k, v, steps=steps, places=[0, 3, 1], capacity=7, turned=turned, scale=scale)

    with answer.property(
        "a row that another sequence had before is as good as new",
        why="Nobody clears it: what is in its slots beyond the sequence's own tokens is never looked at.",
        hint="Who says how many tokens the row holds: the row, something of yours, or the chunk?",
    ):
        q, k, v = draw(8, 4)
        matches(q, k, v, steps=[[[0, 6]], [[0, 2]], [[1, 2]], [[1, 1]], [[1, 1]]], places=[0, 0], capacity=8)

    with answer.property(
        "the step's tokens are written into their slots, and nothing else is",
        why="The slots beside them are other sequences', or will be.",
    ):
        q, k, v = draw(5, 3, layers=2, Hkv=2, Dv=3)
        steps = [[[0, 2]], [[1, 3], [0, 2]], [[0, 1]]]
        keeps(q, k, v, steps=steps, places=[2, 0], capacity=6, turned=True)

    with answer.property(
        "cache.stage attends, once for each sequence, to the cache itself",
        why="A view of a row costs nothing. Copied, or with torch.cat, all that is kept would move once more in every "
        "step; and slots that hold no token are read for nothing.",
        hint="K.untyped_storage().data_ptr() is the same for K and for what it is a view of. A slice and a "
        "transposition are views; an index that is a tensor copies, and so does what must be contiguous.",
    ):
        q, k, v = draw(6, 9, G=2, Hkv=2)  # of one head, .contiguous() would copy nothing
        run = answer(q, k, v, steps=[[[0, 5], [1, 8]], [[1, 1], [0, 1]]], places=[0, 1], capacity=16, report="calls")
        wanted = [[1, 6], [1, 9], [5, 5], [8, 8]]
        answer.that(
            run,
            lambda r: sorted(call[:2] for call in r.value) == wanted,
            "a call for each sequence of each step, with (Tq, Tk) = (5, 5), (8, 8), (1, 9) and (1, 6)",
            got=lambda r: f"(Tq, Tk) = {', '.join(str(tuple(call[:2])) for call in r.value) or 'no call'}",
            by=lambda r: sorted(call[:2] for call in r.value),
        )
        answer.that(
            run,
            lambda r: all(own for _, _, own in r.value),
            "K and V that are views of cache.keys and cache.values",
            got=lambda r: f"copies in {sum(not own for _, _, own in r.value)} of {len(r.value)} calls",
            by=lambda r: [own for _, _, own in r.value],
        )
        run = answer(q, k, v, steps=[[[0, 5], [1, 8]], [[1, 1], [0, 1]]], places=[0, 1], capacity=1024, report="made")
        answer.that(
            run,
            lambda r: r.value < 1024 * 2 * 4,  # a row's keys; the step's own q, k, v and o have at most 208 numbers
            "nothing made in a step that is as large as a row of the cache",
            got=lambda r: f"a tensor of {r.value:,} numbers, where a row's keys are {1024 * 2 * 4:,}",
            by=lambda r: r.value >= 1024 * 2 * 4,
        )
