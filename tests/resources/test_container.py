"""The container's limits, from trees of files as kernels write them."""

from __future__ import annotations

import os

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragaccel.resources import container, cpu_limit, memory_limit_bytes, memory_used_bytes

MB = 1 << 20
NO_LIMIT = "9223372036854771712"  # what version 1 says for none, with pages of 4 KiB
CORES = len(os.sched_getaffinity(0))

UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev - cgroup2 cgroup2 rw,nsdelegate"
SPLIT = (
    "32 31 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:11 - cgroup cgroup rw,memory\n"
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:12 - cgroup cgroup rw,cpu,cpuacct"
)


@pytest.fixture
def machine(tmp_path):
    """Return a function that writes a machine's files and gives its root."""

    def build(mounts, groups, files):
        files = {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups, **files}
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n", encoding="utf-8")
        return tmp_path

    return build


def test_version_2_in_a_container(machine):
    """The group that the container sees as the outermost has the limits."""
    root = machine(
        UNIFIED,
        "0::/",
        {
            "sys/fs/cgroup/memory.max": 512 * MB,
            "sys/fs/cgroup/memory.current": 300 * MB,
            "sys/fs/cgroup/memory.stat": f"anon {100 * MB}\ninactive_file {50 * MB}",
            "sys/fs/cgroup/cpu.max": "50000 100000",
        },
    )
    assert memory_limit_bytes(root) == 512 * MB
    assert memory_used_bytes(root) == 250 * MB
    assert cpu_limit(root) == 0.5


def test_the_smallest_limit_on_the_way_counts(machine):
    """A group may have no limit, or a bigger one than the group around it."""
    at = "sys/fs/cgroup/user.slice"
    root = machine(
        UNIFIED,
        "0::/user.slice/app.scope",
        {
            f"{at}/memory.max": 256 * MB,
            f"{at}/memory.current": 200 * MB,
            f"{at}/cpu.max": "max 100000",
            f"{at}/app.scope/memory.max": 900 * MB,
            f"{at}/app.scope/memory.current": 100 * MB,
            f"{at}/app.scope/cpu.max": "25000 100000",
            f"{at}/other.scope/memory.max": MB,
        },
    )
    assert memory_limit_bytes(root) == 256 * MB
    assert memory_used_bytes(root) == 200 * MB
    assert cpu_limit(root) == 0.25


def test_no_limit_is_the_hosts_memory_and_cores(machine):
    """A group that says "max" limits nothing."""
    root = machine(
        UNIFIED,
        "0::/app",
        {
            "sys/fs/cgroup/app/memory.max": "max",
            "sys/fs/cgroup/app/memory.current": 5 * MB,
            "sys/fs/cgroup/app/cpu.max": "max 100000",
        },
    )
    assert memory_limit_bytes(root) == psutil.virtual_memory().total
    assert memory_used_bytes(root) > 5 * MB
    assert cpu_limit(root) == CORES


def test_version_1_in_a_container_that_sees_the_hosts_names(machine):
    """What is mounted is the container's own group, whatever the path of it is outside."""
    mounts = SPLIT.replace(" / /sys", " /docker/0af3 /sys")
    root = machine(
        mounts,
        "5:memory:/docker/0af3\n4:cpu,cpuacct:/docker/0af3\n1:name=systemd:/docker/0af3",
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 128 * MB,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 100 * MB,
            "sys/fs/cgroup/memory/memory.stat": (
                f"inactive_file 1\nhierarchical_memory_limit {128 * MB}\n"
                f"total_inactive_file {30 * MB}"
            ),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": 75000,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100000,
        },
    )
    assert memory_limit_bytes(root) == 128 * MB
    assert memory_used_bytes(root) == 70 * MB
    assert cpu_limit(root) == 0.75


