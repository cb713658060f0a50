"""Who may import whom, how long things may be, and what `import jaxpmi` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxpmi

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "jaxpmi").rglob("*.py"))
}

RUNS = {"runs.accounting", "runs.phases", "sharding"}  # what every kind of run is described with
# A network and its settings.
NETWORKS = {"config", "types", "lookup", "blocks", "augment", "doors", "network"}
INVERSION = NETWORKS | {
    "models",
    "optimise",
    "features",
    "memory",
    "inversion",
    "remember",
    "pruning",
}

# What each room of the package may import of ours, besides itself. Arrays pass between features
# and inversion, not names; method code writes no file and asks for no data.
MAY_IMPORT = {
    "__main__": {"config"},
    "config": set(),
    "types": set(),
    "lookup": set(),
    "sharding": set(),
    "augment": {"config", "types"},
    "runs.checkpoint": set(),
    "runs.claim": set(),
    "runs.machine": set(),
    "runs": set(),
    "runs.writers": {"config", "types", "runs.comparison"},
    "runs.accounting": set(),
    "runs.phases": {"config", "runs.accounting"},
    "blocks": {"types"},
    "doors": {"types", "blocks"},
    "network": {"types", "blocks", "augment", "doors"},
    "network_check": {"blocks", "augment", "doors", "network"},
    "flax_networks": {"types", "blocks", "network"},
    "models": {"types", "lookup", "blocks", "network", "flax_networks"},
    "pruning": {"types", "blocks", "network"},
    "data": {"config", "types", "runs.writers"},
    "features": {"config", "types", "optimise"},
    "memory": {"config", "types", "features"},
    "optimise": {"types"},
    "inversion": NETWORKS | {"memory", "optimise"},
    "remember": NETWORKS | {"features", "memory", "inversion"},
    "weights": {
        "config",
        "types",
        "blocks",
        "models",
        "network",
        "pruning",
        "data",
        "runs.writers",
        "lookup",
    },
    "continual": INVERSION | {"data", "weights", "quality"} | RUNS,
    "jobs": INVERSION | {"data", "weights", "continual", "quality", "runs.writers"} | RUNS,
    "quality": {"types", "blocks", "network"},
    "runs.session": {"config", "runs.checkpoint", "runs.writers"} | RUNS,
    "runs.comparison": set(),
    "runs.cells": {"config", "runs.session"},
    "runs.sweep": {"runs.cells", "runs.claim", "runs.comparison", "runs.writers"},
    "experiment": {"config", "continual", "data", "jobs", "runs.session", "runs.claim"}
    | {"runs.machine", "runs.writers"}
    | RUNS,
}
# What a run is made of says also what is drawn of it; checks look names up.
MAY_IMPORT_TOO = {
    "continual.loop": {"runs.writers"},
    "continual.result": {"runs.writers"},
    "config.check": {"models", "continual", "inversion", "jobs", "lookup"},
    "config.check_jobs": {"models"},
}

# Imported where they are used, inside functions: each takes a good part of a second or more, or is
# needed by few.
SLOW = {"tensorflow_datasets", "orbax", "tensorstore", "matplotlib", "PIL", "tyro", "array_record"}
SLOW |= {"safetensors", "tokenizers", "jinja2"}

MAX_MODULE_LINES, MAX_FUNCTION_LINES = 400, 70


def room_of(name):
    """The room of a module; what carries a run has several in one folder."""
    first, *rest = name.split(".")[1:]
    return f"{first}.{rest[0]}" if first == "runs" and rest else first


def parse(name):
    return ast.parse(FILES[name].read_text())


def imported(tree):
    """Full names of the modules that are imported anywhere below a node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_import(tree):
    """The same, of those that run when the module itself is imported."""
    for node in tree.body:
        only_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) and not only_for_types:
            yield from imported(node)


def functions(nodes):
    return [node for node in nodes if isinstance(node, ast.FunctionDef)]


def public(nodes):
    return [node for node in nodes if not node.name.startswith("_")]


