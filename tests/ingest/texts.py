"""Documents, transformations and a model that worker processes can import without a framework."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np

DIM = 16


class HashModel:
    """Every text has a direction of its own, the same in every process.

    What it is asked is told to `callbacks`. A text with "unembeddable" in it fails.
    """

    def __init__(self, seed=0):
        self.seed = seed
        self.callbacks = []

    def embed(self, texts):
        for callback in self.callbacks:
            callback(texts)
        if any("unembeddable" in text for text in texts):
            raise ValueError("a text that cannot be embedded")
        return np.stack([self.vector(text) for text in texts])

    def vector(self, text):
        number = hashlib.blake2b(f"{self.seed} {text}".encode(), digest_size=8).digest()
        generator = np.random.default_rng(int.from_bytes(number, "big"))
        return generator.standard_normal(DIM).astype(np.float32)


def parts(text):
    """Split at full stops; a text with "poison" in it fails."""
    if "poison" in text:
        raise ValueError("poison")
    return [part.strip() for part in text.split(".") if part.strip()]


def sentences(document):
    """Split (id, text, metadata) at full stops."""
    return parts(document[1])


def numbered(document):
    """Split at full stops and number the chunks in their metadata."""
    return [(part, {"number": at}) for at, part in enumerate(parts(document[1]))]


def deadly(document):
    """Split at full stops, in a process that dies of "lethal"."""
    if "lethal" in document[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return sentences(document)


def odd(document):
    """Fail with an error that does not come out of a pickle as it went in."""
    raise OddError(1, 2)


class OddError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Slow:
    """A transformation that takes some milliseconds and notes the process that it is in."""

    def __init__(self, transform, pids):
        self.transform, self.pids = transform, pids

    def __call__(self, document):
        note(self.pids)
        time.sleep(0.004)
        return applied(self.transform, document)


class Counted:
    """A transformation that counts documents, for its class: an own count would be a setting."""

    count = 0

    def __init__(self, transform):
        self.transform = transform

    def __call__(self, document):
        Counted.count += 1
        return applied(self.transform, document)


def applied(transform, document):
    """Return what a transformation of any kind makes of one document."""
    if isinstance(document, tuple):
        return transform(document)
    if hasattr(transform, "transform_documents"):
        return transform.transform_documents([document])
    return transform([document])


def endless(document):
    """Note the own process, and take very long."""
    note(document[2]["path"])
    time.sleep(600)


def note(pids):
    """Note the own process in a folder."""
    (Path(pids) / str(os.getpid())).touch()


def unpicklable_lock(document):
    """Return a chunk that no store can hold."""
    return [("text", {"lock": threading.Lock()})]


def documents(count, salt=0):
    """Return (id, text, metadata) of some sentences each, the same for the same salt."""
    generator = np.random.default_rng(salt)
    made = []
    for number in range(count):
        words = generator.integers(0, 500, (int(generator.integers(1, 9)), 6))
        text = ". ".join(" ".join(f"word{one}" for one in row) for row in words)
        made.append((f"document-{number}", f"{text}.", {"number": number}))
    return made


def rows(collection):
    """Return all that a collection holds, by id."""
    return {
        row.id: (row.text, row.metadata, row.document_id, row.payload, row.vector.tobytes())
        for row in collection.select(vectors=True)
    }
