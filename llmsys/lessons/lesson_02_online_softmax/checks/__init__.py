"""The checks of lesson 02, online softmax: three passes, the merge, two passes, a kernel. One module an exercise; to
import this package registers all four.
"""

from llmsys.lessons.lesson_02_online_softmax.checks import merge, online_softmax, safe_softmax, softmax_kernel

__all__ = ["merge", "online_softmax", "safe_softmax", "softmax_kernel"]
