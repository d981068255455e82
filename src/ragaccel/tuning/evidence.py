"""Evidence that may be looked at as often as one likes, and acted on at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How much is bet on the next one, per unit of surprise; small differences need small bets.
_BETS: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
#: The largest share of the capital that one disappointment may cost.
_MOST_LOST: Final = 0.8


class Evidence:
    """Evidence that something happens more often than it may: an e-process.

    It is the capital of a gambler who bets on it at fair odds: if it does not happen more often
    than it may, the chance that the capital ever exceeds `1 / alpha` is at most `alpha`, however
    long one waits and however often one looks. The capital is the mean over several sizes of bets
    λ of Π(1 + λ(x - share)).

    Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
    JRSS B, 2024; Ville's inequality.

    Args:
        alpha: The chance of a false alarm.
    """

    __slots__ = ("_capital", "_line", "alpha", "heard", "is_sure")

    def __init__(self, alpha: float) -> None:
        self._capital = [1.0] * len(_BETS)
        self._line = len(_BETS) / alpha
        self.alpha = alpha
        self.heard = 0
        self.is_sure = False

    @property
    def value(self) -> float:
        """The capital, 1 at the beginning."""
        return sum(self._capital) / len(_BETS)

    def hear(self, happened: float, share: float) -> bool:
        """Hear of the next case.

        Args:
            happened: Whether it happened, or how much of it, 0 to 1.
            share: How often it may happen, over 0 and under 1; known before.

        Returns:
            Whether it is sure, now or since earlier, that it happens more often.
        """
        surprise, most = happened - share, _MOST_LOST / share
        self._capital = [
            capital * (1 + min(bet, most) * surprise)
            for capital, bet in zip(self._capital, _BETS, strict=True)
        ]
        self.heard += 1
        self.is_sure = self.is_sure or sum(self._capital) >= self._line
        return self.is_sure


def are_sure(several: Sequence[Evidence]) -> bool:
    """Tell whether pieces of evidence of one alpha are sure together.

    The mean of e-processes is one, too: that any of it comes about by chance has a chance of alpha.
    """
    capital = sum(one.value for one in several) / len(several)
    return capital >= 1 / several[0].alpha
