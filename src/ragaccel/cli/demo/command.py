"""The command: build, replay, print, and say whether the promises were kept."""

from __future__ import annotations

import tempfile
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from ragaccel import MultiLevelCache, telemetry
from ragaccel.cli.demo import report
from ragaccel.cli.demo.corpus import load_corpus
from ragaccel.cli.demo.models import load_model
from ragaccel.cli.demo.pipelines import LangChain, LlamaIndex
from ragaccel.cli.demo.replay import RememberingModel, Replay
from ragaccel.cli.demo.report import Comparison, Summary
from ragaccel.cli.demo.stages import StageTimes
from ragaccel.cli.demo.traffic import Ask, repeat_ceiling, traffic, web_draws, zipf_draws
from ragaccel.cli.faults import show
from ragaccel.errors import ConfigurationError, RagaccelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ragaccel.cli.demo.models import TextModel
    from ragaccel.cli.demo.pipelines import Framework
    from ragaccel.cli.demo.traffic import Write

_SEED: Final = 7
_DATA: Final = Path("examples/data/xquad_en")
_CHECKOUT: Final = Path(__file__).parents[4]
_WEB_REPEATS: Final = 0.157
_EMBED_BATCH: Final = 512
_RESTART_REQUESTS: Final = 200


class ModelName(str, Enum):
    """The embedding models of the demo."""

    wordllama = "wordllama"
    minilm = "minilm"


class Profile(str, Enum):
    """How questions repeat: like a help desk's (Zipf), or like a web search log's (16%)."""

    helpdesk = "helpdesk"
    web = "web"


def demo(
    model: Annotated[
        ModelName, typer.Option(help="minilm is slower and better; it needs ragaccel\\[minilm].")
    ] = ModelName.wordllama,
    profile: Annotated[
        Profile, typer.Option("--traffic", help="How often questions repeat.")
    ] = Profile.helpdesk,
    queries: Annotated[int, typer.Option(min=10, help="Requests to replay.")] = 2000,
    plain_queries: Annotated[
        int, typer.Option(min=5, help="Requests to the plain applications, which are slow.")
    ] = 60,
    distractors: Annotated[
        int, typer.Option(min=0, help="Passages of the standard library around the answers.")
    ] = 20_000,
    otlp: Annotated[
        str | None, typer.Option(help="Send the spans there, such as http://localhost:4317.")
    ] = None,
    redis: Annotated[
        str | None, typer.Option(help="Add a Redis level, such as redis://localhost:6379.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--report", help="Write the results with plots to this file.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the questions; by default the checkout's.")
    ] = None,
) -> None:
    """Compare both frameworks, plain and accelerated, on real text with a real embedding model."""
    console = Console()
    stages = StageTimes()
    try:
        telemetry.configure(otlp, service_name="ragaccel-demo")
        telemetry.listen(stages)
        with _progress(console) as progress:
            replay = _load(model.value, data, distractors, progress)
            draws = _draws(profile, len(replay.corpus.questions), queries)
            events = traffic(draws, seed=_SEED)
            comparisons = [
                _compare(framework, replay, events, plain_queries, redis, stages, progress)
                for framework in (LlamaIndex(), LangChain())
            ]
        telemetry.flush()
    except RagaccelError as error:
        show(console, error)
        raise typer.Exit(2) from error
    finally:
        telemetry.unlisten(stages)
    summary = Summary(
        model=replay.model.name,
        dim=replay.model.dim,
        passages=len(replay.corpus.passages),
        profile=profile.value,
        requests=len(draws),
        ceiling=repeat_ceiling(draws),
        comparisons=comparisons,
    )
    report.show(summary, console)
    if html is not None:
        report.write_html(summary, html)
        console.print(f"The same with plots: {html}")
    if not all(kept for _, _, kept in summary.promises()):
        raise typer.Exit(1)


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _load(name: str, data: Path | None, distractors: int, progress: Progress) -> Replay:
    folder = data or next((one for one in (_DATA, _CHECKOUT / _DATA) if one.exists()), None)
    if folder is None or not (folder / "corpus.jsonl.gz").exists():
        raise ConfigurationError(
            f"the demo's questions are not at {folder or _DATA}: they are part of the source "
            "checkout, not of the installed package; run the demo there or pass --data FOLDER."
        )
    step = progress.add_task("reading XQuAD and the standard library", total=1)
    corpus = load_corpus(folder, distractors)
    progress.advance(step)
    model = load_model("minilm" if name == "minilm" else "wordllama")
    texts = [one.text for one in corpus.passages]
    vectors = _embed(model, texts, progress)
    questions = model.embed([one.text for one in corpus.questions])
    return Replay(corpus, RememberingModel(model, texts, vectors), vectors, questions)


def _embed(model: TextModel, texts: list[str], progress: Progress) -> NDArray[np.float32]:
    step = progress.add_task(f"embedding with {model.name}", total=len(texts))
    parts = []
    for start in range(0, len(texts), _EMBED_BATCH):
        parts.append(model.embed(texts[start : start + _EMBED_BATCH]))
        progress.advance(step, len(parts[-1]))
    return np.concatenate(parts)


def _draws(profile: Profile, questions: int, queries: int) -> list[int]:
    if profile is Profile.helpdesk:
        return zipf_draws(questions, queries, seed=_SEED)
    most = int(questions / (1 - _WEB_REPEATS))
    return web_draws(questions, min(queries, most), repeats=_WEB_REPEATS, seed=_SEED)


def _compare(
    framework: Framework,
    replay: Replay,
    events: list[Ask | Write],
    plain_queries: int,
    redis: str | None,
    stages: StageTimes,
    progress: Progress,
) -> Comparison:
    name, passages = framework.name, replay.corpus.passages
    asks: list[Ask | Write] = [one for one in events if isinstance(one, Ask)]
    few = asks[:plain_queries]
    step = progress.add_task(f"{name}: plain", total=len(few))
    plain_application = framework.plain(replay.model, passages)
    plain = replay.run(plain_application, None, replay.truth(), few, lambda: progress.advance(step))
    again = asks[-_RESTART_REQUESTS:]
    step = progress.add_task(f"{name}: accelerated", total=len(events) + len(again))

    def advance() -> None:
        progress.advance(step)

    with tempfile.TemporaryDirectory() as folder:
        place, namespace = Path(folder) / "cache", f"demo-{Path(folder).name}"
        cache = MultiLevelCache.open(place, redis=redis, namespace=namespace)
        application = framework.accelerated(replay.model, passages, Path(folder) / "corpus", cache)
        assert application.collection is not None  # noqa: S101 - the accelerated one has both
        assert application.restart is not None  # noqa: S101
        stages.clear()
        truth = replay.truth()
        fast = replay.run(application, cache, truth, events, advance)
        seconds = {outcome: dict(by_stage) for outcome, by_stage in stages.seconds.items()}
        cache.close()
        cache = MultiLevelCache.open(place, redis=redis, namespace=namespace)
        restarted = replay.run(application.restart(cache), cache, truth, again, advance)
        stats = application.collection.stats()
        cache.clear()
        cache.close()
        application.collection.close()
    return Comparison(name, plain, fast, restarted, seconds, stats)
