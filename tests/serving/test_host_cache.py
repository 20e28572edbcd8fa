"""A cache with main memory behind it: the same tokens, fewer of them computed; and the rule for what comes back."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsys.cache import HostPages
from llmsys.cache.host_tier import Offer, always
from llmsys.hardware.devices import DEVICES
from llmsys.models.decode_cost import bytes_per_token
from llmsys.models.shapes import SHAPES
from llmsys.serving.engine import Engine
from llmsys.serving.execution import Execution
from llmsys.serving.host_cache import Cheaper, HostCache, host_tier, measured_link, size_in_bytes
from llmsys.serving.sampling.sampling_params import SamplingParams
from tests.serving.test_interrupts import PLACES, lines_of
from tests.serving.test_latent import latent, prompts  # noqa: F401, a fixture
from tests.serving.test_schedules import asked, sizes, what_happened
from tests.support.size import FULL, sized

ROOM = 1 << 20  # bytes: for all blocks of the tiny models' tests
SYSTEMS = [[(7 * base + 11 * i * (base + 1)) % 61 + 3 for i in range(24)] for base in range(4)]
ANSWER = SamplingParams(max_tokens=5, ignore_eos=True)


def made(pair, host_cache=HostCache(ROOM, always), **more) -> Engine:  # noqa: B008, it is frozen
    return Engine(pair.ours, **dict(num_blocks=12, block_size=4, host_cache=host_cache) | more)


def in_turn(engine, pair, rounds=3):
    """Questions behind four long beginnings, of which the cache holds one."""
    for n in range(rounds):
        for system in SYSTEMS:
            prompt = (*system, 40 + n)
            (response,) = engine.generate([prompt], ANSWER)
            assert pair.agrees(prompt, response.tokens, max_tokens=5)
    assert engine.pool.stats.used == 0
    return engine.metrics.totals


@pytest.mark.parametrize("execution", [Execution(ahead=False), Execution(ahead=True), Execution(graphs=True)])
def test_what_was_evicted_comes_back_and_is_not_computed_again(llama, execution):
    without, beside = in_turn(made(llama, None), llama), in_turn(made(llama, execution=execution), llama)
    assert without.hit_tokens == without.stored_blocks == without.returned_blocks == 0
    assert beside.returned_tokens == beside.hit_tokens == 2 * 4 * 24 == 4 * beside.returned_blocks
    assert beside.computed_tokens == without.computed_tokens - beside.returned_tokens
    # The beginnings are copied once, and what is new in each round.
    assert 4 * 6 <= beside.stored_blocks <= 4 * 6 + 3 * 4 * 2


def test_a_tier_that_is_too_small_helps_as_far_as_it_goes(llama):
    engine = made(llama)
    row = engine.runner.cache.host.row_bytes
    totals = in_turn(made(llama, HostCache(3 * row, always)), llama)
    assert totals.stored_blocks > 0 and totals.returned_blocks <= 3 * 2 * 4


def test_no_tier_is_the_engine_as_it_is_without(llama):
    for none in (None, 0, "0 B", HostCache(0)):
        engine = made(llama, none)
        assert engine.pool.host is None and engine.runner.cache.host is None


def test_several_layers_whose_values_are_in_their_keys_go_to_and_fro(latent):  # noqa: F811
    def totals(host_cache):
        engine = Engine(
            latent.ours, num_blocks=24, block_size=8, max_tokens_per_step=13, max_sequences=6, host_cache=host_cache
        )
        for each in (prompts(8), prompts(9), prompts(8)):
            for prompt, response in zip(each, engine.generate(each, ANSWER), strict=True):
                assert latent.agrees(prompt, response.tokens, max_tokens=5)
        assert engine.pool.stats.used == 0
        return engine.metrics.totals

    without, beside = totals(None), totals(HostCache(8 << 20, always))
    assert beside.returned_blocks and beside.computed_tokens < without.computed_tokens


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
@pytest.mark.parametrize("ahead", [False, True])
def test_in_any_schedule_each_request_gets_the_tokens_that_it_gets_alone(pairs, family, ahead):
    seen, pair = Counter(), pairs[family]

    @settings(max_examples=sized(short=4, full=150), suppress_health_check=list(HealthCheck))
    @given(st.lists(asked, min_size=3, max_size=8), sizes, st.integers(1, 60), st.integers(0, 3), st.randoms())
    def hold(requests, sizes, slots, k, random):
        row = HostPages(1, pair.ours.cache_spec(), sizes["block_size"]).row_bytes
        host_cache = HostCache(slots * row, lambda offer: (offer.end + offer.known) % 3 > 0)
        engine = dict(host_cache=host_cache, execution=Execution(ahead=ahead), more_blocks=min(2, sizes["more_blocks"]))
        seen.update(what_happened(pair, requests, sizes | engine, k, random))

    hold()
    if FULL:
        assert seen["stored"] and seen["returned"], seen


def test_a_step_that_is_interrupted_before_its_copies_spoils_nothing(llama):
    for stops_at in sized(short=(0, 1, 6, 99), full=range(12)):
        engine = made(llama)
        in_turn(engine, llama, rounds=1)
        copy_blocks, calls = engine.runner.cache.copy_blocks, []

        def broken(copies, copy_blocks=copy_blocks, calls=calls, stops_at=stops_at):
            calls.append(copies)
            if len(calls) == 1:
                copy_blocks(copies[:stops_at])
                raise KeyboardInterrupt
            copy_blocks(copies)

        engine.runner.cache.copy_blocks = broken
        with pytest.raises(KeyboardInterrupt):
            engine.generate([(*SYSTEMS[0], 50)], ANSWER)
        assert calls and engine.pool.stats.used == 0
        assert in_turn(engine, llama, rounds=2).returned_blocks


# Python itself drops what is raised while it closes a generator.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("ahead", [False, True])
def test_wherever_an_interrupt_comes_what_comes_back_afterwards_is_right(llama, ahead):
    engine = made(llama, max_sequences=1, execution=Execution(ahead=ahead))
    prompts, params = [(*system, 50) for system in SYSTEMS[:3]], replace(ANSWER, max_tokens=2)

    def tokens():
        return [response.tokens for response in engine.generate(prompts, params)]

    served = tokens()
    assert all(llama.agrees(p, said, max_tokens=2) for p, said in zip(prompts, served, strict=True))
    tokens()  # from now on they come back in every round
    lines, raised = lines_of(tokens), 0
    for place in range(1, lines, lines // PLACES):
        try:
            lines_of(tokens, interrupt_at=place)
        except KeyboardInterrupt:
            raised += 1
        assert tokens() == served, place
    assert raised > 0.8 * PLACES and engine.metrics.totals.returned_blocks > 3 * PLACES
    assert engine.pool.stats.used == 0 and not engine._loop._flights


# The rule


def rule(name="Llama-3-8B", device="H100 SXM", **more):
    shape = SHAPES[name]
    known = dict(link=DEVICES[device].host_link / 2, block_bytes=16 * bytes_per_token(shape))
    return Cheaper(shape, DEVICES[device], **known | more)


def test_a_large_models_long_prefixes_come_back_and_its_short_ones_do_not():
    takes_back = rule()
    assert takes_back(Offer(0, 2048, 2100, 128)) and takes_back(Offer(0, 512, 522, 32))
    assert not takes_back(Offer(0, 16, 26, 1)), "of a few tokens computing is free: the step waits for its weights"


def test_a_small_models_come_back_when_attention_to_what_is_before_them_is_long_enough():
    takes_back = rule("SmolLM2-135M")
    came = [takes_back(Offer(0, 16 * n, 16 * n + 10, n)) for n in range(1, 500)]
    first = came.index(True)
    assert all(came[first:]) and 2000 < 16 * first < 3000
    assert rule("SmolLM2-135M", link=1e12)(Offer(0, 512, 522, 32)), "over a faster link, sooner"


@pytest.mark.parametrize("name", ["SmolLM2-135M", "Llama-3-8B", "DeepSeek-V3", "Qwen2.5-72B"])
def test_both_sides_are_what_the_derivation_says(name):
    shape, device = SHAPES[name], DEVICES["H100 SXM"]
    takes_back = rule(name)
    offer = Offer(4096, 8192, 8192 + 4096, 256)
    back = takes_back.back_seconds(offer) / 4096
    assert back == pytest.approx(bytes_per_token(shape) / 64e9)
    if shape.experts is None:  # else the router's choice decides how many weights are read
        products = shape.parameters - shape.vocab * shape.width * (1 if shape.tied else 2)  # the head is of one token
        # Of the tokens that are saved, the context is 6144 in the mean.
        flops = 2 * products + 4 * shape.layers * shape.heads * shape.head_dim * 6144
        again = takes_back.again_seconds(offer) / 4096
        assert flops / device.flops["bfloat16"] < again < 1.35 * flops / device.flops["bfloat16"]


def test_where_some_blocks_are_there_less_is_copied_for_the_same_computing():
    takes_back = rule()
    few, all_ = Offer(0, 1024, 1100, 2), Offer(0, 1024, 1100, 64)
    assert takes_back.again_seconds(few) == takes_back.again_seconds(all_)
    assert 32 * takes_back.back_seconds(few) == pytest.approx(takes_back.back_seconds(all_))


def test_a_dtype_for_which_the_device_has_no_figure_counts_as_float32():
    assert rule(dtype="float64").dtype == rule(dtype="float32").dtype == "float32" and rule().dtype == "bfloat16"
    with pytest.raises(ValueError, match="link must be above 0"):
        rule(link=0)


def test_a_link_is_measured():
    assert 1e7 < measured_link(torch.device("cpu")) < 1e13


def test_an_engine_takes_the_rule_of_the_machine_it_is_on(llama):
    engine = made(llama, "1 MiB")
    assert isinstance(engine.pool.host._takes_back, Cheaper | type(always))
    in_turn(engine, llama)


# What is refused


@pytest.mark.parametrize(
    "size, expected",
    [(5, 5), ("7 B", 7), ("2 GiB", 2 << 30), ("1.5KiB", 1536), (" 3 MiB ", 3 << 20), ("1 TiB", 1 << 40)],
)
def test_sizes_are_numbers_of_bytes_or_have_a_unit(size, expected):
    assert size_in_bytes("host_cache", size) == HostCache(size).budget == expected


@pytest.mark.parametrize("size", ["2", "GiB", "-1 GiB", "2 gib", "2 GB", -1, True, "1e3 B", "2 GiB of it"])
def test_what_is_no_size_is_refused(size, llama):
    with pytest.raises(ValueError, match='host_cache must be bytes, .* or a size such as "2 GiB"'):
        made(llama, size)


def test_an_engine_that_cannot_have_a_tier_says_so(llama):
    with pytest.raises(ValueError, match="host_cache must be at most the .* bytes that main memory has free"):
        made(llama, "1000 TiB")
    with pytest.raises(ValueError, match="host_cache must have room for a block of 4 tokens"):
        made(llama, 100)

    class Other:
        def __init__(self, pool, **settings):
            pass

    with pytest.raises(ValueError, match="host_cache must be None where scheduler makes no Scheduler"):
        made(llama, scheduler=Other)


def test_pinned_memory_counts_as_the_power_of_two_that_it_takes(llama, monkeypatch):
    monkeypatch.setattr("llmsys.serving.host_cache.available_memory", lambda: 3_500_000)
    model = SimpleNamespace(device=torch.device("cuda", 0), cache_spec=llama.ours.cache_spec)
    with pytest.raises(ValueError, match="at most the 3,500,000 bytes .* got 3,000,000, which takes 4,194,304 of"):
        host_tier(model, 3_000_000, block_size=4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_a_tier_changes_no_token_and_nothing_is_computed_twice(dtype):
    from llmsys.models import Llama, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        name="small", vocab_size=997, hidden_size=256, layers=3, heads=4, kv_heads=2, head_size=64, mlp_size=384,
        context_length=512,
    )  # fmt: skip
    model = Llama(config).requires_grad_(False).to("cuda", dtype)
    for weight in model.parameters():
        weight.copy_(torch.randn_like(weight) * (0.1 if weight.dim() == 2 else 1))
    systems = [[(7 * base + 11 * i * (base + 1)) % 997 for i in range(160)] for base in range(4)]

    def said(host_cache):
        engine = Engine(model, num_blocks=14, block_size=16, max_model_len=220, host_cache=host_cache)
        answers = [
            engine.generate([[*system, n]], replace(ANSWER, max_tokens=20))[0].tokens
            for n in range(5)
            for system in systems
        ]
        return answers, engine.metrics.totals

    (expected, without), (answers, beside) = said(None), said(HostCache("64 MiB", always))
    assert beside.returned_tokens == 4 * 4 * 160 and beside.computed_tokens < without.computed_tokens
    if dtype == torch.float32:
        assert answers == expected
    else:  # steps of other sizes sum in another order
        assert sum(a == b for a, b in zip(answers, expected, strict=True)) >= len(expected) // 2
