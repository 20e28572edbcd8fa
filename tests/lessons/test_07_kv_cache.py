"""Lesson 07: its checks stand their self-test, take right answers and reject wrong ones that they have not seen, and
expect what torch computes; rows and budget are what the text says of them."""

import pytest
import torch

from llmsys.attention import STAGES, naive_attention
from llmsys.attention.rotary import rotate, rotation
from llmsys.cache import Chunk, ContiguousCache, NoCache, batch_of
from llmsys.course.checking.mistakes import edited
from llmsys.hardware.devices import GIB
from llmsys.lessons.lesson_07_kv_cache import mistakes
from llmsys.lessons.lesson_07_kv_cache.budget import Budget, OutOfBudget
from llmsys.lessons.lesson_07_kv_cache.plain_steps import expected, expected_kept, on_rows
from llmsys.lessons.lesson_07_kv_cache.rows import Rows, attend_in_rows
from llmsys.models import Llama, LlamaConfig, decode_cost
from llmsys.models.shapes import ITEMSIZE, SHAPES
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.verdicts import assert_rejected, assert_taken, fresh

# What the checks expect


def draw(*tokens, layers=2, Hq=4, Hkv=2, Dk=6, Dv=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    heads = (Hq, Dk), (Hkv, Dk), (Hkv, Dv)
    return [[torch.randn(layers, H, T, D, generator=generator) for T in tokens] for H, D in heads]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("T", [1, 2, 7])
def test_what_is_expected_is_torchs_attention_of_the_whole_sequence(T, turned):
    (q,), (k,), (v,) = draw(T)
    turn = rotation(torch.arange(T), 6) if turned else None
    exact = torch.nn.functional.scaled_dot_product_attention(
        rotate(q, turn), rotate(k, turn), v, is_causal=True, scale=0.3, enable_gqa=True
    )
    (found,) = expected([q], [k], [v], turned=turned, scale=0.3)
    assert torch.allclose(found, exact, atol=1e-5)


def test_the_last_queries_see_the_keys_up_to_their_own():
    (q,), (k,), (v,) = draw(7, Hq=2)
    mask = torch.ones(3, 7, dtype=torch.bool).tril(diagonal=4)  # bottom-right: Tk − Tq = 4
    last = torch.nn.functional.scaled_dot_product_attention(q[:, :, 4:], k, v, attn_mask=mask)
    assert torch.allclose(last, expected([q], [k], [v])[0][:, :, 4:], atol=1e-5)


def test_what_rows_are_expected_to_hold_is_in_the_slots_of_the_text():
    _, k, v = draw(3, 2, layers=1)
    keys, values = expected_kept(k, v, places=[2, 0], capacity=5)
    assert torch.equal(keys[0, 2 * 5 : 2 * 5 + 3], k[0][0].transpose(0, 1))
    assert torch.equal(values[0, :2], v[1][0].transpose(0, 1))
    assert keys.isnan().all(dim=-1).sum() == 2 * (15 - 5)


def test_real_models_keep_what_is_published_of_them():
    """DeepSeek-V3 technical report's successor, https://arxiv.org/abs/2505.09343, table 1."""
    published = {"DeepSeek-V3": 70_272, "Qwen2.5-72B": 327_680, "Llama-3.1-405B": 516_096}
    assert {name: mistakes.bytes_per_token(SHAPES[name]) for name in published} == published


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_the_bytes_of_a_token_are_the_librarys(name, dtype):
    assert mistakes.bytes_per_token(SHAPES[name], dtype) == decode_cost.bytes_per_token(SHAPES[name], dtype)


# Rows


def small_model(**changes):
    torch.manual_seed(3)
    sizes = {"vocab_size": 61, "hidden_size": 24, "layers": 3, "heads": 6, "kv_heads": 2, "head_size": 8}
    config = LlamaConfig("small", mlp_size=40, context_length=64, **(sizes | changes))
    return Llama(config).requires_grad_(False)


@pytest.mark.parametrize("stage", ["naive", "online", "tiled", "sdpa"])
def test_rows_give_the_logits_of_no_cache_by_any_stage(stage):
    model = small_model(qk_norm=True)
    tokens = torch.randint(61, (1, 9))
    whole = model(tokens, NoCache())
    cache = Rows(attend_in_rows, model.cache_spec(), capacity=12, stage=STAGES[stage])
    parts = [model(tokens[:, a:b], cache) for a, b in ((0, 4), (4, 5), (5, 9))]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-4)


