"""What other processes do in the tests; run as a script with a role and arguments."""

from __future__ import annotations

import sys

from ragaccel.ingest import flow, ingest
from tests.ingest import texts
from tests.ingest.kits import KITS

DOCUMENTS = 600


def given(kit):
    """Return the documents that `run` takes in."""
    return [kit.document(id_, text) for id_, text, _ in texts.documents(DOCUMENTS)]


def run(name, folder, pids):
    """Ingest in two worker processes, slowly, in many small transactions; then say so."""
    flow._WINDOW_CHUNKS = 50
    kit = KITS[name]()
    store = kit.open(folder)
    _tell("open")
    transform = texts.Slow(kit.transform, pids)
    _tell(ingest(given(kit), store, embed=kit.model, transform=transform, workers=2))
    kit.close(store)


def outlast(pids, workers):
    """Ingest documents that take very long."""
    store = KITS["bare"]().open()
    documents = [(f"{number}", "text", {"path": pids}) for number in range(4)]
    ingest(documents, store, embed=texts.HashModel(), transform=texts.endless, workers=int(workers))


def _tell(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    {"run": run, "outlast": outlast}[sys.argv[1]](*sys.argv[2:])
