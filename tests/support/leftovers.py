"""Virtual time, and what work leaves behind that should have ended."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import traceback
import warnings

_OURS = ("ragaccel", "anyio", "tests/batching")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when nothing else is to be done."""

    def __init__(self):
        super().__init__()
        self._now = 0.0

    def time(self):
        return self._now

    def _run_once(self):
        if not self._ready and self._scheduled:
            self._now = max(self._now, self._scheduled[0].when())
        super()._run_once()


def run_virtually(main):
    """Run a coroutine in virtual time, and see that no task is left when it is done."""
    loop = VirtualLoop()

    async def whole():
        found = await main
        await settled()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return found

    try:
        return loop.run_until_complete(whole())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def settled():
    """Let pass what is due already, abandoned generators among it."""
    for _ in range(20):
        await asyncio.sleep(0)


@contextlib.contextmanager
def nothing_left(caplog, monkeypatch):
    """See that no thread goes on, and that nobody complains of coroutines, tasks or streams."""
    complaints = []

    def complain(one):
        if _is_ours(one):
            complaints.append(f"{one.err_msg} {one.object!r}: {one.exc_value!r}")

    monkeypatch.setattr(sys, "unraisablehook", complain)
    before = set(threading.enumerate())
    gc.freeze()  # so that collecting looks at what is new only
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        gc.collect()
    gc.unfreeze()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), thread
    assert not complaints, complaints
    assert not [one for one in caplog.records if one.name == "asyncio"]


def _is_ours(one):
    """Tell it apart from sockets, loops and coroutines that other tests left to the collector."""
    codes = [getattr(one.object, name, None) for name in ("cr_code", "ag_code", "gi_code")]
    files = [code.co_filename for code in codes if code is not None]
    files += [frame.filename for frame in traceback.extract_tb(one.exc_traceback)]
    about_a_stream = "MemoryObject" in str(one.exc_value)
    return about_a_stream or any(part in file for file in files for part in _OURS)
