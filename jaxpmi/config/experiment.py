"""One experiment: all settings together."""

import dataclasses
from typing import Annotated
from typing import Literal

from jaxpmi.config.clip import ClipConfig
from jaxpmi.config.data import DataConfig
from jaxpmi.config.generators import CmiConfig
from jaxpmi.config.generators import GeneratorConfig
from jaxpmi.config.inversion import CfsConfig
from jaxpmi.config.inversion import DeepInversionConfig
from jaxpmi.config.inversion import InversionConfig
from jaxpmi.config.jobs import DistillConfig
from jaxpmi.config.jobs import InvertConfig
from jaxpmi.config.jobs import PruneConfig
from jaxpmi.config.places import PLACE
from jaxpmi.config.ranges import AtLeast
from jaxpmi.config.ranges import Range
from jaxpmi.config.settings import Settings
from jaxpmi.config.training import MethodConfig
from jaxpmi.config.training import ModelConfig
from jaxpmi.config.training import TrainConfig


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """One experiment.

    Attributes:
      job: learn tasks one after another; or make synthetic images and teach a student by them,
        prune filters, draw them.
      method: continual: joint, finetune, lwf, abd, r_dfcil, deep_inversion, pmi, pixel_gaussian,
        apr, dfd or vdfd; distill, prune: noise, deep_inversion, adaptive_deep_inversion, cmi or
        fast_dfkd; invert: deep_inversion (from noise), pmi, or bootstrapped_pmi (some from
        noise, the others from what PMI learns of these). Or one's own, as `module:name`.
      seed: class order, initialisation, batches, noise.
      workdir: everything a run writes.
      data: where images come from, and how their classes make tasks.
      model: the backbone.
      train: supervised training on a task.
      losses: weights of the continual losses, and phases of training.
      cfs: class-wise feature models and their sampler (CFS).
      inversion: what is synthesised before a task, and how (PMI).
      generator: abd, r_dfcil: the image generator.
      deep_inversion: distill, prune, invert: DeepInversion and its adaptive form.
      cmi: distill, prune: CMI and FastDFKD.
      distill: job distill: the student.
      prune: job prune: what is removed, and the tuning after it.
      invert: job invert: what is drawn, and learnt with it.
      clip: model clip: weights, prompts, classes known by name.
      save_images: also write the synthetic samples, as images/task{t}.npz.
      checkpoint_every: training steps or inverted batches between checkpoints.
    """

    job: Literal["continual", "distill", "prune", "invert"] = "continual"
    method: str = "pmi"
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    workdir: Annotated[str, PLACE] = "runs/default"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    losses: MethodConfig = MethodConfig()
    cfs: CfsConfig = CfsConfig()
    inversion: InversionConfig = InversionConfig()
    generator: GeneratorConfig = GeneratorConfig()
    deep_inversion: DeepInversionConfig = DeepInversionConfig()
    cmi: CmiConfig = CmiConfig()
    distill: DistillConfig = DistillConfig()
    prune: PruneConfig = PruneConfig()
    invert: InvertConfig = InvertConfig()
    clip: ClipConfig = ClipConfig()
    save_images: bool = False
    checkpoint_every: Annotated[int, AtLeast(1)] = 500
