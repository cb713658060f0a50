"""The composition root: from a config to a finished run. Only here all kinds of runs are known."""

import contextlib
from pathlib import Path
from typing import Any

from jaxpmi.config import SCENE_KINDS
from jaxpmi.config import Config
from jaxpmi.config.check import validate
from jaxpmi.continual.clip.start import PRETRAINED
from jaxpmi.continual.loop import CLASS_INCREMENTAL
from jaxpmi.continual.loop import CLIP
from jaxpmi.continual.loop import SEGMENTATION
from jaxpmi.data import describe_source
from jaxpmi.jobs.distill import DISTILL
from jaxpmi.jobs.invert import INVERT
from jaxpmi.jobs.prune import PRUNE
from jaxpmi.runs import machine
from jaxpmi.runs.claim import claim
from jaxpmi.runs.phases import System
from jaxpmi.runs.session import Session
from jaxpmi.runs.session import check_workdir
from jaxpmi.runs.session import finished_summary
from jaxpmi.runs.writers import tell
from jaxpmi.sharding import make_mesh

JOBS = {"distill": DISTILL, "prune": PRUNE, "invert": INVERT}


def run(config: Config) -> dict[str, Any]:
    """Runs an experiment to its end, resuming what `config.workdir` holds; returns the summary.

    JAX computes as a run is written, in 32 bits, whatever its settings are outside: see
    `own_settings`.

    Raises:
      ValueError, OSError: for anything wrong with the config, the data or the workdir.
      NonFiniteLossError: where a loss became NaN or infinite.
    """
    machine.check_platform()
    validate(config, make_mesh().size)
    check_workdir(config)  # before the data are looked at, which may take minutes
    # A finished run is only looked at; that asks for no right to write.
    finished = (Path(config.workdir) / "summary.json").is_file()
    with contextlib.nullcontext() if finished else claim(config.workdir), machine.own_settings():
        return _work(config)


def keep_programs() -> None:
    """Has JAX keep compiled programs between processes; the first one says where.

    See `jaxpmi.runs.machine.keep_programs`.
    """
    if folder := machine.keep_programs():
        tell(f"compiled programs are kept in {folder}, so that the next run starts sooner")


def _work(config: Config) -> dict[str, Any]:
    """Begins, resumes or looks at a run in a workdir where no other process writes."""
    system = _system(config)
    inputs, data = _open_inputs(config, system)
    summary = finished_summary(config, data)
    if summary is not None:
        return summary
    if system is CLIP and config.model.weights is None:
        if not (Path(config.workdir) / PRETRAINED).is_file():
            tell("training a small CLIP, about a minute ...")
    return Session(config, system, inputs, data).finish()


def _open_inputs(config: Config, system: System) -> tuple[Any, dict[str, Any] | None]:
    """Opens data sets and weights, says what was read, and returns both.

    Of a finished run whose data are no longer there only the summary is left: None twice.
    """
    try:
        inputs = system.open_inputs(config)
    except FileNotFoundError as error:
        if not (Path(config.workdir) / "summary.json").is_file():
            raise
        tell(f"the data could not be compared with those of the run: {error}")
        return None, None
    facts = {name: describe_source(source) for name, source in inputs.sources.items()}
    for name, of in facts.items():
        tell("\n".join(f"{name.replace('_', ' ')}: {line}" for line in of.lines()))
    return inputs, {name: of.to_dict() for name, of in facts.items()}


def _system(config: Config) -> System:
    if config.job != "continual":
        return JOBS[config.job]
    if config.data.source in SCENE_KINDS:
        return SEGMENTATION
    return CLIP if config.model.name == "clip" else CLASS_INCREMENTAL
