"""The check of the bytes of a token."""

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_07_kv_cache.plain_shapes import of_shape
from llmsys.models import decode_cost


@exercise_check(
    "07.bytes_per_token",
    reference=decode_cost.bytes_per_token,
    forbids=("llmsys.models.decode_cost:*", "llmsys.cache.spec:*"),
    adapt=of_shape,
    hints=(
        "What does one layer keep of one token so that later queries can attend to it? Query heads come and go with "
        "their step: they are not kept.",
        "A layer keeps a key and a value for each key head, of head_dim numbers each. With latent attention it keeps "
        "one vector of kv_rank numbers and one key of rope_dim, whatever the number of heads: keys and values of all "
        "heads are computed from the one, and they share the other.",
        "if shape.latent is None:  numbers = 2 * kv_heads * head_dim\n"
        "else:                     numbers = kv_rank + rope_dim          (of shape.latent)\n"
        "return layers * numbers * ITEMSIZE[dtype]",
    ),
)
def bytes_per_token(answer: Answer) -> None:
    def matches(layers, heads, kv_heads, head_dim, *, latent=None, dtype="bfloat16", width=None, **more) -> None:
        numbers = latent[1] + latent[2] if latent else 2 * kv_heads * head_dim
        size = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}[dtype]
        given = {"width": width or heads * head_dim, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        answer.matches(layers * numbers * size, layers=layers, **given, latent=latent, dtype=dtype, **more)

    with answer.property("a count of bytes is an int", why="Half a byte is not kept."):
        # float32: with two bytes an element, who forgets the values cannot be told from who forgets the bytes
        run = answer(layers=2, width=32, heads=4, kv_heads=4, head_dim=8, latent=None, dtype="float32")
        answer.that(run, lambda r: type(r.value) is int, expected="an int")

    with answer.property(
        "one layer, one head: a key and a value", why="A query needs the keys for its scores, the values for its sum."
    ):
        matches(1, 1, 1, 64)
        matches(1, 1, 1, 80)

    with answer.property("every layer keeps its own", why="Layer 7 attends to layer 7's keys."):
        matches(24, 1, 1, 64)

    with answer.property(
        "multi-head attention: every head keeps its own", why="Llama-2-7B: 32 layers, 32 heads of 128, half a MiB."
    ):
        matches(32, 32, 32, 128)
        matches(5, 3, 3, 24)

    with answer.property(
        "the head size is the model's own",
        why="Heads times head size need not be the width: Qwen3-0.6B has 16 · 128 at a width of 1024.",
    ):
        matches(3, 6, 6, 20, width=100)
        matches(28, 16, 16, 128, width=1024)

    with answer.property(
        "grouped and multi-query attention: key heads count, query heads do not",
        why="G query heads read the same key head; with one key head (MQA) all of them do.",
    ):
        matches(32, 32, 8, 128)
        matches(30, 9, 3, 64)
        matches(32, 71, 1, 64)
        matches(46, 96, 8, 128, width=4096, dense_layers=1)  # experts take the place of MLPs, and keep nothing

    with answer.property(
        "latent attention: one vector for all heads, and the key that carries the position",
        why="DeepSeek-V3 keeps 512 + 64 numbers a layer. Keys and values of its 128 heads would be 32,768.",
        hint="How many vectors does a layer keep of a token here, and how long is each? Do they depend on the heads?",
    ):
        matches(61, 128, 128, 128, latent=[1536, 512, 64], width=7168, dense_layers=3)
        matches(3, 10, 10, 24, latent=[48, 40, 8], width=200)

    with answer.property("bytes of an element: 4, 2 or 1", why="A cache in eight bits is half of one in sixteen."):
        for dtype in ("float32", "float16", "float8", "bfloat16"):
            matches(7, 6, 2, 16, dtype=dtype)
            matches(7, 6, 6, 16, latent=[24, 20, 12], dtype=dtype)

    with answer.property("any model", why="The next one has other numbers again."):
        for dtype in ("float8", "float32", "bfloat16"):
            layers, G, kv_heads, half, width = (int(answer.randint(1, 40)) for _ in range(5))
            matches(layers, G * kv_heads, kv_heads, 2 * half, dtype=dtype, width=8 * width)
            q_rank, kv_rank, rope, heads = (int(answer.randint(1, 300)) for _ in range(4))
            matches(layers, heads, heads, 2 * half, latent=[q_rank, kv_rank, rope], dtype=dtype, width=8 * width)
