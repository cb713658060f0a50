"""Segmentation: its loss, its records, its measure, and whole runs on small scenes."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from html_page import read_page
from rows import sized
from small_network import as_network

from jaxpmi import experiment
from jaxpmi.augment import augment_scenes
from jaxpmi.augment import normalise
from jaxpmi.blocks import blockwise
from jaxpmi.config import AugmentConfig
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import MethodConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config import TrainConfig
from jaxpmi.config import VdfdConfig
from jaxpmi.config.check import validate
from jaxpmi.config.load import load_config
from jaxpmi.continual import chunks
from jaxpmi.continual import methods
from jaxpmi.continual import segmentation
from jaxpmi.continual.losses import pixel_cross_entropy
from jaxpmi.continual.run import training_masks
from jaxpmi.continual.samples import LabelledSamples
from jaxpmi.continual.task import training_data
from jaxpmi.continual.train import train_steps
from jaxpmi.continual.training_phase import Views
from jaxpmi.continual.vdfd import gradient_records as gr
from jaxpmi.continual.vdfd.recording import record_task
from jaxpmi.data import PastDataError
from jaxpmi.data import SceneStream
from jaxpmi.data import digit_scenes
from jaxpmi.models.encoder_decoder import encoder_decoder
from jaxpmi.models.init_network import init_backbone
from jaxpmi.network import Head
from jaxpmi.runs import session
from jaxpmi.sharding import make_mesh
from jaxpmi.types import IGNORED_LABEL

MEAN, STD = jnp.asarray([0.2]), jnp.asarray([0.3])


def random_scenes(count, size=8, num_classes=4, seed=0):
    """Noise with random labels, some of them ignored."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, size, size, 1), np.uint8)
    labels = random.integers(0, num_classes, (count, size, size, 1), np.uint8)
    labels[random.random(labels.shape) < 0.2] = IGNORED_LABEL
    return np.concatenate([images, labels], axis=-1)


# The loss.


def test_background_may_be_any_old_class():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 3, 3, 5))
    labels = np.asarray([0, 0, 4, 3, IGNORED_LABEL, 0, 4, 4, 3] * 2).reshape(2, 3, 3)
    old, seen = np.asarray([1, 1, 0, 0, 0.0]), np.asarray([1, 1, 0, 1, 1.0])
    shares = np.exp(logits) * seen
    shares /= shares.sum(-1, keepdims=True)
    want = {"plain": [], "unbiased": []}
    for index in np.ndindex(labels.shape):
        if labels[index] != IGNORED_LABEL:
            own = shares[index][labels[index]]
            want["plain"].append(-np.log(own))
            either = shares[index][0] + shares[index][1]
            want["unbiased"].append(-np.log(either if labels[index] == 0 else own))
    for background, losses in want.items():
        got = pixel_cross_entropy(
            jnp.asarray(logits), jnp.asarray(labels), seen, old, background=background
        )
        np.testing.assert_allclose(got, np.mean(losses), rtol=1e-5)


def test_a_background_pixel_does_not_tell_old_classes_from_background():
    """Only the plain loss pushes an old class down where it is in a new scene."""
    logits = jnp.asarray([[[[0.0, 5.0, 0.0]]]])
    labels, old, seen = jnp.zeros((1, 1, 1), jnp.int32), np.asarray([1, 1, 0]), np.ones(3)
    gradients = {
        background: jax.grad(
            functools.partial(pixel_cross_entropy, background=background), argnums=0
        )(logits, labels, seen, old)[0, 0, 0]
        for background in ("plain", "unbiased")
    }
    assert gradients["plain"][1] > 0.9
    assert abs(gradients["unbiased"][1]) < 0.01


def test_without_old_classes_both_readings_are_one():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 3)))
    labels = jnp.asarray(np.random.default_rng(1).integers(0, 3, (1, 4, 4)))
    plain, unbiased = (
        pixel_cross_entropy(logits, labels, np.ones(3), np.zeros(3), background=background)
        for background in ("plain", "unbiased")
    )
    np.testing.assert_allclose(plain, unbiased, rtol=1e-6)
    ignored = jnp.full((1, 4, 4), IGNORED_LABEL)
    none = pixel_cross_entropy(logits, ignored, np.ones(3), np.zeros(3), background="plain")
    assert none == 0.0


