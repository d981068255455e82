"""The garbage collector is kept off what was loaded, runs seldom, and is as before in the end."""

from __future__ import annotations

import gc
import weakref

import pytest

from ragaccel.errors import ConfigurationError
from ragaccel.resources import tame_gc


def collections(work):
    """Return how often the collector ran during some work."""
    begun = []

    def note(phase, info):
        if phase == "start":
            begun.append(info["generation"])

    gc.callbacks.append(note)
    try:
        work()
    finally:
        gc.callbacks.remove(note)
    return len(begun)


def is_looked_at(what):
    return any(one is what for one in gc.get_objects())


def keep_many():
    return [{"number": number} for number in range(120_000)]


def test_what_was_loaded_before_is_not_looked_at():
    """What is made later is, and in the end everything."""
    loaded = {"documents": [{}]}
    with tame_gc():
        later = {"documents": [{}]}
        assert not is_looked_at(loaded)
        assert is_looked_at(later)
    assert is_looked_at(loaded)
    assert gc.get_freeze_count() == 0


def test_it_runs_seldom():
    """Once in so many new containers as it was told."""
    usual = collections(keep_many)
    with tame_gc(20_000):
        assert 4 <= collections(keep_many) <= 6
    assert collections(keep_many) >= usual / 2 > 10


def test_garbage_of_before_is_not_kept():
    """It is collected first."""

    class Circle:
        pass

    circle = Circle()
    circle.itself = circle
    gone = weakref.ref(circle)
    gc.disable()
    try:
        del circle
        with tame_gc():
            assert gone() is None
    finally:
        gc.enable()


def test_all_is_as_before_whatever_happens():
    """Also if the application ends with an error."""
    before, during = gc.get_threshold(), []

    def end():
        with tame_gc():
            during.append(gc.get_threshold())
            raise OSError("ends")

    with pytest.raises(OSError, match="ends"):
        end()
    assert during == [(50_000, *before[1:])]
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_what_others_froze_stays_frozen():
    """Thawing is of everything at once, so it is left to who came first."""
    loaded = {"documents": [{}]}
    with tame_gc(), tame_gc(90_000):
        pass
    with tame_gc():
        with tame_gc(90_000):
            assert gc.get_threshold()[0] == 90_000
        assert gc.get_threshold()[0] == 50_000
        assert not is_looked_at(loaded)
    assert is_looked_at(loaded)


def test_a_threshold_that_would_switch_it_off_is_refused():
    """Garbage in circles would stay for ever."""
    with pytest.raises(ConfigurationError, match="threshold"), tame_gc(0):
        pass