def test_a_step_of_several_sequences_gives_what_the_librarys_cache_gives():
    model = small_model()
    spec = model.cache_spec()
    mine, librarys = Rows(attend_in_rows, spec, rows=3, capacity=9), ContiguousCache(capacity=9, sequences=3, spec=spec)
    rows = [2, 0, 1]
    for counts, computed in (((4, 1, 3), (0, 0, 0)), ((1, 5, 1), (4, 1, 3)), ((2, 2, 2), (5, 6, 4))):
        chunks = [
            Chunk(tokens=torch.randint(61, (n,)).tolist(), computed=before, blocks=[row])
            for n, before, row in zip(counts, computed, rows, strict=True)
        ]
        step = batch_of(chunks, block_size=9)
        assert torch.allclose(model(step.tokens, mine, step), model(step.tokens, librarys, step), atol=1e-4)


def test_rows_take_exactly_the_bytes_that_their_tokens_cost():
    spec = small_model().cache_spec()
    assert Rows(attend_in_rows, spec, rows=5, capacity=7).bytes == 5 * 7 * spec.bytes_per_token


def test_rows_say_what_does_not_fit():
    model = small_model()
    cache = Rows(attend_in_rows, model.cache_spec(), capacity=3)
    with pytest.raises(ValueError, match="3 slots, 0 are taken, and 4 more"):
        model(torch.zeros(1, 4, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match="several sequences need a Batch"):
        model(torch.zeros(2, 1, dtype=torch.int64), cache)
    with pytest.raises(ValueError, match="at least 1"):
        Rows(attend_in_rows, model.cache_spec(), rows=0, capacity=3)


@pytest.mark.parametrize("wrong", [lambda o: o[..., :2], lambda o: o.double(), lambda o: None])
def test_rows_refuse_what_is_no_o(wrong):
    model = small_model()
    cache = Rows(lambda *args, **options: wrong(attend_in_rows(*args, **options)), model.cache_spec(), capacity=3)
    with pytest.raises(ValueError, match="attend must return o, torch.float32 of shape"):
        model(torch.zeros(1, 2, dtype=torch.int64), cache)


# The budget


def test_a_budget_is_reached_to_the_byte_and_one_byte_less_is_too_little():
    spec = small_model().cache_spec()
    needed = 4 * 7 * spec.bytes_per_token
    with Budget(1000 + needed, taken=1000) as budget:
        cache = Rows(attend_in_rows, spec, rows=4, capacity=7)
        assert budget.taken == 1000 + needed == 1000 + cache.bytes
    with pytest.raises(OutOfBudget, match="are left"), Budget(999 + needed, taken=1000):
        Rows(attend_in_rows, spec, rows=4, capacity=7)


def test_a_budget_gets_back_what_is_freed_and_counts_no_view():
    with Budget(100) as budget:
        x = torch.zeros(20)
        y = x[3:].view(-1, 1)
        x += 1
        assert budget.taken == 80
        del x
        assert budget.taken == 80
        del y
        assert budget.taken == 0
        torch.zeros(25)
    with pytest.raises(ValueError, match="taken must be from 0 to"):
        Budget(10, taken=11)


def test_what_a_step_computes_counts_as_well():
    model = small_model()
    spec = model.cache_spec()
    with pytest.raises(OutOfBudget), Budget(9 * spec.bytes_per_token + 100):
        model(torch.zeros(1, 8, dtype=torch.int64), Rows(attend_in_rows, spec, capacity=9))


def test_the_lessons_memory_is_full_with_eleven_sequences():
    weights, kept = 538_060_032, mistakes.bytes_per_token(SHAPES["SmolLM2-135M"], "float32")
    n = mistakes.largest_batch(GIB, weight_bytes=weights, bytes_per_token=kept, context=1024)
    assert n == 11 and weights + n * 1024 * kept <= GIB < weights + (n + 1) * 1024 * kept


# Answers that the checks have not seen


def attend_but(name, *changes):
    return edited(attend_in_rows, name, *changes)


WRITES = (
    "    keys[batch.slot_mapping] = k[0].transpose(0, 1)\n    values[batch.slot_mapping] = v[0].transpose(0, 1)\n"
)  # fmt: skip
VIEWS = "x[first:end].transpose(0, 1)[None]"


def by_the_tensors_of_the_step(cache, layer, q, k, v, batch, *, turn=None, scale=None):
    """Where a sequence lies is read off query_start_loc, seq_lens and block_table."""
    q, k = rotate(q, turn), rotate(k, turn)
    for x, kept in ((k, cache.keys), (v, cache.values)):
        kept[layer].index_copy_(0, batch.slot_mapping.long(), x.squeeze(0).permute(1, 0, 2).contiguous())
    o = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype)
    starts = batch.query_start_loc.tolist()
    for i, Tk in enumerate(batch.seq_lens.tolist()):
        a, b = starts[i], starts[i + 1]
        row = int(batch.block_table[i, 0])
        K, V = (x[layer].unflatten(0, (-1, cache.capacity))[row, :Tk] for x in (cache.keys, cache.values))
        o[:, :, a:b] = cache.stage(
            q[:, :, a:b], K.permute(1, 0, 2).unsqueeze(0), V.permute(1, 0, 2).unsqueeze(0), causal=True, scale=scale
        )
    return o


