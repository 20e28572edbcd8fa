"""The editor runs what is written into it, counts idle time and memory, and names whatever dependency is violated."""
import pytest

from llmsys.parallel import pipeline
from llmsys.parallel.pipeline import Costs, F, I, Schedule, simulate
from llmsys.viz.pipeline_schedules import editor
from llmsys.viz.pipeline_schedules.edited import order_of, play, text_of
from llmsys.viz.pipeline_schedules.editor import MICROBATCHES, RANKS, TIMES, describe, row_names
from llmsys.viz.pipeline_schedules.grid import draw
from llmsys.viz.pipeline_schedules.stepped import in_steps, run
from tests.support.least import least_reference_seconds

SCHEDULES = {"GPipe": pipeline.gpipe, "1F1B": pipeline.one_f_one_b, "ZB-H1": pipeline.zb_h1, "ZB-H2": pipeline.zb_h2}


def rows(shown):
    return [shown.values[name] for name in row_names()]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("times", TIMES.values())
def test_a_schedule_that_nobody_edited_is_as_the_library_simulates_it(name, times, assert_legible):
    shown = editor()
    shown.set(schedule=name, times=times)
    f, i, w = map(float, times.split())
    expected = simulate(SCHEDULES[name](RANKS, MICROBATCHES), Costs(F=f, I=i, W=w))
    moment = shown.frame
    assert moment.last and not moment.ran.waits and not moment.missing
    assert [moment.idle(rank) for rank in range(RANKS)] == list(expected.bubbles)
    assert [moment.most(rank) for rank in range(RANKS)] == list(expected.peaks)
    assert [moment.keeps(rank) for rank in range(RANKS)] == [0] * RANKS
    for index in (0, len(shown.frames) // 2, -1):
        assert_legible(draw(shown.frames[index]).markup())


def test_time_goes_on_and_memory_with_it():
    shown = editor()
    moments = {moment.time: moment for moment in shown.frames}
    assert [moments[4].keeps(rank) for rank in range(RANKS)] == [4, 3, 2, 1]
    assert moments[6].keeps(3) == 0, "its first backward has ended, and its next forward has not begun"
    assert [moments[4].idle(rank) for rank in range(RANKS)] == [0, 1, 2, 3]
    assert "rank 3 does 3f0" in moments[4].tail[0].lower()


def test_a_violated_dependency_is_named(words, assert_legible):
    shown = editor()
    shown.set(
        rank_2=shown.values["rank_2"].replace("F1 B0", "B0 F1"), rank_3=shown.values["rank_3"].replace("B0 F1", "F1 B0")
    )
    moment = shown.frame
    assert moment.head == "Stuck at 4: nobody can go on."
    assert moment.tail == (
        "Rank 2 waits with 2B0 for 3I0, which rank 3 does later, in its 3B0.",
        "Rank 3 waits with 3F1 for 2F1, which rank 2 does later.",
    )
    markup = draw(moment).markup()
    assert_legible(markup)
    assert "B0?" in words(markup) and "F1?" in words(markup)
    assert "Rank 3 waits with 3F1 for 2F1" in shown.static_html() and "Stuck" in describe(moment)


def test_what_is_missing_or_done_twice_is_named():
    shown = editor()
    shown.set(rank_3=shown.values["rank_3"].removesuffix(" B5"))
    assert shown.frame.ran.waits[-1].needs == I(3, 5) and "which nobody does" in shown.frame.tail[-1]
    shown.set(schedule="GPipe")
    shown.set(rank_0=f"{shown.values['rank_0']} F0", rank_1=f"{shown.values['rank_1']} F6")
    assert shown.frame.ran.waits[0].needs == F(0, 6)
    shown.set(schedule="GPipe")
    shown.set(rank_0=f"{shown.values['rank_0']} F0 F9")
    assert shown.frame.missing == ("rank 0 does 0F0 2 times", "rank 0 has no microbatch 9, there are 6")
    assert shown.frame.head == "It runs, and it is not a whole step: rank 0 does 0F0 2 times."
    shown.set(schedule="ZB-H1")
    shown.set(rank_1=shown.values["rank_1"].removesuffix(" W5"))
    assert shown.frame.missing == ("rank 1 never does 1W5, alone or in a B",)


def test_another_schedule_fills_the_rows_and_edits_of_the_same_call_are_kept():
    shown = editor()
    shown.set(rank_0="F0")
    shown.set(schedule="GPipe")
    assert rows(shown) == [text_of(order) for order in pipeline.gpipe(RANKS, MICROBATCHES).orders]
    shown.set(schedule="1F1B", rank_0="F0 B0")
    assert rows(shown)[0] == "F0 B0" and rows(shown)[1].startswith("F0 F1 F2 B0")
    shown.set(times="2 3 1")
    assert rows(shown)[0] == "F0 B0"


def test_what_is_no_order_is_refused_and_changes_nothing():
    shown = editor()
    before = rows(shown)
    for text, word in (("F0 X3", "X3"), ("F0F1", "F0F1"), ("forward", "forward"), ("F-1", "F-1")):
        with pytest.raises(ValueError, match=f"rank 2: '{word}' is no action; write F, B, I or W and a microbatch"):
            shown.set(rank_2=text)
    assert rows(shown) == before
    shown.set(rank_2="")
    assert shown.frame.ran.waits, "an empty line is a rank that does nothing"


def test_a_row_is_read_as_it_is_written():
    order = pipeline.zb_h1(4, 6).orders[2]
    assert order_of(2, text_of(order)) == order == order_of(2, text_of(order).replace(" ", ", ").lower())


def test_a_readers_schedules_step_and_rule_are_used():
    asked = []

    def rule(action, num_stages):
        asked.append(action)
        return pipeline.dependencies(action, num_stages)

    def step(todo, free, done, needs, costs):
        for rank, order in enumerate(todo):
            if order and all(each in done for each in needs(order[0])):
                return [(rank, order[0], max([free[rank], *(done[d][0] for d in needs(order[0]))]), 99.0)]
        return []

    own = Schedule("own", pipeline.linear(4), 6, pipeline.gpipe(4, 6).orders)
    shown = editor({"mine": own}, step=step, dependencies=rule)
    assert asked and shown.values["schedule"] == "mine" and shown.frame.time == 99
    with pytest.raises(
        ValueError, match=r"schedules\['mine'\] must have 4 ranks with a stage each, and 6 microbatches"
    ):
        editor({"mine": pipeline.zb_v(4, 6)})


def test_a_step_that_runs_another_action_is_told_so():
    with pytest.raises(ValueError, match="the step runs 0F1 on rank 0, whose next action is another one"):
        in_steps(lambda todo, *_: [(0, F(0, 1), 0.0, 1.0)], pipeline.gpipe(1, 2))


def test_a_rule_that_forgets_something_does_not_hide_who_waits():
    ran = run(lambda *_: [], pipeline.gpipe(2, 1), dependencies=lambda *_: ())
    assert [str(wait) for wait in ran.waits] == ["rank 0 does not do 0F0, although nothing is missing for it"]


def test_moments_are_made_in_no_time():
    texts = [text_of(order) for order in pipeline.zb_h1(RANKS, MICROBATCHES).orders]
    moments = play(texts, MICROBATCHES, Costs())
    assert least_reference_seconds(lambda: play(texts, MICROBATCHES, Costs())) < 0.5
    assert least_reference_seconds(lambda: [draw(moment) for moment in moments]) / len(moments) < 0.02


def test_in_jupyterlab_the_fields_follow_and_a_wrong_word_is_said_beside_them():
    shown = editor()
    assert shown.widget is not None
    fields, view = shown._view.fields, shown._view
    fields["schedule"].value = "GPipe"
    assert fields["rank_0"].value == text_of(pipeline.gpipe(RANKS, MICROBATCHES).orders[0])
    assert view.slider.value == view.slider.max == len(shown.frames) - 1
    fields["rank_0"].value = "F0 oops"
    assert "rank 0: &#x27;oops&#x27; is no action" in view.message.value
    fields["rank_0"].value = "B0 F0"
    assert view.message.value == "" and "Rank 0 waits with 0B0 for 0F0, which rank 0 does later" in view.picture.value
