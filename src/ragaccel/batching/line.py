"""Who waits for a batch, and who goes into it: fair between tenants, alike in size."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from ragaccel import telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

#: Of how many who wait, for each one that is taken, those of like size are chosen.
_CHOICE: Final = 4
#: How much larger a batch may be, filled up to its largest item, than its items are.
_FILLED_UP: Final = 1.2

TOO_LATE: Final = "no batch had room for it in time; give it longer, or have more workers."


class Shrink:
    """By what batches are smaller than usual, while memory is short."""

    by = 1


@dataclass
class Limits:
    """What a batch may be, and how many may wait for one; they hold from the next batch on.

    Attributes:
        max_size: The most items in a call.
        workers: The most calls at a time.
        size: Gives the size of an item, by which items are grouped; None for all alike.
        budget: The most that the largest size times the number of items may be in a call.
        max_waiting: The most who wait; None for any number.
        window: Seconds that a worker who was idle waits for others, if the batch is not full.
        shrink: Makes size and budget smaller for a while.
    """

    max_size: int
    workers: int
    size: Callable[[Any], float] | None = None
    budget: float | None = None
    max_waiting: int | None = None
    window: float = 0.0
    shrink: Shrink = field(default_factory=Shrink)

    @property
    def most(self) -> int:
        """The most items in a call now."""
        return max(1, self.max_size // self.shrink.by)

    def wait(self, timeout: float | None) -> float:
        """Return the window of whoever comes first: half of the time it has, at most."""
        return self.window if timeout is None else min(self.window, timeout / 2)


class Waiter:
    """Who waits.

    Args:
        item: What is asked.
        tenant: For whom.
        timeout: Seconds until the deadline; None for ever.
        measure: Gives the size of the item; what it raises is its caller's.

    Attributes:
        item: What is asked.
        tenant: For whom.
        deadline: Until when, by `time.monotonic`; None for ever.
        place: Where in a trace, if anybody listens.
        size: Of the item.
    """

    __slots__ = ("deadline", "item", "place", "size", "tenant")

    def __init__(
        self,
        item: Any,
        tenant: str | None,
        timeout: float | None,
        measure: Callable[[Any], float] | None,
    ) -> None:
        self.size = 1.0 if measure is None else measure(item)
        self.item = item
        self.tenant = tenant
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.place = telemetry.here()

    def expire(self) -> None:
        """Hear that the deadline has passed before the item was sent."""
        raise NotImplementedError

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits for the outcome."""
        return True


W = TypeVar("W", bound=Waiter)


class Line(Generic[W]):
    """Those who wait, in the order of their arrival.

    Args:
        limits: What a batch may be.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tenants: dict[str | None, deque[W]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[W]:
        """Iterate over those who wait, taking turns between tenants."""
        lines = [iter(line) for line in self._tenants.values()]
        while lines:
            for line in list(lines):
                waiter = next(line, None)
                if waiter is None:
                    lines.remove(line)
                else:
                    yield waiter

    @property
    def room(self) -> float:
        """How many others may wait."""
        most = self._limits.max_waiting
        return math.inf if most is None else most - self._count

    @property
    def is_full(self) -> bool:
        """Whether nobody else may wait."""
        most = self._limits.max_waiting
        return most is not None and self._count >= most

    def put(self, waiter: W) -> None:
        """Let somebody wait, behind the others of the tenant."""
        line = self._tenants.get(waiter.tenant)
        if line is None:
            line = self._tenants[waiter.tenant] = deque()
        line.append(waiter)
        self._count += 1

    def put_back(self, waiters: Sequence[W]) -> None:
        """Let those who were taken wait again, before the others."""
        for waiter in reversed(waiters):
            self._tenants.setdefault(waiter.tenant, deque()).appendleft(waiter)
        self._count += len(waiters)

    def remove(self, waiter: W) -> bool:
        """Let somebody wait no more; return whether they did."""
        line = self._tenants.get(waiter.tenant)
        if line is None or waiter not in line:
            return False
        line.remove(waiter)
        if not line:
            del self._tenants[waiter.tenant]
        self._count -= 1
        return True

    def take(self, free: int, first: Iterable[W] = ()) -> list[W]:
        """Take a batch, which may be empty.

        Who has waited longest is in it, and of the next ones those whose items are most alike in
        size, so that little is spent on filling up; as many as leave enough for the other workers.

        Args:
            free: How many workers are free, this one included.
            first: Who is in it anyway, one at most; they do not wait.
        """
        batch = list(first)
        count = min(self._limits.most, -(-(self._count + len(batch)) // free)) - len(batch)
        if count <= 0:
            return batch
        if self._limits.size is None:
            return batch + self._dealt(count)
        dealt = batch + self._dealt(count * _CHOICE)
        if not dealt:
            return []
        chosen = self._alike(dealt, count + len(batch))
        if len(chosen) < len(dealt):
            taken = set(map(id, chosen))
            self.put_back([one for one in dealt if id(one) not in taken])
        return chosen

    def _dealt(self, count: int) -> list[W]:
        """Take up to so many, one of each tenant in turn; the next time others come first."""
        dealt: list[W] = []
        while self._tenants and len(dealt) < count:
            tenant = next(iter(self._tenants))
            line = self._tenants.pop(tenant)
            turn = 1 if self._tenants else min(count - len(dealt), len(line))
            self._count -= turn
            for _ in range(turn):
                waiter = line.popleft()
                if waiter.deadline is not None and time.monotonic() > waiter.deadline:
                    waiter.expire()
                elif waiter.is_wanted:
                    dealt.append(waiter)
            if line:
                self._tenants[tenant] = line
        return dealt

    def _alike(self, dealt: list[W], count: int) -> list[W]:
        """Return the first and those most like it in size, within the budget."""
        lead, budget = dealt[0], self._limits.budget
        if budget is not None:
            budget /= self._limits.shrink.by
        chosen, largest, total = [lead], lead.size, lead.size
        for one in sorted(islice(dealt, 1, None), key=lambda one: abs(one.size - lead.size)):
            most = max(largest, one.size)
            if len(chosen) == count:
                break
            padded = most * (len(chosen) + 1)
            if padded <= _FILLED_UP * (total + one.size) and (budget is None or padded <= budget):
                chosen.append(one)
                largest, total = most, total + one.size
        return chosen
