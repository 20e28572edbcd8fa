"""Wrong answers to lesson 07, as people write them: a right one with an edit (`llmsys.course.checking.mistakes`)."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_07_kv_cache.rows import attend_in_rows
from llmsys.models.shapes import ITEMSIZE

# 07.cached_attend

wrong_attend = Mistakes("07.cached_attend", attend_in_rows)

TORCHS = (
    "cache.stage(q[:, :, start : start + T], K, V, causal=True, scale=scale)",
    "torch.nn.functional.scaled_dot_product_attention(\n"
    "            q[:, :, start : start + T], K, V, is_causal=True, scale=scale, enable_gqa=True)",
)

wrong_attend(
    "top_left",
    "Your mask is aligned top-left: query i of a step sees the keys up to i, from the beginning of its sequence.",
    TORCHS,
    why="torch's is_causal means that, and it is right while Tq = Tk. A step's queries are the last of the keys: query "
    "i sees the keys up to i + Tk − Tq. That is what causal=True means to cache.stage.",
)
wrong_attend(
    "not_causal",
    "The queries of a step see keys after their own.",
    ("causal=True", "causal=False"),
    why="A single query may see all that is kept. In a prompt, or a chunk of one, the first query must not see what "
    "comes after it.",
)
wrong_attend(
    "causal_only_at_the_beginning",
    "A chunk that continues a prompt is not masked.",
    ("causal=True", "causal=chunk.computed == 0"),
    why="That is right for one query, which may see everything. A chunk of several has queries that must not see the "
    "keys of the next ones.",
)
wrong_attend(
    "nothing_kept",
    "You attend to the tokens of this step alone.",
    ("x[first:end].transpose(0, 1)[None] for x in (keys, values)", "x[:, :, start : start + T] for x in (k, v)"),
    why="What was kept in earlier steps is never read: the model forgets its prompt. K and V come from the cache.",
)
wrong_attend(
    "without_its_own_key",
    "You attend to what was kept before this step, and not to the step's own tokens.",
    ("end = first + chunk.computed + T", "end = first + max(chunk.computed, T if chunk.computed == 0 else 0)"),
    why="A query sees its own key, too. After writing, the sequence has computed + T tokens.",
)
wrong_attend(
    "nothing_of_this_step",
    "You attend to what was kept before this step, and to nothing in the first one.",
    ("end = first + chunk.computed + T", "end = first + chunk.computed"),
    why="A query sees its own key, too. After writing, the sequence has computed + T tokens.",
)
wrong_attend(
    "one_key_more",
    "You count one new key a step, whatever the step brings.",
    ("end = first + chunk.computed + T", "end = first + chunk.computed + 1"),
    why="That is right for a step of decoding. A prompt, or a chunk of one, brings T tokens: the row then holds "
    "computed + T.",
)
wrong_attend(
    "from_the_steps_first_slot",
    "You read from the slot of the step's first token on, not from the beginning of the row.",
    ("first = chunk.blocks[0] * cache.capacity", "first = int(batch.slot_mapping[start])"),
    why="slot_mapping says where the step's own tokens go. What was kept of the sequence lies before them: its row "
    "begins at row · capacity.",
)
wrong_attend(
    "read_by_a_reshape",
    "You reshape what you read, (Tk, Hkv, D), where it must be transposed: heads and tokens get mixed.",
    ("x[first:end].transpose(0, 1)[None]", "x[first:end].reshape(1, x.shape[1], -1, x.shape[2])"),
    why="A reshape keeps the order of the numbers, in which a token's heads follow each other. A stage wants the "
    "tokens of a head: transpose(0, 1)[None].",
)
wrong_attend(
    "keys_reshaped",
    "You reshape the keys, (Hkv, N, Dk), where they must be transposed: heads and tokens get mixed.",
    ("k[0].transpose(0, 1)", "k.reshape(-1, k.shape[1], k.shape[3])"),
    why="A reshape keeps the order of the numbers, and reads on from the first head's tokens. Slots want (N, Hkv, Dk), "
    "a token's heads side by side: k[0].transpose(0, 1).",
)
wrong_attend(
    "reshaped",
    "You reshape (Hkv, N, Dk) where it must be transposed: heads and tokens get mixed.",
    ("k[0].transpose(0, 1)", "k.reshape(-1, k.shape[1], k.shape[3])"),
    ("v[0].transpose(0, 1)", "v.reshape(-1, v.shape[1], v.shape[3])"),
    why="A reshape keeps the order of the numbers, and reads on from the first head's tokens. Slots want (N, Hkv, Dk), "
    "a token's heads side by side: k[0].transpose(0, 1).",
)
wrong_attend(
    "one_buffer_for_all_layers",
    "All layers write into the keys and values of layer 0.",
    ("cache.keys[layer], cache.values[layer]", "cache.keys[0], cache.values[0]"),
    why="Each layer has keys of its own. The next one overwrites them here.",
)
wrong_attend(
    "always_at_the_front",
    "You write every step's tokens to the front of the row.",
    (
        "keys[batch.slot_mapping]",
        "before = torch.tensor([each.computed for each in batch.chunks for _ in each.tokens])\n"
        "    slots = batch.slot_mapping - before\n"
        "    keys[slots]",
    ),
    ("values[batch.slot_mapping]", "values[slots]"),
    why="They overwrite what was kept. The token at index i of its sequence belongs into slot row · capacity + i, "
    "which is what slot_mapping says.",
)
wrong_attend(
    "whole_row",
    "You attend to the whole row, slots without a token included.",
    ("end = first + chunk.computed + T", "end = first + cache.capacity"),
    why="What lies there was never written, or is another sequence's. The row holds computed + T tokens.",
)
wrong_attend(
    "all_see_each_other",
    "The sequences of a step see each other's keys.",
    ("T = len(chunk.tokens)", "T = q.shape[2]"),
    (
        "K, V = (x[first:end].transpose(0, 1)[None] for x in (keys, values))",
        "rows = [(c.blocks[0] * cache.capacity, c.computed + len(c.tokens)) for c in batch.chunks]\n"
        "        K, V = (torch.cat([x[a : a + n] for a, n in rows]).transpose(0, 1)[None] for x in (keys, values))",
    ),
    ("        start += T\n", "        break\n"),
    why="Side by side in a step, they are strangers: one call of the stage for each, with its row's keys.",
)
wrong_attend(
    "row_by_place",
    "You take a sequence's place in the step for its row.",
    ("for chunk in batch.chunks", "for number, chunk in enumerate(batch.chunks)"),
    ("chunk.blocks[0] *", "number *"),
    why="The first of this step may be the third of the next. Its row is in chunk.blocks.",
)
wrong_attend(
    "longest_for_all",
    "You let every sequence attend to as many slots as the longest has tokens.",
    ("end = first + chunk.computed + T", "end = first + max(c.computed + len(c.tokens) for c in batch.chunks)"),
    why="The slots after a shorter one's last token hold nothing, or what another sequence left behind.",
)
wrong_attend(
    "keys_not_turned",
    "You do not turn the keys.",
    ("q, k = rotate(q, turn), rotate(k, turn)", "q = rotate(q, turn)"),
    why="q · k then depends on the query's position alone. Both are turned, each by its own position.",
)
wrong_attend(
    "queries_not_turned",
    "You do not turn the queries.",
    ("q, k = rotate(q, turn), rotate(k, turn)", "k = rotate(k, turn)"),
    why="The scores then depend on the key's position alone. Both are turned, each by its own position.",
)
wrong_attend(
    "nobody_turned",
    "You turn neither q nor k.",
    ("    q, k = rotate(q, turn), rotate(k, turn)\n", ""),
    why="They come without positions, and turn brings them: without it, the model does not know the order of its "
    "tokens.",
)
wrong_attend(
    "scale_lost",
    "You do not hand on the scale.",
    (", scale=scale", ""),
    why="A model may have one of its own; 1/√Dk is only the default.",
)
wrong_attend(
    "copied",
    "You copy what is kept before you attend to it.",
    ("x[first:end].transpose(0, 1)[None]", "x[first:end].transpose(0, 1)[None].contiguous()"),
    why="All of K and V then moves twice in every step, where reading it once is already what decoding waits for. A "
    "slice and a transposition are views.",
)

wrong_attend(
    "the_cache_anew",
    "You make all of the cache anew to write a few slots of it.",
    ("keys[batch.slot_mapping] = k[0].transpose(0, 1)",
     "keys.copy_(keys.index_copy(0, batch.slot_mapping.long(), k[0].transpose(0, 1)))"),
    ("values[batch.slot_mapping] = v[0].transpose(0, 1)",
     "values.copy_(values.index_copy(0, batch.slot_mapping.long(), v[0].transpose(0, 1)))"),
    why="A function without an underscore gives a new tensor, as large as the cache, and every row moves in every "
    "step. keys[slots] = …, or index_copy_, writes in place.",
)  # fmt: skip

# 07.bytes_per_token


def bytes_per_token(shape, dtype="bfloat16"):
    """A right answer."""
    if shape.latent is not None:
        numbers = shape.latent.kv_rank + shape.latent.rope_dim
    else:
        numbers = 2 * shape.kv_heads * shape.head_dim
    return shape.layers * numbers * ITEMSIZE[dtype]


wrong_bytes = Mistakes("07.bytes_per_token", bytes_per_token)

wrong_bytes(
    "query_heads",
    "You count query heads, where key heads are kept.",
    ("shape.kv_heads", "shape.heads"),
    why="That is multi-head attention, where they are as many. With grouped queries, G query heads read one key head.",
)
wrong_bytes(
    "keys_alone",
    "You count the keys, and forget the values.",
    ("2 * shape.kv_heads", "shape.kv_heads"),
    ("shape.latent.kv_rank + shape.latent.rope_dim", "shape.latent.kv_rank"),
    why="A query needs both, of every token before it.",
)
wrong_bytes(
    "numbers",
    "You count numbers, not bytes.",
    (" * ITEMSIZE[dtype]", ""),
    why="A number of bfloat16 has two bytes, one of float32 four: ITEMSIZE[dtype].",
)
wrong_bytes(
    "layers_with_experts",
    "You leave out the layers that have one MLP, not experts.",
    ("shape.layers * numbers", "(shape.layers - (shape.experts.dense_layers if shape.experts else 0)) * numbers"),
    why="Experts are MLPs, and keep nothing of a token. Every layer has attention, and keeps what attention needs.",
)
wrong_bytes(
    "one_layer",
    "You count one layer.",
    ("shape.layers * numbers", "numbers"),
    why="Every layer has keys and values of its own, and keeps them.",
)
wrong_bytes(
    "from_the_width",
    "You take width / heads for the size of a head.",
    ("shape.head_dim", "(shape.width // shape.heads)"),
    why="Often it is, and need not be: the shape says head_dim.",
)
wrong_bytes(
    "width_for_everybody",
    "You count 2 · width numbers a layer: every query head's key and value, as wide as the model.",
    ("shape.kv_heads * shape.head_dim", "shape.width"),
    why="That is multi-head attention with heads that add up to the width. What is kept is kv_heads · head_dim.",
)
wrong_bytes(
    "latent_ignored",
    "You count keys and values of all heads where only the latent is kept.",
    ("shape.latent is not None", "False"),
    why="With latent attention they are computed from one vector of kv_rank numbers when they are needed (or not even "
    "then: lesson 15). That vector is kept, and one key of rope_dim.",
)
wrong_bytes(
    "latent_for_every_head",
    "You count the latent once for every head.",
    ("shape.latent.kv_rank + shape.latent.rope_dim", "shape.kv_heads * (shape.latent.kv_rank + shape.latent.rope_dim)"),
    why="It is one for all heads. That is the point of it.",
)
wrong_bytes(
    "latent_twice",
    "You count the latent twice, as key and as value.",
    ("shape.latent.kv_rank + shape.latent.rope_dim", "2 * (shape.latent.kv_rank + shape.latent.rope_dim)"),
    why="Keys and values are both computed from the same vector.",
)
wrong_bytes(
    "latent_vector_twice",
    "You count the latent twice, as key and as value, and the rotated key once.",
    ("shape.latent.kv_rank + shape.latent.rope_dim", "2 * shape.latent.kv_rank + shape.latent.rope_dim"),
    why="Keys and values are both computed from the same vector.",
)
wrong_bytes(
    "no_rotated_key",
    "You forget the key that carries the position.",
    ("shape.latent.kv_rank + shape.latent.rope_dim", "shape.latent.kv_rank"),
    why="A latent cannot be turned, for keys of all heads are to be computed from it. So each token also keeps "
    "rope_dim numbers that are.",
)
wrong_bytes(
    "rotated_key_for_every_head",
    "You count the key that carries the position once for every head.",
    ("shape.latent.rope_dim", "shape.heads * shape.latent.rope_dim"),
    why="All heads share it, as in multi-query attention.",
)
wrong_bytes(
    "query_rank",
    "You count the latent of the queries, too.",
    ("shape.latent.kv_rank +", "shape.latent.q_rank + shape.latent.kv_rank +"),
    why="A query is used in its own step, and never again.",
)
wrong_bytes(
    "always_two_bytes",
    "You count two bytes an element, whatever the dtype is.",
    ("ITEMSIZE[dtype]", "2"),
    why="A float32 has four, a float8 one.",
)

# 07.largest_batch


def largest_batch(memory, *, weight_bytes, bytes_per_token, context):
    """A right answer."""
    each = context * bytes_per_token
    free = memory - weight_bytes
    return max(free, 0) // each


wrong_batch = Mistakes("07.largest_batch", largest_batch)

wrong_batch(
    "weights_forgotten",
    "You give the whole memory to the sequences, and leave none for the weights.",
    ("memory - weight_bytes", "memory"),
    why="They are there before the first sequence is.",
)
wrong_batch(
    "weights_for_each",
    "You count the weights for every sequence.",
    ("context * bytes_per_token", "context * bytes_per_token + weight_bytes"),
    ("memory - weight_bytes", "memory"),
    why="All sequences of a step share them: that is what batches are for.",
)
wrong_batch(
    "a_token_each",
    "You count tokens, not sequences.",
    ("context * bytes_per_token", "bytes_per_token"),
    why="Every sequence may come to have context tokens, and a contiguous cache reserves room for all of them.",
)
wrong_batch(
    "rounded_up",
    "You round up: the last sequence does not fit whole.",
    ("max(free, 0) // each", "-(-max(free, 0) // each)"),
    why="Memory that is not there cannot be written to.",
)
wrong_batch(
    "rounded",
    "You round to the nearest: the last sequence may not fit whole.",
    ("max(free, 0) // each", "round(max(free, 0) / each)"),
    why="Memory that is not there cannot be written to. Only a floor is sure to fit.",
)
wrong_batch(
    "a_byte_to_spare",
    "You want a byte to spare: memory that is exactly enough is not enough for you.",
    ("max(free, 0) // each", "max(free - 1, 0) // each"),
    why="What fits to the byte fits.",
)
wrong_batch(
    "negative",
    "Where the weights do not fit, your batch is below zero.",
    ("max(free, 0) // each", "free // each"),
    why="Then nothing fits: 0. Whoever asks `while batch:` would never stop.",
)
wrong_batch(
    "through_a_float",
    "You divide in floating point.",
    ("max(free, 0) // each", "int(max(free, 0) / each)"),
    why="A float has 53 bits. Where the quotient is just below a whole number it may become that number: one sequence "
    "too many. // of two whole numbers is exact.",
)
