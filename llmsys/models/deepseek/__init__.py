"""DeepSeek-V2 and V3: latent attention and mixtures of experts. The chapter, in the order in which to read it:

config    the settings, and the published models' as constants
yarn      rotary positions for a context longer than the one first trained on
model     the model: a Llama with other attention, and other positions
sizes     how many parameters it has, and how many a token uses
layouts   how Hugging Face lays it out: settings, names and shapes of tensors
"""

from llmsys.models.deepseek.config import DEEPSEEK_V2_LITE, DEEPSEEK_V3, SMALL, DeepSeekConfig
from llmsys.models.deepseek.model import DeepSeek
from llmsys.models.deepseek.sizes import Parameters, count_parameters
from llmsys.models.deepseek.yarn import Yarn

__all__ = [
    "DEEPSEEK_V2_LITE",
    "DEEPSEEK_V3",
    "SMALL",
    "DeepSeek",
    "DeepSeekConfig",
    "Parameters",
    "Yarn",
    "count_parameters",
]
