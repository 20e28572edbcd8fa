"""Lesson 10: its checks stand their self-test, take right answers and reject wrong ones that they have not seen; what
they expect is what the library's simulator and goodput say; and the leaderboard ranks policies fairly."""

import math
import random

import pytest

from llmsys.course.workspace import progress
from llmsys.lessons.lesson_10_chunked_prefill import leaderboard as board
from llmsys.lessons.lesson_10_chunked_prefill import right
from llmsys.lessons.lesson_10_chunked_prefill.checks.choose_budget import halvings
from llmsys.lessons.lesson_10_chunked_prefill.plain import plain_choice, plain_log, plain_steps
from llmsys.serving import EventLog, Turn
from llmsys.serving.goodput import Limits, goodput, highest_rate, request_metrics
from llmsys.serving.simulator import Prices, StepTimes, simulate
from llmsys.serving.workload import synthetic
from llmsys.serving.workload.arrivals import Arrival
from llmsys.viz.chunked_prefill.witness import Witness
from tests.lessons import answers_10
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.size import SEED
from tests.support.verdicts import assert_rejected, assert_taken, verdict

TIMES = StepTimes(
    Prices(fixed=4.5e-3, per_token=2e-5, per_attended=2.3e-8),
    Prices(fixed=3.6e-3, per_token=1.8e-5, per_sequence=4.6e-5, per_attended=5.8e-8, per_pair=2.6e-9),
)


@pytest.mark.parametrize("exercise", exercises_of("10"))
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)


@pytest.mark.parametrize("exercise", answers_10.RIGHT)
def test_right_answers_by_other_ways_pass(exercise):
    for answer in answers_10.RIGHT[exercise]:
        assert_taken(exercise, answer)


@pytest.mark.parametrize("exercise", answers_10.WRONG)
def test_wrong_answers_are_rejected(exercise):
    for answer in answers_10.WRONG[exercise]:
        assert_rejected(exercise, answer)


@pytest.mark.parametrize("exercise", answers_10.NOTHING_OF_THE_KIND)
def test_what_returns_another_thing_is_told_what_is_wanted(exercise):
    answer, words = answers_10.NOTHING_OF_THE_KIND[exercise]
    result = verdict(exercise, answer)
    assert not result and words in str(result), result


# What the checks expect


@pytest.mark.parametrize("policy", ["static", "orca", "alternating", "stall-free"])
def test_a_log_is_read_as_the_library_reads_it(policy):
    draw = random.Random(f"{policy} {SEED}")
    log = EventLog()
    asked = synthetic("azure-conversation", 40, rate=draw.uniform(4, 30), seed=draw.randrange(99))
    simulate(asked, times=TIMES, num_blocks=2500, policy=policy, max_tokens_per_step=2048, events=log)
    limits = Limits(ttft=draw.uniform(0.05, 1), tpot=draw.uniform(0.005, 0.03))
    ttft, tpot, rate = right.read_log(log, limits)
    requests = request_metrics(log)
    assert ttft == {name: each.time_to_first_token for name, each in requests.items()}
    assert tpot == {name: each.time_per_output_token for name, each in requests.items() if each.output_tokens > 1}
    assert rate == goodput(requests.values(), limits)


@pytest.mark.parametrize("budget", [41, 97, 512, 4096])
def test_a_prompt_in_pieces_is_as_the_simulated_scheduler_reads_it(budget):
    draw = random.Random(f"{budget} {SEED}")
    prompts = [draw.randint(1, 400) for _ in range(draw.randint(1, 40))]
    long = draw.randint(1, 3000)
    asked = [Arrival(0.0, each, 4000) for each in prompts] + [Arrival(9.0, long, 3)]
    witness, last = Witness(), str(len(prompts))
    simulate(asked, times=TIMES, num_blocks=90_000, max_tokens_per_step=budget, max_sequences=41, events=witness.events)
    read = [each for each in witness.between(0.0, math.inf) if last in each.pieces]
    before = witness.between(0.0, read[0].start)
    contexts = [n + sum(str(name) in each.decodes for each in before) for name, n in enumerate(prompts)]
    steps = right.prefill_steps(long, contexts, budget=budget, times=TIMES)
    assert [each.pieces[last] for each in read] == [piece for piece, _ in steps]
    assert [each.seconds for each in read] == pytest.approx([seconds for _, seconds in steps], rel=1e-9)
    assert len(steps) == math.ceil(long / (budget - len(prompts)))


