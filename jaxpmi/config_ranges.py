"""Allowed values of every number among the settings."""

import math
from typing import NamedTuple


class Range(NamedTuple):
    """Allowed values of a number, and of every number of a tuple."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"more than {self.low:.10g}" if self.open_low else f"{self.low:.10g} or more"
        brackets = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {brackets[0]}{self.low:.10g}, {self.high:.10g}{brackets[1]}"


COUNT = Range(low=1)
NOT_NEGATIVE = Range(low=0)
POSITIVE = Range(low=0, open_low=True)
FRACTION = Range(0, 1, open_low=True, open_high=True)
SHARE = Range(0, 1, open_high=True)

# Field name (or, where it has to differ, path) -> range. A test asserts that no number is missing.
RANGES = {
    "adam_betas": SHARE,
    "adapter_rank": COUNT,
    "adversarial_warmup_calls": NOT_NEGATIVE,
    "bank_size": COUNT,
    "base_images": NOT_NEGATIVE,
    "batch_size": COUNT,
    "body_learning_rate": POSITIVE,
    "channels": COUNT,
    "checkpoint_every": COUNT,
    "class_order": NOT_NEGATIVE,
    "competition_temperature": POSITIVE,
    "crop_padding": NOT_NEGATIVE,
    "crop_scale": Range(0, 1, open_low=True),
    "data.mean": Range(0, 1),
    "data.num_classes": Range(low=2),
    "data.std": POSITIVE,
    "digit_classes": Range(2, 10),
    "digit_size": COUNT,
    "epochs": COUNT,
    "epsilon": POSITIVE,
    "final_steps": NOT_NEGATIVE,
    "first_statistics_factor": NOT_NEGATIVE,
    "first_task_classes": COUNT,
    "gradient_noise": NOT_NEGATIVE,
    "graph_learning_rate": POSITIVE,
    "head_epochs": SHARE,
    "head_learning_rate": POSITIVE,
    "held_out_share": SHARE,
    "hidden_dim": COUNT,
    "image_padding": NOT_NEGATIVE,
    "image_size": COUNT,
    "images_per_class": COUNT,
    "images_per_task": NOT_NEGATIVE,
    "importance_batches": COUNT,
    "initial_batches": NOT_NEGATIVE,
    "inverse_rank": COUNT,
    "inversion.per_layer.num_steps": NOT_NEGATIVE,
    "inversion.per_layer.coarse_to_fine_steps": NOT_NEGATIVE,
    "jitter_pixels": NOT_NEGATIVE,
    "keep_rate": Range(0, 1, open_low=True),
    "last_block_epochs": SHARE,
    "latent_dim": COUNT,
    "latent_learning_rate": NOT_NEGATIVE,
    "later_learning_rate": POSITIVE,
    "learning_rate": POSITIVE,
    "local_scale": Range(0, 1, open_low=True),
    "log_every_seconds": NOT_NEGATIVE,
    "lwf_temperature": POSITIVE,
    "milestone_factor": Range(0, 1, open_low=True),
    "milestones": FRACTION,
    "min_filters": COUNT,
    "momentum": SHARE,
    "noise_scale": NOT_NEGATIVE,
    "noise_std": NOT_NEGATIVE,
    "num_blocks": COUNT,
    "num_digits": COUNT,
    "num_epochs": COUNT,
    "num_experts": COUNT,
    "num_images": COUNT,
    "num_negatives": COUNT,
    "num_neighbours": COUNT,
    "num_removals": COUNT,
    "num_rounds": COUNT,
    "num_steps": COUNT,
    "num_tasks": COUNT,
    "num_test": COUNT,
    "num_train": COUNT,
    "num_unseen_classes": NOT_NEGATIVE,
    "output_dim": COUNT,
    "oversampling": COUNT,
    "pretraining_classes": COUNT,
    "projection_dim": COUNT,
    "rank": COUNT,
    "record_images": COUNT,
    "replay_batch_size": COUNT,
    "reset_call": NOT_NEGATIVE,
    "residual_scale": NOT_NEGATIVE,
    "rounds": COUNT,
    "scene_size": COUNT,
    "schedule_epochs": COUNT,
    "schedule_steps": COUNT,
    "search_learning_rates": POSITIVE,
    "search_statistics_weights": POSITIVE,
    "seed": Range(0, 2**32 - 1),
    "share": FRACTION,
    "stage_scales": COUNT,
    "stage_steps": COUNT,
    "steps_per_round": COUNT,
    "statistics_momentum": SHARE,
    "temperature": POSITIVE,
    "test_fraction": FRACTION,
    "text_share": Range(0, 1),
    "tuning_epochs": SHARE,
    "tuning_learning_rate": POSITIVE,
    "tuning_steps": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "width": COUNT,
}


def find_range(path: str) -> Range | None:
    """Returns the allowed range of a number, None for settings that are not numbers."""
    name = path.rpartition(".")[2]
    if name.endswith(("_weight", "_weight_decay")):
        return NOT_NEGATIVE
    return RANGES.get(path, RANGES.get(name))
