"""Strikes, leases and changed entries, as those who share a server hear of them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import types

import pytest
import redis

from ragaccel.cache import MultiLevelCache, RedisLevel, ledger
from ragaccel.cache.ledger import EVERYTHING
from ragaccel.cache.levels.redis import Unavailable
from ragaccel.cache.levels.redis import ledger as redis_ledger
from tests.cache.helpers import SOURCE, here, key, script, stored, wait_until

TENANT, MARK, OTHER = b"a-tenant", b"document", b"neighbor"


@pytest.fixture
def open_level():
    """Give a function that opens a level in contact with a server."""
    levels = []

    def open_(server, *, contact: bool = True, **options) -> RedisLevel:
        url = server if isinstance(server, str) else server.url
        levels.append(RedisLevel(url, **{"timeout": 10.0, "retry_after": 0.2} | options))
        if contact:
            levels[-1].ledger.prepare()
            assert levels[-1].ledger.contact
        return levels[-1]

    yield open_
    for level in levels:
        level.close()


class Copies:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.forgotten: list[bytes] = []
        self.all = 0

    def forget(self, keys) -> None:
        self.forgotten += keys

    def forget_all(self) -> None:
        self.all += 1


def stands(level, position, *marks: bytes, created: float | None = None) -> bool:
    created = time.time() if created is None else created
    return level.ledger.stands(position, created, b"".join((TENANT, *marks)))


# ---- strikes -------------------------------------------------------------------------------------


def test_a_strike_is_heard_by_others(server, open_level):
    """What one level strikes does not stand for another one, and nothing else falls."""
    here_, there = open_level(server), open_level(server)
    before = there.ledger.position()
    assert stands(there, before, MARK, OTHER)
    here_.ledger.strike(TENANT, [MARK])
    assert not stands(here_, before, MARK)
    wait_until(lambda: not stands(there, before, MARK))
    assert not stands(there, before, OTHER, MARK)
    assert stands(there, before, OTHER)
    assert stands(there, there.ledger.position(), MARK)
    assert there.ledger.position() == here_.ledger.position()


async def test_an_async_strike_is_heard_by_others(server, open_level):
    """`astrike` is a strike."""
    here_, there = open_level(server), open_level(server)
    before = there.ledger.position()
    await here_.ledger.astrike(TENANT, [MARK])
    assert not stands(here_, before, MARK)
    wait_until(lambda: not stands(there, before, MARK))
    await here_.aclose()


def test_a_strike_of_another_process_is_heard(server, open_level):
    """Processes share the ledger, and one that begins later knows what was struck."""
    level = open_level(server)
    before = level.ledger.position()
    printed = script(
        """
        import sys, time
        from ragaccel.cache import RedisLevel
        level = RedisLevel(sys.argv[1], timeout=10.0)
        level.ledger.strike(b"a-tenant", [b"document"])
        level.ledger.prepare()
        before = (int(sys.argv[2]), int(sys.argv[3]))
        for mark in (b"document", b"x" * 8):
            print(level.ledger.stands(before, time.time(), b"a-tenant" + mark))
        """,
        server.url,
        *before,
    )
    assert printed == "False\nTrue\n"
    wait_until(lambda: not stands(level, before, MARK))


def test_everything_can_be_struck(server, open_level):
    """The mark of everything takes entries with any marks, and with none."""
    here_, there = open_level(server), open_level(server)
    here_.ledger.strike(TENANT, [OTHER])
    before = here_.ledger.position()
    here_.ledger.strike(EVERYTHING, [EVERYTHING])
    assert not stands(here_, before)
    wait_until(lambda: not stands(there, before, MARK))
    late = open_level(server)
    assert not stands(late, before, MARK)
    assert stands(late, late.ledger.position(), MARK)
    assert late.describe()["marks"] == 0


def numbered(count: int, sort: int = 0) -> list[bytes]:
    """Return different marks."""
    return [b"%04d%04d" % (sort, number) for number in range(count)]


@pytest.fixture
def small(monkeypatch) -> int:
    """Make every ledger remember few marks only; return how many."""
    for module in (ledger, redis_ledger):
        monkeypatch.setattr(module, "CAPACITY", 100)
    return 100


def test_a_noisy_tenant_costs_the_others_nothing(server, open_level, small):
    """Past the capacity the oldest marks of whoever has most become one, here and on the server."""
    level, there = open_level(server), open_level(server)
    level.ledger.strike(OTHER, [OTHER[::-1]])
    before = level.ledger.position()
    for mark in numbered(3 * small):
        level.ledger.strike(TENANT, [mark])
    after = level.ledger.position()
    wait_until(lambda: there.ledger.position() == after)
    for one in (level, there, open_level(server)):
        assert not stands(one, before, MARK)
        assert stands(one, after._replace(seq=after.seq - 10), MARK)
        assert one.ledger.stands(before, time.time(), OTHER + MARK)
        assert not one.ledger.stands(before._replace(seq=0), time.time(), OTHER + OTHER[::-1])
        assert len(one.ledger._known) <= small
    assert small // 2 < level.describe()["marks"] <= small


def test_of_many_tenants_the_noisiest_pay(server, open_level, small):
    """Whoever has few marks loses none, although no tenant has most of them."""
    level, tenants = open_level(server), [b"tenant %d" % number for number in range(4)]
    before = level.ledger.position()
    for tenant, count in zip(tenants, (10, 16, 40, 40), strict=True):
        level.ledger.strike(tenant, numbered(count))
    late = open_level(server)
    stand = [late.ledger.stands(before, time.time(), tenant + MARK) for tenant in tenants]
    assert stand == [True, True, False, False]
    for tenant in tenants:
        assert not late.ledger.stands(before, time.time(), tenant + numbered(1)[0])


def test_with_very_many_tenants_the_floor_rises(server, open_level, small):
    """Where nobody has marks to put together, what is old falls, and nothing grows."""
    level = open_level(server)
    before = level.ledger.position()
    for tenant in numbered(2 * small):
        level.ledger.strike(tenant, [MARK])
    late = open_level(server)
    assert not stands(late, before, OTHER)
    assert stands(late, late.ledger.position(), OTHER)
    assert level.describe()["marks"] <= small
    assert len(level.ledger._known) <= small


def test_what_cannot_be_told_does_not_grow_without_bound(own_server, open_level, small):
    """Of a noisy tenant all is struck once the server is back, and of the others what they said."""
    level, other = (open_level(own_server) for _ in range(2))
    before = other.ledger.position()
    with own_server.client() as client:
        client.config_set("maxmemory", "1")
        for marks in ([MARK], numbered(2 * small)):
            with pytest.raises(redis.ResponseError):
                level.ledger.strike(OTHER if marks == [MARK] else TENANT, marks)
        assert len(level.ledger._untold) == 2
        client.config_set("maxmemory", "0")
    wait_until(lambda: not stands(other, before, MARK))
    assert not other.ledger.stands(before, time.time(), OTHER + MARK)
    assert other.ledger.stands(before, time.time(), OTHER + OTHER)
    many = numbered(2 * small)
    assert redis_ledger._fewer(tenant + MARK for tenant in many) == {EVERYTHING * 2: None}


def test_a_tenant_that_deletes_much_costs_the_others_nothing(server, small):
    """A noisy neighbour empties its own part only."""
    with MultiLevelCache([RedisLevel(server.url, timeout=10.0)], namespace="quiet") as quiet:
        noisy = MultiLevelCache(quiet.levels, namespace="noisy")
        quiet.set("a", 1)
        noisy.delete(*range(2 * small))
        assert quiet.get("a") == 1


@pytest.mark.parametrize("lost", ["flushed", "id evicted", "marks evicted"])
def test_of_a_lost_ledger_nothing_stands(server, open_level, lost):
    """A flush, or an eviction of any part of it, begins another ledger."""
    level, copies = open_level(server), Copies()
    level.follow(copies)
    level.ledger.strike(TENANT, [OTHER])
    before = level.ledger.position()
    with server.client() as client:
        if lost == "flushed":
            client.flushall()
        else:
            client.delete("ragaccel:{ledger}:" + lost.split()[0])
    wait_until(lambda: not stands(level, before, MARK))
    assert level.ledger.contact
    assert stands(level, level.ledger.position(), MARK)
    assert not stands(open_level(server), before, MARK)
    assert (copies.all > 0) == (lost == "flushed")


def test_clear_keeps_the_ledger(server, open_level):
    """Forgetting entries does not make struck ones stand."""
    level = open_level(server)
    level.put_many([stored("a")])
    before = level.ledger.position()
    level.ledger.strike(TENANT, [MARK])
    level.clear()
    assert here(level, "a") == []
    assert level.ledger.position().seq == before.seq + 1
    assert not stands(open_level(server), before, MARK)


# ---- without contact -----------------------------------------------------------------------------


def test_before_any_contact_a_process_goes_by_its_own_strikes(own_server, open_level, clock):
    """Own strikes count, entries stand for the time of grace, and not once there is contact."""
    own_server.kill()
    level = open_level(own_server, contact=False, grace=30.0)
    level.ledger.prepare()
    before = level.ledger.position()
    assert stands(level, before, MARK, created=clock.time())
    with pytest.raises(Unavailable):
        level.ledger.strike(TENANT, [MARK])
    assert not stands(level, before, MARK, created=clock.time())
    after = level.ledger.position()
    assert stands(level, after, MARK, created=clock.time())
    assert not stands(level, after, MARK, created=clock.time() - 31)
    own_server.start()
    wait_until(lambda: level.ledger.contact)
    assert not stands(level, after, MARK, created=clock.time())


def test_after_contact_was_lost_entries_stand_for_a_while(own_server, open_level, clock):
    """What is known goes on to count, for the time of grace; copies are dropped at once."""
    level, copies = open_level(own_server, grace=30.0), Copies()
    level.follow(copies)
    level.ledger.strike(TENANT, [OTHER])
    position = level.ledger.position()
    own_server.kill()
    wait_until(lambda: not level.ledger.contact)
    wait_until(lambda: copies.all == 1)
    assert level.ledger.position() == position
    assert stands(level, position, MARK, created=0.0)
    assert not stands(level, position._replace(seq=0), OTHER)
    clock.pass_(31)
    assert not stands(level, position, MARK, created=0.0)
    assert stands(level, position, MARK, created=clock.time())


def test_a_strike_is_not_forgotten_by_a_read_from_before_it(server, open_level):
    """The first strike of a ledger stands while what was read of the empty one arrives."""
    for at in range(40):
        level = open_level(server, prefix=f"empty-{at}:")
        level.ledger.strike(TENANT, [OTHER])
        struck = level.ledger.position()
        end = time.monotonic() + 0.02
        while time.monotonic() < end:
            assert level.ledger.position() == struck
        level.close()


def test_a_strike_that_could_not_be_told_is_told_later(own_server, open_level):
    """The caller is told of the fault, and the others of the strike once the server is back."""
    level, other = open_level(own_server), open_level(own_server)
    before = other.ledger.position()
    os.kill(own_server.pid, signal.SIGSTOP)
    hasty = open_level(own_server, contact=False, timeout=0.3)
    with pytest.raises(Unavailable):
        hasty.ledger.strike(TENANT, [MARK])
    os.kill(own_server.pid, signal.SIGCONT)
    hasty.ledger.prepare()
    wait_until(lambda: not stands(other, before, MARK))
    assert stands(other, before, OTHER)
    wait_until(lambda: hasty.ledger.contact and hasty.ledger.position() == level.ledger.position())


def test_a_frozen_server_is_noticed_without_a_call(own_server, open_level):
    """A server that keeps its connections and says nothing is no contact, until it goes on."""
    level, copies = open_level(own_server, timeout=1.0), Copies()
    level.follow(copies)
    os.kill(own_server.pid, signal.SIGSTOP)
    wait_until(lambda: not level.ledger.contact)
    wait_until(lambda: copies.all == 1)
    os.kill(own_server.pid, signal.SIGCONT)
    wait_until(lambda: level.ledger.contact)
    wait_until(lambda: copies.all == 2)


def test_a_server_that_came_back_empty_has_another_ledger(own_server, open_level):
    """After a restart without data nothing older stands."""
    level = open_level(own_server)
    before = level.ledger.position()
    own_server.kill()
    wait_until(lambda: not level.ledger.contact)
    own_server.start()
    wait_until(lambda: level.ledger.contact)
    assert not stands(level, before, MARK)
    assert stands(level, level.ledger.position(), MARK)


def test_a_strike_that_the_server_refuses_is_told_later(own_server, open_level):
    """A full server refuses the strike; here it counts at once, for others once there is room."""
    level, other = open_level(own_server), open_level(own_server)
    before = level.ledger.position()
    with own_server.client() as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(Exception, match="maxmemory"):
            level.ledger.strike(TENANT, [MARK])
        assert not stands(level, before, MARK)
        assert stands(level, before, OTHER)
        assert stands(level, level.ledger.position(), MARK)
        client.config_set("maxmemory", "0")
    wait_until(lambda: not stands(other, before, MARK))
    wait_until(lambda: level.ledger.position() == other.ledger.position())
    assert not stands(level, before, MARK)


# ---- the listener --------------------------------------------------------------------------------


def test_followers_hear_what_others_write_and_not_what_they_wrote(server, open_level):
    """A level's own writes do not empty its copies; writes, deletions and expiry of others do."""
    mine, other, copies = open_level(server), open_level(server), Copies()
    mine.follow(copies)
    mine.put_many([stored("mine")])
    other.put_many([stored("theirs"), stored("short", seconds=0.3)])
    wait_until(lambda: {key("theirs"), key("short")} <= set(copies.forgotten))
    other.delete_many([key("theirs")])
    wait_until(lambda: copies.forgotten.count(key("theirs")) == 2)
    wait_until(lambda: copies.forgotten.count(key("short")) == 2)
    assert key("mine") not in copies.forgotten
    other.put_many([stored("mine")])
    wait_until(lambda: key("mine") in copies.forgotten)
    assert copies.all == 0


