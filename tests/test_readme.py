"""What README and docs/ say is run: Python blocks, commands, and the files, links and equations.

The blocks of one page share a namespace, as a reader has it who types them in one after another.
"""

import importlib.util
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxpmi
from jaxpmi.runs.cells import plan_cells

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
MAX_README_LINES = 150

# A page's run is the whole job of minutes; here it is the same calls with less of everything.
LESS = """--train.epochs 1 --data.num-classes 4 --data.tasks 2 --cfs.num-epochs 1
  --inversion.batch-size 16 --inversion.images-per-task 16
  --inversion.full-model.num-steps 2""".split()

CITATION = r"(, eqs?\. \d+(?:(?:, | and | to )\d+)*|)"

# Options of the programs, and those whose values are of what a page is about.
NOT_OF_CONFIG = {"--help", "--config", "--workdir", "--method", "--job"}
NOT_OF_CONFIG |= {"--methods", "--seeds", "--set", "--list", "--table-only"}


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text):
    """Every command of a page as a list of words, continued lines joined."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def prose(text):
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def import_program(name):
    """One of the programs of launch/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_pruned_network(path):
    """As the job leaves it, but untrained: `test_prune.py` tests that it does."""
    network = jaxpmi.init_network(
        jaxpmi.MODELS["resnet_small"], jax.random.key(0), (28, 28, 1), "0123456789",
        mean=(0.2,), std=(0.2,),
    )  # fmt: skip
    jaxpmi.save_network(path, network, jaxpmi.ModelConfig())


def check_readme(names):
    made = names["made"]
    assert made.images.shape == (20, 28, 28, 1) and made.images.dtype == np.uint8
    assert made.losses[-1] < made.losses[0] and made.images.std() > 10


def check_own_network(names):
    assert 0 <= names["summary"]["last_accuracy"] <= 1
    assert len(names["network"].model.blocks) == 4
    images = np.zeros((2, 28, 28, 1), np.uint8)
    assert jaxpmi.logits(names["plain"], images).shape == (2, 10)


def check_python_api(names):
    assert names["result"].losses[-1] < names["result"].losses[0]
    for made in (names["result"], names["dreams"], names["contrasted"], names["fast"]):
        assert made.images.shape == (80, 28, 28, 1) and bool(made.finite)
        assert made.images.dtype == np.uint8
    assert np.ptp(np.asarray(names["result"].images)) > 100
    assert names["dreams"].losses[-1] < names["dreams"].losses[0]
    assert names["spread"] > 0.0
    assert names["many"].shape == (240, 28, 28, 1) and names["many"].dtype == np.uint8
    assert float(names["made"].losses[0]) < float(names["dreams"].losses[0])
    loaded, student = jaxpmi.load_network("part.npz"), names["student"]
    assert loaded.model == names["part"].model != names["network"].model
    np.testing.assert_array_equal(loaded.head.kernel, student.head.kernel)
    assert not np.array_equal(student.head.kernel, names["part"].head.kernel)


def check_weights(names):
    assert names["network"].class_names == jaxpmi.imagenet_class_names()
    assert names["net"](np.ones((1, 4, 4, 3), np.float32)).shape == (1, 10)


def check_own_method(names):
    terms = names["match_features"](names["views"], jaxpmi.MethodConfig())
    assert terms.keys() == {"cross_entropy", "features"} and min(terms.values()) > 0
    assert isinstance(names["feature_replay"], jaxpmi.Method)
    assert "darkness" in names["made"].terms
    assert names["solution"].loss < 0.1 * names["solution"].losses[0]


def check_clip(names):
    assert names["logits"].shape == (2, 2) and bool(np.isfinite(names["logits"]).all())


def check_data(names):
    assert names["some"].shape == (5, 28, 28, 1) and names["some"].dtype == np.uint8


def check_pictures(names):
    assert names["logits"].shape == (1, 1000)


def check_distillation(names):
    assert names["logits"].shape == (1, 10)


CHECKS = {
    "README.md": check_readme,
    "docs/data.md": check_data,
    "docs/distillation_and_pruning.md": check_distillation,
    "docs/methods/clip.md": check_clip,
    "docs/own_method.md": check_own_method,
    "docs/own_network.md": check_own_network,
    "docs/pictures.md": check_pictures,
    "docs/python_api.md": check_python_api,
    "docs/weights.md": check_weights,
}


def test_every_page_with_code_is_checked():
    assert {name for name, text in PAGES.items() if blocks(text, "python")} == set(CHECKS)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("page", CHECKS)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    load_config = jaxpmi.load_config

    def load_less(path, overrides):
        return load_config(ROOT / path, [*overrides, *LESS, "--workdir", str(tmp_path)])

    monkeypatch.setattr(jaxpmi, "load_config", load_less)
    load_clip = jaxpmi.load_clip
    small = ROOT / "tests/golden/hugging_face_gelu"
    monkeypatch.setattr(jaxpmi, "load_clip", lambda path: load_clip(small))
    monkeypatch.setattr(jaxpmi, "MODELS", jaxpmi.MODELS)
    monkeypatch.chdir(tmp_path)  # files are written where the reader is
    if page == "docs/distillation_and_pruning.md":
        write_pruned_network(Path("runs/mnist_prune/network.npz"))
    names = {"__name__": "page"}
    try:
        for code in blocks(PAGES[page], "python"):
            exec(compile(code, page, "exec"), names)
    finally:
        jaxpmi.MODELS.pop("convnet", None)
    CHECKS[page](names)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if commands(text)])
