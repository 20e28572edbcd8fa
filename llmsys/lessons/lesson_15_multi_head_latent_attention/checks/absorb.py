"""15.absorb: the same attention, to the latents themselves."""

import torch

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_15_multi_head_latent_attention.checks.expand import HALF
from llmsys.lessons.lesson_15_multi_head_latent_attention.checks.inputs import Sizes, all_together, step
from llmsys.lessons.lesson_15_multi_head_latent_attention.plain import plain_attention


@exercise_check(
    "15.absorb",
    reference="llmsys.attention.latent.forms:absorbed_latent_attention",
    forbids=("llmsys.attention.latent.forms:*", "llmsys.lessons.lesson_15_multi_head_latent_attention.right:*"),
    adapt=plain_attention,
    equivalent={
        "causal → False where q.shape[2] > latent.shape[2]": "there are never more queries than tokens: Tk is at least "
        "Tq"
    },
    hints=(
        "U_h stands between a query and c. Move it to the query, which is there once, and not once for each token.",
        "The scores of head h are those of [U_hᵀ q_nope ; q_rope] with [c ; r], at the old scale. What they weigh is "
        "c; V_h comes last, once for each query.",
        "nope, rope = q split at Dn;   absorbed = [nope times key_up ; rope]     (B, H, Tq, L + R)\n"
        "o = attention of absorbed to keys latent and values latent[..., :L], scale 1/√(Dn + R)     (B, H, Tq, L)\n"
        "return o times value_up, transposed     (B, H, Tq, Dv)",
    ),
)
def absorb(answer: Answer) -> None:
    with answer.property(
        "of each query comes a vector for each head",
        why="Each head has queries and values of its own, and a result for each of its queries.",
        hint="The result is (B, H, Tq, Dv). Which dimensions does yours have, and in which order?",
    ):
        for sizes in (Sizes(L=6, Dn=6, Dv=6), Sizes(B=2, Tq=3, L=6, Dn=6, Dv=6)):
            given = step(answer, sizes)
            answer.form(answer(*given), answer.reference(*given))

    with answer.property(
        "of a single token comes its value",
        why="A softmax over one score is 1, whatever the score is. V is the identity here, so the value is c. With one "
        "key head there is one of values: c is summed, and V comes after it.",
        hint="latent is (B, 1, Tk, L + R): its first L columns are c, and the last R are r.",
    ):
        for H in (1, 3):
            answer.agrees(*step(answer, Sizes(H=H, Tk=1, L=6, Dn=6, Dv=6))[:2], *2 * [torch.eye(6).repeat(H, 1, 1)])

    with answer.property(
        "where the matrices change nothing, it is multi-query attention to what is kept",
        why="Keys are [c ; r] for all heads, and values c.",
        hint="Attention of H query heads to one key head: naive_attention takes a k of (B, 1, Tk, …).",
    ):
        for H, Tk in ((1, 4), (3, 6)):
            q, latent, _, _ = step(answer, Sizes(H=H, Tk=Tk, L=6, Dn=6, Dv=6))
            same = torch.eye(6).repeat(H, 1, 1)
            answer.agrees(q, latent, same, same)

    with answer.property(
        "each head's queries take its key matrix",
        why="q · (U c) = (Uᵀ q) · c: the score is the same number, whoever U belongs to.",
        hint="Dn numbers of a query become L. By which of key_up[h] and its transpose?",
    ):
        for sizes in (Sizes(H=1, L=6, Dv=6), Sizes(L=6, Dv=6), Sizes(H=4, L=9, Dn=4, Dv=9)):
            q, latent, key_up, _ = step(answer, sizes)
            answer.agrees(q, latent, key_up, torch.eye(sizes.L).repeat(sizes.H, 1, 1), scale=0.3)

    with answer.property(
        "and what it has summed takes its value matrix",
        why="Σ p V c = V Σ p c: a product for each query in place of one for each token.",
        hint="What comes out of the attention has L numbers. The result has Dv.",
    ):
        for sizes in (Sizes(Dv=6), Sizes(H=2, Dv=3), Sizes(Dv=11)):
            answer.agrees(*step(answer, sizes), scale=0.3)

    with answer.property(
        "the scale: where none is given, and as it is given",
        why="The scores are the same numbers as in the other form, although the vectors are longer now. With 1/√(L + "
        "R) (with DeepSeek-V3's sizes, 1/√576 in place of 1/√192) it would be another model.",
        hint="What was the scale of exercise (a)? Has a score changed?",
    ):
        for sizes in (Sizes(L=30, R=2), Sizes(R=12, Dn=3)):
            q, *others = step(answer, sizes)
            answer.agrees(3 * q, *others)
            answer.agrees(3 * q, *others, scale=0.37)

    with answer.property(
        "causal is aligned at the end: the last query sees all keys",
        why="With a cache, the queries are the newest tokens of a longer sequence (lesson 07).",
        hint="Pass causal on to the library's attention, or mask with the offset Tk − Tq.",
    ):
        for Tq, Tk in ((4, 4), (3, 8), (1, 5)):
            answer.agrees(*step(answer, Sizes(Tq=Tq, Tk=Tk)), causal=True)

    with answer.property(
        "no key and no value of a head is made",
        why="They would be made of all latents again in each step. In the absorbed form there are two small products a "
        "query, and attention.",
        hint="Which of your products has Tk rows and a matrix of a head? Each costs 2 · Tk · L · Dn for every head.",
    ):
        for sizes in (Sizes(B=2, Tk=64, L=16, Dn=12, Dv=14), Sizes(H=5, Tq=2, Tk=80, L=20, R=2, Dn=16, Dv=9)):
            s = sizes
            attention = s.Tq * s.Tk * 2 * (s.L + s.R)  # whoever sums r along with c, to throw it away, may
            most = 2 * s.B * s.H * (s.Tq * s.L * (s.Dn + s.Dv) + attention)
            run = answer(*step(answer, sizes), told="products")
            answer.that(
                run,
                lambda r, most=most: isinstance(r.value, int) and 0 < r.value <= most,
                expected=f"products of at most {most:,} operations for {s.Tk} tokens",
                got=lambda r: f"{r.value:,} operations",
                by=lambda r: r.value,
            )
            run = answer(*step(answer, sizes))  # keys need not be made by a product
            answer.allocates(run, 8 * s.B * s.H * s.Tk * (s.L + s.R), "twice the latents for each head")

    with answer.property(
        "all of it together: options, sizes, dtypes and strides",
        why="A model's tensors are views of others, of several sequences, and may be in half precision.",
        hint="Which line assumes something that need not be so: B is 1, or the tensors are contiguous?",
    ):
        for tensors, options in all_together(answer):
            near = HALF if tensors[0].dtype == torch.float16 else None
            answer.agrees(*tensors, **options, rtol=near, atol=near)
