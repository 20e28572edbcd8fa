"""Charts of measurements that several lessons show.

attention_growth    time and extra memory of each attention stage against the tokens
attention_speed     how fast each attention kernel is, shape by shape, as bars
loss_curves         the loss of training runs, and how far runs are apart
plans               how many requests a second and GPU each plan of a service takes
kernels             what the charts of attention share: each kernel's colour and marker
"""

from llmsys.viz.charts.attention_growth import attention_growth
from llmsys.viz.charts.attention_speed import attention_speed
from llmsys.viz.charts.loss_curves import loss_curves
from llmsys.viz.charts.plans import plans

__all__ = ["attention_growth", "attention_speed", "loss_curves", "plans"]
