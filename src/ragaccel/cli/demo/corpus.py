"""The demo's corpus: XQuAD paragraphs with their questions, hidden among Python's own prose."""

from __future__ import annotations

import ast
import gzip
import itertools
import json
import math
import os
import re
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "encodings", "test", "tests", "idle_test"}
_BUILD_SETTINGS = "_sysconfigdata"
_COMMENT_BLOCK = re.compile(r"(?:^[ \t]*#.*\n)+", re.MULTILINE)
_COMMENT_SIGN = re.compile(r"^[ \t]*#+", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_PLAIN_WORD = re.compile(r"(?<![^\s(\"'`*])[A-Za-z]{2,}(?=[.,:;?!)\"'`*]*(?:\s|$))")
_FEWEST_PLAIN_WORDS = 5
_JOINED_BELOW = 20
_CUT_ABOVE = 80


@dataclass(frozen=True)
class Passage:
    """A text that can be retrieved."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question and the passage that answers it."""

    id: str
    text: str
    passage_id: str


@dataclass(frozen=True)
class Corpus:
    """What the demo indexes and what it asks.

    Attributes:
        passages: Those that answer a question before the distractors.
        questions: Each with the passage that answers it.
        distractors_at: Where in `passages` the distractors begin.
    """

    passages: tuple[Passage, ...]
    questions: tuple[Question, ...]
    distractors_at: int


def load_corpus(directory: Path, distractors: int = 20_000) -> Corpus:
    """Load XQuAD and add passages of the standard library as distractors.

    Args:
        directory: Where `corpus.jsonl.gz`, `queries.jsonl.gz` and `qrels.tsv.gz` are.
        distractors: How many passages of the standard library to add at most.

    Returns:
        The passages, those that answer a question before the distractors, and the questions.
    """
    passages, questions = load_xquad(directory)
    return Corpus((*passages, *stdlib_passages(distractors)), questions, len(passages))


def load_xquad(directory: Path) -> tuple[tuple[Passage, ...], tuple[Question, ...]]:
    """Load a retrieval set in the BEIR layout in which one passage answers each question.

    Args:
        directory: Where `corpus.jsonl.gz`, `queries.jsonl.gz` and `qrels.tsv.gz` are.

    Returns:
        The passages and the questions, each in the order of its file.
    """
    passages = tuple(
        Passage(row["_id"], row["title"], row["text"])
        for row in map(json.loads, _lines(directory / "corpus.jsonl.gz"))
    )
    answers = {
        question: passage
        for question, passage, _ in map(str.split, _lines(directory / "qrels.tsv.gz"))
    }
    questions = tuple(
        Question(row["_id"], row["text"], answers[row["_id"]])
        for row in map(json.loads, _lines(directory / "queries.jsonl.gz"))
    )
    return passages, questions


def stdlib_passages(limit: int) -> Iterator[Passage]:
    """Cut the prose of the running Python's standard library into passages.

    String literals come first (docstrings, the language reference behind `help()`, messages), then
    comments. Sources are parsed, never imported. Every run of one Python yields the same passages
    in the same order, and no text twice.

    Args:
        limit: How many passages to yield at most; CPython has a few more than 20,000.

    Yields:
        Passages of up to some 80 words, titled with the qualified name they belong to.
    """
    sources = dict(_stdlib_sources())
    numbers: Counter[str] = Counter()
    seen: set[str] = set()
    for title, prose in itertools.chain(_literals(sources), _comments(sources)):
        for text in _cut(prose):
            if len(seen) == limit:
                return
            if text not in seen:
                seen.add(text)
                yield Passage(f"py:{title}#{numbers[title]}", title, text)
                numbers[title] += 1


def _lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return list(file)


def _stdlib_sources() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _SKIPPED_FOLDERS)
        for file in sorted(files):
            if file.endswith(".py") and not file.startswith(_BUILD_SETTINGS):
                path = Path(folder, file)
                module = ".".join(path.relative_to(root).with_suffix("").parts)
                yield module.removesuffix(".__init__"), path.read_text("utf-8", "replace")


def _literals(sources: dict[str, str]) -> Iterator[tuple[str, str]]:
    def walk(node: ast.AST, scope: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Constant):
                if isinstance(child.value, str):
                    yield scope, child.value
            elif isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from walk(child, f"{scope}.{child.name}")
            elif not isinstance(child, ast.JoinedStr):
                yield from walk(child, scope)

    for module, source in sources.items():
        yield from walk(ast.parse(source), module)


def _comments(sources: dict[str, str]) -> Iterator[tuple[str, str]]:
    for module, source in sources.items():
        for block in _COMMENT_BLOCK.findall(source):
            yield module, _COMMENT_SIGN.sub("", block)


def _cut(prose: str) -> Iterator[str]:
    for words in _join_short(map(str.split, _BLANK_LINE.split(prose))):
        parts = math.ceil(len(words) / _CUT_ABOVE)
        for part in range(parts):
            text = " ".join(words[len(words) * part // parts : len(words) * (part + 1) // parts])
            if len(_PLAIN_WORD.findall(text)) >= _FEWEST_PLAIN_WORDS:
                yield text


def _join_short(paragraphs: Iterable[list[str]]) -> Iterator[list[str]]:
    joined: list[str] = []
    for words in paragraphs:
        joined += words
        if len(joined) >= _JOINED_BELOW:
            yield joined
            joined = []
    yield joined
