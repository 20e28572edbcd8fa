"""Who attends, and who keeps the keys and values: a model's attention is a backend.

    batch = backend.begin(tokens)                                    once a step: where do these tokens stand?
    o = backend.attend(layer, q, k, v, batch, turn=turn)             in each layer

Whether the tokens of a step are all there are, or the newest of a sequence whose keys are kept somewhere, is the
backend's affair:

    NoCache           the tokens of this step are the whole sequence
    ContiguousCache   they continue it: K and V of all steps lie in one buffer a layer

Both put any attention stage inside, for a stage's `causal` is aligned bottom-right: a query is the end of its sequence,
however many keys came before.

**Who makes the batch.** `begin` makes it where every row of the tokens goes on with a sequence of its own. Who serves
many sequences makes it in its place (`llmsys.cache.batch`), for a cache of so many tokens a block as its `block_size`
says, and hands it to the model; then `begin` is not called. A backend that cannot take every such batch may have a
method `check_batch(batch)`, which raises ValueError: the model calls it in `begin`'s place, before it computes.

**Nothing waits for the GPU**: an `attend` that asks a tensor for a number (`.item()`, `if tensor`, a boolean mask as
index) stops the host until the GPU has caught up, and cannot be captured in a CUDA graph.

**q and k come unrotated**, with `turn`, which rotates them (`llmsys.attention.rotary`): a backend may turn keys while
it writes them, or keep them unturned. The plain way is `q, k = rotate(q, turn), rotate(k, turn)`.

**Heads with norms of their own** (Qwen3) a model normalises itself. A backend whose `attend` has the keyword `norms`
is handed the weights instead where that saves a pass (`llmsys.attention.head_norms`, `takes_norms`): q and k are then
normalised before they are turned.

**v=None** means that the values are the first Dv columns of k, in which latent attention keeps both. Dv is the layer's
in the model's `cache_spec()`, where the backend was given that (`spec=`); else it is the number of columns that `turn`
leaves alone, Dk − R, for a value has no position.
"""

import functools
import inspect
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Shaped
from torch import Tensor

from llmsys.attention import Attention
from llmsys.attention.rotary import Rotation
from llmsys.cache.batch import Batch


@runtime_checkable
class Backend(Protocol):
    """The contract of a model's attention."""

    def begin(self, tokens: Shaped[Tensor, "B T *C"]) -> Batch:
        """Called once a step, before the first layer: where do these tokens stand?

        `tokens` are ids (B, T), or hidden states (B, T, C) where the model is a part without an embedding.
        """

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B Hq T Dk"],
        k: Float[Tensor, "B Hkv T Dk"],
        v: Float[Tensor, "B Hkv T Dv"] | None,
        batch: Batch,
        *,
        turn: Rotation | None = None,
        scale: float | None = None,
    ) -> Float[Tensor, "B Hq T Dv"]:
        """Causal attention of the step's queries over every key up to their own.

        Parameters
        ----------
        layer
            The layer's number in the whole model.
        q, k, v
            Of this step's tokens; q and k without positions, v None where the values are columns of k (see above).
        batch
            What `begin` returned, or the caller made.
        turn
            What gives q and k their positions; None where they need none.
        scale
            Of the scores; None for 1/√Dk.
        """


def check_backend(backend: object) -> None:
    """Refuse, before anything is computed, what cannot be a model's attention.

    Raises
    ------
    ValueError
        It has no `begin` or `attend`, or an `attend` that takes no `turn` and `scale`, as before q and k came
        unrotated. Names `attention` and says what to do.
    """
    name = type(backend).__name__
    if not (hasattr(backend, "attend") and hasattr(backend, "begin")) or isinstance(backend, type):
        raise ValueError(
            f"attention must be a backend here, an object with begin and attend, got {backend!r}; "
            "llmsys.cache.as_backend makes one of a stage's name or of a function"
        )
    if missing := _not_taken(getattr(backend.attend, "__func__", backend.attend)):
        raise ValueError(
            f"attention: {name}.attend does not take {missing}=. A backend is handed q and k without positions, and "
            "`turn`, which rotates them: write attend(self, layer, q, k, v, batch, *, turn=None, scale=None), and in "
            "it q, k = rotate(q, turn), rotate(k, turn), with rotate from llmsys.attention.rotary"
        )


def check_batch(backend: Backend, batch: Batch) -> None:
    """Let a backend refuse, before anything is computed, a batch that a caller made: by its `check_batch`, if it has
    one. The library's look at each batch once; `attend` does so, too, where nobody has asked before."""
    if check := getattr(backend, "check_batch", None):
        check(batch)


def takes_norms(backend: Backend) -> bool:
    """Whether `attend` normalises heads itself, given `norms`: it has a keyword of that name."""
    return _has_norms(getattr(backend.attend, "__func__", backend.attend))


@functools.lru_cache(maxsize=64)
def _has_norms(attend) -> bool:
    return "norms" in inspect.signature(attend).parameters


@functools.lru_cache(maxsize=64)
def _not_taken(attend) -> str | None:
    """Which of `attend`'s two keywords a function does not take, None where it takes both."""
    parameters = inspect.signature(attend).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    names = {each.name for each in parameters}
    return next((name for name in ("turn", "scale") if name not in names), None)


def value_size(k: Tensor, turn: Rotation | None, declared: int | None = None) -> int:
    """Dv where v is None: as `declared` by the model's spec, else the columns of k that `turn` leaves alone.

    Raises ValueError where these are no columns of k, or such as turn.
    """
    still = k.shape[3] - (0 if turn is None else turn.size)
    Dv = still if declared is None else declared
    if not 1 <= Dv <= still:
        raise ValueError(
            f"v must be given here: of k's {k.shape[3]} columns {still} do not turn, so the first {Dv} cannot be the "
            "values (a value has no position)"
        )
    return Dv


def run_stage(stage: Attention, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Causal attention by `stage`, whose result is checked: it may be a learner's, and what is wrong with it shall not
    first be noticed by the next matrix. `scale` is passed on only where there is one."""
    o = stage(q, k, v, causal=True) if scale is None else stage(q, k, v, causal=True, scale=scale)
    expected = (*q.shape[:3], v.shape[3])
    if not isinstance(o, Tensor):
        raise ValueError(f"attention must return a tensor o of shape {expected}, got {type(o).__name__}")
    if tuple(o.shape) != expected or o.dtype != q.dtype:
        raise ValueError(
            f"attention must return o of shape {expected} and dtype {q.dtype}, got {tuple(o.shape)} and {o.dtype}"
        )
    return o