def token_by_token(cache, layer, q, k, v, batch, *, turn=None, scale=None):
    """Writes a slot at a time, and scales the queries itself."""
    q, k = rotate(q, turn), rotate(k, turn)
    for n, slot in enumerate(batch.slot_mapping.tolist()):
        cache.keys[layer][slot], cache.values[layer][slot] = k[0, :, n], v[0, :, n]
    found, start = [], 0
    for chunk in batch.chunks:
        first, stop = cache.capacity * chunk.blocks[0], start + len(chunk.tokens)
        kept = slice(first, first + chunk.computed + len(chunk.tokens))
        K, V = (x[layer][kept].movedim(0, 1)[None] for x in (cache.keys, cache.values))
        own = {} if scale is None else {"scale": scale}
        found, start = [*found, cache.stage(q[:, :, start:stop], K, V, causal=True, **own)], stop
    return torch.cat(found, 2)


@pytest.mark.parametrize(
    "answer",
    [
        by_the_tensors_of_the_step, token_by_token,
        attend_but("without_a_mask_for_one", ("causal=True", "causal=T > 1")),
        attend_but("without_turn", ("q, k = rotate(q, turn), rotate(k, turn)",
                   "if turn is not None:\n        q, k = rotate(q, turn), rotate(k, turn)")),
    ],
)  # fmt: skip
def test_right_cached_attention_is_taken(answer):
    assert_taken("07.cached_attend", answer)


in_order_of_rows = edited(  # the results are put together row by row, not in the order of the step
    attend_in_rows, "in_order_of_rows",
    ("torch.cat(parts, dim=2)",
     "torch.cat([p for _, p in sorted(zip((c.blocks[0] for c in batch.chunks), parts), key=lambda x: x[0])], dim=2)"),
)  # fmt: skip


@fresh
def with_a_length_of_its_own():
    """Counts the tokens of a row by itself, and does not notice that another sequence has it."""
    lengths = {}

    def attend(cache, layer, q, k, v, batch, *, turn=None, scale=None):
        q, k = rotate(q, turn), rotate(k, turn)
        parts, start = [], 0
        for chunk in batch.chunks:
            row, T = chunk.blocks[0], len(chunk.tokens)
            before = lengths.get((id(cache), layer, row), 0)
            lengths[id(cache), layer, row] = before + T
            slots = slice(row * cache.capacity + before, row * cache.capacity + before + T)
            cache.keys[layer][slots] = k[0, :, start : start + T].transpose(0, 1)
            cache.values[layer][slots] = v[0, :, start : start + T].transpose(0, 1)
            K, V = (x[layer][row * cache.capacity : slots.stop].transpose(0, 1)[None]
                    for x in (cache.keys, cache.values))  # fmt: skip
            parts.append(cache.stage(q[:, :, start : start + T], K, V, causal=True, scale=scale))
            start += T
        return torch.cat(parts, dim=2)

    return attend


def by_torchs_cat(cache, layer, q, k, v, batch, *, turn=None, scale=None):
    """Puts a longer tensor into the place of the cache's, each step."""
    q, k = rotate(q, turn), rotate(k, turn)
    if batch.chunks[0].computed:
        k, v = torch.cat((cache.keys[layer], k), dim=2), torch.cat((cache.values[layer], v), dim=2)
    cache.keys[layer], cache.values[layer] = k, v
    return cache.stage(q, k, v, causal=True, scale=scale)


def by_the_librarys_cache(cache, layer, q, k, v, batch, *, turn=None, scale=None):
    inner = cache.__dict__.setdefault(
        "inner", ContiguousCache(cache.stage, capacity=cache.capacity, sequences=cache.rows)
    )
    return inner.attend(layer, q, k, v, batch, turn=turn, scale=scale)