def test_a_budgets_rate_is_the_librarys_highest_rate():
    draw = random.Random(SEED)
    for _ in range(20):
        knees = {budget: draw.uniform(0.5, 60) for budget in (256, 512, 1024)}
        low, high, within = draw.uniform(0.1, 0.5), draw.uniform(20, 80), draw.uniform(0.01, 0.2)
        tried = []

        def attained(budget, rate, knees=knees, tried=tried):
            tried.append(rate)
            return float(rate <= knees[budget])

        budget, rate = right.choose_budget(attained, list(knees), low=low, high=high, within=within)
        assert len(tried) <= 3 * (2 + halvings(low, high, within))
        rates = {
            each: highest_rate(lambda at, knee=knee: float(at <= knee), low=low, high=high, within=within)
            for each, knee in knees.items()
        }
        assert rate == rates[budget] == max(rates.values())


def test_plain_forms_refuse_what_is_of_another_form():
    with pytest.raises(TypeError, match="read_log must return three things"):
        plain_log(lambda events, limits: 3)([["Arrived", 0.0, "a"]], {})
    with pytest.raises(TypeError, match="ttft and tpot must be dicts"):
        plain_log(lambda events, limits: ([], [], 0.0))([["Arrived", 0.0, "a"]], {})
    with pytest.raises(TypeError, match="a list of pairs"):
        plain_steps(lambda *args, **more: [3])(3, [], 4, {"fixed": 1.0}, {"fixed": 1.0})
    with pytest.raises(TypeError, match="must return a pair"):
        plain_choice(lambda *args, **more: 3)([[512, 3.0, 0.0]], 1.0, 9.0, 0.9, 0.1)
    with pytest.raises(RuntimeError, match="the search does not end"):
        plain_choice(answers_10.never_ends)([[512, 3.0, 0.0]], 1.0, 9.0, 0.9, 0.1)


# The leaderboard


class Decodes:
    """Nobody is ever admitted."""

    def turns(self, running, head, budget):
        yield Turn(running, admit=False)


class Raises:
    def turns(self, running, head, budget):
        raise KeyError("mine")


class AsStallFree:
    steady = True

    def turns(self, running, head, budget):
        yield Turn(running, admit=True)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The same game with few requests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMSYS_WORKSPACE", str(tmp_path))
    monkeypatch.setattr(board, "COUNT", 30)
    monkeypatch.setattr(board, "WITHIN", 0.2)
    board._others.cache_clear()
    yield
    board._others.cache_clear()


def test_the_leaderboard_ranks_a_policy_beside_the_librarys_and_keeps_the_best(small):
    shown = board.leaderboard(AsStallFree)
    assert shown[board.YOURS].rate == shown["stall-free"].rate > 0
    assert not shown["static"].ok and "at 8 a second" in shown["static"].note
    rates = [each.rate for each in shown.entries if each.ok]
    assert rates == sorted(rates, reverse=True)
    assert "requests a second, more is better" in shown._repr_html_().lower() and "stall-free" in repr(shown)
    assert progress.load().bests[board.GAME] == -shown[board.YOURS].rate
    again = board.leaderboard(Decodes)
    assert again[board.BEST].rate == shown[board.YOURS].rate and not again[board.YOURS].ok


@pytest.mark.parametrize(("policy", "words"), [(Decodes, "it fails"), (Raises, "KeyError"), (3, "ValueError")])
def test_a_policy_that_fails_is_told_so_and_is_not_ranked(small, policy, words):
    entry = board.judged("yours", policy)
    assert not entry.ok and words in entry.note
