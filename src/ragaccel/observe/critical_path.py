"""The critical path of a request: the stages that its end waited for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ragaccel.observe.calls import Call


class Step(NamedTuple):
    """A stretch of the path, in which the innermost stage was busy by itself.

    Attributes:
        stack: The stages that the request was in, from the outermost to the innermost.
        began_ns: When the stretch began.
        ended_ns: When it ended.
    """

    stack: tuple[Call, ...]
    began_ns: int
    ended_ns: int


def critical_path(root: Call) -> list[Step]:
    """Return the steps from the beginning to the end of a request, without gap or overlap.

    Looked at from the end: the stage that ended last is on the path, then the one that ended last
    before that one began, and so on; what lies between them is their parent's own time. A stage
    that ran beside one of the path, or that went on after its parent, held nobody up.

    Source: CRISP, Zhang et al., USENIX ATC 2022; Jaeger's critical path.
    """
    return list(_backwards((root,)))[::-1]


def own_time_ns(root: Call) -> Counter[str]:
    """Return how long each stage was busy by itself on the path; the sum is the whole request."""
    spent: Counter[str] = Counter()
    for step in critical_path(root):
        spent[step.stack[-1].name] += step.ended_ns - step.began_ns
    return spent


def _backwards(stack: tuple[Call, ...]) -> Iterator[Step]:
    call = stack[-1]
    reached = call.ended_ns
    for child in sorted(call.children, key=lambda one: one.ended_ns, reverse=True):
        if child.ended_ns > reached:
            continue
        if child.ended_ns < reached:
            yield Step(stack, child.ended_ns, reached)
        yield from _backwards((*stack, child))
        reached = child.began_ns
    if reached > call.began_ns:
        yield Step(stack, call.began_ns, reached)