@pytest.mark.parametrize(
    "answer",
    [
        in_order_of_rows, with_a_length_of_its_own, by_torchs_cat, by_the_librarys_cache,
        attend_but("attends_before_it_writes", (WRITES, ""), ("    return", WRITES + "    return")),
        attend_but("own_stage", ("cache.stage(", "naive_attention("),
                   ("    q, k =", "    from llmsys.attention.naive import naive_attention\n    q, k =")),
        attend_but("contiguous", (VIEWS, VIEWS + ".contiguous()")),
        attend_but("contiguous_values", (f"K, V = ({VIEWS} for x in (keys, values))",
                   f"K, V = ({VIEWS} for x in (keys, values))\n        V = V.contiguous()")),
        attend_but("clones", (VIEWS, VIEWS + ".clone()")),
        attend_but("reshapes_the_values", ("v[0].transpose(0, 1)", "v.reshape(-1, v.shape[1], v.shape[3])")),
        attend_but("gathers", (VIEWS, "x[torch.arange(first, end)].transpose(0, 1)[None]")),
        attend_but("turns_only_the_prompt",
                   ("q, k = rotate(q, turn)", "turn = turn if batch.chunks[0].computed == 0 else None\n"
                    "    q, k = rotate(q, turn)")),
        attend_but("writes_by_position", ("keys[batch.slot_mapping]", "keys[batch.positions]"),
                   ("values[batch.slot_mapping]", "values[batch.positions]")),
        attend_but("turns_the_values", ("    parts, start", "    values[batch.slot_mapping] = (rotate(v, turn) if "
                   "turn and turn.size <= v.shape[3] else v)[0].transpose(0, 1)\n    parts, start")),
        attend_but("in_float32", ("return torch.cat(parts, dim=2)", "return torch.cat(parts, dim=2).float()")),
        attend_but("clears_the_row", ("    parts, start", "    for chunk in batch.chunks:\n"
                   "        first = chunk.blocks[0] * cache.capacity\n"
                   "        keys[first + chunk.computed + len(chunk.tokens) : first + cache.capacity] = 0\n"
                   "    parts, start")),
        attend_but("default_scale_of_the_values", ("scale=scale", "scale=scale or v.shape[3] ** -0.5")),
        attend_but("only_the_newest_of_a_chunk", ("keys[batch.slot_mapping] =",
                   "keys[batch.slot_mapping[batch.query_start_loc[1:] - 1]] = keys[batch.slot_mapping[:1]]\n"
                   "    keys[batch.slot_mapping[-1:]] ="), ("k[0].transpose(0, 1)", "k[0].transpose(0, 1)[-1:]")),
        attend_but("writes_a_copy_and_copies_it_back", (WRITES,
                   "    for x, new in ((keys, k), (values, v)):\n        anew = x.clone()\n"
                   "        anew[batch.slot_mapping] = new[0].transpose(0, 1)\n        x[:] = anew\n")),
        attend_but("values_of_the_keys", ("values[batch.slot_mapping] = v[0]", "values[batch.slot_mapping] = k[0]")),
        attend_but("rows_of_the_steps_order", ("for chunk in batch.chunks",
                   "for chunk in sorted(batch.chunks, key=lambda each: each.blocks[0])")),
        attend_but("twice_the_stage", ("        parts.append(", "        cache.stage(q[:, :, start : start + T], K, V, "
                   "causal=True, scale=scale)\n        parts.append(")),
    ],
)  # fmt: skip
def test_wrong_cached_attention_is_rejected(answer):
    assert_rejected("07.cached_attend", answer)


def bytes_but(name, *changes):
    return edited(mistakes.bytes_per_token, name, *changes)


@fresh
def remembers_the_bytes():
    known = {}
    return lambda shape, dtype="bfloat16": known.setdefault(
        (shape.layers, shape.kv_heads, shape.head_dim), mistakes.bytes_per_token(shape, dtype)
    )


def from_the_librarys_spec(shape, dtype="bfloat16"):
    return sum(layer.bytes_per_token for layer in decode_cost.cache_spec_of(shape, dtype).layers)


RETURN = "return shape.layers * numbers * ITEMSIZE[dtype]"


def summed_by_layers(shape, dtype="bfloat16"):
    size = torch.tensor([], dtype=decode_cost.DTYPES[dtype]).element_size()
    if latent := shape.latent:
        return sum((latent.kv_rank + latent.rope_dim) * size for _ in range(shape.layers))
    return sum(size * shape.head_dim for _ in range(shape.layers) for _ in range(shape.kv_heads) for _ in "kv")


def test_right_bytes_are_taken():
    assert_taken("07.bytes_per_token", summed_by_layers)