def test_a_prefix_does_not_hear_another(server, open_level):
    """Who shares a server but not the prefix shares neither entries nor strikes."""
    mine, other, copies = open_level(server), open_level(server, prefix="other:"), Copies()
    mine.follow(copies)
    before = mine.ledger.position()
    other.ledger.strike(EVERYTHING, [EVERYTHING])
    other.put_many([stored("a")])
    open_level(server).put_many([stored("b")])
    wait_until(lambda: key("b") in copies.forgotten)
    assert copies.forgotten == [key("b")]
    assert stands(mine, before, MARK)


def test_a_level_nobody_holds_listens_no_more(server):
    """The thread ends with the level, whether it was closed or dropped."""

    def listening() -> int:
        return sum(thread.name == "ragaccel-redis" for thread in threading.enumerate())

    wait_until(lambda: listening() == 0)
    closed, dropped = (RedisLevel(server.url, timeout=10.0) for _ in range(2))
    closed.ledger.prepare()
    dropped.ledger.prepare()
    assert listening() == 2
    closed.close()
    wait_until(lambda: listening() == 1)
    del dropped
    wait_until(lambda: listening() == 0)


def test_a_fork_listens_anew(server):
    """A child hears strikes of others once it uses the ledger, and so does the parent still."""
    printed = script(
        """
        import os, sys, time
        from ragaccel.cache import RedisLevel
        level = RedisLevel(sys.argv[1], timeout=10.0)
        level.ledger.prepare()
        before = level.ledger.position()
        child = os.fork()
        level.ledger.prepare()
        contact, marks = level.ledger.contact, b"a-tenantdocument"
        if not child:
            RedisLevel(sys.argv[1], timeout=10.0).ledger.strike(b"a-tenant", [b"document"])
        end = time.monotonic() + 30
        while level.ledger.stands(before, time.time(), marks) and time.monotonic() < end:
            time.sleep(0.01)
        heard = contact and not level.ledger.stands(before, time.time(), marks)
        if not child:
            os._exit(0 if heard else 1)
        print(heard, os.waitpid(child, 0)[1])
        """,
        server.url,
    )
    assert printed == "True 0\n"


