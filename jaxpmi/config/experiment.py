"""One experiment: all settings together."""

import dataclasses
from typing import Literal

from jaxpmi.config.applications import DistillConfig
from jaxpmi.config.applications import InvertConfig
from jaxpmi.config.applications import PruneConfig
from jaxpmi.config.clip import ClipConfig
from jaxpmi.config.data import DataConfig
from jaxpmi.config.inversion import ContrastiveConfig
from jaxpmi.config.inversion import ContrastiveInversionConfig
from jaxpmi.config.inversion import DeepInversionConfig
from jaxpmi.config.inversion import GeneratorConfig
from jaxpmi.config.inversion import InversionConfig
from jaxpmi.config.training import MethodConfig
from jaxpmi.config.training import ModelConfig
from jaxpmi.config.training import TrainConfig


@dataclasses.dataclass(frozen=True)
class ContinualConfig:
    """What the tasks are made of, beside `data`; CLIP only."""

    unseen_classes: tuple[str, ...] = ()  # names of classes without any image, learnt last
    num_unseen_classes: int = 0  # drawn from the seed, where none is named


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    job: Literal["continual", "distill", "prune", "invert"] = "continual"  # learn tasks one after
    # another; or make synthetic images and teach a student by them, prune filters, draw them
    method: Literal[
        "joint",
        "finetune",
        "lwf",
        "abd",
        "r_dfcil",
        "deep_inversion",
        "pmi",
        "dfd",
        "vdfd",
        "noise",
        "adaptive_deep_inversion",
        "cmi",
        "fast_dfkd",
    ] = "pmi"  # continual: the first nine; distill, prune: the last four or deep_inversion;
    # invert: deep_inversion (from noise) or pmi
    seed: int = 0  # class order, initialisation, batches, noise
    workdir: str = "runs/default"  # everything a run writes
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    losses: MethodConfig = MethodConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    inversion: InversionConfig = InversionConfig()
    generator: GeneratorConfig = GeneratorConfig()
    deep_inversion: DeepInversionConfig = DeepInversionConfig()
    contrastive_inversion: ContrastiveInversionConfig = ContrastiveInversionConfig()
    distill: DistillConfig = DistillConfig()
    prune: PruneConfig = PruneConfig()
    invert: InvertConfig = InvertConfig()
    clip: ClipConfig = ClipConfig()
    continual: ContinualConfig = ContinualConfig()
    save_images: bool = False  # also write the synthetic samples, as images/task{t}.npz
    checkpoint_every: int = 500  # training steps or inverted batches between checkpoints
    log_every_seconds: float = 5.0  # between progress lines