@pytest.mark.parametrize("background", ["plain", "unbiased"])
def test_the_reading_of_the_background_is_a_setting(background):
    random = np.random.default_rng(0)
    features = jnp.asarray(random.normal(size=(1, 4, 4, 3)))
    labels = jnp.zeros((1, 4, 4), jnp.int32)
    old, new = np.asarray([1, 1, 0]), np.asarray([0, 0, 1])
    fields = {"features": features, "labels": labels, "head": Head(jnp.eye(3))}
    nothing = Views(**dict.fromkeys(Views._fields))
    views = nothing._replace(**fields, old_mask=old, new_mask=new)
    terms = methods.new_classification(views, MethodConfig(background=background))
    want = pixel_cross_entropy(features, labels, old + new, old, background=background)
    np.testing.assert_allclose(terms["cross_entropy"], want, rtol=1e-6)


# Views.


def test_labels_move_with_their_pixels():
    random = np.random.default_rng(0)
    grey = random.integers(1, 50, (16, 6, 6, 1), np.uint8)
    scenes = jnp.asarray(np.concatenate([4 * grey, grey], axis=-1))
    config = AugmentConfig(crop_padding=2, flip=True)
    images, labels = augment_scenes(scenes, jax.random.key(0), config, MEAN, STD)
    raw = np.rint(255 * (np.asarray(images) * 0.3 + 0.2))[..., 0]
    border = np.asarray(labels) == IGNORED_LABEL
    np.testing.assert_array_equal(raw[~border], 4 * np.asarray(labels)[~border])
    np.testing.assert_array_equal(raw[border], 0.0)
    assert 0.05 < border.mean() < 0.6
    assert not np.array_equal(labels, scenes[..., -1])
    with pytest.raises(ValueError, match="would blend the labels of scenes; set it to None"):
        augment_scenes(scenes, jax.random.key(0), AugmentConfig(crop_scale=(0.5, 1)), MEAN, STD)


# Records.


@functools.cache
def network():
    architecture = sized(encoder_decoder, width=2)
    model, variables = init_backbone(architecture, jax.random.key(0), (8, 8, 1))
    random = np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(0.3 * random.normal(size=shape), jnp.float32)  # noqa: E731
    params = jax.tree.map(lambda p: draw(p.shape), variables.params)
    return as_network(
        model, variables._replace(params=params), draw((2, 4)), image_shape=(8, 8, 1),
        mean=MEAN, std=STD,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("num_devices", "over", "with_bias"),
    [(1, "all", False), (8, "all", False), (8, "own_class", False), (1, "own_class", True)],
)
def test_a_record_is_of_the_mean_over_pixels_that_count(num_devices, over, with_bias):
    """Of scenes with differing numbers of them; backbone and classifier, seven scenes of eight."""
    net = network()
    if with_bias:
        net = net.replace(head=net.head._replace(bias=jnp.asarray([0.3, -0.1, 0.2, 0.4])))
    model, columns = net.model, jnp.asarray([0, 2, 3])
    scenes = random_scenes(7)
    scenes[0, :7, :, 1] = IGNORED_LABEL
    settings = VdfdConfig(regularised_head=True, mean_logits=over)
    tensors = gr.regularised_tensors(model, net.variables.params, net.head, with_head=True)
    empty = gr.empty_records(tensors, num_tasks=1, num_classes=3, rank=3)
    records = record_task(
        empty, net, LabelledSamples(scenes.__getitem__, np.zeros(7, np.int32)), 0, [0, 2, 3],
        mesh=make_mesh(num_devices), batch_size=8, config=settings,
        label_maps=True,
    )  # fmt: skip
    x, counted = normalise(scenes[..., :1], MEAN, STD), scenes[..., 1] != IGNORED_LABEL

    def mean(params, head):
        variables = net.variables._replace(params=params)
        logits = head(blockwise.forward(model, variables, x).features)[..., columns]
        if over == "all":
            return logits[counted].mean(0)
        margins = logits - logits.mean(-1, keepdims=True)
        own = [margins[scenes[..., 1] == label, i].mean() for i, label in enumerate([0, 2, 3])]
        return jnp.stack(own)

    jacobian = jax.jacrev(mean, argnums=(0, 1))(net.variables.params, net.head)
    of_head = {"head": jacobian[1].kernel} | ({"head/bias": jacobian[1].bias} if with_bias else {})
    jacobian = blockwise.named_tensors(model, jacobian[0]) | of_head
    assert sorted(jacobian) == sorted(records.left) and len(jacobian) == 13 + with_bias
    for index, name in enumerate(sorted(jacobian)):
        want = jacobian[name].reshape(3, -1, jacobian[name].shape[-1]).mean(1).T
        got = (records.left[name][0] * records.scale[0, index][None]) @ records.right[0, index].T
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(records.classes, [[0, 2, 3]])


