"""Decode steps as CUDA graphs: the tokens of steps without graphs, within their memory, whatever comes in between."""

import functools
import random

import pytest
import torch

from llmsys.cache import PagedCache
from llmsys.models import Llama, LlamaConfig
from llmsys.serving.engine import Engine
from llmsys.serving.execution import Execution
from llmsys.serving.plan import PLACEHOLDER, StepPlan, Work
from llmsys.serving.runner import Runner
from llmsys.serving.sampling.sampling_params import SamplingParams

pytestmark = pytest.mark.gpu
CLOSE = 2e-3  # logits that are nearer than this may change places, in fp32
PLAIN = Execution(ahead=False, graphs=False, fused=False, few_kernels=False)
VARIANTS = {
    "graphs": Execution(ahead=False, graphs=True, fused=False, few_kernels=False),
    "all at start": Execution(ahead=False, graphs=True, fused=False, few_kernels=False, capture="at start"),
    "graphs, ahead": Execution(ahead=True, graphs=True, fused=False, few_kernels=False),
    "all": Execution(ahead=True, graphs=True, fused=True),
    "some graphs": Execution(ahead=True, graphs=True, graph_memory=80 * 2**20),
    "no graphs": Execution(ahead=True, graphs=True, graph_memory=0),
}


@pytest.fixture(scope="module")
def model() -> Llama:
    """Random, with heads of 64, of which two share their keys, and Qwen3's norms; in fp32, on the GPU."""
    torch.manual_seed(1)
    config = LlamaConfig(
        name="small", vocab_size=997, hidden_size=256, layers=3, heads=4, kv_heads=2, head_size=64, mlp_size=384,
        context_length=512, qk_norm=True,
    )  # fmt: skip
    model = Llama(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.1 if weight.dim() == 2 else 1))
    return model.requires_grad_(False).to("cuda")


@functools.cache
def prompts():
    """Some that begin alike, longer than a step's tokens, and short ones."""
    gen = random.Random(1)
    base = [gen.randrange(997) for _ in range(200)]
    return [[*base[: gen.randint(0, 200)], *(gen.randrange(997) for _ in range(gen.randint(1, 9)))] for _ in range(24)]


def served(model, execution, params=None, **more):
    """Of a pool that is too small for all of them, with chunks of prompts between the decodes."""
    sizes = dict(num_blocks=30, block_size=16, max_tokens_per_step=100, max_sequences=12) | more
    engine = Engine(model, execution=execution, **sizes)
    said = engine.generate(prompts(), params or SamplingParams(max_tokens=40))
    assert engine.pool.stats.used == 0
    return engine, said


@torch.no_grad()
def assert_best(model, responses):
    """Each token is the best by the model's logits, read at once, or as good as that."""
    for response in responses:
        whole = torch.tensor([[*response.prompt_tokens, *response.tokens]], device=model.device)
        logits = model(whole)[0, len(response.prompt_tokens) - 1 : -1].double()
        behind = logits.amax(1) - logits[range(len(response.tokens)), response.tokens]
        assert behind.max() < CLOSE


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_are_those_of_steps_without_graphs(model, variant):
    engine, said = served(model, VARIANTS[variant])
    totals = engine.metrics.totals
    assert totals.preemptions and totals.hit_tokens
    assert_best(model, said)
    captured = engine.runner.graphs.captured
    if variant != "some graphs":  # what fits there depends on who else uses the GPU: the driver is asked
        assert bool(captured) is (variant != "no graphs")
        assert bool(engine.runner.graphs.captured_tokens) is (variant != "no graphs")
    if variant == "all at start":
        assert captured == [1, 2, 4, 8, 16] and engine.runner.graphs.captured_tokens == [16, 32, 64, 100]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_schedule_says_the_same_twice_also_where_tokens_are_drawn(model, dtype):
    model = moved(model, dtype)
    kinds = [{}, dict(temperature=1.0), dict(temperature=0.9, top_k=20, top_p=0.9), dict(logprobs=4)]
    params = [SamplingParams(max_tokens=20, **kinds[i % 4], **(dict(seed=i) if i % 4 in (1, 2) else {}))
              for i in range(24)]  # fmt: skip
    first, second = (served(model, Execution(), params)[1] for _ in range(2))
    assert [each.tokens for each in first] == [each.tokens for each in second]
    assert all(len(each.tokens) == 20 for each in first)


