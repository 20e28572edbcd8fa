"""Wrong answers to 15.absorb: a right one with an edit, and one by another way."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_15_multi_head_latent_attention.right import attend_absorbed, attend_expanded

wrong = Mistakes("15.absorb", attend_absorbed)

SCALE = "math.sqrt(q.shape[-1])"

wrong(
    "scale_of_the_latent",
    "You scale by 1/√(L + R), because the vectors are that long now (1/√576 in DeepSeek-V3).",
    (SCALE, "math.sqrt(latent.shape[-1])"),
    why="The scores are the same numbers as before: (Uᵀ q) · c = q · (U c). So their scale is the same, 1/√(Dn + R), "
    "1/√192 in DeepSeek-V3.",
)
wrong(
    "scale_is_ignored",
    "You scale by 1/√(Dn + R), although another scale was given.",
    (f"1 / {SCALE} if scale is None else scale", f"1 / {SCALE}"),
    why="Under YaRN the scale is larger, and only the model knows by how much.",
)
wrong(
    "queries_take_the_value_matrix",
    "You absorb value_up into the queries.",
    ("nope @ key_up,", "nope @ value_up[:, :Dn],"),
    why="It is U_h, the matrix of the keys, that stands between a query and c.",
)
wrong(
    "outputs_take_the_key_matrix",
    "You expand the outputs by key_up.",
    ("o @ value_up.mT", "o @ key_up.mT"),
    why="What is summed becomes a value by V_h, which has Dv rows.",
)
wrong(
    "one_matrix_for_all_heads",
    "You absorb the first head's matrix into the queries of all heads.",
    ("nope @ key_up,", "nope @ key_up[:1],"),
    why="Each head has its own U_h. With one for all, every head would look at the same keys.",
)
wrong(
    "without_r",
    "You leave r out of the scores.",
    ("(nope @ key_up, rope)", "(nope @ key_up, 0 * rope)"),
    why="The R columns are all that a score knows of positions.",
)
wrong(
    "scale_of_the_key_without_r",
    "You scale by 1/√Dn, as if a key had no r.",
    (SCALE, "math.sqrt(Dn)"),
    why="The scores are those of exercise (a), of queries with Dn + R numbers.",
)
wrong(
    "matrix_transposed",
    "You multiply the query with the transposed key_up.",
    ("nope @ key_up,", "nope @ key_up.mT,"),
    why="Uᵀ q takes Dn numbers to L: as a row, q times U. Where Dn is L, no shape says so.",
)
wrong(
    "causal_at_the_top_left",
    "You align the mask with the beginning: query i sees the keys up to i.",
    (
        "naive_attention(absorbed, latent, latent[..., :L], causal=causal, ",
        "torch.nn.functional.scaled_dot_product_attention(absorbed, latent, latent[..., :L], is_causal=causal, ",
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
    "expands",
    "You expand keys and values: that is exercise (a) again.",
    of=attend_expanded,
    why="It is right, and it makes the keys and values of all tokens and heads again in every step. Move U_h to the "
    "query, and V_h behind the sum.",
)
wrong(
    "expands_the_values",
    "You absorb the keys' matrix, and still make the values of all tokens.",
    ("latent, latent[..., :L], causal", "latent.expand(-1, H, -1, -1), latent[..., :L] @ value_up.mT, causal"),
    ("return o @ value_up.mT", "return o"),
    why="Σ p V c = V Σ p c: sum the latents first, and multiply once for each query.",
)
wrong(
    "expands_the_keys",
    "You sum latents, and multiply once with value_up; but you still make the keys of all tokens.",
    (
        "naive_attention(absorbed, latent, latent[..., :L], causal",
        "naive_attention(q, torch.cat((latent[..., :L] @ key_up.mT, latent[..., L:].expand(-1, H, -1, -1)), dim=-1), "
        "latent[..., :L].expand(-1, H, -1, -1), causal",
    ),
    ("absorbed = torch.cat((nope @ key_up, rope), dim=-1)", "del nope, rope"),
    why="q · (U c) = (Uᵀ q) · c: multiply the query with U, once, and let it meet the latents as they are.",
)
wrong(
    "r_comes_first",
    "You put q_rope before the absorbed query, and latents have r behind.",
    ("(nope @ key_up, rope)", "(rope, nope @ key_up)"),
    why="What is kept is [c ; r]. Queries have to be in the same order: [Uᵀ q_nope ; q_rope].",
)
wrong(
    "one_value_matrix_for_all_heads",
    "You make the outputs of all heads by the first head's value_up.",
    ("o @ value_up.mT", "o @ value_up[:1].mT"),
    why="Each head has its own V_h.",
)
wrong(
    "without_v",
    "You return the sums of latents.",
    ("return o @ value_up.mT", "return o"),
    why="What is summed are latents, L numbers. A head's output has Dv: V_h comes last.",
)
wrong(
    "halves_scaled_apart",
    "You scale the two parts of a score by themselves, by 1/√Dn and 1/√R.",
    (
        "absorbed = torch.cat((nope @ key_up, rope), dim=-1)",
        "given = 1 / math.sqrt(q.shape[-1])\n    absorbed = torch.cat((nope @ key_up * (scale if scale != given else "
        "Dn**-0.5), rope * (scale if scale != given else rope.shape[-1] ** -0.5)), dim=-1)\n    scale = 1.0",
    ),
    why="A score is one product of Dn + R numbers: its two parts are added, and then scaled by 1/√(Dn + R).",
)
wrong(
    "values_are_the_last_columns",
    "You sum the last L columns of what is kept, with r among them.",
    ("latent[..., :L], causal", "latent[..., -L:], causal"),
    why="What is kept is [c ; r], and the values are made of c, the first L columns.",
)
wrong(
    "queries_have_rope_first",
    "You take the first R numbers of a query for q_rope, and the others for q_nope.",
    ("nope, rope = q[..., :Dn], q[..., Dn:]", "rope, nope = q.split((q.shape[-1] - Dn, Dn), dim=-1)"),
    why="Queries are [q_nope ; q_rope]: q_nope is the first Dn numbers.",
)
wrong(
    "a_softmax_for_each_part",
    "You attend twice, once by c and once by r, and add what comes out.",
    (
        "naive_attention(absorbed, latent, latent[..., :L], causal=causal, scale=scale)",
        "sum(naive_attention(one, key, latent[..., :L], causal=causal, scale=scale) for one, key in "
        "((absorbed[..., :L], latent[..., :L]), (rope, latent[..., L:])))",
    ),
    why="A score is the sum of both parts (3), and there is one softmax over the scores.",
)
wrong(
    "heads_are_summed",
    "You add up what the heads have summed, before V: every head gets the same latent.",
    ("o @ value_up.mT", "o.sum(dim=1, keepdim=True) @ value_up.mT"),
    why="Head h has weights of its own, and V_h takes what they have summed. In an einsum, both have the letter h.",
)
wrong(
    "matrices_of_values_are_summed",
    "You multiply each head's sum with the value_up of all heads, added up.",
    ("o @ value_up.mT", "o @ value_up.sum(dim=0).mT"),
    why="Head h takes V_h, and no other. In an einsum, both have the letter h.",
)