def body_lines(function):
    """Lines of a function without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def test_every_room_has_a_rule():
    rooms = {room_of(name) for name in FILES if name != "jaxpmi"}
    assert rooms == set(MAY_IMPORT) and len(FILES) > 40


@pytest.mark.parametrize("name", [name for name in FILES if name != "jaxpmi"])
def test_imports_go_downwards(name):
    room = room_of(name)
    allowed = {room, *MAY_IMPORT[room], *MAY_IMPORT_TOO.get(name.removeprefix("jaxpmi."), ())}
    ours = [module for module in imported(parse(name)) if module.split(".")[0] == "jaxpmi"]
    assert [module for module in ours if room_of(module) not in allowed] == []


CONFIGS = {f"configs/{path.name}": {"jaxpmi.config"} for path in sorted(ROOT.glob("configs/*.py"))}
RUN = {"launch/run.py": {"jaxpmi.config", "jaxpmi.experiment"}}


@pytest.mark.parametrize(("path", "rooms"), (CONFIGS | RUN).items(), ids=[*CONFIGS, *RUN])
def test_configs_need_only_the_config_and_the_command_only_the_run(path, rooms):
    names = imported(ast.parse((ROOT / path).read_text()))
    assert {".".join(n.split(".")[:2]) for n in names if n.startswith("jaxpmi")} == rooms


@pytest.mark.parametrize("name", FILES)
def test_slow_packages_are_imported_where_they_are_used(name):
    tree = parse(name)
    packages = {module.split(".")[0] for module in imported(tree)}
    assert "tensorflow" not in packages and "torch" not in packages
    assert ("tensorflow_datasets" in packages) <= name.startswith("jaxpmi.data.")
    assert not {module.split(".")[0] for module in imported_at_import(tree)} & SLOW


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("jaxpmi.config")])
def test_settings_need_neither_arrays_nor_a_compiler(name):
    """Only the checks ask the networks, for their names."""
    packages = {module.split(".")[0] for module in imported(parse(name))}
    assert packages <= {*sys.stdlib_module_names, "jaxpmi", "tyro"}


@pytest.mark.parametrize("name", FILES)
def test_modules_and_functions_are_short(name):
    assert len(FILES[name].read_text().splitlines()) <= MAX_MODULE_LINES
    lines = {f.name: body_lines(f) for f in functions(ast.walk(parse(name)))}
    assert {f: count for f, count in lines.items() if count > MAX_FUNCTION_LINES} == {}


def test_gradient_steps_are_taken_in_one_place():
    """The importance of filters is of one gradient, by which nothing moves."""
    attributes = {
        name: {ast.unparse(n) for n in ast.walk(parse(name)) if isinstance(n, ast.Attribute)}
        for name in FILES
    }
    users = [name for name, of in attributes.items() if of & {"jax.grad", "jax.value_and_grad"}]
    assert users == ["jaxpmi.jobs.prune", "jaxpmi.optimise.descend"]


@pytest.mark.parametrize("name", FILES)
def test_what_is_public_says_what_it_is(name):
    """Modules with code, their public classes and functions, and these classes' methods."""
    tree = parse(name)
    assert not tree.body or ast.get_docstring(tree)
    classes = public(node for node in tree.body if isinstance(node, ast.ClassDef))
    methods = [method for c in classes for method in public(functions(c.body))]
    told = [*public(functions(tree.body)), *classes, *methods]
    assert [node.name for node in told if not ast.get_docstring(node)] == []


def test_public_names_exist_and_are_sorted():
    assert sorted(jaxpmi.__all__) == sorted(set(jaxpmi.__all__))
    for name in jaxpmi.__all__:
        text = getattr(jaxpmi, name).__doc__ or ""
        # What dataclasses and named tuples write themselves is no docstring.
        assert name.isupper() or (text and not text.startswith(f"{name}(")), name


IMPORT = """
import sys, time
start = time.perf_counter()
import jax
middle = time.perf_counter()
import jaxpmi
print(middle - start, time.perf_counter() - middle)
print(*sys.modules)
"""


def test_the_package_is_imported_in_less_than_two_seconds():
    seconds = []
    for _ in range(3):
        command = [sys.executable, "-c", IMPORT]
        lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        times, modules = lines.splitlines()
        loaded = {name.split(".")[0] for name in modules.split()}
        assert "jaxpmi" in loaded and not loaded & {"tensorflow", *SLOW}
        seconds.append([float(word) for word in times.split()])
        of_jax, ours = min(seconds)
        if of_jax + ours < 2.0:
            return
    assert ours < 1.5 * of_jax, "on a loaded machine JAX itself is the measure"
