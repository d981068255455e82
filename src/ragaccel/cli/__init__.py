"""The `ragaccel` command: one file or folder per subcommand."""

import typer

from ragaccel.cli.bench import bench
from ragaccel.cli.demo.command import demo
from ragaccel.cli.inspect import inspect
from ragaccel.cli.inspect_store import store
from ragaccel.cli.top import top
from ragaccel.cli.tune import tune

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(demo)
app.command()(bench)
app.command()(top)
app.command()(tune)
inspect.command()(store)
app.add_typer(inspect, name="inspect")


@app.callback()
def main() -> None:
    """Make an existing LlamaIndex or LangChain RAG application faster, smaller and observable."""