def test_version_1_tells_of_groups_that_cannot_be_seen(machine):
    """A pod's limit holds for its containers, which see only themselves."""
    root = machine(
        SPLIT.replace(" / /sys", " /kubepods/pod1/c1 /sys"),
        "5:memory:/kubepods/pod1/c1\n4:cpu,cpuacct:/kubepods/pod1/c1",
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": NO_LIMIT,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 10 * MB,
            "sys/fs/cgroup/memory/memory.stat": f"hierarchical_memory_limit {64 * MB}",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": -1,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100000,
        },
    )
    assert memory_limit_bytes(root) == 64 * MB
    assert memory_used_bytes(root) == 10 * MB
    assert cpu_limit(root) == CORES


@pytest.mark.parametrize("number", [NO_LIMIT, "9223372036854710272"])
def test_version_1_says_no_limit_by_a_huge_number(machine, number):
    """Which one depends on the size of pages."""
    root = machine(
        SPLIT, "5:memory:/\n4:cpu,cpuacct:/", {"sys/fs/cgroup/memory/memory.limit_in_bytes": number}
    )
    assert memory_limit_bytes(root) == psutil.virtual_memory().total


def test_a_hybrid_machine_has_each_controller_at_one_mount(machine):
    """Memory by version 1 beside processors by version 2."""
    root = machine(
        f"{SPLIT.splitlines()[0]}\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw",
        "4:memory:/jobs/one\n1:name=systemd:/elsewhere\n0::/jobs/two",
        {
            "sys/fs/cgroup/memory/jobs/one/memory.limit_in_bytes": 96 * MB,
            "sys/fs/cgroup/memory/jobs/one/memory.usage_in_bytes": 32 * MB,
            "sys/fs/cgroup/memory/jobs/two/memory.limit_in_bytes": MB,
            "sys/fs/cgroup/unified/cgroup.controllers": "cpu",
            "sys/fs/cgroup/unified/jobs/two/cpu.max": "40000 100000",
        },
    )
    assert memory_limit_bytes(root) == 96 * MB
    assert memory_used_bytes(root) == 32 * MB
    assert cpu_limit(root) == 0.4


def test_a_process_that_was_moved_out_of_its_namespace(machine):
    """Its path leads up and out: only the mount itself is looked at, and nothing outside of it."""
    root = machine(
        UNIFIED,
        "0::/../secret",
        {"sys/fs/secret/memory.max": MB, "sys/fs/cgroup/memory.max": 200 * MB},
    )
    assert memory_limit_bytes(root) == 200 * MB


def test_a_mount_whose_name_has_a_space(machine):
    """The kernel writes it as an octal number."""
    root = machine(
        UNIFIED.replace("/sys/fs/cgroup", r"/my\040groups"),
        "0::/",
        {"my groups/memory.max": 77 * MB},
    )
    assert memory_limit_bytes(root) == 77 * MB


def test_a_machine_without_groups_is_the_host(tmp_path):
    """As on macOS."""
    host = psutil.virtual_memory()
    assert memory_limit_bytes(tmp_path) == host.total
    assert 0 < memory_used_bytes(tmp_path) < host.total
    assert cpu_limit(tmp_path) == CORES


def test_this_machine():
    """Whatever it has, its limits are within the host's."""
    assert 0 < memory_used_bytes() <= memory_limit_bytes() <= psutil.virtual_memory().total
    assert 0 < cpu_limit() <= CORES


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=200))
def test_numbers_that_are_none_are_no_limit(tmp_path_factory, text):
    """Whatever a file says, it is a limit or it is none."""
    root = tmp_path_factory.mktemp("machine")
    for name, content in {
        "proc/self/mountinfo": UNIFIED,
        "proc/self/cgroup": "0::/",
        "sys/fs/cgroup/memory.max": text,
        "sys/fs/cgroup/cpu.max": text,
    }.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    assert 0 <= memory_limit_bytes(root) <= psutil.virtual_memory().total
    assert 0 < container.cpu_limit(root) <= CORES
