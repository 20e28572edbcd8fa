"""One frame of the pool's stepper: all blocks with what their slots hold (left), the block tables (right), the sums.

All that is drawn is in the moment: only places are computed here.
"""

from llmsys.viz.kit.svg import Svg
from llmsys.viz.paged_kv_cache.chat import Block, Moment, Table

WIDTH, HEIGHT = 760, 452
ROW_SLOTS, SLOT = 8, 43
"""Slots in a row of the memory, and the width of one."""
TOP, ROW = 44, 38
LEFT, RIGHT = 3, 378
"""Where the blocks begin, and where the tables do."""
FITS, ROOM = 6, 50
"""Characters of a word that a slot has room for, and of a text beside its table."""


def draw(moment: Moment) -> Svg:
    """The pool after something has happened, as a picture."""
    svg = Svg(WIDTH, HEIGHT, alt="")
    svg.text(0, 16, [("the memory", "bold"), (f" · {len(moment.blocks)} blocks of {moment.block_size} slots", "muted")])
    for n, block in enumerate(moment.blocks):
        slot = n * moment.block_size
        _block(svg, LEFT + slot % ROW_SLOTS * SLOT, TOP + slot // ROW_SLOTS * ROW, block, moment.block_size)
    svg.text(RIGHT, 16, [("block tables", "bold"), (" · of those who are here", "muted")])
    for n, table in enumerate(moment.tables):
        _table(svg, TOP - 10 + 66 * n, table, moment)
    _key(svg)
    _sums(svg, moment)
    svg.rect(0, 390, WIDTH, 62, "panel", rx=6)
    svg.text(14, 413, moment.head, "bold")
    svg.text(14, 437, moment.tail)
    return svg


def _block(svg: Svg, x: float, y: float, block: Block, size: int) -> None:
    """Its id and its references, and the words in its slots."""
    width = size * SLOT - 5
    svg.text(x, y - 3, str(block.id), "tiny bold" if block.owners else "tiny muted")
    references = len(block.owners)
    if references:
        svg.text(x + width, y - 3, f"× {references}", f"end tiny bold {'purple' if references > 1 else 'blue'}")
    else:
        svg.text(x + width, y - 3, block.state, f"end tiny {'green' if block.cached else 'muted'}")
    ground = {"used": "blue-soft", "cached": "green-soft", "free": "panel"}[block.state]
    svg.rect(x, y, width, 20, ground, rx=3)
    for place, word in enumerate(block.words):
        new = place in block.written
        left = x + place * width / size
        if new:
            svg.rect(left, y, width / size, 20, "orange-soft", rx=3)
        word = word if len(word) <= FITS else word[: FITS - 1] + "…"
        svg.text(left + width / size / 2, y + 14, word, "middle tiny" + (" bold" if new else ""))
    outline = "line-purple thick" if references > 1 else "line-blue" if references else "line-green dashed"
    if block.state != "free":
        svg.rect(x, y, width, 20, outline, rx=3)
    if block.evicted or block.copied_from is not None:
        svg.rect(x - 1.5, y - 1.5, width + 3, 23, "line-orange thick", rx=4)


def _table(svg: Svg, y: float, table: Table, moment: Moment) -> None:
    """A sequence's name and length, and the ids of its blocks in order."""
    shared = {block.id for block in moment.blocks if len(block.owners) > 1}
    hit = f", {table.hit} of them found" if table.hit else ""
    svg.text(RIGHT, y + 12, [(table.name, "bold"), (f" · {len(table.words)} tokens{hit}", "muted")], "small")
    for n, id in enumerate(table.blocks):
        x = RIGHT + 23.5 * n
        ground = "orange-soft" if id in table.new else "blue-soft"
        svg.rect(x, y + 18, 20, 19, ground, rx=3)
        svg.rect(x, y + 18, 20, 19, "line-purple thick" if id in shared else "line-blue", rx=3)
        svg.text(x + 10, y + 32, str(id), "middle small bold")
    svg.text(RIGHT, y + 51, _end_of(" ".join(table.words)), "small muted")


def _end_of(text: str) -> str:
    """The end of a text, as much as has room, from the beginning of a word on."""
    return text if len(text) <= ROOM else "… " + text[-ROOM:].partition(" ")[2]


def _key(svg: Svg) -> None:
    x = float(LEFT)
    for ground, outline, words, width in (
        ("blue-soft", "line-blue", "in use", 68),
        ("blue-soft", "line-purple thick", "shared", 72),
        ("orange-soft", "", "written now", 100),
        ("green-soft", "line-green dashed", "free, but cached", 122),
    ):
        svg.rect(x, 341, 12, 12, ground, rx=2)
        if outline:
            svg.rect(x, 341, 12, 12, outline, rx=2)
        svg.text(x + 17, 351, words, "small")
        x += width


def _sums(svg: Svg, moment: Moment) -> None:
    """A bar of all blocks by their state, and the tokens that were computed and found so far."""
    x, y, width = float(LEFT), 362, ROW_SLOTS * SLOT - 5
    for state, ground, outline in (
        ("used", "blue-soft", "line-blue"),
        ("cached", "green-soft", "line-green dashed"),
        ("free", "panel", "line-rule"),
    ):
        part = width * moment.count(state) / len(moment.blocks)
        if part:
            svg.rect(x, y, part, 16, ground, rx=2)
            svg.rect(x, y, part, 16, outline, rx=2)
            svg.text(x + part / 2, y + 12, str(moment.count(state)), "middle small bold")
        x += part
    found = (f", {moment.hit} found instead", "bold purple" if moment.hit else "muted")
    svg.text(RIGHT, 351, [("so far: ", "muted"), (f"{moment.computed} tokens computed", "bold"), found], "small")
    svg.text(RIGHT, 374, [f"{moment.copies} block{'s' * (moment.copies != 1)} copied, {moment.evictions} evicted"],
             "small muted")  # fmt: skip
