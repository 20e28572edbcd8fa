"""The four policies side by side, on one example that can be followed with a pencil, and what each promises."""

import pytest

from llmsys.cache import BlockPool
from llmsys.serving.policies import POLICIES, Orca, Turn, as_policy
from llmsys.serving.request import Request
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.events import StepDone, Token
from tests.support.made_up_runner import MadeUpRunner

# A and B have prompts of 4 tokens and want 6 and 2; C has a prompt of 12 and wants 2. Two run side by side, a step has
# 8 tokens. What each step computes:
STEPS = {
    "static": [
        {"A": 4, "B": 4}, {"A": 1, "B": 1}, {"A": 1}, {"A": 1}, {"A": 1}, {"A": 1}, {"C": 8}, {"C": 4}, {"C": 1}
    ],
    "orca": [
        {"A": 4, "B": 4}, {"A": 1, "B": 1}, {"C": 8}, {"C": 4}, {"A": 1, "C": 1}, {"A": 1}, {"A": 1}, {"A": 1}
    ],
    "alternating": [
        {"A": 4, "B": 4}, {"A": 1, "B": 1}, {"C": 8}, {"A": 1}, {"C": 4}, {"A": 1, "C": 1}, {"A": 1}, {"A": 1}
    ],
    "stall-free": [
        {"A": 4, "B": 4}, {"A": 1, "B": 1}, {"A": 1, "C": 7}, {"A": 1, "C": 5}, {"A": 1, "C": 1}, {"A": 1}
    ],
}  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_the_example_is_computed_in_these_steps(policy):
    scheduler, plans = serve(policy)
    assert [{work.request: len(work.tokens) for work in plan.work} for plan in plans] == STEPS[policy]


@pytest.mark.parametrize(("policy", "steps"), [("static", 1), ("orca", 3), ("alternating", 2), ("stall-free", 1)])
def test_a_request_that_decodes_waits_for_a_prompt_at_most_so_long(policy, steps):
    scheduler, _ = serve(policy)
    tokens = [each.step for each in scheduler.events if isinstance(each, Token) and each.request == "A"]
    assert max(later - earlier for earlier, later in zip(tokens, tokens[1:], strict=False)) == steps


def test_the_log_says_of_what_kind_each_step_was():
    kinds = {
        policy: [each.phase[0] for each in serve(policy)[0].events if isinstance(each, StepDone)] for policy in STEPS
    }
    assert {policy: "".join(each) for policy, each in kinds.items()} == {
        "static": "pdddddppd", "orca": "pdppdddd", "alternating": "pdpdpddd", "stall-free": "pdmmdd"
    }  # fmt: skip


def serve(policy):
    scheduler = Scheduler(BlockPool(40, 4), max_tokens_per_step=8, max_sequences=2, policy=policy)
    runner = MadeUpRunner(40, 4)
    for name, prompt, answer in (("A", [0] * 4, 6), ("B", [1] * 4, 2), ("C", [2] * 12, 2)):
        scheduler.add(Request(name, prompt, SamplingParams(answer, ignore_eos=True)))
    plans = []
    while plan := scheduler.plan():
        plans.append(plan)
        scheduler.update(plan, runner(plan))
    return scheduler, plans


def test_a_prompt_is_cut_only_where_the_turn_says_so_or_where_it_is_longer_than_a_step():
    for cut in (True, False):
        turn = Turn([], admit=True, cut=cut)
        assert [turn.tokens(n, 5, 8) for n in (1, 5)] == [1, 5]
        assert turn.tokens(6, 5, 8) == (5 if cut else 0)
        assert turn.tokens(9, 8, 8) == 8, "longer than a step, and nothing else is in it"
        assert turn.tokens(3, 0, 8) == 0


def test_whole_prompts_fit_beside_what_decodes_or_go_first():
    """Orca: with room for the prompt beside what decodes, nothing has to wait."""
    running = [Request("a", [1, 2])]
    running[0].tokens.append(3)
    running[0].computed = 2
    for length, expected in ((6, [running]), (7, [running]), (8, [[], running])):
        turns = list(Orca().turns(running, Request("b", [0] * length), 8))
        assert [turn.compute for turn in turns] == expected and turns[-1].admit and not turns[-1].cut


def test_a_name_makes_a_policy_of_its_own_for_each_scheduler():
    for name, kind in POLICIES.items():
        assert type(as_policy(name)) is kind and as_policy(name) is not as_policy(name)
    mine = Orca()
    assert as_policy(mine) is mine
    for wrong in ("Orca", Orca, None):
        with pytest.raises(ValueError, match="policy must be one of static, orca"):
            as_policy(wrong)
