"""A stepper: a data structure in motion, a frame at a time, forwards and back.

    Stepper(
        lambda order: states_of(row, order),            # frames, computed from the real thing
        draw=draw_state,                                # frame -> Svg, in well under a millisecond
        title="Online softmax",
        describe=lambda state: f"m is {state.m:g}",     # a frame in one sentence
        controls=[Choice("order", "Order", {"as given": "given", "descending": "down"})],
        static=lambda frames: len(frames) // 2,         # which frame tells most, where nothing can move
    )

In JupyterLab it has buttons, a slider (arrow keys move it), a player, and one field for each of its controls, whose
values are the arguments that `frames` is called with. Where there is no kernel (a web page, a printed one) or no
ipywidgets, its static frame stands for it. In Python, too, it can be driven: `stepper.go(3)`, `stepper.set(order=…)`.
"""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from llmsys.viz.kit.controls import Choice, Entry
from llmsys.viz.kit.style import stylesheet
from llmsys.viz.kit.svg import Svg


class Stepper:
    """Frames that a reader steps through.

    Parameters
    ----------
    frames
        A sequence of frames, or a function that returns one for the values of the controls, given by name.
    draw
        Makes an `Svg` of a frame.
    title
        What is being shown, in a few words.
    describe
        Says what a frame shows in a sentence, for the caption under it and for those who do not see it.
    controls
        `Choice`s and `Entry`s, in the order in which they are shown.
    static
        The index of the frame that stands for all of them, or a function of the frames that returns it. The last
        frame, if nothing is said.
    interval
        Milliseconds between two frames when it plays.
    keep_place
        Whether a control leaves the stepper at its step, because that means the same whatever the controls say.
    """

    def __init__(
        self,
        frames: Sequence | Callable[..., Sequence],
        draw: Callable[[Any], Svg],
        *,
        title: str,
        describe: Callable[[Any], str],
        controls: Sequence[Choice | Entry] = (),
        static: int | Callable[[Sequence], int] = -1,
        interval: int = 1000,
        keep_place: bool = False,
    ):
        self.title, self.controls, self.interval = title, tuple(controls), interval
        self.values = {control.name: control.start for control in self.controls}
        self._make = frames if callable(frames) else lambda: frames
        self._draw, self._describe, self._static = draw, describe, static
        self._view, self._keep_place = None, keep_place
        self.frames: Sequence = ()
        self.index = 0
        self._rebuild(self.values)

    # What it shows

    @property
    def frame(self) -> Any:
        """The frame that is shown."""
        return self.frames[self.index]

    def go(self, index: int) -> None:
        """Show a frame; beyond either end it stays at that end."""
        self.index = min(max(index, 0), len(self.frames) - 1)
        if self._view:
            self._view.show()

    def set(self, **values: Any) -> None:
        """Give controls new values, and start at the first of the frames that they make (see `keep_place`).

        Raises ValueError, and changes nothing, where the frames cannot be made of them.
        """
        if unknown := values.keys() - self.values.keys():
            known = ", ".join(self.values) or "none"
            raise ValueError(f"no control is called {', '.join(sorted(unknown))}; there are: {known}")
        self._rebuild(self.values | values)
        if self._view:
            self._view.show()

    def svg(self, index: int | None = None) -> str:
        """A frame as an <svg> element, the one that is shown if no index is given."""
        frame = self.frame if index is None else self.frames[index]
        drawing = self._draw(frame)
        drawing.alt = f"{self.title}. {self._describe(frame)}"
        return drawing.markup()

    def html(self, index: int | None = None) -> str:
        """A frame with its caption, as HTML."""
        index = self.index if index is None else index % len(self.frames)
        caption = escape(self._describe(self.frames[index]))
        return (
            f'<div style="max-width:780px">{self.svg(index)}'
            f'<div style="{_CAPTION}">Step {index} of {len(self.frames) - 1}. {caption}</div></div>'
        )

    def static_html(self) -> str:
        """The frame that tells most, with all that it needs to stand on a page without a kernel."""
        index = self._static(self.frames) if callable(self._static) else self._static
        index = min(max(index + len(self.frames) if index < 0 else index, 0), len(self.frames) - 1)
        return (
            f"<style>{stylesheet()}</style>{self.html(index)}"
            f'<div style="{_CAPTION}"><i>One frame of a stepper: run this cell in JupyterLab to step through it.</i>'
            "</div>"
        )

    # What shows it

    @property
    def widget(self):
        """The live view, an ipywidgets box; made when it is first asked for. Raises ImportError without ipywidgets."""
        if self._view is None:
            from llmsys.viz.kit.stepper_view import View

            self._view = View(self)
        return self._view.box

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        bundle = {"text/plain": repr(self), "text/html": self.static_html()}
        try:
            live = self.widget._repr_mimebundle_()
        except ImportError:
            return bundle
        return {**{mime: data for mime, data in live.items() if mime != "text/plain"}, **bundle}

    def __repr__(self) -> str:
        return f"{self.title}: {len(self.frames)} frames. {self._describe(self.frame)}"

    def _rebuild(self, values: dict[str, Any]) -> None:
        frames = self._make(**values)
        if not len(frames):
            raise ValueError(f"{self.title}: no frames were made of {values or 'nothing'}; there must be at least one")
        self.frames, self.values = frames, values
        self.index = min(self.index, len(frames) - 1) if self._keep_place else 0


_CAPTION = (
    "color:var(--jp-content-font-color1,inherit);font-family:var(--jp-ui-font-family,system-ui,sans-serif);"
    "font-size:13px;line-height:1.4;min-height:2.8em;margin:2px 4px"
)
