"""The opening picture of lesson 08: three sequences in rows, and the same ones in blocks, with their tables.

Both memories have as many slots. The blocks are those that the library's pool deals out, as the sequences grow.
"""

from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import BlockTable
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

ROWS, ROW = 3, 16
"""The cache of lesson 07: so many rows, of so many slots each."""
BLOCK = 4
SEQUENCES = {"A": (7, "blue"), "B": (11, "orange"), "C": (3, "purple")}
"""Tokens and colour of each."""
MORE = {"D": (9, "green"), "E": (6, "ink")}
"""Those for which there is room only in blocks."""
CELL, GAP = 19, 2
LEFT = 34


def overview() -> Picture:
    """In rows most slots are empty and nobody else may have them; in blocks a table says where a sequence's are."""
    pool, tables = deal()
    everybody = SEQUENCES | MORE
    kept = sum(tokens for tokens, _ in SEQUENCES.values())
    all_kept = sum(tokens for tokens, _ in everybody.values())
    slots = ROWS * ROW
    said = "; ".join(f"{name} has blocks {', '.join(map(str, table.blocks))}" for name, table in tables.items())
    svg = Svg(760, 402, alt=(
        f"A memory of {slots} slots. Above, in {ROWS} rows of {ROW}: sequences of "
        f"{_listed(tokens for tokens, _ in SEQUENCES.values())} tokens fill {kept} slots, the others are reserved for "
        f"them, and no fourth sequence fits. Below, the same memory in {slots // BLOCK} blocks of {BLOCK}: there is "
        f"room for {len(everybody)} sequences, with {all_kept} tokens, and blocks that are free: {pool.free_blocks}. "
        f"Block tables: {said}."
    ))  # fmt: skip
    svg.text(0, 16, [("Rows", "bold"), (f" · lesson 07: {slots} slots, {ROWS} sequences, {kept} tokens", "muted")])
    for n, (name, (tokens, colour)) in enumerate(SEQUENCES.items()):
        y = 30 + 34 * n
        svg.text(LEFT - 12, y + 16, name, f"end bold {colour}")
        for slot in range(ROW):
            _slot(svg, LEFT + slot * (CELL + GAP), y, colour if slot < tokens else "")
        end = LEFT + ROW * (CELL + GAP) - GAP
        svg.rect(LEFT - 3, y - 3, end - LEFT + 6, 28, f"line-{colour}", rx=4)
    svg.text(400, 48, [("reserved: ", "bold"), "each row is as long as the longest"])
    svg.text(400, 66, "sequence may become. Nobody else may have")
    svg.text(400, 84, "what is empty, and D and E have to wait.")
    y = 158
    same = f" · the same {slots} slots, {len(everybody)} sequences, {all_kept} tokens"
    svg.text(0, y, [("Blocks", "bold"), (same, "muted")])
    owner = {id: name for name, table in tables.items() for id in table.blocks}
    places = {}
    for id in range(1, pool.num_blocks):
        row, column = divmod(id - 1, ROW // BLOCK)
        x = LEFT + column * (BLOCK * (CELL + GAP) + 11)
        top = y + 30 + 46 * row
        places[id] = (x, top)
        name = owner.get(id)
        tokens, colour = everybody[name] if name else (0, "")
        number = tables[name].blocks.index(id) if name else 0
        svg.text(x, top - 7, str(id), f"small bold {colour}" if name else "small muted")
        for slot in range(BLOCK):
            _slot(svg, x + slot * (CELL + GAP), top, colour if number * BLOCK + slot < tokens else "")
        svg.rect(x - 3, top - 3, BLOCK * (CELL + GAP) - GAP + 6, 28, f"line-{colour or 'rule'}", rx=4)
    svg.text(456, y, [("Block tables", "bold"), (" · which blocks, in order", "muted")])
    for n, (name, table) in enumerate(tables.items()):
        top = y + 18 + 27 * n
        colour = everybody[name][1]
        svg.text(468, top + 15, name, f"end bold {colour}")
        for i, id in enumerate(table.blocks):
            svg.rect(480 + 27 * i, top, 23, 20, f"line-{colour}", rx=3)
            svg.text(480 + 27 * i + 11.5, top + 14.5, str(id), f"middle small bold {colour}")
        empty = len(table.blocks) * BLOCK - everybody[name][0]
        svg.text(586, top + 15, f"{everybody[name][0]} tokens, {empty} slot{'s' * (empty != 1)} empty", "small muted")
    top = y + 182
    svg.rect(0, top, 760, 62, "panel", rx=8)
    name = "B"
    i = 6
    block = tables[name].blocks[i // BLOCK]
    svg.text(14, top + 25, [(f"Where is token {i} of {name}? ", "bold"), f"Entry {i} // {BLOCK} = {i // BLOCK} of its "
             f"table is block {block}, and there it has place {i} % {BLOCK} = {i % BLOCK} (framed)."])  # fmt: skip
    svg.text(14, top + 47, "When its last block is full, a sequence takes any one that is free. Only last blocks have "
             "empty slots.")  # fmt: skip
    x, at = places[block]
    svg.rect(x + i % BLOCK * (CELL + GAP) - 1, at - 1, CELL + 2, 24, "line-ink thick", rx=3)
    return svg.picture()


def deal() -> tuple[BlockPool, dict[str, BlockTable]]:
    """The pool and the tables, after all sequences have come in and grown by turns, a token each."""
    pool = BlockPool(1 + ROWS * ROW // BLOCK, BLOCK)
    lengths = {name: tokens for name, (tokens, _) in (SEQUENCES | MORE).items()}
    tables = {name: pool.allocate(1) for name in lengths}
    for length in range(2, max(lengths.values()) + 1):
        for name, table in tables.items():
            if length <= lengths[name]:
                pool.extend(table, length)
    return pool, tables


def _slot(svg: Svg, x: float, y: float, colour: str) -> None:
    svg.rect(x, y, CELL, 22, colour or "panel", rx=2)


def _listed(numbers) -> str:
    *some, last = map(str, numbers)
    return f"{', '.join(some)} and {last}"
