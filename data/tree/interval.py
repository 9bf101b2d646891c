"""How far a measured accuracy can be trusted: its confidence interval."""

import math

Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


def interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, scale = right / total, 1 + Z * Z / total
    middle = (share + Z * Z / (2 * total)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / total + (Z / total / 2) ** 2)
    return middle - half, middle + half
