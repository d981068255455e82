"""What rows outside of the lists of neighbours can score: proven, or by one number.

A list holds every row that scores above its floor for the question it was made for. So for a row d
outside of all lists, and questions q_i with floors s_i, q_i·d <= s_i. Vectors have unit length.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

#: What scores in float32 may be wrong by.
ROUNDING: Final = 1e-5
_LEAST_SINE: Final = 1e-3
_MOST_NEED: Final = 10.0


def proven(query: Floats, near: Floats, floors: Floats, enough: float = -math.inf) -> float:
    """Return a score that no row outside of the lists can be above.

    For any weights w_i >= 0, q·d = sum w_i q_i·d + (q - sum w_i q_i)·d is at most
    sum w_i s_i + |q - sum w_i q_i|. With one list and the best weight that is the triangle
    inequality on angles (Schubert, "A triangle inequality for cosine similarity", SISAP 2021);
    with several it is tighter. The best weights have a closed form where none of them is zero, so
    lists whose weight would be negative are left out one after another.

    Args:
        query: Shape (dim,).
        near: The questions that lists were made for, shape (n, dim), nearest first.
        floors: Shape (n,); minus infinity for a list that holds every row there is.
        enough: Below this no tighter bound is looked for.
    """
    if not np.isfinite(floors).all():
        return -math.inf
    products, gram = near @ query, near @ near.T
    square = float(query @ query)

    def bound(weights: Floats) -> float:
        rest = square - 2 * float(weights @ products) + float(weights @ gram @ weights)
        doubt = ROUNDING * (1 + float(weights.sum()))
        return float(weights @ floors) + math.sqrt(max(rest, 0.0)) + doubt

    found = bound(_of_one(products, floors))
    kept = np.arange(len(near))
    while len(kept) > 1 and found >= enough:
        weights = _of_several(products[kept], gram[np.ix_(kept, kept)], floors[kept], square)
        if weights is None:
            kept = kept[:-1]
            continue
        every = np.zeros(len(near))
        every[kept] = np.maximum(weights, 0)
        found = min(found, bound(every))
        if weights.min() >= 0:
            break
        kept = np.delete(kept, int(weights.argmin()))
    return found


def _of_one(products: Floats, floors: Floats) -> Floats:
    """Return the best weights among those that leave all lists out but one."""
    sines = np.sqrt(np.maximum(1 - products**2, 0))
    depths = np.sqrt(np.maximum(1 - floors**2, 1e-12))
    weights = np.maximum(products - floors * sines / depths, 0)
    rests = np.sqrt(np.maximum(1 - 2 * weights * products + weights**2, 0))
    best = int(np.argmin(weights * (floors + ROUNDING) + rests))
    chosen = np.zeros(len(products))
    chosen[best] = weights[best]
    return chosen


def _of_several(products: Floats, gram: Floats, floors: Floats, square: float) -> Floats | None:
    """Return where the bound is flat, or None where it is nowhere; weights may be negative."""
    try:
        solved = np.linalg.solve(gram, np.stack((products, floors), axis=1))
    except np.linalg.LinAlgError:  # the same question twice
        return None
    along, tilt = solved[:, 0], solved[:, 1]
    slope = 1 - float(floors @ tilt)
    if slope <= 0:
        return None
    apart = max(square - float(products @ along), 0.0)
    return along - math.sqrt(apart / slope) * tilt


def need(score: float, cosines: Floats, floors: Floats) -> float:
    """Return how far out a row that all lists miss must lie to score as high; more is safer.

    With u the direction from a neighbour to the question at the angle a, q·d is
    cos(a) q_i·d + sin(a) u·d. A row outside of its list must have a u·d of at least
    (score - s_i cos(a)) / sin(a) to score as high. What counts is the neighbour that asks the most.

    Args:
        score: Of the last row that is to be served.
        cosines: Of the neighbours, shape (n,).
        floors: See `proven`.
    """
    sines = _sines(cosines)
    with np.errstate(invalid="ignore"):
        needs = (score - floors * cosines) / sines
    needs[~np.isfinite(floors)] = _MOST_NEED
    return float(np.clip(needs.max(), -_MOST_NEED, _MOST_NEED))


def expected(trusted: float, cosines: Floats, floors: Floats) -> float:
    """Return the score above which rows are taken to be in a list, if they are by their `need`.

    Args:
        trusted: The need that is relied on.
        cosines: See `need`.
        floors: See `need`.
    """
    if not np.isfinite(floors).all():
        return -math.inf
    return float((floors * cosines + trusted * _sines(cosines)).min())


def _sines(cosines: Floats) -> Floats:
    sines: Floats = np.sqrt(np.maximum(1 - cosines**2, _LEAST_SINE**2))
    return sines
