"""The benchmark's rows as tables in Markdown, and as lines while they come."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from benchmarks.device import SECTIONS

Row = Mapping[str, Any]


class Column(NamedTuple):
    """What of a row a column shows."""

    title: str
    field: str
    show: Callable[[Any], str] = str


def _scaled(factor, digits=3):
    return lambda value: f"{value * factor:.{digits}g}"


def _percent(value):
    return f"{100 * value:.1f} %"


def _yes(value):
    return "yes" if value else "NO"


def _where(in_loop):
    return "loop" if in_loop else "alone"


CASE = Column("case", "case")
COLUMNS = {
    "machine": (
        CASE, Column("TFLOP/s", "flops_per_second", _scaled(1e-12)),
        Column("GB/s", "bytes_per_second", _scaled(1e-9)), Column("ms", "seconds", _scaled(1e3)),
    ),
    "parity": (
        CASE, Column("precision", "precision"), Column("matmuls", "matmul_precision"),
        Column("difference", "difference", "{:.1e}".format),
        Column("tolerance", "tolerance", "{:g}".format), Column("of", "array"),
        Column("same", "passed", _yes),
    ),
    "speed": (
        CASE, Column("precision", "precision"), Column("batch", "batch"),
        Column("step, ms", "step_seconds", _scaled(1e3)),
        Column("images/s", "images_per_second", _scaled(1)),
        Column("TFLOP/s", "flops_per_second", _scaled(1e-12)), Column("counted by", "flops_from"),
        Column("of the peak", "share_of_peak", _percent),
        Column("program, GB", "program_bytes", _scaled(1e-9)),
        Column("compile, s", "compile_seconds", _scaled(1)), Column("finite", "finite", _yes),
    ),
    "job": (
        CASE, Column("whole, s", "total_seconds", _scaled(1)),
        Column("last accuracy", "last_accuracy", _percent),
        Column("peak memory, GB", "peak_bytes", _scaled(1e-9)),
    ),
    "idle": (
        CASE, Column("phase", "phase"), Column("step, ms", "step_seconds", _scaled(1e3)),
        Column("its program, ms", "program_seconds", _scaled(1e3)),
        Column("host's share", "host_share", _percent),
        Column("idle by the profiler", "idle_share", _percent), Column("traced", "traced"),
    ),
    "convolutions": (
        CASE, Column("kind", "kind"), Column("what", "what"), Column("where", "in_loop", _where),
        Column("by hand, ms", "hand_seconds", _scaled(1e3)),
        Column("XLA's, ms", "xla_seconds", _scaled(1e3)),
        Column("XLA's over ours", "xla_over_hand", _scaled(1)), Column("faster", "faster"),
        Column("used", "used"),
    ),
    "pytorch": (
        CASE, Column("PyTorch", "version"), Column("mode", "mode"),
        Column("ours, ms", "step_seconds", _scaled(1e3)),
        Column("PyTorch's, ms", "torch_step_seconds", _scaled(1e3)),
        Column("PyTorch's over ours", "torch_over_ours", _scaled(1)),
        Column("losses differ by", "difference", "{:.1e}".format), Column("same", "passed", _yes),
    ),
}  # fmt: skip


def tables(rows: Sequence[Row]) -> str:
    """A table per section that has rows; what the machine is comes first, as a line."""
    parts = []
    for section in SECTIONS:
        mine = [row for row in rows if row["section"] == section]
        described = [row for row in mine if "kind" in row and section == "machine"]
        parts += [_machine_line(row) for row in described]
        mine = [row for row in mine if row not in described]
        if mine:
            parts.append(f"## {section}\n\n{table(mine, COLUMNS[section])}")
    return "\n\n".join(parts)


def table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Markdown, a line per row; a row without results says why in the second column."""
    lines = ["| " + " | ".join(c.title for c in columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        why = why_not(row)
        if why:
            cells = [str(row["case"]), why] + [""] * (len(columns) - 2)
        else:
            cells = [_cell(row, column) for column in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def line(row: Row) -> str:
    """A row while the run goes on."""
    why = why_not(row)
    shown = why or ", ".join(
        f"{column.title} {_cell(row, column)}"
        for column in COLUMNS[row["section"]][1:]
        if _cell(row, column)
    )
    return f"{row['section']}: {row['case']}: {shown or _machine_line(row)}"


def why_not(row: Row) -> str:
    """Why a row has no results; "" if it has."""
    if "error" in row:
        return f"ERROR: {row['error']}"
    return f"skipped: {row['skipped']}" if "skipped" in row else ""


def _cell(row, column):
    value = row.get(column.field)
    return "" if value is None else column.show(value).replace("|", "/")


def _machine_line(row):
    names = ("platform", "kind", "count", "driver", "runtime", "default_float32_is", "python")
    names += ("jax", "jaxlib", "flax", "optax", "numpy")
    told = [f"{name} {row[name]}" for name in names if row.get(name) is not None]
    if row.get("free_bytes"):
        told.append(f"{row['free_bytes'] / 1e9:.1f} GB free")
    return ", ".join(told)
