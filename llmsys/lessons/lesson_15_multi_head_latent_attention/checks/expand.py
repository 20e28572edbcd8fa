"""15.expand: attention whose keys and values are made of the latents first."""

import torch

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_15_multi_head_latent_attention.checks.inputs import Sizes, all_together, step

HALF = 4e-3
"""How near is right in float16, where an expanded key is rounded before it is used."""


@exercise_check(
    "15.expand",
    reference="llmsys.attention.latent.forms:naive_latent_attention",
    forbids=("llmsys.attention.latent.forms:*", "llmsys.lessons.lesson_15_multi_head_latent_attention.right:*"),
    equivalent={
        "causal → False where q.shape[2] > latent.shape[2]": "there are never more queries than tokens: Tk is at least "
        "Tq"
    },
    hints=(
        "Write down the shapes first: what has `latent` for each token, and which part of it does each of the two "
        "matrices of a head take?",
        "Head h's key of a token is U_h c, Dn numbers, with r behind it, the same r in every head; its value is V_h c. "
        "Queries are in that order, too.",
        "c, r = the first L and the last R columns of latent\n"
        "k = (B, H, Tk, Dn): c times each head's key_up, transposed;   v: with value_up\n"
        "k = k and r side by side, r the same for all heads\n"
        "attention of q to k and v, with scale 1/√(Dn + R) where none is given",
    ),
)
def expand(answer: Answer) -> None:
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
        why="A softmax over one score is 1, whatever the score is. V is the identity here, so the value is c.",
        hint="latent is (B, 1, Tk, L + R): its first L columns are c, and the last R are r.",
    ):
        for H in (1, 3):
            answer.agrees(*step(answer, Sizes(H=H, Tk=1, L=6, Dn=6, Dv=6))[:2], *2 * [torch.eye(6).repeat(H, 1, 1)])

    with answer.property(
        "where the matrices change nothing, all heads have the same keys [c ; r] and values c",
        why="Then this is multi-query attention to what is kept, and nothing has to be made.",
        hint="latent is (B, 1, Tk, L + R): its first L columns are c, and the last R are r.",
    ):
        same = torch.eye(6).repeat(3, 1, 1)
        for Tk in (2, 6):
            q, latent, _, _ = step(answer, Sizes(Tk=Tk, L=6, Dn=6, Dv=6))
            answer.agrees(q, latent, same, same)

    with answer.property(
        "each head makes its own keys of c",
        why="That is what tells latent attention from multi-query attention: heads see different keys.",
        hint="key_up[h] is (Dn, L), and takes a c of L numbers to a key of Dn.",
    ):
        for sizes in (Sizes(H=1, L=6, Dv=6), Sizes(L=6, Dn=4, Dv=6), Sizes(H=4, Tk=4, L=9, Dn=4, Dv=9)):
            q, latent, key_up, _ = step(answer, sizes)
            answer.agrees(q, latent, key_up, torch.eye(sizes.L).repeat(sizes.H, 1, 1))

    with answer.property(
        "and its own values",
        why="value_up[h] is another matrix than key_up[h], and may have another number of rows.",
        hint="A value has no r: V_h c, and no more.",
    ):
        for sizes in (Sizes(Dv=6), Sizes(H=2, Dv=3), Sizes(Dv=11)):
            answer.agrees(*step(answer, sizes))

    with answer.property(
        "the scale: where none is given, and as it is given",
        why="A score is a product of Dn + R numbers, however many are kept of a token. And a model may have a scale of "
        "its own, as under YaRN.",
        hint="How long are the vectors whose product is a score? Is a scale that was given used as it is?",
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
        "all of it together: options, sizes, dtypes and strides",
        why="A model's tensors are views of others, of several sequences, and may be in half precision.",
        hint="Which line assumes something that need not be so: B is 1, or the tensors are contiguous?",
    ):
        for tensors, options in all_together(answer):
            near = HALF if tensors[0].dtype == torch.float16 else None
            answer.agrees(*tensors, **options, rtol=near, atol=near)
