"""How long an entry is served: fixed, jittered, or by the query and its result."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import random
import re
import time
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, fields
from datetime import timedelta
from numbers import Real
from typing import TYPE_CHECKING, Any, Final

from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Seconds = float | timedelta

#: A lifetime, none (the entry is served for ever), or a policy: a function of the query and the
#: result that returns one of these, or nothing above 0 where the result is not to be kept.
TTL = Seconds | None | Callable[[Any, Any], Seconds | None]

# English words, found whole. What is left out: "what is now Turkey", "at the latest", and the
# "current" that flows in a wire or a river.
_PRESENT: Final = (
    "today|tonight|tomorrow|yesterday|nowadays|these days|currently|recently|as of now|right now",
    "(?<!what is )now(?! (?:known|called|named|part of))|at (?:the|this) moment|up[- ]to[- ]date",
    "(?:this|last|next) (?:morning|afternoon|evening|night|week|weekend|month|quarter|season|year)",
    "(?:minutes?|hours?|days?|weeks?) ago|what (?:time|day|date) is it",
    "(?<!at the )latest|newest|recent|news|headlines|trending|who is winning",
    "(?:live|real[- ]time) (?:price|quote|score|update|traffic|status|stream)s?",
    (
        r"(?<!alternating )(?<!direct )(?<!electric )(?<!electrical )(?<!ocean )current "
        r"(?!(?:density|flow(?:s|ing)?|source|transformer|meter|and|in|of|is|was|to)\b)[a-z]+"
    ),
)
# English words for figures that move, unless the query names a year before 2020.
_FIGURES: Final = (
    "prices?(?! (?:elastic|discrimin|theor|ceiling|floor))|market cap",
    "(?:exchange|interest|mortgage) rates?|traffic (?:on|report|jams?)",
    "(?<!under the )weather(?! (?:balloon|vane))",
    "(?:the|live|game|match|football|soccer|cricket|nba|nfl) scores?(?! (?:for|to))",
)
_PAST_YEAR: Final = r"\b(?:1[0-9]{3}|20[01][0-9])\b"
# Chinese has no word boundaries: what is ruled out are the longer words that these are found in,
# such as 出现在, 项目前景, 应当前往, 发明天文台, 日本周边, 最近邻, 诚实时.
_CHINESE: Final = (
    "[今昨][天日晚]|(?<![发發声聲])明天(?![气氣文线線])|(?<!光)明日|明晚|今[早晨年]",
    "[这這][周週](?![边邊围圍])|(?<!日)本(?:[周週](?![边邊围圍])|月|季度)|[这這]个?(?:星期|月)",
    "[上下](?:[周週](?![边邊围圍])|个(?:星期|月))",
    "(?<![出实實体體表呈发發浮展])[现現]在|此刻|眼下|如今|[现現][任价價]",
    "(?<![项項题題栏欄数數科节節账賬曲剧])目前|(?<![应應])[当當]前(?!往)",
    "最新|最近(?![邻鄰点點距])|近[期日]|[刚剛]{2}|(?<![诚誠真事切现現])[实實][时時](?!操作|系)",
    "股[价價]|[价價]格(?!歧视|弹性|理论)|[油房币幣][价價]|(?<![现現资資])金[价價]|行情|[汇匯]率",
    "天[气氣](?!学)|[气氣][温溫]|比分|路[况況]|新[闻聞](?!学|系)|[头頭][条條]|[热熱]搜",
)

#: The queries whose answers change by the hour: regular expressions, which are searched without
#: regard to case. `{year}` stands for the present year. What bounds an English word is anything but
#: an ASCII letter, digit or underscore, so that it is also found inside Chinese text.
TIME_SENSITIVE: Final = (
    rf"(?a:\b(?:{'|'.join(_PRESENT)})\b)",
    rf"(?as:\A(?!.*{_PAST_YEAR}).*?\b(?:{'|'.join(_FIGURES)})\b)",
    r"(?<![0-9]){year}(?![0-9])",
    "|".join(_CHINESE),
)


def jittered(ttl: Seconds, spread: float = 0.1) -> JitteredTTL:
    """Return a policy that draws each lifetime anew, so that entries of one hour end apart.

    Args:
        ttl: The mean, in seconds or a timedelta.
        spread: Lifetimes are uniform in `ttl * (1 - spread)` to `ttl * (1 + spread)`; 0 <= spread
            < 1.

    Raises:
        ConfigurationError: The ttl is not positive and finite, or the spread is out of its range.
    """
    return JitteredTTL(_finite("ttl", seconds(ttl)), _spread(spread))


def adaptive_ttl(
    base: Seconds = 3600,
    *,
    confident: float = 4.0,
    weak: float = 0.25,
    time_sensitive: Seconds = 60,
    empty: Seconds = 30,
    high_score: float = 0.75,
    low_score: float = 0.4,
    margin: float = 0.1,
    patterns: Iterable[str] = TIME_SENSITIVE,
    spread: float = 0.0,
) -> AdaptiveTTL:
    """Return a policy: longer for confident results, shorter for weak or time-sensitive ones.

    A result is confident if its best score reaches `high_score`, or if it reaches `low_score` and
    is ahead of the second by `margin`; it is weak if its best score is below `low_score`. The
    scores are similarities like a cosine's. They are read from the items of a list (`.score`, a
    pair of item and score, "relevance_score" or "score" in the metadata or in a dict). Without
    scores, or with some outside -1 to 1 (BM25, logits) or rising down the list (distances), nothing
    is known and the base holds.

    The defaults were measured with all-MiniLM-L6-v2: the best passage is a right one in 83%, 86%
    and 99% of the confident results on SQuAD sentences, SciFact and XQuAD, in 39%, 39% and 73% of
    those between, and in 21%, 18% and 66% of the weak. The margin tells more than the score alone,
    and carries over to other models; raise `high_score` and `low_score` for models with crowded
    cosines, and lower them for rank fusion.

    A query is time-sensitive if a pattern is found in it: in a string, in `query_str` of an
    object, or in the first string inside a list, a tuple or the values of a dict. The ready-made
    `TIME_SENSITIVE` (English and Chinese) takes the present year for such a word too, because
    what is said about it still changes; other years are not.

    Args:
        base: Seconds (or a timedelta) that a result is kept about which nothing is known.
        confident: Factor on the base, 1 or more.
        weak: Factor on the base, 0 to 1; 0 does not keep weak results.
        time_sensitive: The longest that a time-sensitive query is kept, in seconds or a timedelta;
            0 does not keep it.
        empty: The longest that an empty result (None, [], "", {}) is kept; 0 does not keep it.
        high_score: The least best score of a confident result, -1 to 1.
        low_score: Best scores below it are weak, -1 to `high_score`.
        margin: By how much a best score under `high_score` has to lead, 0 to 2.
        patterns: Regular expressions, such as `(*TIME_SENSITIVE, "bitcoin")`; () for none.
        spread: Jitter of the outcome; see `jittered`.

    Raises:
        ConfigurationError: An argument is out of its range, or a pattern is no regular expression.
    """
    low = _within("low_score", low_score, -1, 1)
    return AdaptiveTTL(
        base=_finite("base", seconds(base)),
        confident=_within("confident", confident, 1, math.inf),
        weak=_within("weak", weak, 0, 1),
        time_sensitive=_limit("time_sensitive", time_sensitive),
        empty=_limit("empty", empty),
        high_score=_within("high_score", high_score, low, 1),
        low_score=low,
        margin=_within("margin", margin, 0, 2),
        patterns=_patterns(patterns),
        spread=_spread(spread),
    )


@dataclass(frozen=True, repr=False)
class JitteredTTL:
    """The policy that `jittered` makes."""

    ttl: float
    spread: float

    def __call__(self, query: Any, result: Any) -> float:  # noqa: ARG002 - as every policy's
        """Return seconds; neither the query nor the result matters."""
        return _draw(self.ttl, self.spread)

    def __repr__(self) -> str:
        return _call(jittered, self)


@dataclass(frozen=True, repr=False)
class AdaptiveTTL:
    """The policy that `adaptive_ttl` makes."""

    base: float
    confident: float
    weak: float
    time_sensitive: float
    empty: float
    high_score: float
    low_score: float
    margin: float
    patterns: tuple[str, ...]
    spread: float

    def __call__(self, query: Any, result: Any) -> float:
        """Return seconds, 0 for a result that is not to be kept; it never raises."""
        lifetime = self._by_result(result)
        if self._is_time_sensitive(query):
            lifetime = min(lifetime, self.time_sensitive)
        return _draw(lifetime, self.spread)

    def _by_result(self, result: Any) -> float:
        try:
            if result is None or (isinstance(result, Sized) and len(result) == 0):
                return min(self.base, self.empty)
            return self.base * self._factor(_similarities(result))
        except Exception:  # noqa: BLE001 - any object may come; one that breaks is unknown
            return self.base

    def _factor(self, scores: list[float]) -> float:
        if not scores:
            return 1.0
        best, *rest = sorted(scores, reverse=True)
        if best < self.low_score:
            return self.weak
        leads = bool(rest) and best - rest[0] >= self.margin
        return self.confident if leads or best >= self.high_score else 1.0

    def _is_time_sensitive(self, query: Any) -> bool:
        try:
            text = next(_strings(query), None)
        except Exception:  # noqa: BLE001 - any object may come; one that breaks says nothing
            return False
        found = _compiled(self.patterns, time.localtime().tm_year)
        return text is not None and any(one.search(text) for one in found)

    def __repr__(self) -> str:
        return _call(adaptive_ttl, self)


def seconds(ttl: Seconds | None) -> float:
    """Return a lifetime in seconds; None is none, and lasts for ever.

    Raises:
        ConfigurationError: It is not positive, or no time at all.
    """
    if ttl is None:
        return math.inf
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    given: Any = seconds
    if not isinstance(given, (int, float)) or not given > 0:
        raise ConfigurationError(f"ttl must be positive seconds or a timedelta, got {ttl!r}.")
    return float(seconds)


def _strings(query: Any) -> Iterator[str]:
    if isinstance(query, str):
        yield query
    elif isinstance(query, (list, tuple)):
        yield from itertools.chain.from_iterable(map(_strings, query))
    elif isinstance(query, Mapping):
        yield from itertools.chain.from_iterable(map(_strings, query.values()))
    elif isinstance(text := getattr(query, "query_str", None), str):
        yield text


_ROUNDED_ONE: Final = 1.001  # float16 vectors have cosines a little above 1


def _similarities(result: Any) -> list[float]:
    """Return the scores of a list's items, or none of them if they are no similarities."""
    if not isinstance(result, (list, tuple)):
        return []
    scores = [float(score) for score in map(_score, result) if score is not None]
    like_a_cosine = all(abs(score) <= _ROUNDED_ONE for score in scores)
    distances = len(scores) > 1 and scores[0] < scores[-1] and scores == sorted(scores)
    return scores if like_a_cosine and not distances else []


