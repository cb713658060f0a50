"""What a page tells of cost: time and memory, and what is kept between tasks."""

import math

from jaxpmi.runs.writers.html_report.numbers import counted
from jaxpmi.runs.writers.html_report.numbers import in_bytes
from jaxpmi.runs.writers.html_report.numbers import in_seconds
from jaxpmi.runs.writers.html_report.numbers import is_number
from jaxpmi.runs.writers.html_report.numbers import percent
from jaxpmi.runs.writers.html_report.parts import Section
from jaxpmi.runs.writers.html_report.parts import Table
from jaxpmi.runs.writers.html_report.parts import Text
from jaxpmi.runs.writers.html_report.results import SCENE_MEASURE
from jaxpmi.runs.writers.html_report.results import measure_of
from jaxpmi.runs.writers.html_report.run_files import RunFiles
from jaxpmi.runs.writers.words import KEPT
from jaxpmi.runs.writers.words import PHASES

NETWORKS = ("model", "adapters")  # of what is kept, what any method needs


def cost(run: RunFiles) -> Section | None:
    """Seconds and memory, phase by phase."""
    seconds, rises = run.summary.get("seconds"), run.summary.get("memory_rise_bytes", {})
    if not seconds:
        return None
    total = seconds.get("total", 0.0)
    rows = []
    for name, value in seconds.items():
        if name in ("total", "compile") or not (value or rises.get(name)):
            continue
        word = PHASES.get(name)
        rows.append(
            [word.name if word else name, in_seconds(value, total)]
            + ([in_bytes(rises.get(name))] if rises else [])
            + [word.meaning if word else ""]
        )
    peak = run.summary.get("peak_memory_bytes")
    rows.append(
        ["together", in_seconds(total), *([in_bytes(peak)] if rises else []), "the whole run"]
    )
    on_device = run.summary.get("device", {}).get("platform", "cpu") != "cpu"
    of = "of the device" if on_device else "of the process"
    columns = ["phase", "time", *(["memory"] if rises else []), "what it is"]
    notes = []
    if is_number(seconds.get("compile")):
        notes.append(
            f"Of this time {in_seconds(seconds['compile']).text} went into compiling programs."
        )
    if rises:
        notes.append(
            f"Memory is by how much a phase raised the peak {of}; the start has all before it."
        )
    elif is_number(peak):
        notes.append(f"Peak of memory, {of}: {in_bytes(peak).text}.")
    table = Table("Time and memory by phase.", columns, rows, drawn="bars")
    return Section("cost", "Time and memory", [table, Text(" ".join(notes))])


def kept(run: RunFiles) -> Section | None:
    """Bytes kept between tasks, against those of the images that are not."""
    parts = run.summary.get("bytes_kept_between_tasks")
    if not parts:
        return None
    total = sum(parts.values())
    beside = total - sum(parts.get(name, 0) for name in NETWORKS)
    rows = []
    for name, count in parts.items():
        if count:
            word = KEPT.get(name)
            text = word.meaning if word else ""
            rows.append([word.name if word else name, in_bytes(count, total), text])
    rows.append(["together", in_bytes(total), f"{in_bytes(beside).text} beside the network"])
    table = Table("Bytes kept between tasks.", ["part", "bytes", "what it is"], rows, drawn="bars")
    return Section("kept", "What is kept", [table, *_images_not_kept(run, total, beside)])


def _images_not_kept(run, total, beside):
    """The comparison with a buffer of all training images."""
    facts = run.data.get("data", {})
    count, size = facts.get("images", {}).get("train"), facts.get("image_size")
    if not count or not size:
        return []
    scenes = measure_of(run) == SCENE_MEASURE
    of_one = math.prod(size) * (facts["channels"] + scenes)
    buffer = count * of_one
    labels = ", label maps included" if scenes else ""
    text = (
        f"No image is kept. All {count:,} training images, stored raw as bytes{labels}, would take "
        f"{in_bytes(buffer).text}. What is kept is {percent(total / buffer).text} of that, and "
        f"{percent(beside / buffer).text} without the network; in place of the latter "
        f"{counted(beside // of_one, 'image')} could be kept."
    )
    if run.setting("method") == "joint":
        text = (
            f"This method reads all images of old classes anew in every task; they take "
            f"{in_bytes(buffer).text}."
        )
    return [Text(text)]
