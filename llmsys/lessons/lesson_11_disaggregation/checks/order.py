"""11.transfer_order: layers are sent as soon as they are computed, through buffers that are not overwritten early."""

from collections.abc import Callable

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_11_disaggregation.plain import plain_order

KINDS = ("compute", "send", "wait")


@exercise_check(
    "11.transfer_order",
    forbids=("llmsys.lessons.lesson_11_disaggregation.right:*",),
    adapt=plain_order,
    hints=(
        "Write the order down for 4 layers and 2 buffers. Which buffer does layer 2 need, who was in it, and how do "
        "you know that it has left?",
        "A layer is sent as soon as it is computed. Before layer i is computed, layer i − buffers must be through, for "
        "it has the buffer, and nothing else need be. At the end the last ones are still on the way: as many as there "
        "are buffers.",
        "for each layer:\n"
        "    if layer >= buffers: wait for layer − buffers\n"
        "    compute layer;  send layer\n"
        "wait for each layer that nobody has waited for",
    ),
)
def transfer_order(answer: Answer) -> None:
    def holds(rule: Callable[[list[str], int, int], str], layers: int, buffers: int) -> None:
        run = answer(layers, buffers)
        fault = rule(run.value, layers, buffers)
        answer.that(
            run, lambda r: not rule(r.value, layers, buffers), f"another order: {fault}",
            got=lambda r: ", ".join(r.value),
        )  # fmt: skip

    some = int(answer.randint(5, 12))

    with answer.property("one layer is computed and sent", why="That is the smallest model that there is."):
        holds(computed_and_sent, 1, 1)
        holds(computed_and_sent, 1, 2)

    with answer.property(
        "every layer is computed, sent and waited for, once, and in this order",
        why="What is never sent is missing in the decoder, and what is never waited for may not have come.",
        hint="How many actions has each layer? Count those of your last layers.",
    ):
        for layers, buffers in ((2, 2), (4, 2), (some, 3), (3, 8), (some, 1)):
            holds(everything_once, layers, buffers)
            holds(in_turn, layers, buffers)

    with answer.property(
        "no buffer is overwritten before what is in it is through",
        why="A send goes on after it has returned. Who writes into its buffer sends the wrong layer, unnoticed.",
        hint="Layer i is put into buffer i % buffers. Which layer was in it before, and what must be waited for?",
    ):
        for layers, buffers in ((2, 1), (4, 2), (some, 3), (some, 1), (9, 4)):
            holds(not_overwritten, layers, buffers)

    with answer.property(
        "a layer is sent before the next one is computed",
        why="So that sending is hidden by computing: a send that begins later is seen later.",
        hint="When is there something to send for the first time, and what do you do then?",
    ):
        for layers, buffers in ((2, 2), (some, 2), (some, 20)):
            holds(sent_at_once, layers, buffers)

    with answer.property(
        "nobody waits for a buffer that is not needed yet",
        why="While the sender waits it does not compute. With two buffers the next layer can be computed meanwhile.",
        hint="For each wait of yours: which layer could not be computed without it?",
    ):
        for layers, buffers in ((2, 2), (4, 2), (some, 3), (some, 1), (6, 6), (3, 8)):
            holds(not_too_early, layers, buffers)

    with answer.property(
        "all of it together, for any number of layers and buffers",
        why="A model has 80 layers, and memory for as many buffers as there is.",
    ):
        cases = [(some, int(answer.randint(1, some + 3))) for _ in range(4)]
        for layers, buffers in [*cases, (32, 4), (80, 2), (7, 7), (7, 6), (7, 8)]:
            for rule in (everything_once, in_turn, not_overwritten, sent_at_once, not_too_early):
                holds(rule, layers, buffers)


# What is wrong with an order, in words; nothing if nothing is


def computed_and_sent(order: list[str], layers: int, buffers: int) -> str:
    missing = [text for text in ("compute 0", "send 0") if text not in order]
    if missing:
        return f"{missing[0]!r} is missing"
    return "" if order.index("compute 0") < order.index("send 0") else "layer 0 is sent before it is computed"


def everything_once(order: list[str], layers: int, buffers: int) -> str:
    wanted = [f"{kind} {layer}" for layer in range(layers) for kind in KINDS]
    for text in order:
        if text not in wanted:
            return f"{layers} layers have no {text!r}"
        if order.count(text) > 1:
            return f"{text!r} is there {order.count(text)} times"
    missing = [text for text in wanted if text not in order]
    return f"{missing[0]!r} is missing" if missing else ""


def in_turn(order: list[str], layers: int, buffers: int) -> str:
    at = _places(order)
    for layer in range(layers):
        if not at("compute", layer) < at("send", layer):
            return f"layer {layer} is sent before it is computed"
        if not at("send", layer) < at("wait", layer):
            return f"layer {layer} is waited for before it is sent"
        if layer and not at("compute", layer - 1) < at("compute", layer):
            return f"layer {layer} is computed before layer {layer - 1}"
    return ""


def not_overwritten(order: list[str], layers: int, buffers: int) -> str:
    at = _places(order)
    for layer in range(buffers, layers):
        before = layer - buffers
        if not at("wait", before) < at("compute", layer):
            return f"with {buffers} buffers, layer {layer} is put where layer {before} is, which may not be through"
    return ""


def sent_at_once(order: list[str], layers: int, buffers: int) -> str:
    at = _places(order)
    for layer in range(layers - 1):
        if not at("send", layer) < at("compute", layer + 1):
            return f"layer {layer} is not sent until layer {layer + 1} is computed"
    return ""


def not_too_early(order: list[str], layers: int, buffers: int) -> str:
    at = _places(order)
    for layer in range(layers):
        last = min(layer + buffers, layers) - 1  # can be computed without its buffer
        if not at("send", last) < at("wait", layer):
            return f"with {buffers} buffers, layer {last} is not held up by layer {layer}, and here it waits for it"
    return ""


def _places(order: list[str]) -> Callable[[str, int], int]:
    """Where an action stands; behind all where it is missing."""
    found = {text: n for n, text in reversed(list(enumerate(order)))}
    return lambda kind, layer: found.get(f"{kind} {layer}", len(order))
