"""What a page tells of synthetic images: how they look, how good they are, how they were made."""

import re
from typing import Any

from jaxpmi.runs.writers.html_report import figures
from jaxpmi.runs.writers.html_report.embedded import embed_file
from jaxpmi.runs.writers.html_report.embedded import embed_grid
from jaxpmi.runs.writers.html_report.embedded import num_pixels
from jaxpmi.runs.writers.html_report.numbers import is_number
from jaxpmi.runs.writers.html_report.numbers import percent
from jaxpmi.runs.writers.html_report.numbers import plain
from jaxpmi.runs.writers.html_report.parts import Details
from jaxpmi.runs.writers.html_report.parts import Figure
from jaxpmi.runs.writers.html_report.parts import Section
from jaxpmi.runs.writers.html_report.parts import Table
from jaxpmi.runs.writers.html_report.parts import Text
from jaxpmi.runs.writers.html_report.results import SCENE_MEASURE
from jaxpmi.runs.writers.html_report.results import measure_of
from jaxpmi.runs.writers.html_report.run_files import RunFiles
from jaxpmi.runs.writers.pictures import read_image_grid
from jaxpmi.runs.writers.words import TERMS

# What keeps the page small, and its making short: of the last picture, and of all before it.
NEWEST_PIXELS, OLDER_PIXELS, MOST_OLDER = 600_000, 400_000, 4
MOST_READ = 40_000_000  # pixels of a picture that is read: about a second, and 400 MB


