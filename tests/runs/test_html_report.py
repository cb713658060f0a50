"""Pages of runs: from what lies in a folder, finished or not, and of several runs together."""

import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from html_page import Page
from html_page import read_page

import jaxpmi
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config.load import config_to_dict
from jaxpmi.runs import writers
from jaxpmi.runs.writers.html_report import figures
from jaxpmi.runs.writers.html_report import numbers
from jaxpmi.runs.writers.html_report import synthetic
from jaxpmi.runs.writers.html_report.inline_svg import COLOURS

HOSTILE = ["</style><script>alert(1)</script>", "a & b", '"><img src=x>', "$x_1$"]
SEEN = [0.75, 0.625]
ENTRY = {
    "task": 1, "num_images": 8, "num_batches": 1, "agreement": 0.875, "initial_loss": 3.0,
    "final_loss": 0.5, "final_statistics": 0.0625, "trained_on_synthetic": 0.4375, "spread": 0.9375,
}  # fmt: skip


def write_run(folder, *, finished=True, names=HOSTILE, **changes):
    """A run of two tasks of two classes, as its files would tell of it."""
    config = Config(data=DataConfig(tasks=2), workdir=str(folder))
    config = dataclasses.replace(config, **changes)
    writers.write_json(folder / "config.json", config_to_dict(config))
    data = {
        "classes": names, "images": {"train": 40, "test": 8}, "image_size": [4, 6], "channels": 3,
        "images_of_classes": {"train": [10] * 4, "test": [2] * 4}, "fingerprint": "f00d",
        "passed_over": [{"reason": "no image", "count": 2}], "mean": [0.5] * 3, "std": [0.25] * 3,
    }  # fmt: skip
    writers.write_json(folder / "data.json", {"data": data})
    metrics = writers.MetricsWriter(folder / "metrics.jsonl")
    for step, loss in enumerate((2.0, 0.5, 1.5, 0.25), 1):
        task = f"task0{step // 3}"
        terms = {f"{task}/train/all/loss": loss, f"{task}/train/all/cross_entropy": loss}
        metrics.write(step, terms)
    blocks = {"block00/initial_loss": 4.0, "block00/final_loss": 1.0}
    blocks |= {"block01/initial_loss": 8.0, "block01/final_loss": 2.0}
    told = {k: v for k, v in (ENTRY | blocks).items() if k not in ("task", "num_images")}
    metrics.write(5, {f"task01/invert/{name}": value for name, value in told.items()})
    metrics.write(6, {"task00/evaluate/accuracy/task0": 0.75})
    metrics.write(7, {f"task01/evaluate/accuracy/task{i}": x for i, x in enumerate((0.5, 0.75))})
    metrics.close()
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6, 4, 6, 3), np.uint8), np.array([1, 0, 1, 1, 0, 0])
    order = [names[2], names[0]]
    paths = folder / "images" / "task1.png"
    writers.write_image_grid(paths, images, labels, images[::-1], labels[::-1], order)
    if finished:
        writers.write_json(folder / "summary.json", {**summary(config, blocks), "data": data})
    return images[labels == 0]


