"""Sets of what exists are gone through while threads add and forget."""

from __future__ import annotations

import gc
import sys
import threading

from ragaccel.resources.living import Living


class Member:
    """Somebody who can be forgotten."""


def test_a_member_is_there_for_as_long_as_somebody_holds_it():
    """The set keeps nobody alive."""
    living, kept, dropped = Living(), Member(), Member()
    living.add(kept)
    living.add(dropped)
    assert set(living) == {kept, dropped}
    del dropped
    gc.collect()
    assert list(living) == [kept]


def test_a_member_is_one_however_often_it_is_added():
    """Who is told of something is told once."""
    living, member = Living(), Member()
    living.add(member)
    living.add(member)
    assert list(living) == [member]


def test_members_come_and_go_in_threads_while_others_look():
    """Going through the set never fails and never misses one that lives all along."""
    living, kept, over = Living(), Member(), threading.Event()
    living.add(kept)

    def come_and_go():
        while not over.is_set():
            for member in [Member() for _ in range(50)]:
                living.add(member)

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        looks = [kept in list(living) for _ in range(3000)]
    finally:
        over.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert all(looks)
