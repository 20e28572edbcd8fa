"""How a stepper looks in JupyterLab: its fields, its buttons and its frame, made of ipywidgets.

Everything can be reached with the Tab key. Buttons have words, not only icons (which is why the player is not
ipywidgets' own, whose buttons have no names); the slider moves with the arrow keys.
"""

import asyncio
from html import escape

import ipywidgets as widgets

from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.style import stylesheet

_WRAP = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "2px 6px"}


class View:
    """The live view of one stepper (`llmsys.viz.kit.stepper.Stepper`), of which it shows the frames and the controls.

    `box` is what is displayed; `show` brings it up to date with the stepper.
    """

    def __init__(self, stepper):
        self.stepper = stepper
        self._busy = False  # while `show` sets the fields, their changes are not the reader's
        self.picture = widgets.HTML()
        self.message = widgets.HTML()
        self.slider = widgets.IntSlider(
            description="Step", min=0, max=1, continuous_update=True, layout=widgets.Layout(width="300px")
        )
        self.slider.style.description_width = "initial"
        self.player = widgets.Button(layout=widgets.Layout(width="auto"))
        self.player.on_click(self._play_or_pause)
        self._playing: asyncio.Task | None = None
        self.slider.observe(self._moved, "value")
        self.fields = {control.name: self._field(control) for control in stepper.controls}
        buttons = [
            self._button("First", "the first step", "fast-backward", lambda: 0),
            self._button("Back", "one step back", "step-backward", lambda: stepper.index - 1),
            self._button("Next", "one step on", "step-forward", lambda: stepper.index + 1),
            self._button("Last", "the last step", "fast-forward", lambda: len(stepper.frames) - 1),
        ]
        title = widgets.HTML(
            f"<style>{stylesheet()}</style>"
            f'<b style="color:var(--jp-content-font-color1,inherit);font-size:14px">{escape(stepper.title)}</b>'
        )
        rows = [title]
        if self.fields:
            rows.append(widgets.Box(list(self.fields.values()), layout=widgets.Layout(**_WRAP)))
        rows += [
            widgets.Box([*buttons, self.player, self.slider], layout=widgets.Layout(**_WRAP)),
            self.message,
            self.picture,
        ]
        self.box = widgets.VBox(rows, layout=widgets.Layout(max_width="800px"))
        self._name_player()
        self.show()

    def show(self) -> None:
        """Show the stepper's frame and the values of its controls."""
        self._busy = True
        try:
            last = len(self.stepper.frames) - 1
            self.slider.max = max(last, 1)  # a slider needs somewhere to go
            self.slider.value = self.stepper.index
            for name, field in self.fields.items():
                if field.value != self.stepper.values[name]:
                    field.value = self.stepper.values[name]
            self.picture.value = self.stepper.html()
            self.message.value = ""
        finally:
            self._busy = False

    def _moved(self, change) -> None:
        if not self._busy:
            self.stepper.go(change["new"])

    def _play_or_pause(self, _) -> None:
        if self._playing:
            self._playing.cancel()
            self._playing = None
        else:
            self._playing = asyncio.get_running_loop().create_task(self._play())  # the kernel's: it goes on when idle
        self._name_player()

    async def _play(self) -> None:
        try:
            if self.stepper.index == len(self.stepper.frames) - 1:
                self.stepper.go(0)
            while self.stepper.index < len(self.stepper.frames) - 1:
                await asyncio.sleep(self.stepper.interval / 1000)
                self.stepper.go(self.stepper.index + 1)
        finally:
            if self._playing is asyncio.current_task():
                self._playing = None
                self._name_player()

    def _name_player(self) -> None:
        name, icon = ("Pause", "pause") if self._playing else ("Play", "play")
        self.player.description, self.player.icon, self.player.tooltip = name, icon, f"{name} the steps"

    def _chosen(self, name: str, value) -> None:
        if self._busy:
            return
        try:
            self.stepper.set(**{name: value})
        except ValueError as error:
            style = "color:var(--jp-content-font-color1,inherit);border-left:4px solid #b85000;padding-left:8px"
            self.message.value = f'<div role="alert" style="{style}">{escape(str(error))}</div>'

    def _field(self, control) -> widgets.Widget:
        common = {
            "description": control.label,
            "style": {"description_width": "initial"},
            "layout": widgets.Layout(width="auto", max_width="100%"),
        }
        if isinstance(control, Choice):
            options = list(control.options.items())
            if control.slider:
                common["layout"].width = "300px"  # with "auto" its track has no length
            kind = widgets.SelectionSlider if control.slider else widgets.Dropdown
            field = kind(options=options, value=control.start, **common)
        else:
            common["layout"].width = "440px"
            field = widgets.Text(
                value=control.start, placeholder=control.placeholder, continuous_update=False, **common
            )
        field.observe(lambda change: self._chosen(control.name, change["new"]), "value")
        return field

    def _button(self, name: str, tooltip: str, icon: str, target) -> widgets.Button:
        layout = widgets.Layout(width="auto")
        button = widgets.Button(description=name, icon=icon, tooltip=tooltip, layout=layout)
        button.on_click(lambda _: self.stepper.go(target()))
        return button
