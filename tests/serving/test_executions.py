"""The engine's own tests again, with parts of its execution switched on that a CPU leaves off: the same answers.

Not all of them: those that tell whose requests are refused, or how a bar looks, have nothing to do with the runner.
"""

import functools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsys.hardware.tier import triton_installed
from llmsys.serving.engine import Engine
from llmsys.serving.execution import Execution
from tests.serving import test_engine
from tests.serving.test_schedules import asked, sizes, what_happened
from tests.support.size import FULL, sized

VARIANTS = {
    "graphs": Execution(graphs=True),
    "graphs, ahead": Execution(graphs=True, ahead=True),
    "fused, graphs, ahead": Execution(fused=True, graphs=True, ahead=True),
    "few kernels, fused, graphs, ahead": Execution(few_kernels=True, fused=True, graphs=True, ahead=True),
}
FUSED, FEW = list(VARIANTS)[2:]
AGAIN = """
test_max_tokens_is_how_many_come
test_stop_tokens_of_a_request_are_its_own
test_a_stop_string_across_tokens_ends_the_text_before_it
test_a_stream_says_what_generate_says_a_token_at_a_time
test_several_streams_and_a_call_of_generate_serve_each_other
test_a_stream_that_is_closed_aborts_its_request
test_of_two_identical_prompts_in_flight_the_first_is_aborted
test_a_prompt_that_is_one_full_hit_computes_one_token
test_preempted_requests_hit_their_own_blocks_and_go_on_where_they_were
test_answers_to_one_prompt_are_those_of_prompts_with_their_seeds
test_the_same_seed_says_the_same_in_any_batch
test_logprobs_are_the_models
test_a_model_that_raises_fails_the_step_and_the_engine_goes_on
test_what_the_model_raises_in_generate_is_raised_and_its_prompts_are_aborted
test_logits_that_are_not_finite_fail_a_request_alone_and_nobody_hits_its_blocks
test_attention_and_scheduler_may_be_ones_own
"""


FUSED_TOO = """
test_several_streams_and_a_call_of_generate_serve_each_other
test_preempted_requests_hit_their_own_blocks_and_go_on_where_they_were
test_logprobs_are_the_models
"""
FEW_TOO = "test_logprobs_are_the_models"
OWN = "test_attention_and_scheduler_may_be_ones_own"
ONCE = "test_in_any_schedule_each_request_gets_its_tokens"


def pytest_generate_tests(metafunc):
    """Which tests are run with what. Kernels take their time in Triton's interpreter, and schedules anyhow: in the full
    form each test is run with everything. (But few kernels take no model in fp64, which the one of Qwen3 is, and no
    attention of the caller's own.)"""
    name, variants = metafunc.function.__name__, ["graphs", "graphs, ahead"]
    if name == ONCE:
        variants = variants[1:]
    elif triton_installed():
        variants += [FUSED] if FULL or name in FUSED_TOO.split() else []
        takes = "llama" in metafunc.fixturenames and name != OWN
        variants += [FEW] if takes and (FULL or name == FEW_TOO) else []
    metafunc.parametrize("executed", variants, indirect=True)


@pytest.fixture(autouse=True)
def executed(request, monkeypatch):
    """Engines are made with this execution where a test does not say which."""
    made = Engine.__init__

    @functools.wraps(made)
    def make(self, *args, **more):
        made(self, *args, **dict(execution=VARIANTS[request.param]) | more)

    monkeypatch.setattr(Engine, "__init__", make)


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_in_any_schedule_each_request_gets_its_tokens(pairs, family):
    @settings(max_examples=sized(short=12, full=100), suppress_health_check=list(HealthCheck))
    @given(st.lists(asked, min_size=3, max_size=8), sizes, st.integers(0, 3), st.randoms())
    def hold(requests, sizes, k, random):
        what_happened(pairs[family], requests, sizes, k, random)

    hold()


globals().update({name: vars(test_engine)[name] for name in AGAIN.split()})
