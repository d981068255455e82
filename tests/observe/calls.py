"""Requests made by hand, in milliseconds, as a profiler would have heard them."""

from __future__ import annotations

from ragaccel.observe import Profile
from ragaccel.observe.calls import Call, Request
from ragaccel.observe.spent import Spent

MS = 1_000_000
NO_TIME = Spent(0, None, None, None)


def call(name, began, ended, *children, error=None, **attributes):
    """A stage; attributes by their name after `ragaccel.`, `_` for `.`."""
    told = {f"ragaccel.{key.replace('_', '.')}": value for key, value in attributes.items()}
    return Call(name, int(began * MS), int(ended * MS), error, told, NO_TIME, children)


def shifted(one, by):
    """The same stage `by` milliseconds later."""
    return Call(
        one.name, one.began_ns + by * MS, one.ended_ns + by * MS, one.error, one.attributes,
        one.spent, tuple(shifted(child, by) for child in one.children),
    )  # fmt: skip


def profile(calls, *, asked=None, at=1_000):
    """A profile of requests that begin one after another, `at` milliseconds apart."""
    told = [None] * len(calls) if asked is None else [one.encode() for one in asked]
    return Profile.of(Request(shifted(one, nth * at), told[nth]) for nth, one in enumerate(calls))
