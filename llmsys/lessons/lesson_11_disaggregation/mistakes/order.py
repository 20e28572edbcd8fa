"""Wrong answers to 11.transfer_order: a right one with an edit."""

from llmsys.course.checking.diagnosis import misconception
from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_11_disaggregation.right import transfer_order

wrong = Mistakes("11.transfer_order", transfer_order)

FREE = '        if layer >= buffers:\n            order.append(("wait", layer - buffers))\n'
END = '    for layer in range(max(layers - buffers, 0), layers):\n        order.append(("wait", layer))\n'
SEND = '        order.append(("send", layer))\n'

wrong(
    "waits_for_each",
    "You wait for each send before you compute the next layer.",
    (FREE, ""),
    (SEND, SEND + '        order.append(("wait", layer))\n'),
    (END, ""),
    why="Nothing is hidden then: computing and sending take turns. The next layer has another buffer.",
)
wrong(
    "never_waits_for_a_buffer",
    "You put layers into buffers whose sends may still go on.",
    (FREE, ""),
    (END, END.replace("max(layers - buffers, 0)", "0")),
    why="With fewer buffers than layers a buffer is used again. It must be through by then.",
)
wrong(
    "no_end",
    "You do not wait for the last layers.",
    (END, ""),
    why="When your order ends the decoder is told to begin. The last layers may still be on the link.",
)
wrong(
    "only_the_last",
    "At the end you wait for the last layer alone.",
    (END, '    order.append(("wait", layers - 1))\n'),
    why="As many as there are buffers have not been waited for.",
)
wrong(
    "one_buffer_too_few",
    "You wait a layer earlier than you must: one buffer is never used.",
    (FREE, FREE.replace("buffers", "max(buffers - 1, 1)")),
    (END, END.replace("buffers", "max(buffers - 1, 1)")),
    why="Layer i needs the buffer of layer i − buffers, and no other.",
)
wrong(
    "one_buffer_too_many",
    "You wait a layer too late: a buffer is overwritten while it is sent.",
    (FREE, '        if layer > buffers:\n            order.append(("wait", layer - buffers - 1))\n'),
    (END, END.replace("layers - buffers", "layers - buffers - 1")),
    why="Layer i needs the buffer of layer i − buffers, and not of the one before that.",
)
wrong(
    "waits_at_the_end_again",
    "At the end you wait for layers that were waited for before.",
    (END, END.replace("max(layers - buffers, 0)", "0")),
    why="Only the last ones, as many as there are buffers, are left.",
)
wrong(
    "waits_after_computing",
    "You wait for a buffer after you have written into it.",
    (FREE, ""),
    (SEND, FREE + SEND),
    why="compute puts the layer into its buffer. It must be free before.",
)


@misconception(
    "11.transfer_order",
    "You compute all layers first, and then send them.",
    why="Then nothing is hidden: the whole cache is on the link when the prompt is done. And with fewer buffers than "
    "layers most of it has been overwritten.",
)
def all_at_the_end(layers, buffers):
    order = [("compute", layer) for layer in range(layers)]
    order += [("send", layer) for layer in range(layers)]
    return order + [("wait", layer) for layer in range(layers)]


@misconception(
    "11.transfer_order",
    "You send a layer after the next one is computed.",
    why="It could have left a layer earlier.",
)
def a_layer_late(layers, buffers):
    order = []
    for layer in range(layers):
        if layer >= buffers:
            order.append(("wait", layer - buffers))
        order.append(("compute", layer))
        if layer and buffers > 1:
            order.append(("send", layer - 1))
        if buffers == 1:
            order.append(("send", layer))
    if buffers > 1:
        order.append(("send", layers - 1))
    return order + [("wait", layer) for layer in range(max(layers - buffers, 0), layers)]