# ---- leases --------------------------------------------------------------------------------------


def test_a_lease_is_had_by_one(server, open_level):
    """Of two levels one gets the lease of a key, and the other one after its release."""
    one, two = (open_level(server, contact=False).leases for _ in range(2))
    assert one.acquire(key("a"))
    assert not two.acquire(key("a"))
    assert not one.acquire(key("a"))
    assert two.acquire(key("b"))
    two.release(key("a"))  # not his
    assert not two.acquire(key("a"))
    one.release(key("a"))
    assert two.acquire(key("a"))


async def test_an_async_lease_is_had_by_one(server, open_level):
    """The async face of leases is the same lease."""
    one, two = (open_level(server, contact=False) for _ in range(2))
    assert await one.leases.aacquire(key("a"))
    assert not await two.leases.aacquire(key("a"))
    assert not two.leases.acquire(key("a"))
    await one.leases.arelease(key("a"))
    assert await two.leases.aacquire(key("a"))
    await one.aclose()
    await two.aclose()
    assert one.leases.acquire(key("a"))


async def test_a_lease_whose_caller_was_cancelled_is_nobodys(own_server, open_level):
    """A thread that gets the lease for a caller who is gone gives it back."""
    with own_server.client() as client:
        one = RedisLevel(client, timeout=30.0).leases
        two = open_level(own_server, contact=False).leases
        assert one.acquire(key("b"))  # connected, it is not overtaken by the other
        one.release(key("b"))
        for before in (True, False):
            os.kill(own_server.pid, signal.SIGSTOP)
            acquiring = asyncio.create_task(one.aacquire(key("a")))
            await asyncio.sleep(0.5)
            if before:
                acquiring.cancel()
                await asyncio.wait([acquiring])
            os.kill(own_server.pid, signal.SIGCONT)
            if not before:
                wait_until(lambda: one._held)  # the loop has not heard of it yet
                acquiring.cancel()
                await asyncio.wait([acquiring])
            assert acquiring.cancelled()
            await asyncio.to_thread(wait_until, lambda: two.acquire(key("a")))
            assert not one._held
            two.release(key("a"))


