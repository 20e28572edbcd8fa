"""A stepper: frames, what drives them, and what is left where nothing can move."""

import asyncio
import re
import sys
from xml.etree import ElementTree

import pytest

from llmsys.viz.kit.controls import Choice, Entry
from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.kit.svg import Svg

WIDGET = "application/vnd.jupyter.widget-view+json"


def drawing(frame):
    svg = Svg(10, 10, alt="")
    svg.text(0, 0, str(frame))
    return svg


def counting(**how):
    def frames(upto, step):
        if not step.isdigit() or step == "0":
            raise ValueError(f"step must be a number from 1 on, got {step!r}")
        return range(0, upto + 1, int(step))

    controls = [Choice("upto", "Up to", {"ten": 10, "four": 4}), Entry("step", "In steps of", "1")]
    return Stepper(frames, drawing, title="Counting", describe=lambda f: f"It is <{f}>.", controls=controls, **how)


def aria(html):
    return re.search(r'aria-label="([^"]*)"', html)[1]


def test_going_beyond_either_end_stays_at_that_end():
    stepper = counting()
    assert (stepper.frame, len(stepper.frames)) == (0, 11)
    stepper.go(7)
    assert stepper.frame == 7
    stepper.go(-3)
    assert stepper.frame == 0
    stepper.go(99)
    assert stepper.frame == 10


def test_controls_make_new_frames():
    stepper = counting()
    stepper.go(5)
    stepper.set(upto=4, step="2")
    assert (list(stepper.frames), stepper.index) == ([0, 2, 4], 0)


def test_with_keep_place_a_control_leaves_the_stepper_at_its_step():
    stepper = counting(keep_place=True)
    stepper.go(3)
    stepper.set(step="2")
    assert (stepper.frame, stepper.index) == (6, 3)
    stepper.set(upto=4)
    assert (stepper.frame, stepper.index) == (4, 2)


def test_values_that_are_refused_change_nothing():
    stepper = counting()
    stepper.set(upto=4)
    stepper.go(3)
    with pytest.raises(ValueError, match="from 1 on, got 'two'"):
        stepper.set(step="two")
    with pytest.raises(ValueError, match="no control is called size; there are: upto, step"):
        stepper.set(size=3)
    assert (stepper.frame, stepper.values) == (3, {"upto": 4, "step": "1"})
    with pytest.raises(ValueError, match="at least one"):
        Stepper([], drawing, title="Nothing", describe=str)
    with pytest.raises(ValueError, match="upto must be one of 10, 4; got 5"):
        Choice("upto", "Up to", {"ten": 10, "four": 4}, start=5)


def test_a_frame_says_what_it_shows():
    stepper = counting()
    assert aria(stepper.svg(3)) == "Counting. It is &lt;3&gt;."
    assert "Step 3 of 10. It is &lt;3&gt;." in stepper.html(3)
    assert repr(stepper) == "Counting: 11 frames. It is <0>."
    ElementTree.fromstring(f"<div>{stepper.static_html()}</div>")


@pytest.mark.parametrize(("static", "shown"), [(-1, 10), (4, 4), (lambda frames: 2, 2), (99, 10), (-99, 0)])
def test_the_static_frame_is_the_one_that_was_chosen(static, shown):
    stepper = counting(static=static)
    stepper.go(1)
    assert f"It is &lt;{shown}&gt;" in aria(stepper.static_html())


def test_a_notebook_gets_the_widget_and_the_static_frame():
    bundle = counting()._repr_mimebundle_()
    assert set(bundle) == {WIDGET, "text/html", "text/plain"}
    assert "It is &lt;10&gt;." in bundle["text/html"] and "Counting" in bundle["text/plain"]


def test_without_ipywidgets_there_is_still_the_static_frame(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "llmsys.viz.kit.stepper_view", raising=False)
    stepper = counting()
    bundle = stepper._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"} and "<svg" in bundle["text/html"]
    with pytest.raises(ImportError):
        stepper.widget  # noqa: B018


def every(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from every(child)


def named(stepper, description):
    return next(w for w in every(stepper.widget) if getattr(w, "description", None) == description)


def picture(stepper):
    return next(w.value for w in every(stepper.widget) if "<svg" in str(getattr(w, "value", "")))


def test_buttons_slider_and_fields_drive_it():
    stepper = counting()
    for button, frame in (("Next", 1), ("Next", 2), ("Back", 1), ("Last", 10), ("Next", 10), ("First", 0)):
        named(stepper, button).click()
        assert stepper.frame == frame and f"It is &lt;{frame}&gt;" in picture(stepper)
        assert named(stepper, "Step").value == frame
    named(stepper, "Step").value = 6
    assert stepper.frame == 6
    named(stepper, "Up to").value = 4
    assert (stepper.frame, named(stepper, "Step").max) == (0, 4)
    stepper.set(upto=10)  # and Python drives what is seen
    assert named(stepper, "Up to").value == 10 and named(stepper, "Step").max == 10


def test_every_button_and_field_has_a_name():
    stepper = counting()
    widgets = [w for w in every(stepper.widget) if type(w).__name__ in ("Button", "IntSlider", "Dropdown", "Text")]
    assert len(widgets) == 8 and all(w.description for w in widgets)


def test_a_list_of_values_that_grow_can_be_a_slider():
    growing = Choice("upto", "Up to", {"4": 4, "10": 10, "20": 20}, start=10, slider=True)
    stepper = Stepper(lambda upto: range(upto + 1), drawing, title="Counting", describe=str, controls=[growing])
    field = named(stepper, "Up to")
    assert type(field).__name__ == "SelectionSlider" and (field.value, field.label) == (10, "10")
    assert field.layout.width == "300px"  # its track would have no length otherwise
    field.value = 20
    assert len(stepper.frames) == 21
    stepper.set(upto=4)
    assert field.label == "4"


def test_a_refused_entry_is_explained_beside_the_frame_that_stays():
    stepper = counting()
    stepper.go(3)
    named(stepper, "In steps of").value = "<two>"
    said = [w.value for w in every(stepper.widget) if 'role="alert"' in str(getattr(w, "value", ""))]
    assert len(said) == 1 and "got &#x27;&lt;two&gt;&#x27;" in said[0]
    assert stepper.frame == 3 and "It is &lt;3&gt;" in picture(stepper)
    named(stepper, "In steps of").value = "5"
    assert list(stepper.frames) == [0, 5, 10]
    assert not [w for w in every(stepper.widget) if 'role="alert"' in str(getattr(w, "value", ""))]


def test_it_plays_to_the_end_pauses_and_starts_again():
    stepper = counting(interval=1)

    async def watch():
        named(stepper, "Play").click()
        named(stepper, "Pause").click()  # before it has moved
        await asyncio.sleep(0.01)
        assert stepper.frame == 0
        named(stepper, "Play").click()
        while stepper.frame < 10:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        named(stepper, "Play").click()  # at the end: from the start again
        await asyncio.sleep(0)
        assert stepper.frame == 0
        named(stepper, "Pause").click()

    asyncio.run(asyncio.wait_for(watch(), 5))


def test_a_stepper_of_one_frame_works():
    stepper = Stepper(["only"], drawing, title="One", describe=str)
    named(stepper, "Step").value = 1  # the slider has to go somewhere
    assert stepper.frame == "only" and "only" in picture(stepper)
