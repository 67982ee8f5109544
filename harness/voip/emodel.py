"""Mean opinion score of a G.711 connection by the E-model (ITU-T G.107, G.113 Appendix I for the codec's values).

Limits. It predicts what people would say of a call with these transmission values; it listens to nothing. Everything
that packets do not show has G.107's default (good telephones, quiet rooms, no echo: R = 93.2 without delay and loss).
The loss term holds for up to about 20 % lost at random, the burst ratio for bursts by a two-state model. Delay is
one-way, mouth to ear: where no clock is shared, the score knows loss and jitter only, and is an upper bound.
"""

from __future__ import annotations

import math
from typing import Final

BEST: Final = 93.2
ROBUSTNESS_PLAIN: Final = 4.3
"""Bpl of G.711 that plays silence for a lost packet."""
ROBUSTNESS_CONCEALED: Final = 25.1
"""Bpl of G.711 with the loss concealment of its Appendix I."""


def rating(delay: float, loss: float, burst_ratio: float = 1.0, robustness: float = ROBUSTNESS_CONCEALED) -> float:
    """The transmission rating R, 0 to 93.2.

    `delay` in milliseconds mouth to ear, `loss` in percent with what came too late to be played, `burst_ratio` the
    mean length of loss bursts over that of random loss (1: random).
    """
    impairment = 95 * loss / (loss / max(burst_ratio, 1.0) + robustness)
    return max(0.0, BEST - _delay_impairment(delay) - impairment)


def mos(rating: float) -> float:
    """Mean opinion score, 1 (bad) to 4.5, of a rating (G.107, Annex B)."""
    bounded = min(max(rating, 0.0), 100.0)
    return max(1.0, 1 + 0.035 * bounded + bounded * (bounded - 60) * (100 - bounded) * 7e-6)


def _delay_impairment(delay: float) -> float:
    """Idd of G.107: none up to 100 ms."""
    if delay <= 100:
        return 0.0
    x = math.log2(delay / 100)
    return 25 * (_sixth_root(1 + x**6) - 3 * _sixth_root(1 + (x / 3)**6) + 2)


def _sixth_root(value: float) -> float:
    return math.pow(value, 1 / 6)
