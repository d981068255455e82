"""Nothing of one tenant is ever served to another, whatever they call their things."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from ragaccel.cache import MISSING, PLAIN, DiskLevel, Kind, MemoryLevel, MultiLevelCache, ledger
from ragaccel.cache.keys import mark, namespace_mark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragaccel.cache import Level

# Names that meet if they are joined with a separator, cut, folded, stripped or normalized.
TENANTS = (
    "a", "a:b", "a:b:c", "b", "b:c", "a/b", "a\0b", "a\0", "", " ", "a ", "A", "ä", "a\u0308",
    "default", "default:a", "a" * 1_000, "a" * 1_001, "1", "None", "é", "\N{SNOWMAN}", "ab", "a,b",
)  # fmt: skip
KEYS = (
    "c", "b:c", "a", "", "a:b", ("a", "b"), ["a:b"], 1, "1", 1.5, True, None, b"c", {"a": "b"},
    ["b", "c"], "\0", "x" * 300,
)  # fmt: skip
NAMES = ("c", "b:c", "a", "a:b", "", "x")  # of tags and of documents
PAIRS = [("a:b", "c"), ("a", "b:c"), ("a\0b", "c"), ("a", "b\0c"), ("", "a:b:c"), ("a:b:c", "")]


class Tenants:
    """Tenants over the same levels, who write down what they did as random operations go on.

    Every value names its tenant and its key. What a tenant expects is known as long as nothing is
    evicted; with `exact` that is checked too.
    """

    def __init__(self, levels: Sequence[Level], seed: int, *, exact: bool) -> None:
        self._random, self._exact = random.Random(seed), exact
        self._caches = [MultiLevelCache(levels, namespace=name, ttl=None) for name in TENANTS]
        self._known: list[dict[int, tuple[Any, frozenset[str], frozenset[str]]]] = [
            {} for _ in TENANTS
        ]
        self._number = self.served = self.done = 0
        weights = {
            self.get: 30, self.set: 20, self.get_or_compute: 30, self.get_many: 30,
            self.set_many: 3, self.delete: 3, self.invalidate: 3, self.scan: 0.2,
            self.everything: 0.02,
        }  # fmt: skip
        self._operations, self._weights = list(weights), list(weights.values())

    def run(self, operations: int) -> None:
        """Go on for so many operations on one key; one on many keys counts as many."""
        draw, self.done = self._random, 0
        while self.done < operations:
            for operation in draw.choices(self._operations, self._weights, k=100):
                operation(draw.randrange(len(TENANTS)))
                self.done += 1

    def check(self, tenant: int, at: int, found: Any) -> None:
        expected = self._known[tenant].get(at)
        if found is MISSING:
            assert expected is None or not self._exact, (TENANTS[tenant], KEYS[at], expected)
            return
        assert found[:2] == [TENANTS[tenant], at], (TENANTS[tenant], KEYS[at], found)
        assert expected is not None, (TENANTS[tenant], KEYS[at], found)
        assert found == expected[0], (TENANTS[tenant], KEYS[at], found, expected)
        self.served += 1

    def value(self, tenant: int, at: int) -> list[Any]:
        self._number += 1
        return [TENANTS[tenant], at, self._number]

    def some(self) -> frozenset[str]:
        return frozenset(self._random.sample(NAMES, self._random.randrange(3)))

    def get(self, tenant: int) -> None:
        at = self._random.randrange(len(KEYS))
        self.check(tenant, at, self._caches[tenant].get(KEYS[at]))

    def get_many(self, tenant: int) -> None:
        ats = self._random.sample(range(len(KEYS)), 12)
        self.done += len(ats) - 1
        found = self._caches[tenant].get_many([KEYS[at] for at in ats])
        for at, value in zip(ats, found, strict=True):
            self.check(tenant, at, value)

    def set(self, tenant: int) -> None:
        at, tags, documents = self._random.randrange(len(KEYS)), self.some(), self.some()
        value = self.value(tenant, at)
        self._caches[tenant].set(KEYS[at], value, tags=tags, documents=documents)
        self._known[tenant][at] = (value, tags, documents)

    def set_many(self, tenant: int) -> None:
        ats, tags = self._random.sample(range(len(KEYS)), 12), self.some()
        self.done += len(ats) - 1
        values = [self.value(tenant, at) for at in ats]
        keys = [KEYS[at] for at in ats]
        self._caches[tenant].set_many(zip(keys, values, strict=True), tags=tags)
        for at, value in zip(ats, values, strict=True):
            self._known[tenant][at] = (value, tags, frozenset())

    def get_or_compute(self, tenant: int) -> None:
        at, tags, documents = self._random.randrange(len(KEYS)), self.some(), self.some()

        def compute() -> list[Any]:
            assert at not in self._known[tenant] or not self._exact
            value = self.value(tenant, at)
            self._known[tenant][at] = (value, tags, documents)
            return value

        found = self._caches[tenant].get_or_compute(
            KEYS[at], compute, tags=tags, documents=documents
        )
        self.check(tenant, at, found)

    def delete(self, tenant: int) -> None:
        at = self._random.randrange(len(KEYS))
        self._caches[tenant].delete(KEYS[at])
        self._known[tenant].pop(at, None)

    def invalidate(self, tenant: int) -> None:
        """Through the cache of some tenant, who may name another one."""
        tags, documents = self.some(), self.some()
        by = self._random.randrange(len(TENANTS))
        self._caches[by].invalidate(tags, documents, TENANTS[tenant])
        whole = not tags and not documents
        self._known[tenant] = {
            at: known
            for at, known in self._known[tenant].items()
            if not whole and not known[1] & tags and not known[2] & documents
        }

    def everything(self, tenant: int) -> None:
        self._caches[tenant].invalidate(everything=True)
        self._known = [{} for _ in TENANTS]

    def scan(self, tenant: int) -> None:
        found = list(self._caches[tenant].scan())
        for value in found:
            self.check(tenant, value[1], value)
        if self._exact:
            assert len(found) == len(self._known[tenant])


@pytest.mark.parametrize("operations", [30_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_operations_in_memory(operations):
    """Never a value of another tenant, and always the one that was stored last."""
    tenants = Tenants([MemoryLevel()], seed=1, exact=True)
    tenants.run(operations)
    assert tenants.served > operations / 2


def test_operations_in_a_memory_that_is_too_small(monkeypatch):
    """The same while entries are evicted and the ledger forgets."""
    monkeypatch.setattr(ledger, "CAPACITY", 50)
    tenants = Tenants([MemoryLevel(60_000, namespace_bytes=8_000)], seed=2, exact=False)
    tenants.run(20_000)
    assert tenants.served > 2_000


@pytest.mark.parametrize(
    ("seeds", "operations"), [(1, 20_000), pytest.param(10, 100_000, marks=pytest.mark.slow)]
)
def test_operations_over_memory_and_disk(tmp_path, seeds, operations):
    """The same with a level that others share, on each of some files."""
    for seed in range(seeds):
        levels = [MemoryLevel(), DiskLevel(tmp_path / f"{seed}.sqlite")]
        tenants = Tenants(levels, seed=100 + seed, exact=True)
        tenants.run(operations)
        assert tenants.served > operations / 2
        levels[1].close()


def test_operations_over_a_small_disk(tmp_path):
    """The same while the disk evicts, and memory is too small too."""
    disk = DiskLevel(tmp_path / "cache.sqlite", 30_000, namespace_bytes=5_000)
    tenants = Tenants([MemoryLevel(30_000), disk], seed=4, exact=False)
    tenants.run(6_000)
    assert tenants.served > 500
    disk.close()


def test_names_that_would_meet_if_they_were_joined(tmp_path):
    """Neither their values nor their invalidations meet."""
    levels = [MemoryLevel(), DiskLevel(tmp_path / "cache.sqlite")]
    caches = {name: MultiLevelCache(levels, namespace=name) for name, _ in PAIRS}
    for name, own in PAIRS:
        caches[name].set(own, [name, own], tags=[own], documents=[own])
    for name, _ in PAIRS:
        for _, other in PAIRS:
            expected = [name, other] if (name, other) in PAIRS else MISSING
            assert caches[name].get(other) == expected
    for number, (name, own) in enumerate(PAIRS):
        caches[name].invalidate([own])
        stand = [caches[one].get(its) is not MISSING for one, its in PAIRS]
        assert stand == [at > number for at in range(len(PAIRS))]
    levels[1].close()


def test_marks_of_different_things_differ():
    """Tags, documents and namespaces of all names, for all tenants."""
    made = [namespace_mark(name) for name in TENANTS]
    made += [
        mark(sort, tenant, name)
        for sort in ("tag", "document", "namespace")
        for tenant in TENANTS
        for name in NAMES
    ]
    assert len(set(made)) == len(made)


def test_the_same_key_of_another_kind_is_another_entry(tmp_path):
    """Kinds never meet, in any tenant."""
    other = Kind("other", PLAIN.pack, PLAIN.open)
    levels = [MemoryLevel(), DiskLevel(tmp_path / "cache.sqlite")]
    cache = MultiLevelCache(levels)
    cache.set("a", "plain")
    cache.set("a", "other", kind=other)
    cache.set("a", "other's other", kind=other, namespace="other")
    assert cache.get("a") == "plain"
    assert cache.get("a", kind=other) == "other"
    assert cache.get("a", namespace="other") is MISSING
    assert cache.get("a", kind=other, namespace="other") == "other's other"
    levels[1].close()


@pytest.mark.parametrize("stored_as", ["computed", "set"])
def test_get_or_compute_keeps_kinds_apart_too(stored_as, face):
    """What is computed under a kind is found and deleted under it, and under no other."""
    other = Kind(
        "other", lambda value: PLAIN.pack([value]), lambda body: (PLAIN.open(body)[0][0], None)
    )
    with MultiLevelCache([MemoryLevel()]) as cache:
        cache.set("a", "plain")
        if stored_as == "computed":
            assert face.get_or_compute(cache, "a", lambda: "other", kind=other) == "other"
        else:
            cache.set("a", "other", kind=other)
        assert face.get_or_compute(cache, "a", lambda: "computed", kind=other) == "other"
        assert cache.get("a", kind=other) == "other"
        assert cache.get("a") == "plain"


def test_scan_yields_plain_values_only(tmp_path):
    """As it says; entries of other kinds are no damage either."""
    pairs = Kind("pairs", lambda value: PLAIN.pack(list(value)), lambda body: (body, None))
    strange = Kind("strange", lambda value: b"\xc1", lambda body: (body, None))
    with MultiLevelCache.open(tmp_path) as cache:
        cache.set("a", "plain")
        cache.set("a", ("secret", "pair"), kind=pairs)
        cache.set("a", object(), kind=strange)
        assert list(cache.scan()) == ["plain"]
        assert cache.stats().damaged == 0


def test_a_digest_of_another_tenant_is_of_no_use(tmp_path):
    """Who has got hold of a finished key still does not get the value with it."""
    levels = [MemoryLevel(), DiskLevel(tmp_path / "cache.sqlite")]
    mine = MultiLevelCache(levels, namespace="mine")
    yours = MultiLevelCache(levels, namespace="yours")
    yours.set("a", "secret")
    digest = yours._key("a")
    assert mine.get(digest) is MISSING
    assert mine.get_many([digest]) == [MISSING]
    levels[0].clear()
    assert mine.get(digest) is MISSING
    assert mine.get_or_compute(digest, lambda: "mine") == "mine"
    levels[1].close()


def test_a_tenant_that_deletes_much_costs_the_others_nothing(tmp_path, monkeypatch):
    """A noisy neighbour empties its own part only."""
    from ragaccel.cache.levels.disk import ledger as disk_ledger

    monkeypatch.setattr(disk_ledger, "CAPACITY", 100)
    levels = [MemoryLevel(), DiskLevel(tmp_path / "cache.sqlite")]
    quiet = MultiLevelCache(levels, namespace="quiet")
    noisy = MultiLevelCache(levels, namespace="noisy")
    quiet.set("a", 1)
    noisy.delete(*range(200))
    try:
        assert quiet.get("a") == 1
    finally:
        levels[1].close()