@pytest.mark.parametrize(
    "answer",
    [
        remembers_the_bytes, from_the_librarys_spec,
        bytes_but("a_float", (RETURN, RETURN + " / 1")),
        bytes_but("latent_in_bf16", ("return", "if shape.latent:\n        dtype = 'bfloat16'\n    return")),
        bytes_but("all_heads_where_one_is_kept", ("shape.kv_heads",
                  "(shape.kv_heads if shape.kv_heads > 1 else shape.heads)")),
        bytes_but("head_size_of_the_width_in_groups", ("shape.head_dim",
                  "(shape.head_dim if shape.kv_heads == shape.heads else shape.width // shape.heads)")),
        bytes_but("rope_added_to_all", ("2 * shape.kv_heads * shape.head_dim",
                  "2 * shape.kv_heads * shape.head_dim + 64")),
        bytes_but("eight_bits_and_scales", ("return", "numbers += 4 * (dtype == 'float8')\n    return")),
        bytes_but("a_latent_with_experts_only", ("shape.latent is not None", "shape.latent and shape.experts")),
        bytes_but("experts_keep_one_head", ("shape.kv_heads", "(1 if shape.experts else shape.kv_heads)")),
        bytes_but("at_least_64_a_head", ("shape.head_dim", "max(shape.head_dim, 64)")),
    ],
)  # fmt: skip
def test_wrong_bytes_are_rejected(answer):
    assert_rejected("07.bytes_per_token", answer)


def batch_but(name, *changes):
    return edited(mistakes.largest_batch, name, *changes)


def one_at_a_time(memory, *, weight_bytes, bytes_per_token, context):
    batch = 0
    while weight_bytes + (batch + 1) * context * bytes_per_token <= memory:
        batch += 1
    return batch


def test_a_right_batch_is_taken():
    assert_taken("07.largest_batch", one_at_a_time)


@fresh
def remembers_the_batch():
    known = {}

    def largest_batch(memory, *, weight_bytes, bytes_per_token, context):
        key = memory, bytes_per_token, context
        return known.setdefault(key, max(memory - weight_bytes, 0) // (bytes_per_token * context))

    return largest_batch


def from_the_library(memory, *, weight_bytes, bytes_per_token, context):
    return decode_cost.largest_batch(
        memory, weight_bytes=weight_bytes, bytes_per_token=bytes_per_token, context=context
    )  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [
        from_the_library,
        batch_but("a_float", ("// each", "/ each // 1")),
        batch_but("one_at_least", ("max(free, 0) // each", "max(max(free, 0) // each, 1)")),
        batch_but("room_for_the_next_token", ("context * bytes_per_token", "(context + 1) * bytes_per_token")),
        batch_but("a_tenth_for_the_rest", ("memory - weight_bytes", "memory * 9 // 10 - weight_bytes")),
        batch_but("in_whole_kibibytes", ("context * bytes_per_token",
                  "-(-context * bytes_per_token // 2**10) * 2**10")),
        batch_but("powers_of_two", ("max(free, 0) // each", "2 ** ((max(free, 0) // each).bit_length() - 1) "
                  "if free >= each else 0")),
        batch_but("absolute", ("max(free, 0)", "abs(free)")),
    ],
)  # fmt: skip
def test_a_wrong_batch_is_rejected(answer):
    assert_rejected("07.largest_batch", answer)


@pytest.mark.parametrize("exercise", exercises_of("07"))
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)


def made_by(answer, capacity):
    """The numbers of the largest tensor that a step makes with two sequences of up to nine tokens."""
    steps = [[[0, 5], [1, 8]], [[1, 1], [0, 1]]]
    return on_rows(answer)(*draw(6, 9, layers=1), steps=steps, places=[0, 1], capacity=capacity, report="made")


@pytest.mark.parametrize("answer", [attend_in_rows, by_the_tensors_of_the_step, token_by_token])
def test_what_a_step_makes_does_not_depend_on_the_memory_that_is_there(answer):
    assert 0 < made_by(answer, 1000) == made_by(answer, 10) <= 13 * 4 * 8


def test_a_step_that_makes_the_cache_anew_is_seen():
    anew = attend_but("anew", ("keys[batch.slot_mapping] = k[0].transpose(0, 1)",
                      "keys.copy_(keys.index_copy(0, batch.slot_mapping.long(), k[0].transpose(0, 1)))"))  # fmt: skip
    assert made_by(anew, 1000) == 2 * 1000 * 2 * 6


def test_an_answer_in_plain_steps_is_run_as_in_a_model():
    q, k, v = draw(4, 2, layers=1)
    o = on_rows(attend_in_rows)(q, k, v, steps=[[[1, 2], [0, 3]], [[0, 1]]], places=[1, 0], capacity=5)
    whole = naive_attention(q[0], k[0], v[0], causal=True)
    assert torch.allclose(o[0], whole, atol=1e-5)
