"""What the numbers of a run are called, and what they mean, in a sentence each."""

from typing import NamedTuple


class Word(NamedTuple):
    """A number's name, and what it is."""

    name: str
    meaning: str


# Of a whole run, each a share; by their names in summary.json.
SCORES = {
    "last_accuracy": Word(
        "last accuracy",
        "of the test images of all classes, after the last task, the share whose class is named "
        "rightly among all classes",
    ),
    "average_incremental_accuracy": Word(
        "average incremental accuracy",
        "the mean, over the tasks, of the accuracy on all classes seen until then",
    ),
    "last_miou": Word(
        "last mean IoU",
        "after the last task; the IoU of a class is, of the pixels that are of it or are taken for "
        "it, the share that is both",
    ),
    "average_incremental_miou": Word(
        "average incremental mean IoU",
        "the mean, over the tasks, of the mean IoU of all classes seen until then",
    ),
    "forgetting": Word(
        "forgetting",
        "of every task but the last, its best value before the last task less its value at the "
        "end; the mean over these tasks, ideally 0",
    ),
    "backward_transfer": Word(
        "backward transfer",
        "of every task but the last, its value at the end less its value when it was just learnt; "
        "the mean over these tasks, negative where something was forgotten",
    ),
    "task_accuracy": Word(
        "accuracy with the task given",
        "as last accuracy, among the classes of the image's own task alone, which is easier",
    ),
    "task_backward_transfer": Word(
        "backward transfer with the task given",
        "as backward transfer, among the classes of the image's own task alone",
    ),
    "teacher_accuracy": Word(
        "accuracy of the teacher",
        "of the test images, the share that the network named rightly that was learnt from",
    ),
    "student_accuracy": Word(
        "accuracy of the student",
        "the same of the network that has learnt from synthetic images alone",
    ),
    "own_accuracy_before": Word(
        "accuracy on the network's own classes, before",
        "before new classes were learnt",
    ),
    "own_accuracy_after": Word(
        "accuracy on the network's own classes, after",
        "after new classes were learnt, among old and new ones",
    ),
    "new_accuracy": Word(
        "accuracy on the new classes", "of their test images, among old and new classes"
    ),
    "accuracy_before": Word(
        "accuracy before pruning", "of the test images, the share whose class is named rightly"
    ),
    "accuracy_after": Word(
        "accuracy after pruning", "the same of the network that is left, tuned on synthetic images"
    ),
}

# What methods carry from task to task; by their names in `bytes_kept_between_tasks`.
KEPT = {
    "model": Word("network", "its weights and stored moments"),
    "adapters": Word("adapters", "what is trained beside the frozen CLIP"),
    "class_stats": Word("class statistics", "mean and covariance of every class's features"),
    "feature_models": Word(
        "feature models", "a small network per class that spreads the features drawn of it"
    ),
    "layer_stats": Word(
        "layer statistics",
        "moments of every block's input, mean power spectrum and histogram of all images together",
    ),
    "layouts": Word(
        "layouts", "a mean image of every class at few pixels, and how its images differ from it"
    ),
    "block_inverses": Word(
        "block inverses", "a linear map of every block from its output back to its input"
    ),
    "pixel_gaussians": Word("pixel Gaussians", "a mean image of every class, and directions"),
    "generator": Word("generator", "the network that draws synthetic images"),
    "gradient_records": Word(
        "gradient records", "gradients of every old task's mean outputs, as few products of vectors"
    ),
    "base_memory": Word("base memory", "the statistics above, of the classes of pretraining"),
}

# Where seconds and memory go; by their names in `seconds`.
PHASES = {
    "start": Word("start", "reading data and weights, the first state"),
    "train": Word("training", "on real images of a task, and on replay"),
    "inversion": Word("inversion", "making synthetic images"),
    "distillation": Word("distillation", "teaching a student, with the synthesis between rounds"),
    "pruning": Word("pruning", "removing filters, and tuning what is left"),
    "statistics": Word("statistics", "describing the data for what is kept between tasks"),
    "evaluation": Word("evaluation", "on test images, and of the synthetic ones"),
}