def summary(config, blocks):
    return {
        "method": config.method, "dataset": "digits", "seed": config.seed,
        "class_order": [2, 0, 3, 1], "num_tasks": 2,
        "accuracy_matrix": [[0.75, None], [0.5, 0.75]], "incremental_accuracies": SEEN,
        "last_accuracy": 0.625, "average_incremental_accuracy": 0.6875, "forgetting": 0.25,
        "backward_transfer": -0.25, "num_synthesized": 8,
        "inversion": {"tasks": [ENTRY | blocks]},
        "bytes_kept_between_tasks": {"model": 2000, "class_stats": 1440, "own": 0},
        "seconds": {"total": 75.0, "start": 15.0, "train": 60.0, "pruning": 0.0, "compile": 3.0},
        "memory_rise_bytes": {"start": 1_000_000, "train": 250_000, "pruning": 0},
        "peak_memory_bytes": 1_250_000, "versions": {"jax": "9.9"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 2},
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder, first class's synthetic images and page of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "a b"
    images = write_run(folder, seed=3)
    path = writers.write_report(folder)
    assert path == folder / writers.REPORT_FILE
    return folder, images, read_page(path)


def rows_of(page, caption):
    """The rows of the table whose caption begins so, without spaces at the cells' ends."""
    tables = [table for table in page.tables if table["caption"].strip().startswith(caption)]
    assert len(tables) == 1, [table["caption"] for table in page.tables]
    return [[cell.strip() for cell in row] for row in tables[0]["rows"]]


def test_every_chapter_is_there(run):
    _, _, page = run
    assert list(page.sections) == [
        "numbers", "accuracy", "pictures", "inversion", "training", "cost", "kept", "data",
        "settings", "again",
    ]  # fmt: skip
    assert page.title == "pmi on digits, seed 3"
    assert page.tags.count("svg") == 3  # accuracy, blocks, training


def test_numbers_are_those_of_the_summary(run):
    _, _, page = run
    assert page.numbers["numbers"] == [0.625, 0.6875, 0.25, -0.25, 8]
    assert "62.5\u202f%" in page.sections["numbers"] and "−25.0" in page.sections["numbers"]
    assert page.numbers["accuracy"] == [0.75, 0.75, 0.5, 0.75, 0.625]
    assert rows_of(page, "Accuracy on the test images")[1:] == [
        [f"1: {HOSTILE[2]}, {HOSTILE[0]}", "75.0", "", "75.0"],
        [f"2: {HOSTILE[3]}, {HOSTILE[1]}", "50.0", "75.0", "62.5"],
    ]
    quality = rows_of(page, "The images made before each task")
    assert quality[0] == ["before task", "images", "trained on synthetic", "spread", "agreement"]
    assert quality[1] == ["2", "8", "43.8\u202f%", "0.938", "87.5\u202f%"]
    assert rows_of(page, "Loss by block")[1:] == [["1", "8.00", "2.00"], ["0", "4.00", "1.00"]]
    loss = {row[0]: row[1] for row in rows_of(page, "Loss of the refinement")}
    assert loss["loss, at the first step"] == "3.00" and loss["statistics"] == "0.0625"


def test_cost_is_told_with_units(run):
    _, _, page = run
    times = {row[0]: row[1:3] for row in rows_of(page, "Time and memory")}
    assert times["training"] == ["1\u202fmin 0\u202fs", "250\u202fkB"]
    assert times["together"] == ["1\u202fmin 15\u202fs", "1.25\u202fMB"]
    assert "pruning" not in times
    kept = {row[0]: row[1] for row in rows_of(page, "Bytes kept")}
    assert kept == {
        "part": "bytes", "network": "2\u202fkB", "class statistics": "1.44\u202fkB",
        "together": "3.44\u202fkB",
    }  # fmt: skip
    # 40 images of 4 x 6 x 3 bytes are 2,880; the 1,440 bytes beside the network are 20 of them.
    text = page.sections["kept"]
    assert "would take 2.88\u202fkB" in text and "119.4\u202f%" in text and "50.0\u202f%" in text
    assert "20 images could be kept" in text


def test_hostile_names_are_text(run):
    folder, _, page = run
    text = (folder / writers.REPORT_FILE).read_text()
    assert "<script" not in text and "<img src=x" not in text
    for name in HOSTILE:
        assert name in page.sections["data"]
    alts = {image["alt"] for image in page.images}
    assert f"3 synthetic images of class {HOSTILE[0]}" in alts
    assert f"3 real test images of class {HOSTILE[2]}" in alts


def test_pictures_are_in_the_page_pixel_by_pixel(run):
    import base64
    import io

    from PIL import Image

    _, images, page = run
    assert len(page.images) == 4  # two classes, synthetic and real
    uri = page.images[0]["src"]
    assert page.images[0]["class"] == "enlarged" and uri.startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (4, 3 * 6 + 2, 4)
    for index, image in enumerate(images):
        part = pixels[:, index * 7 : index * 7 + 6]
        np.testing.assert_array_equal(part[..., :3], image)
        assert (part[..., 3] == 255).all()
    assert (pixels[:, 6, 3] == 0).all()


def test_drawings_take_the_colours_of_the_page(run):
    folder, _, _ = run
    drawn = re.findall(r"<svg.*?</svg>", (folder / writers.REPORT_FILE).read_text(), re.DOTALL)
    assert len(drawn) == 3
    for svg in drawn:
        assert 'role="img"' in svg and 'aria-label="' in svg and "var(--accent)" in svg
        assert not set(COLOURS) & set(re.findall(r"#\w{6}", svg))
        assert "http" not in svg and "font-family" not in svg


def test_settings_are_told_with_their_meaning_and_a_command_to_repeat_them(run, tmp_path):
    folder, _, page = run
    text = " ".join(page.sections["settings"].split())
    assert "seed 3 default 0 class order, initialisation, batches, noise" in text
    assert "data.tasks 2 default 5" in text
    assert f"All {len(list(jaxpmi.config.settings.leaves(Config())))} settings" in text
    command = page.sections["again"]
    assert f"--config '{folder}/config.json' --workdir '{folder}_again'" in command
    again = jaxpmi.load_config(folder / "config.json", ["--workdir", str(tmp_path)])
    assert again == Config(data=DataConfig(tasks=2), seed=3, workdir=str(tmp_path))


def test_a_page_is_the_same_each_time(run):
    folder, _, _ = run
    before = (folder / writers.REPORT_FILE).read_bytes()
    assert writers.write_report(folder).read_bytes() == before


def test_a_run_that_has_not_finished_is_told_as_far_as_it_is(tmp_path):
    write_run(tmp_path / "run", finished=False)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "tor')
    page = read_page(writers.write_report(tmp_path / "run", tmp_path / "elsewhere.html"))
    assert not (tmp_path / "run" / writers.REPORT_FILE).exists()
    text = (tmp_path / "elsewhere.html").read_text()
    assert "Not finished" in text and "Evaluated so far: 2 of 2 tasks" in text
    assert list(page.sections) == [
        "accuracy", "pictures", "inversion", "training", "data", "settings", "again",
    ]  # fmt: skip
    assert page.numbers["accuracy"] == [0.75, 0.5, 0.75]
    assert rows_of(page, "Loss by block")[1] == ["1", "8.00", "2.00"]
    assert page.sections["again"].count("--config") == 2 and "To go on" in page.sections["again"]


def test_a_run_that_has_only_begun_and_one_of_another_version(tmp_path):
    writers.write_json(tmp_path / "config.json", {"method": "pmi", "old": {"weight": 1.5}})
    page = read_page(writers.write_report(tmp_path))
    assert list(page.sections) == ["settings", "again"]
    text = " ".join(page.sections["settings"].split())
    assert "old.weight 1.5 not a setting of this version" in text


def test_data_without_test_images_have_no_curves(tmp_path):
    write_run(tmp_path)
    told = writers.read_json(tmp_path / "summary.json")
    told |= {"accuracy_matrix": [[None] * 2] * 2, "incremental_accuracies": [None] * 2}
    told |= dict.fromkeys(("last_accuracy", "average_incremental_accuracy"))
    writers.write_json(tmp_path / "summary.json", told)
    page = read_page(writers.write_report(tmp_path))
    assert "accuracy" not in page.sections and page.numbers["numbers"] == [0.25, -0.25, 8]
    page = read_page(writers.write_comparison([tmp_path, tmp_path], tmp_path / "two.html"))
    assert list(page.sections) == ["runs"]


def test_long_curves_are_thinned_to_means():
    steps = figures.Steps(0, "train", list(range(1, 1001)), [float(i // 5) for i in range(1000)])
    thin = figures._thinned(steps)
    assert thin.steps == list(range(5, 1001, 5)) and thin.losses == list(range(200))
    odd = figures._thinned(steps._replace(steps=steps.steps[:999], losses=steps.losses[:999]))
    assert odd.steps == thin.steps[:-1] and odd.losses == thin.losses[:-1]
    assert figures._thinned(odd) == odd


def test_terms_of_ones_own_are_listed(tmp_path):
    write_run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        terms = {"task01/train/all/darkness": 0.125, "task01/train/all/accuracy": 0.5}
        file.write(json.dumps({"step": 9, **terms}) + "\n")
    rows = rows_of(read_page(writers.write_report(tmp_path)), "The last values")
    assert rows == [
        ["term", "task 1", "task 2", "what it is"],
        ["loss", "0.500", "0.250", "the sum of all terms, which is minimised"],
        ["cross entropy", "0.500", "0.250", "how improbable the right label is to the network"],
        ["darkness", "–", "0.125", ""],
    ]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run: it has no config.json"):
        writers.write_report(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        writers.write_report(tmp_path)


def test_large_pictures_are_made_smaller(tmp_path):
    """And of many classes some images of the first hundred are shown."""
    rng = np.random.default_rng(0)
    images = np.repeat(rng.integers(0, 256, (240, 4, 4, 3), np.uint8), 40, 1).repeat(40, 2)
    labels = np.arange(240) % 120
    write_run(tmp_path)
    path = tmp_path / "images" / "task2.png"
    names = [f"class {i}" for i in range(120)]
    writers.write_image_grid(path, images, labels, None, None, names)
    page = read_page(writers.write_report(tmp_path))
    newest = page.images[:100]
    assert {(image["width"], image["height"]) for image in newest} == {("112", "112")}
    assert newest[-1]["alt"] == "1 synthetic images of class class 99"
    assert "The first 100 of 120 classes." in page.sections["pictures"]
    assert newest[0]["src"].startswith("data:image/webp")


def test_of_many_tasks_some_pictures_are_shown(tmp_path):
    write_run(tmp_path)
    first = tmp_path / "images" / "task1.png"
    for task in range(2, 11):
        shutil.copy(first, first.with_name(f"task{task}.png"))
    page = read_page(writers.write_report(tmp_path))
    text = page.sections["pictures"]
    assert "made before task 11," in text
    assert re.findall(r"Before task (\d+)", text) == ["8", "5", "2"]
    assert "The pictures of the other tasks are in images/." in text
    assert len(page.images) == 4 * 4


def test_other_pictures_are_taken_as_they_are(tmp_path, monkeypatch):
    from PIL import Image

    write_run(tmp_path)
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(tmp_path / "images" / "task2.png")
    page = read_page(writers.write_report(tmp_path))
    assert (page.images[0]["width"], page.images[0]["height"]) == ("7", "5")
    monkeypatch.setattr(synthetic, "MOST_READ", 34)
    page = read_page(writers.write_report(tmp_path))
    assert "images/task2.png is too large for this page" in page.sections["pictures"]
    monkeypatch.undo()
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "images" / "task2.png")
    page = read_page(writers.write_report(tmp_path))
    assert "images/task2.png is too large for this page" in page.sections["pictures"]


def test_several_runs_on_one_page(tmp_path):
    runs = {"a": {}, "b": {"seed": 1}, "c": {"finished": False}}
    runs["d"] = {"seed": 1, "method": "lwf"}
    for name, changes in runs.items():
        write_run(tmp_path / name, **changes)
    folders = [tmp_path / name for name in runs]
    page = read_page(writers.write_comparison(folders, tmp_path / "comparison.html"))
    assert page.title == "4 runs on digits, mnist5k"  # the last has no summary to name its data
    assert list(page.sections) == ["accuracy", "seeds", "runs", "settings"]
    rows = rows_of(page, "The runs")
    assert [row[0] for row in rows] == ["", "A", "B", "C", "D"]
    assert rows[1][1:6] == [str(folders[0]), "pmi", "0", "62.5\u202f%", "68.8\u202f%"]
    assert rows[3][4] == "–" and rows[3][-1] == "not finished"
    assert rows_of(page, "Settings that differ")[1:] == [
        ["seed", "0", "1", "0", "1"],
        ["method", "pmi", "pmi", "pmi", "lwf"],
    ]
    over_seeds = rows_of(page, "Mean ± sample standard deviation")
    assert over_seeds[0][:3] == ["method", "seeds", "last accuracy, %"]
    assert [row[:3] for row in over_seeds[1:]] == [
        ["pmi", "0-1", "62.5\u00a0±\u00a00.0"],
        ["lwf", "1", "62.5"],
    ]
    assert rows_of(page, "Differences from pmi, seed by seed")[1][:3] == ["lwf", "1", "0.0"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.0, "0"), (1234, "1,234"), (1234.5, "1,234"), (0.88, "0.880"), (12.345, "12.3"),
        (-0.5, "−0.500"), (0.00001234, "1.23 × 10⁻⁵"), (3e9, "3.00 × 10⁹"), (float("nan"), None),
        (None, None), (True, None),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    found = numbers.plain(value)
    assert (found and found.text.replace("\u202f", " ")) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (2e12, "2 TB")],
)
def test_bytes_have_units_of_a_thousand(value, text):
    assert numbers.in_bytes(value).text.replace("\u202f", " ") == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5 s"), (42.4, "42 s"), (60, "1 min 0 s"), (7384, "2 h 3 min")]
)
def test_times_have_the_unit_that_fits(value, text):
    assert numbers.in_seconds(value).text.replace("\u202f", " ") == text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_it_without_scrolling_sideways(run, tmp_path):
    """At the width of a phone and of a screen, as the browser itself lays it out."""
    folder, _, _ = run
    measure = (
        "<script>document.title=[document.documentElement.scrollWidth,innerWidth]</script></body>"
    )
    page = (folder / writers.REPORT_FILE).read_text().replace("</body>", measure)
    (tmp_path / "page.html").write_text(page)
    for width in (500, 1400):  # chromium makes no window below 500
        options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run".split()
        options += "--disable-background-networking --disable-component-update".split()
        options += ["--disable-sync", f"--user-data-dir={tmp_path / str(width)}", "--dump-dom"]
        command = [CHROMIUM, *options, f"--window-size={width},900", f"file://{tmp_path}/page.html"]
        dom = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        scroll, inner = map(int, Page(dom).title.split(","))
        assert scroll <= inner == width