def _score(item: Any) -> Any:
    told: list[Any]
    if isinstance(item, Mapping):
        told = [item.get("relevance_score"), item.get("score")]
    elif isinstance(item, (list, tuple)):
        told = [item[1]] if len(item) == 2 else []  # noqa: PLR2004 - a pair
    else:
        metadata = getattr(item, "metadata", None)
        told = [getattr(item, "score", None)]
        if isinstance(metadata, Mapping):
            told += [metadata.get("relevance_score"), metadata.get("score")]
    return next((one for one in told if not isinstance(one, bool) and isinstance(one, Real)), None)


@functools.lru_cache(maxsize=64)
def _compiled(patterns: tuple[str, ...], year: int) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(one.replace("{year}", str(year)), re.IGNORECASE) for one in patterns)


# It has no seed: an application that seeds `random` keeps its own sequence, and the children of a
# fork do not draw alike.
_RANDOM: Final = random.SystemRandom()


def _draw(lifetime: float, spread: float) -> float:
    if not spread:
        return lifetime
    return lifetime * _RANDOM.uniform(1 - spread, 1 + spread)


def _patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    given: Any = patterns
    if isinstance(given, str):
        raise ConfigurationError(f"patterns is a list of strings; write patterns=[{given!r}].")
    try:
        found = tuple(given)
        _compiled(found, 2000)
    except (TypeError, AttributeError, re.error) as error:
        raise ConfigurationError(
            f"patterns must be regular expressions, got {given!r}: {error}."
        ) from error
    return found


