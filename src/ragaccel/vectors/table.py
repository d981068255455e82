"""The table that a choice of compression was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from ragaccel.vectors.choice import Choice


def drawn(choice: Choice) -> Table:
    """Draw a row per candidate; the chosen one is bold."""
    chosen = f"{choice.spec.codec} {choice.spec.structure}"
    table = Table(
        title=f"compression for {choice.rows:,} rows at recall {choice.recall}: {chosen}",
        caption=f"limits: {choice.bytes_limit:.0f} bytes per vector"
        + ("" if choice.latency_limit_ms is None else f", {choice.latency_limit_ms} ms"),
        box=SIMPLE_HEAD,
    )
    for heading in ("codec", "structure", "bytes", "candidates", "probes", "recall@10", "at least",
                    "ms", "build s"):  # fmt: skip
        table.add_column(heading, justify="left" if heading in {"codec", "structure"} else "right")
    for one in choice.trials:
        table.add_row(
            one.spec.codec, one.spec.structure, f"{one.bytes_per_vector:.0f}",
            f"{one.effort.oversample} k", f"{one.effort.probes}", f"{one.recall:.4f}",
            f"{one.recall_bound:.4f}", f"{one.latency_ms:.3f}", f"{one.build_seconds:.1f}",
            style="bold" if one.spec == choice.spec else None,
        )  # fmt: skip
    return table
