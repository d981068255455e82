"""The house rules: layers, public face, light imports, small functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import ragaccel

_ROOT = Path(__file__).parents[1]
_SOURCES = sorted((_ROOT / "src").rglob("*.py"))
_LONGEST_FUNCTION = 80
_USUAL_FUNCTION = 40
_HEAVY = (
    "faiss", "langchain_core", "llama_index", "numpy", "opentelemetry", "pydantic", "redis",
    "rich", "typer",
)  # fmt: skip


def test_rooms_import_only_from_below():
    """The contracts in pyproject.toml hold: layers, and who may know which library."""
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_telemetry_sets_up_the_sdk():
    """The OpenTelemetry SDK and its exporters are imported where they are set up only."""
    knowing = [
        path.name
        for path in _SOURCES
        if any(name in path.read_text() for name in ("opentelemetry.sdk", "opentelemetry.exporter"))
    ]
    assert knowing == ["configure.py", "files.py"]


def test_public_names_are_sorted_and_there():
    """`__all__` is sorted, at most 20 names long, and every name can be had."""
    assert sorted(ragaccel.__all__) == ragaccel.__all__
    assert len(ragaccel.__all__) <= 20
    for name in ragaccel.__all__:
        assert getattr(ragaccel, name) is not None
    assert set(ragaccel.__all__) <= set(dir(ragaccel))


def test_functions_stay_functions_whatever_was_imported_first():
    """`accelerate` is the function even after the module it lives in was imported."""
    script = "import ragaccel.dispatch, ragaccel.cli; from ragaccel import accelerate as a; a(1)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "UnsupportedComponentError" in done.stderr


def test_importing_ragaccel_loads_nothing_heavy():
    """`import ragaccel` brings in no framework, no numpy, no OpenTelemetry."""
    script = f"import ragaccel, sys; print([m for m in {_HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_functions_are_small():
    """No function has over 80 lines, docstring left out, and 95% have 40 or fewer."""
    lengths = {
        f"{path.relative_to(_ROOT)}:{node.lineno} {node.name}": _length(node)
        for path in _SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert not {name: lines for name, lines in lengths.items() if lines > _LONGEST_FUNCTION}
    usual = sorted(lengths.values())[int(len(lengths) * 0.95)]
    assert usual <= _USUAL_FUNCTION


def test_every_error_is_drawn_in_the_tree():
    """The tree at the top of errors.py names every class below it."""
    module = ragaccel.errors
    drawn = module.__doc__ or ""
    classes = [name for name, value in vars(module).items() if isinstance(value, type)]
    assert not [name for name in classes if name not in drawn]


def test_ci_calls_the_readmes_test_command():
    """The command that README gives for the tests stands in .ci/run word for word."""
    readme = (_ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    command = next(line for line in readme if line.startswith("pip") and "pytest" in line)
    ci = (_ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert command.split("  ")[0] in ci


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    docstring = ast.get_docstring(node, clean=False)
    return lines - (docstring.count("\n") + 1 if docstring else 0)
