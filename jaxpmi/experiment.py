"""The composition root: from a config to a finished run. Only here all kinds of runs are known."""

from pathlib import Path
from typing import Any

from jaxpmi.config import SCENE_KINDS
from jaxpmi.config import Config
from jaxpmi.config.check import validate
from jaxpmi.continual.clip.start import PRETRAINED
from jaxpmi.continual.loop import CLASS_INCREMENTAL
from jaxpmi.continual.loop import CLIP
from jaxpmi.continual.loop import SEGMENTATION
from jaxpmi.jobs.distill import DISTILL
from jaxpmi.jobs.invert import INVERT
from jaxpmi.jobs.prune import PRUNE
from jaxpmi.runs.claim import claim
from jaxpmi.runs.machine import check_platform
from jaxpmi.runs.machine import own_settings
from jaxpmi.runs.phases import System
from jaxpmi.runs.session import Session
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
    check_platform()
    validate(config, make_mesh().size)
    summary = finished_summary(config)  # asks for no right to write
    if summary is not None:
        return summary
    with claim(config.workdir), own_settings():
        return _work(config)


def _work(config: Config) -> dict[str, Any]:
    """Begins or resumes a run in a workdir that is this process's alone."""
    summary = finished_summary(config)  # another process may have come to its end meanwhile
    if summary is not None:
        return summary
    system = _system(config)
    if system is CLIP and config.clip.weights is None:
        if not (Path(config.workdir) / PRETRAINED).is_file():
            tell("training a small CLIP, about a minute ...")
    return Session(config, system).finish()


def _system(config: Config) -> System:
    if config.job != "continual":
        return JOBS[config.job]
    if config.data.source in SCENE_KINDS:
        return SEGMENTATION
    return CLIP if config.model.name == "clip" else CLASS_INCREMENTAL