def pictures(run: RunFiles) -> Section | None:
    """The pictures that the run has written, the last one unfolded."""
    paths = run.pictures()
    if not paths:
        return None
    *older, newest = paths
    parts = [_picture(run, newest, NEWEST_PIXELS)]
    shown = older[:: -(-len(older) // MOST_OLDER)] if older else []
    for path in reversed(shown):
        part = _picture(run, path, OLDER_PIXELS // len(shown))
        parts.append(Details(_when(run, path).capitalize(), [part]))
    if len(shown) < len(older):
        parts.append(Text("The pictures of the other tasks are in images/."))
    return Section("pictures", "Pictures", parts)


def _picture(run, path, most_pixels):
    """A picture's content, or the picture as it is, or where it lies."""
    caption = _caption(run, path)
    if num_pixels(path) <= MOST_READ:
        grid = read_image_grid(path)
        if grid is not None and grid.class_names:
            return embed_grid(grid, caption, most_pixels)
        if (whole := embed_file(path, caption, caption)) is not None:
            return whole
    return Text(f"images/{path.name} is too large for this page. {caption}")


def _when(run, path):
    """What a picture is of, in terms of tasks counted from 1."""
    found = re.fullmatch(r"task(\d+)", path.stem)
    if found is None:
        return f"images/{path.name}"
    if measure_of(run) == SCENE_MEASURE:
        return f"after task {int(found[1]) + 1}"
    return f"before task {int(found[1]) + 1}"


def _caption(run, path):
    when = _when(run, path)
    if measure_of(run) == SCENE_MEASURE:
        return f"Test scenes {when}: image, true labels, predicted labels."
    if path.stem == "grid":
        return "Pictures of each class, made from the network."
    if path.stem == "synthetic":
        return "Synthetic images of each class, the newest first, beside real test images."
    return (
        f"Synthetic images of old classes, made {when}, beside real test images of these classes, "
        "which took no part in making them."
    )


def entries(run: RunFiles) -> list[dict[str, Any]]:
    """What is told of the images made before every task, by name, with `task` from 0."""
    told = run.summary.get("inversion", [])
    if run.finished:
        return told.get("tasks", []) if isinstance(told, dict) else told
    found: dict[int, dict[str, list[float]]] = {}
    for scalar in run.scalars(r"(invert|judge|generate)(/block[\d.]+)?"):
        block = scalar.phase.partition("/")[2]
        name = f"{block}/{scalar.name}" if block else scalar.name
        found.setdefault(scalar.task, {}).setdefault(name, []).append(scalar.value)
    return [
        {"task": task, **{name: sum(v) / len(v) for name, v in of.items()}}
        for task, of in found.items()
    ]


def inversion(run: RunFiles) -> Section | None:
    """How good the images are, and how their loss fell."""
    told = [entry for entry in entries(run) if len(entry) > 1]
    if not told:
        return None
    parts = [*_quality(run, told), *_losses(run, told), *_blocks(run, told)]
    return Section("inversion", "Synthetic images", parts) if parts else None


def _quality(run, told):
    """A row per task; only columns of which there is a number."""
    columns = {
        "num_images": ("images", plain),
        "trained_on_synthetic": ("trained on synthetic", percent),
        "spread": ("spread", plain),
        "agreement": ("agreement", percent),
    }
    columns = {k: v for k, v in columns.items() if any(is_number(e.get(k)) for e in told)}
    if not columns:
        return []
    rows = [
        [_name(run, entry), *(write(entry.get(key)) for key, (_, write) in columns.items())]
        for entry in told
    ]
    meanings = {
        "trained_on_synthetic": "Trained on synthetic: of the real test images of these classes, "
        "the share that a simple classifier names rightly that has seen the synthetic images alone "
        "(the same classifier in all runs).",
        "spread": "Spread: the mean distance of two images of a class over that of two real ones; "
        "ideally 1.",
        "agreement": "Agreement: the share of images that the inverted network itself gives the "
        "intended label, which says much less.",
    }
    each = " before each task" if _has_tasks(run) else ""
    heads = [each.removeprefix(" ").replace("each ", ""), *(v for v, _ in columns.values())]
    table = Table(f"The images made{each}.", heads, rows)
    return [table, Text(" ".join(text for key, text in meanings.items() if key in columns))]


def _has_tasks(run):
    return run.setting("job", "continual") == "continual"


def _name(run, entry):
    return f"{entry['task'] + 1}" if _has_tasks(run) else "all"


def _losses(run, told):
    """Loss at the first step and of the images, and the terms that it is made of."""
    what = "the refinement through the whole network" if _has_tasks(run) else "making the images"
    if not any("final_loss" in entry for entry in told):
        what = "the generator"
    both = [e for e in told if is_number(e.get("initial_loss")) and is_number(e.get("final_loss"))]
    parts = []
    if len(both) > 1:
        falls = [figures.Fall(_name(run, e), e["initial_loss"], e["final_loss"]) for e in both]
        caption = (
            f"Loss of {what}: at its first step (open) and of the images made (filled), mean over "
            "the batches before each task."
        )
        parts.append(Figure(caption, figures.draw_falls(falls, "refinement", "before task")))
    names = {"initial_loss": "at the first step", "final_loss": "of the images", "loss": "mean"}
    names = {key: text for key, text in names.items() if any(key in entry for entry in told)}
    if not names:
        return []
    rows = [[f"loss, {text}", *_values(told, key), "all terms"] for key, text in names.items()]
    for key in dict.fromkeys(key for entry in told for key in entry):
        term = key.removeprefix("final_")
        if term != "loss" and (term in TERMS or key.startswith("final_")):
            rows.append([term.replace("_", " "), *_values(told, key), TERMS.get(term, "")])
    heads = [f"before task {e['task'] + 1}" for e in told] if len(told) > 1 else ["value"]
    table = Table(f"Loss of {what}, and its terms.", ["", *heads, "what it is"], rows)
    return [*parts, Details("Loss and its terms", [table])]


def _values(told, key):
    return [plain(entry.get(key)) for entry in told]


def _blocks(run, told):
    """Losses of blocks that were inverted one by one, before the last task."""
    last = told[-1]
    blocks = [key.rpartition("/")[0] for key in last if key.endswith("/initial_loss")]
    ends = ("initial_loss", "final_loss")
    blocks = [b for b in blocks if all(is_number(last.get(f"{b}/{end}")) for end in ends)]
    blocks.sort(key=lambda block: [*map(int, re.findall(r"\d+", block))], reverse=True)
    falls = [
        figures.Fall(
            block.removeprefix("block").lstrip("0") or "0",
            last[f"{block}/initial_loss"],
            last[f"{block}/final_loss"],
        )
        for block in blocks
    ]
    if not falls:
        return []
    caption = (
        "Loss of every block, inverted one after the other from the last (left) to the first: at "
        f"its first step (open) and of the inputs found (filled), before task {last['task'] + 1}."
    )
    rows = [[fall.name, plain(fall.first), plain(fall.last)] for fall in falls]
    table = Table("Loss by block.", ["block", "at the first step", "of the inputs found"], rows)
    svg = figures.draw_falls(falls, "blocks", "block")
    return [Figure(caption, svg), Details("The same as numbers", [table])]
