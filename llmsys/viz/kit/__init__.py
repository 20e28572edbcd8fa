"""What every picture is made of.

style           the colours and what they mean, the style sheet, and matplotlib's settings (`chart_style`)
picture         `Picture`: an SVG with its words, as a notebook shows it; `chart` makes one of a matplotlib figure
svg             `Svg`: a drawing of shapes and texts
numbers         numbers, bytes, times and rates as text
controls        `Choice` and `Entry`: the fields of a stepper
stepper         `Stepper`: frames that a reader steps through
stepper_view    how a stepper looks in JupyterLab (imported when one is shown)
"""

from llmsys.viz.kit.controls import Choice, Entry
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.kit.style import chart_style
from llmsys.viz.kit.svg import Svg

__all__ = ["Choice", "Entry", "Picture", "Stepper", "Svg", "chart", "chart_style"]
