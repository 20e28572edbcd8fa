"""Wrong answers to 08.split_kv, edits of the library's function (`llmsys.course.checking.mistakes`)."""

from llmsys.attention.paged.pieces import split_kv
from llmsys.course.checking.mistakes import Mistakes

wrong = Mistakes("08.split_kv", split_kv)

PAGES = "pages = (seq_lens + P - 1) // P"
EACH = "each = ((pages + pieces - 1) // pieces)[:, None]"
LENGTHS = "(seq_lens[:, None] - first * P).clamp(min=0).minimum(each * P)"
WEIGHT = 'weight = torch.exp(lse - torch.where(m == float("-inf"), 0, m)[:, None])'
TABLE = "block_table[:, None].expand(S, pieces, M).gather(2, column.clamp(max=M - 1).long())"
CALL = (
    "parts = attend(q.repeat_interleave(pieces, 0), key_pages, value_pages, lengths.flatten(), table.flatten(0, 1))\n"
    "    o, lse = (x.unflatten(0, (S, pieces)) for x in parts)"
)
OUT = "torch.where(l > 0, l, 1)[..., None]"

wrong(
    "by_the_tables_width", "You cut by the table's width, and not by the pages that the sequence has.",
    (EACH, "each = torch.full_like(pages, -(-M // pieces))[:, None]"),
    why="A table is as wide as the longest sequence there may ever be. A short one's keys are all in piece 0 then.",
)  # fmt: skip
wrong(
    "plain_mean", "You take the mean of the pieces, and do not weigh them.",
    (WEIGHT, 'weight = (lse > float("-inf")).float()'),
    why="Each piece's o is divided by its own denominator. A piece that has most of the weight must count most: e^lse.",
)  # fmt: skip
wrong(
    "mean_of_all_pieces", "You take the mean of all pieces' o, empty ones too.",
    (f"(weight[..., None] * o).sum(1) / {OUT}", "o.mean(1)"),
    why="Each piece's o is divided by its own denominator, e^lse. A piece that has most of it must count most.",
)  # fmt: skip
wrong(
    "pieces_of_equal_keys", "You cut the keys into equal parts, in the middle of pages.",
    (LENGTHS, "(seq_lens[:, None] - torch.arange(pieces, device=q.device) * -(-seq_lens[:, None] // pieces))"
     ".clamp(min=0).minimum(-(-seq_lens[:, None] // pieces))"),
    why="A piece is a part of the table's row, so it begins with a page: divide pages, and not keys.",
)  # fmt: skip
wrong(
    "log_sum_exps_as_weights", "You weigh the pieces by their log-sum-exps themselves.",
    (WEIGHT, 'weight = torch.where(lse == float("-inf"), 0, lse)'),
    why="They are logarithms, and may be negative. The denominators are e^lse.",
)  # fmt: skip
wrong(
    "overflow", "You compute e^lse without taking out the maximum.",
    (WEIGHT, "m = torch.zeros_like(m)\n    weight = torch.exp(lse)"),
    why="From 89 on e^lse is infinite in float32, and below −103 it is 0. e^(lse − max) is neither.",
)  # fmt: skip
wrong(
    "one_maximum_for_all", "You take one maximum for all heads and sequences.",
    ("m = lse.amax(1)", "m = lse.amax().expand(S, lse.shape[2])"),
    why="A head whose scores are all far below another's has weights of 0 alone then. Each has its own maximum.",
)  # fmt: skip
wrong(
    "empty_sequences", "A sequence without a key gives NaN.",
    (WEIGHT, "weight = torch.exp(lse - m[:, None])"), (OUT, "l[..., None]"),
    why="All of its pieces have −∞, and −∞ − (−∞) is NaN. Put a finite number in the place of such a maximum.",
)  # fmt: skip
wrong(
    "zero_by_zero", "A sequence without a key gives 0 / 0.", (OUT, "l[..., None]"),
    why="All of its weights are 0, and so is their sum: divide by 1 there.",
)  # fmt: skip
wrong(
    "lengths_below_zero", "Pieces behind a sequence's end have lengths below 0.", (".clamp(min=0)", ""),
    why="length − first is below 0 there. A piece that has no key has length 0.",
)  # fmt: skip
wrong(
    "pieces_without_an_end", "Pieces go on to the sequence's end: later keys count several times.",
    (".minimum(each * P)", ""), ("-(-M // pieces)", "M"),
    why="A piece has each · P keys at most, and the next one begins where it ends.",
)  # fmt: skip
wrong(
    "all_pieces_full", "Every piece has as many keys, the last one too.",
    (LENGTHS, "(seq_lens[:, None] - first * P).clamp(min=0).sign() * each * P"),
    why="The last piece that has keys ends with the sequence. Behind it, slots and entries of the table are nobody's.",
)  # fmt: skip
wrong(
    "keys_and_pages_mixed_up", "You subtract pages from keys.",
    (LENGTHS, "(seq_lens[:, None] - first).clamp(min=0).minimum(each * P)"),
    why="first counts pages, seq_lens counts keys: a piece begins after first · P keys.",
)  # fmt: skip
wrong(
    "last_page_lost", "A page that is not full is lost.", (PAGES, "pages = seq_lens // P"),
    why="17 keys in pages of 4 have five pages: round up, (length + P − 1) // P.",
)  # fmt: skip
wrong(
    "remainder_lost", "Pages that do not divide among the pieces are lost.",
    (EACH, "each = (pages // pieces)[:, None]"),
    why="Five pages in two pieces are three and two: round up, (pages + pieces − 1) // pieces.",
)  # fmt: skip
wrong(
    "same_columns", "All pieces have the first pages of the row.",
    ("column = first[:, :, None] + ", "column = (0 * first)[:, :, None] + "),
    why="Piece p begins at column p · each of its sequence's row.",
)  # fmt: skip
wrong(
    "beyond_the_row", "You take columns behind the row's end.", ("column.clamp(max=M - 1)", "column"),
    why="The last pieces have less than their share. What they do not have may be anything, but from the row.",
)  # fmt: skip
wrong(
    "beyond_the_row_in_one", "You gather columns that the table's row does not have.",
    (TABLE, "block_table.gather(1, column.flatten(1).long()).view(column.shape)"),
    why="The last pieces have less than their share. What they do not have may be anything, but from the row: at most "
    "column M − 1.",
)  # fmt: skip
wrong(
    "beyond_the_row_by_index", "You index columns that the table's row does not have.",
    (TABLE, "block_table[torch.arange(S, device=q.device)[:, None, None], column]"),
    why="The last pieces have less than their share. What they do not have may be anything, but from the row: at most "
    "column M − 1.",
)  # fmt: skip
wrong(
    "rows_in_another_order", "The rows of q are in another order than the lengths and tables.",
    ("q.repeat_interleave(pieces, 0)", "q.repeat(pieces, 1, 1)"),
    why="Row s · pieces + p is piece p of sequence s: repeat each row, and not all of them together.",
)  # fmt: skip
wrong(
    "taken_apart_in_another_order", "You take the results apart in another order than you put them in.",
    ("(x.unflatten(0, (S, pieces)) for x in parts)", "(x.unflatten(0, (pieces, S)).transpose(0, 1) for x in parts)"),
    why="Row s · pieces + p is piece p of sequence s: unflatten(0, (S, pieces)).",
)  # fmt: skip
wrong(
    "one_piece_after_the_other", "You call attend once for each piece.",
    (CALL, "parts = [attend(q, key_pages, value_pages, lengths[:, p], table[:, p]) for p in range(pieces)]\n"
           "    o, lse = (torch.stack(x, 1) for x in zip(*parts, strict=True))"),
    why="Launches run one after the other: the pieces are to run at the same time, as S · pieces sequences of one.",
)  # fmt: skip
wrong(
    "asks_for_the_longest", "You ask for a length on the host.",
    ("torch.arange(-(-M // pieces), device=q.device)", "torch.arange(max(int(each.max()), 1), device=q.device)"),
    why="The host waits until the GPU has got there, in every layer; and a CUDA graph would keep that step's width. "
    "ceil(M / pieces) is always enough.",
)  # fmt: skip
wrong(
    "made_on_the_cpu", "What you make is on the CPU, wherever q is.",
    ("torch.arange(pieces, device=q.device)", "torch.arange(pieces)"),
    why="Where q is on a GPU, torch refuses to mix the two: torch.arange(…, device=q.device).",
)  # fmt: skip
wrong(
    "parts_rounded", "You round each piece's o to q's type before you add them up.",
    ("    m = lse.amax(1)", "    o = o.to(q.dtype)\n    m = lse.amax(1)"),
    why="Parts may cancel, and then their errors are all that is left. attend gives float32: round once, at the end.",
)  # fmt: skip
wrong(
    "lse_rounded", "You round the log-sum-exp to q's type.", ("return o.to(q.dtype), m + torch.log(l)",
    "return o.to(q.dtype), (m + torch.log(l)).to(q.dtype).float()"),
    why="lse is float32 whatever q is.",
)  # fmt: skip
wrong(
    "o_in_float32", "Your o stays in float32.", ("return o.to(q.dtype)", "return o"),
    why="attend's is in float32, so that it is rounded once. The model wants it in q's type.",
)  # fmt: skip
wrong(
    "largest_lse", "You return the largest log-sum-exp of the pieces.", ("m + torch.log(l)", "m"),
    why="The denominators add up: lse = m + ln Σ e^(lse_p − m).",
)  # fmt: skip
wrong(
    "sum_of_log_sum_exps", "You add up the log-sum-exps of the pieces.", ("m + torch.log(l)", "lse.sum(1)"),
    why="Denominators add up, and a sum of logarithms is the logarithm of a product.",
)  # fmt: skip