def moved(model, dtype) -> Llama:
    copy = Llama(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.requires_grad_(False).to("cuda", dtype)


@pytest.mark.parametrize("capture", ["on demand", "at start"])
@pytest.mark.parametrize("megabytes", [0, 40, 100, 400])
def test_graphs_take_no_more_memory_than_they_may(model, capture, megabytes):
    engine = Engine(model, num_blocks=30, max_sequences=12, execution=PLAIN)
    engine.generate(prompts()[:12], SamplingParams(max_tokens=4))  # libraries have made what they need
    del engine
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()  # by this process: what the driver has left is others' affair, too
    execution = Execution(graphs=True, graph_memory=megabytes * 2**20, capture=capture, fused=False, few_kernels=False)
    engine, said = served(model, execution)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    taken = torch.cuda.memory_reserved() - before - engine.runner.cache.bytes
    graphs = engine.runner.graphs
    assert taken <= megabytes * 2**20 + 60 * 2**20  # and a step without a graph, and pieces of 20 MiB
    assert len(graphs.captured) == 0 if megabytes == 0 else megabytes < 400 or len(graphs.captured) >= 4
    assert_best(model, said)


def test_requests_that_end_or_are_aborted_while_a_step_runs_leave_the_others_as_they_were(model):
    engine = Engine(model, num_blocks=200, max_sequences=12, execution=Execution(ahead=True, graphs=True))
    gen = random.Random(3)
    responses = [engine.add(prompt, SamplingParams(max_tokens=gen.randint(2, 30))) for prompt in prompts()]
    for step in range(200):
        if step % 5 == 4:
            engine.abort(gen.choice(responses).id)
        engine.step()
        if not engine.has_unfinished:
            break
    assert not engine.has_unfinished and engine.pool.stats.used == 0
    assert {response.answers[0].reason for response in responses} == {"length", "abort"}
    assert_best(model, [response for response in responses if response.tokens])


def test_place_holders_are_filled_in_the_graph(model):
    cache = PagedCache(num_blocks=80, block_size=16, spec=model.cache_spec())
    runner = Runner(model, cache, execution=Execution(graphs=True), max_sequences=8, max_model_len=512)
    greedy, drawn = SamplingParams(), SamplingParams(temperature=0.7, seed=2)
    names = {f"s{i}": (greedy, drawn)[i % 2] for i in range(5)}

    def run(hidden: bool) -> dict[str, list[int]]:
        """Launched one after the other, before any result where tokens are hidden."""
        known = {name: list(prompts()[i][:20]) for i, name in enumerate(names)}
        lengths = {name: len(tokens) for name, tokens in known.items()}
        said, launched = {name: [] for name in names}, []
        for step in range(6):
            works = []
            for i, name in enumerate(names):
                tokens = known[name] if step == 0 else [PLACEHOLDER] if hidden else said[name][-1:]
                computed = 0 if step == 0 else lengths[name] + step - 1
                works.append(Work(name, tuple(tokens), computed, (1 + 3 * i, 2 + 3 * i, 3 + 3 * i), 1, names[name]))
            launched.append(runner.launch(StepPlan(step, tuple(works[:: (-1) ** step]))))
            if not hidden:
                take(said, launched.pop())
        for each in launched:
            take(said, each)
        return said

    def take(said, launched):
        for output in launched.result().outputs:
            said[output.request] += output.tokens

    hidden = run(True)
    assert hidden == run(False) and runner.graphs.captured == [8]
    assert all(len(tokens) == 6 for tokens in hidden.values())


def test_a_prompt_with_a_graph_is_read_as_without(model):
    """Alone, and beside decodes; also where it is cut, and longer than the largest graph."""
    for max_tokens_per_step in (40, 64, 700):
        sizes = dict(num_blocks=400, max_tokens_per_step=max_tokens_per_step, max_sequences=12)
        engine = Engine(model, execution=Execution(graphs=True, fused=False, few_kernels=False), **sizes)
        responses = [engine.add(prompt, SamplingParams(max_tokens=5)) for prompt in prompts()[:3]]
        engine.step(), engine.step(), engine.step()
        responses += [engine.add(prompt, SamplingParams(max_tokens=5)) for prompt in prompts()[3:9]]
        while engine.has_unfinished:
            engine.step()
        assert_best(model, responses)
        assert engine.runner.graphs.captured_tokens


def test_a_step_with_a_graph_is_launched_in_less_time_than_without(model):
    """What it is for: the host has time for the next step."""
    seconds = {}
    for graphs in (True, False):
        execution = Execution(ahead=False, graphs=graphs, fused=False, few_kernels=False)
        engine, _ = served(model, execution, num_blocks=400)
        engine.metrics.steps.clear()
        engine.generate(prompts()[:12], SamplingParams(max_tokens=30))
        steps = sorted(step.seconds["launch"] for step in engine.metrics.steps if step.kind == "decode")
        seconds[graphs] = steps[len(steps) // 2]
    assert seconds[True] < 0.5 * seconds[False]