def test_a_lease_lasts_as_long_as_its_holder_works(server, open_level):
    """A lease is renewed far beyond its two seconds."""
    one, two = (open_level(server, contact=False).leases for _ in range(2))
    assert one.acquire(key("a"))
    end = time.monotonic() + 5
    while time.monotonic() < end:
        assert not two.acquire(key("a"))
        time.sleep(0.1)
    one.release(key("a"))
    assert two.acquire(key("a"))


def test_the_lease_of_a_killed_process_is_free_again(server, open_level):
    """A holder that dies without a word is waited for two seconds, and four at most."""
    code = (
        "import sys, time; from ragaccel.cache import RedisLevel\n"
        "level = RedisLevel(sys.argv[1], timeout=10.0)\n"
        "print(level.leases.acquire(bytes.fromhex(sys.argv[2])), flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, server.url, key("a").hex()],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stdout=subprocess.PIPE,
        text=True,
    )
    leases = open_level(server, contact=False).leases
    assert holder.stdout.readline() == "True\n"
    assert not leases.acquire(key("a"))
    holder.kill()
    holder.communicate()
    killed = time.monotonic()
    wait_until(lambda: leases.acquire(key("a")))
    assert time.monotonic() - killed < 4


def test_a_forks_child_holds_no_lease(server):
    """The lease stays the parent's: the child neither has it nor gives it back."""
    printed = script(
        """
        import os, sys
        from ragaccel.cache import RedisLevel
        leases = RedisLevel(sys.argv[1], timeout=10.0).leases
        assert leases.acquire(b"k" * 20)
        child = os.fork()
        if not child:
            leases.release(b"k" * 20)
            os._exit(leases.acquire(b"k" * 20))
        print(os.waitpid(child, 0)[1], leases.acquire(b"k" * 20))
        """,
        server.url,
    )
    assert printed == "0 False\n"


def test_a_lease_of_a_dead_server_is_a_fault_and_its_release_is_none(own_server, open_level):
    """Acquiring says that the server is away; releasing never raises."""
    leases = open_level(own_server, contact=False).leases
    assert leases.acquire(key("a"))
    own_server.kill()
    with pytest.raises(Unavailable):
        leases.acquire(key("b"))
    leases.release(key("a"))


def test_what_a_level_tells_of_its_server(server, open_level):
    """`describe` is for people: no secrets, and numbers that fit."""
    level = open_level(server)
    level.put_many([stored("a"), stored("b")])
    level.ledger.strike(TENANT, [MARK, OTHER])
    told = types.SimpleNamespace(**level.describe())
    assert (told.mode, told.nodes) == ("standalone", [f"127.0.0.1:{server.port}"])
    assert (told.strikes, told.marks, told.keys) == (1, 2, 6)
    assert (told.contact, told.breaker, told.policy) == (True, "closed", "noeviction")
    assert told.used_memory > 0
    assert level.usage() == (-1, -1, -1, "closed")
