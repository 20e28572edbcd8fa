"""Numbers as the pictures write them: three digits, bytes in binary units, times and rates with their unit."""

import math


def number(x: float, digits: int = 3) -> str:
    """A number as a person writes it: "3", "−0.0821", "1.2·10⁻⁷", "−∞"."""
    if math.isinf(x) or math.isnan(x):
        return {math.inf: "∞", -math.inf: "−∞"}.get(x, "NaN")
    if x == 0 or 1e-3 <= abs(x) < 1e5:
        places = digits - 1 - (math.floor(math.log10(abs(x))) if x else 0)
        text = f"{x:.{max(places, 0)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return text.replace("-", "−")
    mantissa, exponent = f"{x:.{digits - 2}e}".split("e")
    power = f"10{superscript(int(exponent))}"
    if abs(float(mantissa)) == 1:
        return power if x > 0 else f"−{power}"
    return f"{mantissa}·{power}".replace("-", "−")


def superscript(n: int) -> str:
    """An integer as a superscript: "⁻¹²"."""
    return str(n).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def subscript(n: int) -> str:
    """A natural number as a subscript: "₁₂"."""
    return str(n).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def size_in_words(count: float) -> str:
    """Bytes in binary units: "32 MiB"."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{number(count / (1 << power))} {unit}"
    return f"{count} bytes"


def rate(flops: float, *, unit: str = "FLOP/s") -> str:
    """FLOP/s as data sheets have them: "989.5 TFLOP/s"."""
    size, prefix = next((s, p) for s, p in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if flops >= s or p == "M")
    return f"{flops / size:,.4g} {prefix}{unit}" if flops < 1000 * size else f"{flops / size:,.0f} {prefix}{unit}"


def seconds_in_words(seconds: float) -> str:
    """A time with three digits and a unit: "4.52 ms"."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= 0.9995 * size:
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 999.5 else f"{value:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
