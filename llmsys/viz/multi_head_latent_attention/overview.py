"""The opening picture of lesson 15: a token leaves one latent in the cache, and two forms of attention read it."""

from llmsys.models.deepseek import DEEPSEEK_V3
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg


def overview() -> Picture:
    """What is kept of a token on the left; on the right the two forms, with DeepSeek-V3's sizes."""
    v3 = DEEPSEEK_V3
    H, L, R, Dn, Dv = v3.heads, v3.latent_size, v3.head_size, v3.nope_size, v3.value_size
    svg = Svg(760, 330, alt=(
        f"Of a token's {v3.hidden_size:,} numbers a layer keeps {L + R}: the latent c, {L}, and r, {R}, which is "
        f"turned by its position. The naive form makes of c a key of {Dn} and a value of {Dv} numbers for each of {H} "
        "heads, and attends to these. The absorbed form multiplies each head's query by the matrix of its keys, "
        "attends to the latents, and multiplies what comes out by the matrix of its values."
    ))  # fmt: skip
    svg.text(0, 16, [("A token comes in", "bold")])
    svg.rect(0, 30, 180, 26, "panel")
    svg.text(90, 48, f"x   {v3.hidden_size:,}", "middle small")
    svg.arrow((60, 60), (60, 96))
    svg.arrow((150, 60), (150, 96))
    svg.text(70, 84, "W_c, norm", "small muted")
    svg.text(158, 84, "W_r, turned", "small muted")
    svg.rect(0, 102, 118, 30, "orange")
    svg.text(59, 122, f"c   {L}", "middle small on")
    svg.rect(122, 102, 58, 30, "green")
    svg.text(151, 122, f"r   {R}", "middle small on")
    svg.text(0, 156, [("This is kept: ", "bold"), f"{L + R} numbers"], "small")
    svg.text(0, 174, f"a token and layer, for all {H} heads.", "small")
    svg.text(0, 192, f"(Keys and values would be {H * (Dn + R + Dv):,}.)", "small muted")
    x = 270
    svg.text(x, 16, [("Naive", "bold purple"), (f" · make keys and values of {H} heads, in each step", "muted")])
    svg.arrow((190, 112), (x - 8, 66))
    for n in range(4):
        y = 28 + 22 * n
        svg.text(x + 8, y + 15, f"head {n + 1}" if n < 3 else "…", "small muted")
        svg.rect(x + 62, y, 84, 18, "purple-soft", rx=2)
        svg.text(x + 104, y + 13, f"U c  {Dn}" if n < 3 else "…", "middle tiny")
        svg.rect(x + 148, y, 40, 18, "green-soft", rx=2)
        svg.text(x + 168, y + 13, "r" if n < 3 else "", "middle tiny")
        svg.rect(x + 200, y, 84, 18, "purple-soft", rx=2)
        svg.text(x + 242, y + 13, f"V c  {Dv}" if n < 3 else "…", "middle tiny")
    svg.text(x + 300, 48, [("key [U c ; r]", ""), ("  Dn + R", "muted")], "small")
    svg.text(x + 300, 68, [("value V c", ""), ("  Dv", "muted")], "small")
    svg.line((x, 130), (760, 130), "line-rule thin")
    svg.text(x, 158, [("Absorbed", "bold blue"), (" · let the query take U, and the result take V", "muted")])
    svg.arrow((190, 200), (x + 154, 246))
    y = 176
    svg.rect(x, y, 84, 22, "blue-soft", rx=2)
    svg.text(x + 42, y + 15, f"q_nope  {Dn}", "middle tiny")
    svg.arrow((x + 90, y + 11), (x + 152, y + 11), "blue")
    svg.text(x + 120, y + 3, "· U", "middle small blue")
    svg.rect(x + 160, y, 118, 22, "blue-soft", rx=2)
    svg.text(x + 219, y + 15, f"{L}", "middle tiny")
    svg.rect(x + 282, y, 58, 22, "blue-soft", rx=2)
    svg.text(x + 311, y + 15, f"q_rope  {R}", "middle tiny")
    svg.text(x + 352, y + 15, "a query of each head", "small muted")
    for n in range(3):
        y = 220 + 22 * n
        svg.rect(x + 160, y, 118, 18, "orange-soft", rx=2)
        svg.text(x + 219, y + 13, "c" if n < 2 else "…", "middle tiny")
        svg.rect(x + 282, y, 58, 18, "green-soft", rx=2)
        svg.text(x + 311, y + 13, "r" if n < 2 else "", "middle tiny")
    svg.text(x + 352, 233, "kept: keys of all heads,", "small muted")
    svg.text(x + 352, 250, "and c the values", "small muted")
    y = 296
    svg.rect(x + 160, y, 118, 22, "orange-soft", rx=2)
    svg.text(x + 219, y + 15, f"Σ p c   {L}", "middle tiny")
    svg.arrow((x + 154, y + 11), (x + 92, y + 11), "blue")
    svg.text(x + 122, y + 3, "· V", "middle small blue")
    svg.rect(x, y, 84, 22, "blue-soft", rx=2)
    svg.text(x + 42, y + 15, f"o   {Dv}", "middle tiny")
    return svg.picture()