def _finite(name: str, value: float) -> float:
    if value == math.inf:
        raise ConfigurationError(f"{name} must end some day; for no limit give the cache ttl=None.")
    return value


def _limit(name: str, ttl: Seconds) -> float:
    given: Any = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if isinstance(given, (int, float)) and given >= 0:
        return float(given)
    raise ConfigurationError(
        f"{name} must be seconds or a timedelta, 0 for results that are not kept, got {ttl!r}."
    )


def _within(name: str, value: float, least: float, most: float) -> float:
    given: Any = value
    if isinstance(given, (int, float)) and least <= given <= most:
        return float(given)
    raise ConfigurationError(f"{name} must be from {least:g} to {most:g}, got {value!r}.")


def _spread(spread: float) -> float:
    given: Any = spread
    if isinstance(given, (int, float)) and 0 <= given < 1:
        return float(given)
    raise ConfigurationError(f"spread must be below 1, such as 0.1 for ±10%, got {spread!r}.")


def _call(maker: Callable[..., Any], made: Any) -> str:
    """Print an object as the call that makes it, without the arguments that are the defaults."""
    defaults = {name: one.default for name, one in inspect.signature(maker).parameters.items()}
    told = ((field.name, getattr(made, field.name)) for field in fields(made))
    given = (f"{name}={value!r}" for name, value in told if value != defaults[name])
    return f"{maker.__name__}({', '.join(given)})"