# The measure.


def test_pixels_are_counted_by_truth_and_prediction():
    """With the class that would be predicted most often not seen yet."""
    net = network()
    scenes = random_scenes(5)
    x = normalise(scenes[..., :1], MEAN, STD)
    logits = np.asarray(net.head(blockwise.forward(net.model, net.variables, x).features))
    unseen = np.bincount(logits.argmax(-1).reshape(-1)).argmax()
    seen = np.arange(4) != unseen
    counts = segmentation.confusion_counts(
        net, LabelledSamples(scenes.__getitem__, np.zeros(5, np.int32)), jnp.asarray(seen),
        mesh=make_mesh(1), batch_size=2,
    )  # fmt: skip
    want = np.zeros((4, 4), np.int64)
    for index in np.ndindex(scenes.shape[:3]):
        truth = scenes[index][1]
        if truth != IGNORED_LABEL:
            best = max(np.flatnonzero(seen), key=lambda label: logits[index][label])  # noqa: B023
            want[truth, best] += 1
    np.testing.assert_array_equal(counts, want)
    assert (want.sum(0) > 0).sum() > 1


def test_iou_is_the_share_of_both_in_either():
    confusion = np.asarray([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    ious = segmentation.class_ious(confusion)
    np.testing.assert_allclose(ious[:2], [6 / 9, 3 / 6])
    assert np.isnan(ious[2])


# Whole runs.


def set_up(patch):
    """Of every run: few and small digits."""
    tiny_run.set_up(patch)
    for name, value in {"NUM_TEST": 24, "NUM_DIGITS": 2, "DIGIT_SIZE": 8}.items():
        patch.setattr(digit_scenes, name, value)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    set_up(monkeypatch)


def scene_config(folder, method="vdfd", **options):
    """Two steps or so a task; `data` are fields of its own, the rest of VDFD."""
    data = {"tasks": 5, **options.pop("data", {})}
    return Config(
        method=method,
        workdir=str(folder / "run"),
        data=DataConfig(
            source="digit_scenes",
            scene_size=(16, 24),
            num_scenes=24,
            augment=AugmentConfig(crop_padding=1),
            **data,
        ),  # fmt: skip
        model=ModelConfig(name="encoder_decoder", width=2),
        train=TrainConfig(
            batch_size=8, epochs=1, optimiser="adam", learning_rate=1e-2, weight_decay=0.0
        ),
        losses=MethodConfig(vdfd=VdfdConfig(**({"regularised_head": True} | options))),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Config and summary of a whole run, by method and tasks; and its compiled programs."""

    @functools.cache
    def run(method="vdfd", by="classes"):
        with pytest.MonkeyPatch.context() as patch:
            set_up(patch)
            data = {"scene_tasks": by, "tasks": 5 if by == "classes" else 4}
            config = scene_config(tmp_path_factory.mktemp("run"), method, data=data)
            programs, work = [], session.Session._task

            def counted(self, task):
                work(self, task)
                programs.append(train_steps._cache_size())

            patch.setattr(session.Session, "_task", counted)
            return config, experiment.run(config), programs

    return run


WHOLE = [(method, "classes") for method in ("joint", "finetune", "dfd", "vdfd")]


@pytest.mark.parametrize(("method", "by"), [*WHOLE, ("joint", "domains"), ("vdfd", "domains")])
def test_the_summary_and_the_files(method, by, finished):
    config, summary, programs = finished(method, by)
    num_tasks = config.data.tasks
    assert len(summary["data"]["images_of_domains"]["train"]) == len(summary["data"]["domains"])
    matrix = np.asarray(summary["miou_matrix"], float)
    assert matrix.shape == (num_tasks, num_tasks)
    learned = np.tril(np.ones_like(matrix)) > 0
    assert np.isfinite(matrix[learned]).all() and np.isnan(matrix[~learned]).all()
    assert len(summary["class_iou"]) == 11 and "background" in summary["class_iou"]
    np.testing.assert_allclose(
        summary["last_miou"], np.mean(list(summary["class_iou"].values())), rtol=1e-5
    )
    mious = summary["incremental_mious"]
    assert mious[-1] == summary["last_miou"] > 0 and len(mious) == num_tasks
    np.testing.assert_allclose(summary["average_incremental_miou"], np.mean(mious))
    folder = Path(config.workdir)
    assert (folder / "miou.png").stat().st_size > 1000
    page = read_page(folder / "report.html")
    assert "inversion" not in page.sections and len(page.images) == num_tasks
    assert {summary["last_miou"], *summary["class_iou"].values()} <= {
        value for of in page.numbers.values() for value in of
    }
    assert "Mean IoU" in page.sections["accuracy"]
    assert len(list((folder / "images").glob("task*.png"))) == num_tasks
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    names = {name for line in lines for name in json.loads(line)}
    assert f"task0{num_tasks - 1}/evaluate/miou/task0" in names
    assert ("floats_per_old_task" in summary) == (method in ("dfd", "vdfd"))
    if method == "vdfd":
        assert "task01/train/all/squared_drift" in names
        num_classes = 3 if by == "classes" else 11
        channels = [2, 4, 8, 8, 4, 2] * 2 + [11]
        assert summary["floats_per_old_task"] == gr.floats_per_task(channels, num_classes, 1)
    assert len(set(programs[1:])) == 1, "later tasks train by the program of the second"


def test_a_task_of_classes_is_judged_by_its_own(finished):
    config, summary, _ = finished("finetune")
    ious = list(summary["class_iou"].values())
    last = np.asarray(summary["miou_matrix"], float)[-1]
    np.testing.assert_allclose(last, np.reshape(ious[1:], (5, 2)).mean(1), rtol=1e-5)


def test_a_task_of_domains_is_judged_by_its_own_scenes(tmp_path):
    """With fresh weights, whose predictions have something of several classes."""
    data = {"scene_tasks": "domains", "tasks": 4}
    run, state = segmentation.begin_segmentation(scene_config(tmp_path, data=data))
    for task in (0, 1):
        run.stream.begin(task)
    (tick,) = segmentation.evaluate_phase(run, state.replace(task=jnp.asarray(1)))
    parts = []
    for task in (0, 1):
        scenes = run.stream.test_images(task)
        predicted = segmentation.predict_labels(state.network, scenes[..., :1], jnp.ones(11))
        parts.append(np.zeros((11, 11), np.int64))
        np.add.at(parts[-1], (scenes[..., 1], np.asarray(predicted)), 1)
    miou = [np.nanmean(segmentation.class_ious(part)) for part in parts]
    np.testing.assert_allclose(tick.state.accuracy[1, :2], miou, rtol=1e-5)
    of_all = segmentation.class_ious(parts[0] + parts[1])
    np.testing.assert_allclose(tick.state.class_iou[1], of_all, rtol=1e-5)
    assert abs(miou[0] - miou[1]) > 1e-3


class Interrupted(Exception):
    """Stops a run."""


def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, monkeypatch, finished):
    monkeypatch.setattr(chunks, "CHUNK_STEPS", 1)
    _, want, _ = finished()
    config = dataclasses.replace(scene_config(tmp_path), checkpoint_every=1)
    save, saved = session.Checkpointer.save, []

    def stop_at_ninth(self, *arguments):
        save(self, *arguments)
        saved.append(0)
        if len(saved) == 9:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(session.Checkpointer, "save", stop_at_ninth)
        with pytest.raises(Interrupted):
            experiment.run(config)
    got = experiment.run(config)
    for name in ("miou_matrix", "class_iou", "floats_per_old_task"):
        assert json.dumps(got[name]) == json.dumps(want[name])


def test_only_joint_training_sees_old_scenes_and_labels(tmp_path):
    """So its background is background, and no class is old to it."""
    for method in ("joint", "finetune"):
        run, _ = segmentation.begin_segmentation(scene_config(tmp_path, method))
        for task in (0, 1):
            run.stream.begin(task)
        scenes, (new, old) = training_data(run, 1), training_masks(run, 1)
        labels = scenes.read(np.arange(len(scenes.labels)))[..., -1]
        if method == "joint":
            assert len(labels) == run.stream.seen_train_size() > run.stream.train_size(1)
            assert set(np.unique(labels)) == set(range(5)) and new.sum() == 5 and not old.any()
        else:
            assert set(np.unique(labels)) == {0, 3, 4} and new.sum() == 2 and old.sum() == 3
            with pytest.raises(PastDataError):
                run.stream.seen_train_images()


def test_scenes_of_an_old_task_are_not_asked_for(tmp_path, monkeypatch):
    asked, read = [], SceneStream.train_images

    def watched(self, task, *rest):
        asked.append((self.task, task))
        return read(self, task, *rest)

    monkeypatch.setattr(SceneStream, "train_images", watched)
    experiment.run(scene_config(tmp_path))
    assert set(asked) == {(task, task) for task in range(5)}


def test_the_classifier_rests_or_is_held(tmp_path, monkeypatch):
    """Columns of old classes, background too, rest unless the classifier is regularised."""
    ends, records, work = [], [], session.Session._task

    def kept(self, task):
        work(self, task)
        ends.append(np.asarray(self.state.network.head.kernel))
        records.append(self.state.records)

    monkeypatch.setattr(session.Session, "_task", kept)
    for regularised in (False, True):
        ends.clear()
        experiment.run(scene_config(tmp_path / str(regularised), regularised_head=regularised))
        assert np.array_equal(ends[0][:, :3], ends[-1][:, :3]) != regularised
    # What is kept is of background, too, in every task.
    own = [[0, 1, 2], *([0, first, first + 1] for first in (3, 5, 7, 9))]
    np.testing.assert_array_equal(records[-1].classes, own)


MISFITS = {
    "method='pmi' is not made for data.source='digit_scenes'": dict(method="pmi"),
    "self_supervision=True turns images": dict(self_supervision=True),
}


@pytest.mark.parametrize("message", MISFITS)
def test_what_does_not_fit_is_refused(message, tmp_path):
    with pytest.raises(ValueError, match=message):
        validate(scene_config(tmp_path, **MISFITS[message]))


def test_models_and_jobs_must_fit_the_labels(tmp_path):
    config = scene_config(tmp_path)
    images = dataclasses.replace(config, data=DataConfig())
    with pytest.raises(ValueError, match="a feature per pixel, but the data has a label per image"):
        experiment.run(images)
    flat = dataclasses.replace(config, model=ModelConfig(name="plain_cnn"))
    with pytest.raises(ValueError, match="a feature per image, but the data has a label per pixel"):
        experiment.run(flat)
    job = dataclasses.replace(config, job="distill", method="cmi")
    with pytest.raises(ValueError, match="has a label per pixel, which job='distill' cannot use"):
        validate(job)
    job = dataclasses.replace(job, data=DataConfig())
    with pytest.raises(ValueError, match="'encoder_decoder' is not made for job='distill'"):
        validate(job)
    clip = dataclasses.replace(config, method="joint", model=ModelConfig(name="clip"))
    with pytest.raises(ValueError, match="model.name='clip' gives no feature per pixel"):
        validate(clip)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_vdfd_is_between_finetuning_and_joint_training(tmp_path):
    path = Path(__file__).parents[2] / "configs/vdfd_digit_scenes.py"
    means = []
    ways = ["--method finetune --losses.background plain"]
    ways += [f"--method {method}" for method in ("finetune", "vdfd", "joint")]
    for options in ways:
        found = []
        for seed in range(3):  # single ones lie far apart
            place = ["--seed", str(seed), "--workdir", str(tmp_path / f"{len(means)}-{seed}")]
            found.append(experiment.run(load_config(path, [*options.split(), *place]))["last_miou"])
        means.append(np.mean(found))
    plain, finetune, vdfd, joint = means
    assert plain + 0.1 < finetune < vdfd < joint
