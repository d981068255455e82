"""Running the roles of `children` in processes of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

from tests.vectors import children


@contextlib.contextmanager
def child(role, folder, *arguments):
    """Run a role of `children` in a process of its own; kill it at the end."""
    process = subprocess.Popen(
        [sys.executable, children.__file__, role, str(folder), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()
