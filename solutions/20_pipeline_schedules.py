# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: llmsys
#     language: python
#     name: llmsys
# ---

# %% [markdown]
# # 20 · Pipeline schedules
#
# *Everything in italics is a note to you, the author: what belongs here. The rest is a whole small lesson about a sum of
# exponentials, so that every cell has something to show. Replace it part by part, and keep the cells' roles, their tags.*
#
# *Begin with what the reader knows from the lessons before, and with what is missing.*
#
# **The idea:** *one or two sentences that a reader could repeat to somebody else.*

# %% tags=["setup"]
import torch

from llmsys import viz
from llmsys.course import check, hint, measured, mine, predict
from llmsys.hardware.meters import largest_allocation

# %%
viz.pipeline_schedules.overview()

# %% [markdown]
# ## Predict: how large is the largest tensor?
#
# *Ask for one number before anything is computed; a cell further down measures it. Say all that a reader needs for a good
# guess, sizes and types included.*
#
# A row has 65,536 numbers in `float32`. We want the sum of their exponentials, and take tiles of 256 numbers at a time.
# **How many bytes does the largest tensor have that is made on the way?**

# %% tags=["predict"]
predict("20.largest_tensor", None, "B")

# %% [markdown]
# ## A sum does not need the whole row
#
# *The theory, as short as it can be: what is computed, in equations with a number each, and why that is so.*
#
# The sum over a row is the sum of the sums over its tiles:
#
# $$ \sum_{j=1}^{T} e^{x_j} = \sum_{\text{tiles}} \; \sum_{j \in \text{tile}} e^{x_j} \tag{1} $$
#
# By equation (1), a tile of exponentials can be forgotten as soon as it has been added up.
#
# ## Exercise (a): add up, a tile at a time (10 minutes)
#
# *Say what to write and what is easily overlooked. The minutes in the heading are those of the manifest. The exercise's cell
# imports all that it needs, its docstring says every shape, and what is not allowed.*
#
# Mind the last tile, which may be shorter.

# %% tags=["exercise"] exercise="20.sum_of_exponentials"
import torch


def sum_of_exponentials(x, *, tile=16, scale=1.0):
    """The sum of e^(scale · x) over a row that streams in, `tile` numbers at a time (equation 1).

    x  (T,)  float32 or float16 tensor, T at least 1

    Returns the sum, a float32 tensor of shape (), computed in float32.
    Not allowed: torch's logsumexp and softmax; more than a few tiles at once; reading x twice.
    """
    ### BEGIN SOLUTION
    total = torch.zeros(())
    for start in range(0, x.shape[0], tile):
        total = total + (scale * x[start : start + tile].float()).exp().sum()
    return total
    ### END SOLUTION

# %% tags=["check"] exercise="20.sum_of_exponentials"
check("20.sum_of_exponentials", sum_of_exponentials)

# %% [markdown]
# ## Watch it
#
# *Something to play with, drawn from the real computation. Say what to look for.*

# %% tags=["widget"]
viz.pipeline_schedules.stepper(torch.linspace(-2, 2, 14), tile=4)

# %% [markdown]
# ## Measure: the largest tensor
#
# *Answer the prediction. Take the reader's own function where it has passed (`mine`), so that the rest of the lesson runs
# before the exercise is solved: its default is the library's.*

# %% tags=["measure"]
def in_tiles(x, *, tile):  # the library's own, once it is there
    return sum(part.exp().sum() for part in x.split(tile))


your_sum = mine("sum_of_exponentials", default=in_tiles)
row = torch.randn(65_536, generator=torch.Generator().manual_seed(0))
with largest_allocation() as largest:
    total = your_sum(row, tile=256)
measured("20.largest_tensor", largest.bytes, "B")

# %% [markdown]
# *A number that the text claims is printed by a cell tagged claim, which the tests compare, or its source is cited. Nothing of
# one machine belongs into such a cell.* All at once, it would have been:

# %% tags=["claim"]
print(f"{row.exp().nbytes:,} B")

# %% [markdown]
# ## Your function in the engine
#
# *The reader's code goes into something real: the model, the trainer, the engine.* Here, it turns scores into weights.

# %% tags=["engine"]
scores = torch.tensor([1.0, 2.0, 3.0])
print("weights:", scores.exp() / your_sum(scores, tile=2))

# %% [markdown]
# ## What production does differently
#
# - *Three to five points: who does this for real, in which file, and what is different there. Link what you name.*
#
# ## Do you have it?
#
# *Three questions that cannot be answered by searching the text; the answers are folded.*
#
# <details><summary><b>1.</b> Why may the tiles be added up in any order?</summary>
#
# Addition is associative and commutative, up to rounding.
# </details>
#
# <details><summary><b>2.</b> What changes if the tile is twice as long?</summary>
#
# The largest tensor is twice as large, and there are half as many steps. The sum is the same, up to rounding.
# </details>
#
# <details><summary><b>3.</b> For which rows does this function give infinity, and what would help?</summary>
#
# For those with a number whose exponential overflows. Lesson 02 subtracts the maximum first.
# </details>
#
# **Next:** lesson 21, Expert parallelism, which is not built yet.
