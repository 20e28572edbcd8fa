"""Wrong answers to 15.expand: a right one with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_15_multi_head_latent_attention.right import attend_expanded

wrong = Mistakes("15.expand", attend_expanded)

SCALE = "math.sqrt(q.shape[-1])"

wrong(
    "scale_of_the_latent",
    "You scale by 1/√(L + R), the size of what is kept.",
    (SCALE, "math.sqrt(latent.shape[-1])"),
    why="A score is a product of Dn + R numbers, those of an expanded key: 1/√192 in DeepSeek-V3.",
)
wrong(
    "scale_of_the_key_without_r",
    "You scale by 1/√Dn, as if a key had no r.",
    (SCALE, "math.sqrt(Dn)"),
    why="The R columns of the position are in the product as well.",
)
wrong(
    "scale_is_ignored",
    "You scale by 1/√(Dn + R), although another scale was given.",
    (f"1 / {SCALE} if scale is None else scale", f"1 / {SCALE}"),
    why="Under YaRN the scale is larger, and only the model knows by how much.",
)
wrong(
    "values_of_the_key_matrix",
    "You make the values by key_up.",
    ("c @ value_up.mT", "c @ key_up.mT"),
    why="A value is V_h c, of a matrix of its own, with Dv rows.",
)
wrong(
    "keys_of_the_value_matrix",
    "You make the keys by value_up.",
    ("c @ key_up.mT", "c @ value_up.mT"),
    why="A key is U_h c. Where Dv and Dn are equal, nothing but the numbers says so.",
)
wrong(
    "r_comes_first",
    "You put r before the expanded key, and queries have it behind.",
    ("(k, r.expand(-1, H, -1, -1))", "(r.expand(-1, H, -1, -1), k)"),
    why="Queries are [q_nope ; q_rope]. Keys have to be in the same order: [U c ; r].",
)
wrong(
    "without_r",
    "You leave r out of the scores.",
    ("r.expand(-1, H, -1, -1)", "0 * r.expand(-1, H, -1, -1)"),
    why="A key is [U c ; r], and r is all that a score knows of positions.",
)
wrong(
    "heads_in_the_wrong_order",
    "You let all heads take the matrix of the first one.",
    ("k = c @ key_up.mT", "k = (c @ key_up[:1].mT).expand(-1, H, -1, -1)"),
    why="Each head has its own U_h. With one for all, every head would look at the same keys.",
)
wrong(
    "matrices_transposed",
    "You multiply c with key_up as it lies, and not transposed.",
    ("c @ key_up.mT", "c @ key_up"),
    why="key_up[h] is (Dn, L), and a key is U c: c times the transposed matrix. Where Dn is L, no shape says so.",
)
wrong(
    "causal_at_the_top_left",
    "You align the mask with the beginning: query i sees the keys up to i.",
    (
        "naive_attention(q, k, v, causal=causal, ",
        "torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, ",
    ),
    why="The queries are the newest tokens. torch's is_causal is for as many queries as keys (lesson 07).",
)
wrong(
    "not_causal",
    "You let queries see the tokens after them.",
    ("causal=causal", "causal=False"),
    why="Where causal is set, query i of Tq sees the keys up to Tk − Tq + i.",
)
wrong(
    "latents_have_r_first",
    "You take the first R numbers of what is kept for r, and the others for c.",
    ("c, r = latent[..., :L], latent[..., L:]", "r, c = latent.split((latent.shape[-1] - L, L), dim=-1)"),
    why="What is kept is [c ; r]: c is the first L numbers.",
)
wrong(
    "matrices_exchanged",
    "You make the keys by value_up, and the values by key_up.",
    ("k = c @ key_up.mT", "k = c @ value_up.mT"),
    ("v = c @ value_up.mT", "v = c @ key_up.mT"),
    why="A key is U_h c, by key_up, and a value V_h c, by value_up.",
)
wrong(
    "tokens_for_heads",
    "You make the keys and values of all heads in one product, and reshape it to (B, H, Tk, …) without transposing.",
    ("k = c @ key_up.mT", "k = (c @ key_up.flatten(0, 1).mT).reshape(len(q), H, -1, Dn)"),
    ("v = c @ value_up.mT", "v = (c @ value_up.flatten(0, 1).mT).reshape(len(q), H, -1, value_up.shape[1])"),
    why="The product is (B, Tk, H · Dn): split its last dimension into (H, Dn), and then exchange tokens and heads.",
)
wrong(
    "normalises_again",
    "You normalise c before you expand it.",
    (
        "    k = c @",
        "    c = c * torch.rsqrt(c.square().mean(dim=-1, keepdim=True) + 1e-6)\n    k = c @",
    ),
    why="What is kept is normalised already, with the norm's weight (1). It is expanded as it is.",
)
wrong(
    "r_in_the_first_head_only",
    "You put r behind the first head's keys, and zeros behind those of the others.",
    ("r.expand(-1, H, -1, -1)", "torch.nn.functional.pad(r, (0, 0, 0, 0, 0, H - 1))"),
    why="All heads share r: it is the end of every head's key.",
)
