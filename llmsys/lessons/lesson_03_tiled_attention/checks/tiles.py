"""What the checks of lesson 03 have in common: what an answer must not call, and the size of a tile."""

from llmsys.attention import online
from llmsys.course.checking.watch import FUSED_ATTENTION, FUSED_SOFTMAX
from llmsys.lessons.common import later_stages

FUSED = (*FUSED_SOFTMAX, *FUSED_ATTENTION)
LIBRARY = (
    "llmsys.attention.naive:*",
    online.online_attention,
    online.online_softmax,
    online.safe_softmax,
    "llmsys.attention.tiled:*",
    *later_stages("tiled"),
)
TILE = 8 * 8 * 4  # bytes of a tile of 8 rows of 8, in fp32