# Terms of losses; by their names in metrics.jsonl, there behind the phase or `final_`.
TERMS = {
    "loss": "the sum of all terms, which is minimised",
    "cross_entropy": "how improbable the right label is to the network",
    "local": "cross-entropy of real images among the new classes",
    "replay_local": "cross-entropy of synthetic images among the old classes",
    "head": "cross-entropy among all classes, which trains the last layer alone",
    "joint": "cross-entropy among all classes, which trains all but the last layer",
    "features": "how far features of real images move where the old last layer would see it",
    "hard_distillation": "how far outputs for synthetic images move from the old network's",
    "distillation": "how far outputs move from the frozen network's",
    "replay_distillation": "the same on synthetic images",
    "angles": "how far angles between features move from the old network's",
    "product": "all terms of the published recipe, multiplied",
    "balanced": "cross-entropy with every class weighing the same",
    "drift": "how far mean outputs for old tasks are moved, to first order",
    "squared_drift": "the same, unweighed; watched, not minimised",
    "log_determinant": "keeps the learnt weights of the drift from vanishing",
    "all_classes": "cross-entropy among all classes, which trains what reads their names alone",
    "text_features": "how far texts of old classes move from where the old adapters put them",
    "replay_logits": "how far outputs for synthetic samples move from the old network's",
    "feature_match": "distance of the images' features from those wanted",
    "statistics": "distance of the moments of layers from the stored ones",
    "total_variation": "differences of neighbouring pixels",
    "histogram": "distance of pixel values from those of real images",
    "spectrum": "distance of the mean power spectrum from that of real images",
    "competition": "agreement of the student where it should be wrong",
    "adversarial": "agreement of the student where it should be wrong",
    "contrastive": "likeness to the images made before",
    "content": "cross-entropy of the generator's images",
    "balance": "how unevenly often the classes are drawn",
    "prior": "how rough the generator's images are",
}

# What a method does, by its name in the settings, in continual learning; and how it makes images in
# the other jobs.
METHODS = {
    "joint": "sees all data of all classes so far in every task: the upper bound",
    "finetune": "trains on each task and does nothing against forgetting: the lower bound",
    "lwf": "holds the outputs for old classes where they were, on new images",
    "deep_inversion": "makes synthetic images of old classes by inverting the network from noise",
    "abd": "makes synthetic images of old classes by a generator, and lets only the last layer "
    "tell them from real ones",
    "r_dfcil": "makes synthetic images of old classes by a generator, and keeps relations between "
    "features",
    "pmi": "makes synthetic images of old classes by inverting the network, block by block and "
    "then as a whole",
    "pixel_gaussian": "draws images of old classes from a Gaussian of their pixels",
    "apr": "pushes new images to the means of old classes, and moves their statistics along",
    "dfd": "makes no images, and bounds how far the outputs for old tasks drift",
    "vdfd": "makes no images, and bounds how far the outputs for old tasks drift, in learnt units",
}
WAYS = {
    "noise": "takes noise for images: the lower bound",
    "deep_inversion": "makes images by inverting the network from noise",
    "adaptive_deep_inversion": "makes images by inverting the network from noise, such that the "
    "student gets them wrong",
    "cmi": "makes images by a generator, unlike those made before",
    "fast_dfkd": "makes images by a generator that learns to begin near them",
    "pmi": "makes images by inverting the network block by block, and then as a whole",
    "bootstrapped_pmi": "makes some images from noise, and the others from what these teach",
}
JOBS = {
    "continual": "Tasks learnt one after another",
    "distill": "A student taught on synthetic images",
    "prune": "A network pruned on synthetic images",
    "invert": "Pictures of what a network knows",
}
