"""What a page tells for the record: data, settings, versions, and how to do it again."""

import dataclasses
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import NamedTuple

from jaxpmi.config import Config
from jaxpmi.config.load import ABSENT
from jaxpmi.config.settings import annotations
from jaxpmi.config.settings import meaning
from jaxpmi.runs.writers.html_report.numbers import counted
from jaxpmi.runs.writers.html_report.numbers import listed
from jaxpmi.runs.writers.html_report.numbers import plain
from jaxpmi.runs.writers.html_report.parts import Code
from jaxpmi.runs.writers.html_report.parts import Details
from jaxpmi.runs.writers.html_report.parts import Entries
from jaxpmi.runs.writers.html_report.parts import Entry
from jaxpmi.runs.writers.html_report.parts import Section
from jaxpmi.runs.writers.html_report.parts import Table
from jaxpmi.runs.writers.html_report.parts import Text
from jaxpmi.runs.writers.html_report.results import classes_of_tasks
from jaxpmi.runs.writers.html_report.run_files import RunFiles

MOST_CLASSES = 20  # of which the table is not folded away


class Setting(NamedTuple):
    """A setting of a run beside what this version says of it."""

    path: str
    value: Any
    default: Any
    meaning: str


def data(run: RunFiles) -> Section | None:
    """What was read, set by set."""
    parts = [part for name, facts in run.data.items() for part in _set(run, name, facts)]
    return Section("data", "What was read", parts) if parts else None


def _set(run, name, facts):
    size, channels = facts.get("image_size", []), facts.get("channels")
    counts = facts.get("images", {})
    rows = [
        ["images", ", ".join(f"{count:,} for {split}ing" for split, count in counts.items())],
        ["size", " × ".join(map(str, reversed(size))) + f" pixels, {counted(channels, 'channel')}"],
        ["fingerprint", facts.get("fingerprint")],
    ]
    for key in ("mean", "std"):
        if key in facts:
            text = ", ".join(f"{value:.4f}" for value in facts[key])
            rows.append([f"{key} of pixels", f"{text} (of values in [0, 1], by channel)"])
    passed = facts.get("passed_over", [])
    rows += [["passed over", _passed_over(entry)] for entry in passed]
    if not passed:
        rows.append(["passed over", "nothing"])
    title = "The data" if len(run.data) == 1 else name.replace("_", " ").capitalize()
    return [Table(f"{title}.", [], rows), *_groups(run, facts)]


def _passed_over(entry):
    return ", ".join(f"{value}" for value in entry.values()) if isinstance(entry, dict) else entry


def _groups(run, facts):
    """Images of every class, or domain, and the task that it comes in."""
    domains = "images_of_domains" in facts
    counts = facts.get("images_of_domains" if domains else "images_of_classes", {})
    names = facts.get("domains" if domains else "classes", [])
    tasks = {
        name: task + 1 for task, of in enumerate(classes_of_tasks(run)) for name in of
    } if not domains else {}  # fmt: skip
    rows = [
        [name, *([str(tasks.get(name, ""))] if tasks else [])]
        + [plain(of[index]) for of in counts.values()]
        for index, name in enumerate(names)
    ]
    rows.sort(key=lambda row: tasks.get(row[0], len(tasks) + 1))
    unit = "domain" if domains else "class"
    columns = [unit, *(["task"] if tasks else []), *(f"{split}ing" for split in counts)]
    table = Table(f"Images of every {unit}.", columns, rows)
    if domains:
        return [Text(f"Classes: {listed(facts.get('classes', []), 40)}."), table]
    return [table] if len(rows) <= MOST_CLASSES else [Details(f"{len(rows)} classes", [table])]


def settings(run: RunFiles) -> Section:
    """Every setting, and which are not the defaults."""
    every = list(_settings(run.config, Config))
    changed = [s for s in every if s.value != s.default and s.path != "workdir"]
    parts: list = [Text("All settings are the defaults.")]
    if changed:
        entries = [
            Entry(
                s.path, said(s.value), None if s.default == ABSENT else said(s.default), s.meaning
            )
            for s in changed
        ]
        parts = [Entries("Settings that are not the defaults.", entries)]
    entries = [Entry(s.path, said(s.value), None, s.meaning) for s in every]
    parts.append(Details(f"All {len(every)} settings", [Entries("Every setting.", entries)]))
    parts.append(Details("config.json", [Code(json.dumps(run.config, indent=1))]))
    return Section("settings", "Settings", parts)


def _settings(values: dict[str, Any], owner: type | None, prefix: str = "") -> Iterator[Setting]:
    """Those of a run, which may have been of another version with other ones."""
    fields = {f.name: f for f in dataclasses.fields(owner)} if owner else {}
    for name, value in values.items():
        kind = annotations(owner)[name][0] if name in fields else None
        if isinstance(value, dict):
            inner = kind if dataclasses.is_dataclass(kind) else None
            yield from _settings(value, inner, f"{prefix}{name}.")
        elif name in fields:
            default = json.loads(json.dumps(fields[name].default))
            yield Setting(prefix + name, value, default, meaning(owner, name))
        else:
            yield Setting(prefix + name, value, ABSENT, "not a setting of this version")


def said(value: Any) -> str:
    """A setting's value as it is written; a text without quotation marks."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def repeat(run: RunFiles) -> Section:
    """The command, and on what it ran."""
    folder = run.folder
    begin = f"python launch/run.py --config {shlex.quote(str(folder / 'config.json'))}"
    again = folder.with_name(f"{folder.name}_again")
    parts: list = [
        Text("The same run once more, in a folder of its own:"),
        Code(f"{begin} --workdir {shlex.quote(str(again))}"),
    ]
    if not run.finished:
        parts = [Text("To go on from the last checkpoint:"), Code(_continued(run, begin)), *parts]
    device, versions = (run.summary.get(name, {}) for name in ("device", "versions"))
    if device:
        count, kind = device.get("count", 1), device.get("kind")
        rows = [["device", f"{count} × {kind} ({device.get('platform')})"]]
        rows += [[name, version] for name, version in versions.items()]
        parts.append(Table("On what it ran.", [], rows))
    else:
        parts.append(Text("Versions and device are written at the end."))
    return Section("again", "To do it again", parts)


def _continued(run, begin):
    """The command that resumes; its folder may have been moved since."""
    moved = Path(run.setting("workdir", "")) != run.folder
    return begin + (f" --workdir {shlex.quote(str(run.folder))}" if moved else "")