def test_commands_are_understood(page, capsys):
    for words in commands(PAGES[page]):
        while re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # the environment of one command
            words = words[1:]
        if words[:2] in (["python", "launch/run.py"], ["jaxpmi", "run"]):
            check_run(words[2:])
        elif words[:2] == ["python", "launch/sweep.py"]:
            check_sweep(words[2:])
        elif words[:2] == ["python", "launch/prepare.py"]:
            import_program("prepare").parse_args(words[2:])
        elif words[:2] == ["python", "launch/predict.py"]:
            import_program("predict").parse_args(words[2:])
        elif words[:2] == ["python", "launch/report.py"]:
            import_program("report").parse_args(words[2:])
        elif words[:2] == ["python", "launch/bench.py"]:
            check_benchmark(words[2:], capsys)
        else:
            known = (["pip", "install"], ["python", "-m"], ["ruff", "check"], ["ruff", "format"])
            assert words[:2] in known or words[0] == "export", words


def check_run(words):
    assert words[0] == "--config"
    if "--help" not in words:
        ours = words[1].startswith("jaxpmi:")
        jaxpmi.load_config(words[1] if ours else ROOT / words[1], words[2:])


def check_sweep(words):
    own, overrides = import_program("sweep").parse_args(words)
    settings = {name: values for name, *values in own.set}
    path = ROOT / own.config
    assert plan_cells(path, overrides, methods=own.methods, seeds=own.seeds, settings=settings)


def check_benchmark(words, capsys):
    """The program prints the sub-command's help, which has all of its options."""
    with pytest.raises(SystemExit) as stop:
        import_program("bench").main([*words, "--help"])
    assert stop.value.code == 0, words
    printed = capsys.readouterr().out
    assert [word for word in words if word.startswith("--") and word not in printed] == []


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    pattern = r"`((?:launch|configs|jaxpmi|benchmarks|tests|docs|\.ci)/[\w./-]*\w)`"
    named = re.findall(pattern, prose(PAGES[page]))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_named_options_exist(page):
    """Options in running text and tables, with the values that are given beside them."""
    for span in re.findall(r"`(--[^`]+)`", prose(PAGES[page])):
        for option in re.split(r"\s+(?=--)", span):
            name, *values = shlex.split(option)
            if name in NOT_OF_CONFIG or "..." in option:
                continue
            message = complaint([name, *values])
            assert message is None or not values and "unknown" not in message, span


def complaint(words):
    """What is wrong with options; of one that lacks its value, only that."""
    try:
        jaxpmi.load_config(None, words)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = prose(PAGES[page])
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.is_file(), target
        if anchor:
            assert anchor in anchors(path.read_text()), target


def anchors(text):
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_every_page_is_in_the_contents():
    contents = re.findall(r"\]\(([^)\s#]+)", PAGES["docs/index.md"])
    missing = {f"docs/{target}" for target in contents} ^ set(PAGES)
    outside = {"README.md", "CONTRIBUTING.md", "docs/index.md"}
    assert {page for page in missing if page in PAGES} == outside


def test_readme_is_a_door():
    assert len(PAGES["README.md"].splitlines()) <= MAX_README_LINES


def test_numbered_equations_count_from_one():
    for page, text in PAGES.items():
        numbers = equations(text)
        assert numbers == list(range(1, len(numbers) + 1)), page


def test_cited_equations_exist():
    """Of code: what "docs/methods/pmi.md, eq. 2" points to; of pages, links followed by "eq. 2"."""
    cited = []
    for folder in ("jaxpmi", "configs", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            text = re.sub(r"\s+(?:# )?", " ", path.read_text())  # a citation may be broken in two
            found = re.findall(rf"\b(docs/[\w/]+\.md)\b{CITATION}", text)
            cited += [(path, page, numbers) for page, numbers in found]
    for page, text in PAGES.items():
        text = re.sub(r"\s+", " ", prose(text))
        for target, numbers in re.findall(rf"\]\(([\w./]+\.md)[\w#-]*\){CITATION}", text):
            if numbers:
                path = ((ROOT / page).parent / target).resolve()
                cited.append((page, str(path.relative_to(ROOT)), numbers))
    for path, page, numbers in cited:
        assert page in PAGES, (path, page)
        unknown = set(map(int, re.findall(r"\d+", numbers))) - set(equations(PAGES[page]))
        assert not unknown, (path, page, numbers)
    assert cited


def equations(text):
    """The numbers at the ends of lines in a page's blocks of equations."""
    found = re.findall(r"(?:^|\s)\((\d+)\)$", "\n".join(blocks(text, "text")), re.MULTILINE)
    return [int(number) for number in found]
