"""Config files, overrides, checks and the dict form."""

import dataclasses
import json
import pydoc
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Annotated

import pytest

import jaxpmi.config
from jaxpmi.config import ClipConfig
from jaxpmi.config import CmiConfig
from jaxpmi.config import Config
from jaxpmi.config import DataConfig
from jaxpmi.config import DeepInversionConfig
from jaxpmi.config import InversionConfig
from jaxpmi.config import ModelConfig
from jaxpmi.config import PerLayerConfig
from jaxpmi.config import TrainConfig
from jaxpmi.config import VdfdConfig
from jaxpmi.config import load
from jaxpmi.config.check import validate
from jaxpmi.config.help_text import FIRST
from jaxpmi.config.load import load_config
from jaxpmi.config.ranges import AtLeast
from jaxpmi.config.ranges import NonNegative
from jaxpmi.config.ranges import OpenFraction
from jaxpmi.config.ranges import Range
from jaxpmi.config.settings import Settings
from jaxpmi.config.settings import annotations
from jaxpmi.config.settings import leaves
from jaxpmi.continual.clip.variants import CLIP_VARIANTS
from jaxpmi.continual.learners import METHODS
from jaxpmi.continual.vdfd.drift_penalty import PENALTY_VARIANTS
from jaxpmi.inversion.variants import CMI_VARIANTS
from jaxpmi.inversion.variants import DEEP_INVERSION_VARIANTS
from jaxpmi.inversion.variants import INVERSION_VARIANTS
from jaxpmi.runs.session import finished_summary

ROOT = Path(__file__).parents[1]

HEADER = "from jaxpmi.config import *\n"


def write(tmp_path, body, name="experiment.py"):
    path = tmp_path / name
    path.write_text(body)
    return path


def change(config, path, value):
    """Returns the config with one field changed."""
    name, _, rest = path.partition(".")
    value = change(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: value})


def test_file_and_overrides(tmp_path):
    path = write(
        tmp_path,
        HEADER + "def get_config():\n  return Config(method='lwf', train=TrainConfig(epochs=3))\n",
    )
    config = load_config(path)
    assert config == Config(method="lwf", train=TrainConfig(epochs=3))
    options = "--inversion.per-layer.num-steps 50 --data.source npz --data.path a.npz --save-images"
    options += " --train.augment-replay --train.milestones 0.3 0.9 --data.class_order=None --seed=7"
    changed = load_config(path, options.split())
    assert changed.inversion.per_layer.num_steps == 50
    assert (changed.data.source, changed.data.path) == ("npz", "a.npz")
    assert changed.save_images is True and changed.train.augment_replay is True
    assert changed.train == TrainConfig(epochs=3, milestones=(0.3, 0.9), augment_replay=True)
    assert (changed.data.class_order, changed.seed, changed.method) == (None, 7, "lwf")
    order = load_config(None, ["--data.class-order", "2", "0", "1"]).data.class_order
    assert order == (2, 0, 1)


def test_help_lists_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        load_config(None, ["--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    for leaf in leaves(Config()):
        assert "--" + leaf.path.replace("_", "-") in text
    text = " ".join(text.split())  # without its line breaks
    # What the docstring says of a field, all lines of it, with the range.
    assert "--job {continual,distill,prune,invert} = continual learn tasks one after" in text
    assert "teach a student by them, prune filters, draw them. --method TEXT = pmi" in text
    assert "grid of its input upwards; 0: like every other block. 0 or more. " in text
    assert "--train.milestones NUMBER ... = 0.4 0.6 step: where the rate falls, as" in text
    assert "as fractions of the phase. Each in (0, 1). " in text


def test_help_begins_with_what_matters_and_goes_on_by_group(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = write(
        tmp_path,
        HEADER + "def get_config():\n  return Config(seed=7, save_images=True)",
    )
    with pytest.raises(SystemExit):
        load_config(path, ["--train.epochs", "3", "-h"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"usage: launch/run.py --config {path} [--OPTION VALUE ...]"
    options = [line.split()[0].strip(",") for line in lines if line.startswith("  --")]
    shown = [option.removeprefix("--").replace("-", "_") for option in options]
    assert shown[:10] == list(FIRST) and shown[10] == "checkpoint_every"
    assert sorted(shown) == sorted(leaf.path for leaf in leaves(Config()))
    assert "  --seed INT = 7" in lines and "  --save-images, --no-save-images = True" in lines
    assert "train: supervised training on a task." in lines
    assert "  --data.augment.crop-scale NUMBER NUMBER | None = None" in lines
    assert max(map(len, lines[1:])) <= 80


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def get_config():\n  return Config(inversion=InversionConfig(per_layer="
            "PerLayerConfig(num_step=3)))",
            "unknown config field 'num_step' in PerLayerConfig; did you mean 'num_steps'?",
        ),
        (
            "import dataclasses\ndef get_config():\n  return dataclasses.replace(Config(), sed=1)",
            "unknown config field 'sed' in Config; did you mean 'seed'?",
        ),
        ("x = 1", "{path} defines no function get_config(); it must return a Config."),
        ("get_config = 1", "{path} defines no function get_config(); it must return a Config."),
        (
            "def get_config():\n  return {'seed': 1}",
            "get_config() of {path} returns a dict; it must return a Config.",
        ),
        (
            "def get_config(:\n  pass",
            "{path}, line 2: SyntaxError: invalid syntax; correct the config file.",
        ),
        (
            "def get_config():\n  return Confg()",
            "{path}, line 3: NameError: name 'Confg' is not defined; correct the config file.",
        ),
        (
            "import json\ndef get_config():\n  return Config(seed=json.loads('x'))",
            "{path}, line 4: JSONDecodeError: Expecting value: line 1 column 1 (char 0); correct "
            "the config file.",
        ),
        (
            "def get_config():\n  return Config(seed='1')",
            "seed='1' is of type str; expected a whole number.",
        ),
        (
            "def get_config():\n  return Config(train=TrainConfig(milestones=[0.5]))",
            "train.milestones=[0.5] is of type list; expected numbers in a tuple.",
        ),
        (
            "def get_config():\n  return Config(save_images=1)",
            "save_images=1 is of type int; expected True or False.",
        ),
        (
            "def get_config():\n  return Config(train=3)",
            "train=3 is of type int; expected a TrainConfig.",
        ),
    ],
)
def test_wrong_file(tmp_path, body, message):
    path = write(tmp_path, HEADER + body)
    with pytest.raises(ValueError) as caught:
        load_config(path)
    assert str(caught.value) == message.format(path=path)


def test_the_config_of_a_run_is_a_config_file(tmp_path):
    config = Config(method="lwf", data=DataConfig(tasks=(2, 3), class_order=(1, "a")))
    path = write(tmp_path, json.dumps(load.config_to_dict(config)), name="config.json")
    changed = load_config(path, ["--seed", "7"])
    assert changed == dataclasses.replace(config, seed=7)
    for body, message in (
        ("{", "is no JSON (Expecting property name enclosed in double quotes: line 1 column 2"),
        ("[]", "holds no settings by name; give the config.json of a run."),
        ('{"num_step": 1}', "unknown config field 'num_step' in Config"),
        ('{"seed": -1}', "seed=-1 is out of range"),
    ):
        with pytest.raises(ValueError) as caught:
            load_config(write(tmp_path, body, name="config.json"))
        assert message in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="config file .*no.py does not exist; give a file"):
        load_config(tmp_path / "no.py")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_config(tmp_path)  # a folder


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "--inversion.per-layer.num-step 50",
            "unknown config field 'num_step' in PerLayerConfig; did you mean 'num_steps'?",
        ),
        (
            "--num-epochs 3",
            "unknown config field 'num_epochs' in Config; did you mean 'cfs.num_epochs'?",
        ),
        ("--trian.epochs 3", "unknown config field 'trian' in Config; did you mean 'train'?"),
        ("--seed.value 3", "config field 'seed' in Config is no group; set --seed itself."),
        (
            "--generator.zzz=3",
            "unknown config field 'zzz' in GeneratorConfig; its fields are size, "
            "num_steps, batch_size, learning_rate.",
        ),
        (
            "--inversion.per-layer 3",
            "config field 'inversion.per_layer' is a group; set one of its fields, e.g. "
            "--inversion.per_layer.start.",
        ),
        ("--no-seed", "unknown config field 'no_seed' in Config; did you mean 'seed'?"),
        ("--train.epochs 1.5", "--train.epochs got '1.5'; expected a whole number."),
        ("--train.epochs", "--train.epochs got no value; expected a whole number."),
        ("--train.learning-rate=fast", "--train.learning-rate got 'fast'; expected a number."),
        (
            "--data.source zip",
            "--data.source got 'zip'; expected one of 'embedded', 'coloured_digits', "
            "'stickers', 'tfds', 'folder', 'npz', 'digit_scenes', 'voc', 'cityscapes'.",
        ),
        ("--data.mean a b", "--data.mean got 'a' 'b'; expected numbers in a tuple or None."),
        (
            "--data.scene-size 1",
            "--data.scene-size got '1'; expected 2 whole numbers in a tuple.",
        ),
        (
            "--save-images yes",
            "unrecognized arguments: yes; --help lists all options (switches such as "
            "--save-images take no value).",
        ),
        (
            "stray -x",
            "unrecognized arguments: stray, -x; --help lists all options (switches such as "
            "--save-images take no value).",
        ),
    ],
)
@pytest.mark.parametrize("columns", ["30", "200"])  # tyro draws its boxes as wide as the terminal
def test_wrong_override(overrides, message, columns, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(ValueError) as caught:
        load_config(None, overrides.split())
    assert str(caught.value) == message
    assert capfd.readouterr() == ("", "")


def test_defaults_of_every_method_are_valid():
    for method in METHODS:
        validate(Config(method=method), num_devices=8)


def test_scenes_may_be_learnt_one_class_or_domain_at_a_time():
    data = DataConfig(source="digit_scenes", tasks=(1,) * 10)
    domains = dataclasses.replace(data, scene_tasks="domains", tasks=4)
    validate(Config(method="finetune", data=data))
    validate(Config(method="finetune", data=domains))


CLASSES = [getattr(jaxpmi.config, n) for n in jaxpmi.config.__all__ if n.endswith("Config")]


def holds_number(kind):
    return kind in (int, float) or any(map(holds_number, typing.get_args(kind)))


@pytest.mark.parametrize("owner", CLASSES)
def test_numbers_and_only_they_have_a_range(owner):
    fields = annotations(owner).items()
    assert {n: r for n, (k, r) in fields if holds_number(k) != (r is not None)} == {}


def test_every_config_class_is_public_and_numbers_are_found():
    inner = {type(Config())}
    for owner in CLASSES:
        inner |= {k for k, _ in annotations(owner).values() if dataclasses.is_dataclass(k)}
    assert inner == set(CLASSES) and all(issubclass(owner, Settings) for owner in CLASSES)
    paths = [leaf.path for leaf in leaves(Config()) if leaf.range is not None]
    assert len(paths) > 80
    assert not holds_number(typing.Literal[1, 2]) and holds_number(tuple[float, ...] | None)


@pytest.mark.parametrize("owner", CLASSES)
def test_docstrings_describe_every_field_and_its_range(owner):
    """In the order of the fields, and nothing else; so help() and --help tell them."""
    entries = re.findall(
        r"^  (\w+): (.+(?:\n    .+)*)", owner.__doc__.split("Attributes:\n")[1], re.M
    )
    assert [name for name, _ in entries] == [field.name for field in dataclasses.fields(owner)]
    for name, text in entries:
        allowed = annotations(owner)[name][1]
        assert text.endswith("." if allowed is None else f"{str(allowed)[1:]}."), name
        assert len(text) > len(f"Each {allowed or ''}."), name  # more than the range is said
    assert f"  {entries[0][0]}: " in pydoc.render_doc(owner, renderer=pydoc.plaintext)


def test_a_range_in_words():
    assert [str(r) for r in (Range(), AtLeast(2), NonNegative, OpenFraction)] == [
        "any finite number",
        "2 or more",
        "0 or more",
        "in (0, 1)",
    ]
    assert str(Range(high=3)) == "3 or less" and 3 in Range(high=3) and 4 not in Range(high=3)
    assert float("nan") not in Range() and float("inf") not in Range() and -1e9 in Range()


OUT_OF_RANGE = [
    ("seed", -1),
    ("seed", 2**32),
    ("checkpoint_every", 0),
    ("data.tasks", 0),
    ("data.num_classes", 1),
    ("data.tasks", (2, 0)),
    ("data.image_size", 0),
    ("data.class_order", (0, -1)),
    ("data.scene_size", (32, 0)),
    ("data.num_scenes", 0),
    ("data.test_fraction", 0.0),
    ("data.test_fraction", 1.0),
    ("data.augment.crop_padding", -2),
    ("data.augment.crop_scale", (0.0, 1.0)),
    ("data.augment.crop_scale", (0.5, 1.1)),
    ("model.width", 0),
    ("train.batch_size", 0),
    ("train.epochs", 0),
    ("train.learning_rate", 0.0),
    ("train.weight_decay", -1e-4),
    ("train.milestones", (0.5, 1.0)),
    ("losses.hkd_weight", -0.1),
    ("losses.tuning_epochs", 1.0),
    ("cfs.keep_rate", 0.0),
    ("cfs.keep_rate", 1.5),
    ("cfs.num_rounds", 0),
    ("clip.name_only.classes", -1),
    ("inversion.images_per_task", -120),
    ("inversion.batch_size", 0),
    ("inversion.per_layer.num_steps", -1),
    ("inversion.full_model.num_steps", 0),
    ("inversion.full_model.total_variation_weight", -1.0),
    ("deep_inversion.stage_steps", (8, 0, 8)),
]


NOT_FOR_SCENES = {
    "image_size": 32,
    "rgb": True,
    "class_names": "names.txt",
}
CLIP = {"model.name": "clip", "train.optimiser": "adamw"}
PIXEL_TERMS = {
    "inversion.full_model.pixel_statistics_weight": 0.5,
    "inversion.full_model.views": "shifted",
}


@pytest.mark.parametrize(("path", "value"), OUT_OF_RANGE)
def test_out_of_range(path, value):
    """When settings are made, with the name of the class; when loaded, with the whole path."""
    sentence = f"={value} is out of range; expected "
    name, owner = path.rpartition(".")[2], Config()
    for part in path.split(".")[:-1]:
        owner = getattr(owner, part)
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(owner, **{name: value})
    assert str(caught.value).startswith(f"{type(owner).__name__}.{name}{sentence}")
    options = [*map(str, value)] if isinstance(value, tuple) else [str(value)]
    with pytest.raises(ValueError) as caught:
        validate(load_config(None, [f"--{path}", *options]))
    assert str(caught.value).startswith(f"{path}{sentence}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(value):
    with pytest.raises(ValueError, match="^TrainConfig.weight_decay=.* is not a finite number"):
        TrainConfig(weight_decay=value)
    with pytest.raises(ValueError, match="^train.weight_decay=(nan|inf) is not a finite number"):
        load.config_from_dict({"train": {"weight_decay": value}})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PerLayerConfig(num_steps=-1), "num_steps=-1 is out of range; expected 0 or more."),
        (lambda: PerLayerConfig(num_steps=1.5), "num_steps=1.5 is of type float; expected a whole"),
        (
            lambda: PerLayerConfig(start="inv"),
            "start='inv' is of type str; expected one of 'layout', 'inv",
        ),
    ],
)
def test_settings_made_by_hand(make, sentence):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value).startswith(f"PerLayerConfig.{sentence}")


def test_settings_of_a_file_are_checked_as_a_whole(tmp_path):
    """Parts do not know where they belong: ModelConfig has two places in Config."""
    body = "def get_config():\n  return Config(distill=DistillConfig(student=ModelConfig(width=0)))"
    with pytest.raises(ValueError, match="^distill.student.width=0 is out of range; expected 1 or"):
        load_config(write(tmp_path, HEADER + body))
    with pytest.raises(ValueError, match="^ModelConfig.width=0 is out of range"):  # as before
        ModelConfig(width=0)


def test_settings_of_your_own_are_checked_and_described():
    @dataclasses.dataclass(frozen=True)
    class OwnConfig(Settings):
        """Two numbers.

        Attributes:
          a: of one
            kind.
          b: of another.
        """

        a: Annotated[tuple[int, ...] | None, Range(2, 3)] = None
        b: float = 0.0

    assert OwnConfig.__doc__.endswith("a: of one\n    kind. Each in [2, 3].\n  b: of another.")
    assert OwnConfig(a=(2, 3)).a == (2, 3) and OwnConfig(b=-1.0).b == -1.0
    with pytest.raises(ValueError, match=r"OwnConfig.a=\(2, 4\) is out of range; expected in \[2,"):
        OwnConfig(a=(2, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "ewc"},
            "method='ewc' is unknown; use one of joint, finetune, lwf, abd, r_dfcil, "
            "deep_inversion, pmi, pixel_gaussian, apr, dfd, vdfd, or name your own as "
            "'module:name'.",
        ),
        ({"method": "dfdd"}, "method='dfdd' is unknown; did you mean 'dfd'. or name your own as"),
        (
            {"job": "distill", "method": "no_such.module:make"},
            "method='no_such.module:make': there is no module 'no_such'; run where Python finds",
        ),
        (
            {"method": "math:tau"},
            "method='math:tau' is a float; make it with jaxpmi.learner.loss.",
        ),
        (
            {**CLIP, "clip.templates": ("a {} of {kind}",)},
            "and no other braces; 'a {} of {kind}' is none.",
        ),
        ({"model.name": "zzz"}, "model.name='zzz' is unknown; use one of resnet_small, resnet"),
        ({"data.source": "npz"}, "data.source='npz' needs data.path, the .npz file; set it"),
        ({"data.source": "folder"}, "needs data.path, a folder of class folders"),
        ({"data.path": "a.npz"}, "data.path='a.npz' is not read by data.source='embedded'; set"),
        (
            {"data.path": "a.npz", "data.source": "coloured_digits"},
            "is not read by data.source='coloured_digits'; set",
        ),
        (
            {"data.path": "a", "data.source": "digit_scenes"},
            "is not read by data.source='digit_scenes'; set data.source to voc or cityscapes",
        ),
        ({"data.source": "voc"}, "data.source='voc' needs data.path, the folder of JPEGImages/"),
        ({"data.source": "cityscapes"}, "needs data.path, the folder of leftImg8bit/ and gtFine/"),
        *(
            (
                {"data.source": "digit_scenes", f"data.{name}": value},
                f"data.{name}={value!r} is not read by data.source='digit_scenes'; set it to",
            )
            for name, value in NOT_FOR_SCENES.items()
        ),
        (
            {"data.source": "digit_scenes", "data.augment.crop_scale": (0.5, 1.0)},
            r"crop_scale=\(0.5, 1.0\) would blend the labels",
        ),
        (
            {"data.source": "voc", "data.path": "a", "data.scene_tasks": "domains"},
            "data.source='voc' has one domain, so data.scene_tasks='domains' makes no tasks",
        ),
        (
            {"data.source": "cityscapes", "data.path": "a", "data.scene_tasks": "classes"},
            "data.source='cityscapes' has no background that future classes could be",
        ),
        (
            {"data.features": ("img", "fine_label")},
            r"data.features=\('img', 'fine_label'\) is not read by data.source='embedded', but",
        ),
        (
            {"data.ground": 0, "data.source": "npz", "data.path": "a"},
            "data.ground=0 is not read by data.source='npz', but by 'folder' and 'tfds'; set it",
        ),
        ({"data.tasks": (1, 9)}, r"data.tasks=\(1, 9\) begins with 1 class, which alone cannot be"),
        ({"data.tasks": ()}, r"data.tasks=\(\) has no task; give the number of tasks, or of the"),
        (
            {"data.class_order": ("cat", 0, "cat")},
            "data.class_order names class 'cat' more than once",
        ),
        ({"data.class_order": (2, 0, 2, 1)}, "data.class_order names class 2 more than once"),
        ({"data.mean": (0.5,)}, r"data.mean=\(0.5,\) and data.std=None must be given together"),
        (
            {"data.mean": (0.5, 0.5), "data.std": (0.2, 0.2)},
            r"data.mean has 2 and data.std 2 value\(s\); give one per channel",
        ),
        ({"train.milestones": (0.6, 0.4)}, r"train.milestones=\(0.6, 0.4\) must ascend"),
        ({"train.milestones": (0.4, 0.4)}, "must ascend without repeats"),
        (
            {"losses.recipe": "stagewise", "losses.tuning_epochs": 0.8},
            "losses.tuning_epochs=0.8 and 0.2 of the epochs .* leave none .* give less than 0.8.",
        ),
        ({"inversion.images_per_task": 0}, "are both 0, so nothing would be synthesised"),
        (
            {"inversion.images_per_task": 0, "method": "abd"},
            "are both 0, so nothing would be synthesised",
        ),
        ({"inversion.targets": "label"}, "set inversion.full_model.cross_entropy_weight above 0"),
        (
            {"inversion.per_layer.start": "gaussian", "inversion.per_layer.num_steps": 0},
            "num_steps=0 with start='gaussian' would leave every block's input random",
        ),
        (
            {"clip.name_only.classes": 2},
            "model.name='resnet_small' knows no class by its name alone",
        ),
        (
            {"model.name": "clip", "method": "abd"},
            "method='abd' is not made for model.name='clip'; use one of joint, finetune, pmi",
        ),
        ({"model.name": "clip", "train.optimiser": "sgd"}, "'sgd' is not made for model.name='cl"),
        (
            {"inversion.variant": "published_clip"},
            "is for CLIP only, whose patch embedding is frozen; model.name='resnet_small' needs",
        ),
        *(
            (
                {**CLIP, "inversion.variant": "published_clip", name: value},
                rf"makes no pixels for {name}={value!r} to act on; set it to",
            )
            for name, value in PIXEL_TERMS.items()
        ),
        (
            {**CLIP, "clip.templates": ("a photo",)},
            "needs one or more texts, each with {} where the class name goes",
        ),
        (
            {
                "inversion.per_layer.start": "noise",
                "inversion.per_layer.coarse_to_fine_steps": 60,
            },
            "coarse_to_fine_steps=60 with start='noise' has no per-layer phase",
        ),
        (
            {**CLIP, "clip.variant": "corrected", "clip.name_only.classes": 2},
            "variant='corrected' with inversion.per_layer.start='layout' would give unit features",
        ),
        (
            {
                **CLIP,
                "inversion.variant": "published_clip",
                "inversion.full_model.num_steps": 2001,
            },
            "num_steps=2001 is longer than the schedule of .* would do nothing; give 2000 or fewer",
        ),
    ],
)
def test_fields_that_do_not_fit_together(changes, message):
    config = Config()
    for path, value in changes.items():
        config = change(config, path, value)
    with pytest.raises(ValueError, match=message):
        validate(config)


def test_patch_embeddings_may_be_smooth():
    config = Config(model=ModelConfig(name="clip"), train=TrainConfig(optimiser="adamw"))
    config = change(config, "inversion.variant", "published_clip")
    validate(change(config, "inversion.full_model.total_variation_weight", 0.005))


def test_what_a_method_does_not_use_is_not_compared():
    validate(change(Config(method="lwf"), "inversion.images_per_task", 0))
    validate(change(Config(method="abd"), "inversion.targets", "label"))
    clip = change(Config(method="finetune"), "model.name", "clip")
    clip = change(change(clip, "train.optimiser", "adamw"), "clip.name_only.classes", 2)
    validate(change(clip, "clip.variant", "corrected"))
    validate(change(Config(method="finetune"), "inversion.batch_size", 7), num_devices=8)


@pytest.mark.parametrize(
    ("method", "path", "size", "message"),
    [
        ("pmi", "train.batch_size", 100, "is not divisible by 8 devices; use 96 or 104."),
        ("pmi", "train.batch_size", 4, "is not divisible by 8 devices; use 8."),
        ("abd", "train.replay_batch_size", 12, "use 8 or 16."),
        ("deep_inversion", "inversion.batch_size", 50, "use 48 or 56."),
        ("r_dfcil", "generator.batch_size", 50, "use 48 or 56."),
        ("pixel_gaussian", "inversion.batch_size", 50, "use 48 or 56."),
    ],
)
def test_batches_are_divisible_by_devices(method, path, size, message):
    config = change(Config(method=method), path, size)
    validate(config, num_devices=1)
    with pytest.raises(ValueError) as caught:
        validate(config, num_devices=8)
    assert str(caught.value).startswith(f"{path}={size} ") and str(caught.value).endswith(message)


def test_dict_round_trip_through_json():
    config = Config(
        data=DataConfig(class_order=(1, 0), mean=(0.5,), std=(0.25,)), save_images=True, seed=3
    )
    values = json.loads(json.dumps(load.config_to_dict(config)))
    assert load.config_from_dict(values) == config
    assert load.config_from_dict({}) == Config()
    assert load.differing_fields(config, values) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"epoch": 1}}, "unknown config field 'epoch' in TrainConfig; did you mean"),
        ({"seed": "x"}, "seed='x' is of type str"),
        ({"workdir": ""}, "workdir is empty; give a text."),
        (
            {"inversion": {"per_layer": {"num_steps": -1}}},
            "^inversion.per_layer.num_steps=-1 is out",
        ),
        ({"train": 5}, "train=5 is of type int; expected a TrainConfig"),
    ],
)
def test_wrong_dict(values, message):
    with pytest.raises(ValueError, match=message):
        load.config_from_dict(values)


def test_differing_fields():
    a = Config()
    b = change(change(a, "train.epochs", 5), "data.mean", (0.5,))
    for path, value in (("workdir", "x"), ("save_images", True), ("checkpoint_every", 1)):
        b = change(b, path, value)
    assert load.differing_fields(a, b) == [
        ("data.mean", None, [0.5]),
        ("train.epochs", 20, 5),
    ]
    assert ("workdir", "runs/default", "x") in load.differing_fields(a, b, exempt=())
    stored = load.config_to_dict(a)
    del stored["train"]["optimiser"]
    stored["train"]["nesterov"] = True
    assert load.differing_fields(stored, a) == [
        ("train.nesterov", True, load.ABSENT),
        ("train.optimiser", load.ABSENT, "sgd"),
    ]


@pytest.mark.parametrize(
    ("owner", "table"),
    [
        (InversionConfig, INVERSION_VARIANTS),
        (DeepInversionConfig, DEEP_INVERSION_VARIANTS),
        (CmiConfig, CMI_VARIANTS),
        (ClipConfig, CLIP_VARIANTS),
        (VdfdConfig, PENALTY_VARIANTS),
    ],
)
def test_every_variant_has_a_row_and_a_word(owner, table):
    kind, _ = annotations(owner)["variant"]
    assert typing.get_args(kind) == tuple(table) and owner().variant in table
    (text,) = re.findall(r"^  variant: (.+(?:\n    .+)*)", owner.__doc__, re.M)
    assert [name for name in table if name not in text] == []


def test_few_enough_to_be_read():
    """A published variant is one choice; what nobody sets is no setting."""
    assert len(list(leaves(Config()))) <= 150


def test_a_run_of_another_version_is_refused(tmp_path):
    stored = load.config_to_dict(Config())
    stored["inversion"] |= {"space": "pixels", "covariance": "full"}
    stored["train"] |= {"momentum": 0.9, "head_weight_decay": None}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError) as caught:
        finished_summary(dataclasses.replace(Config(), workdir=str(tmp_path)))
    assert str(caught.value) == (
        f"workdir {tmp_path} holds a run of another version of jaxpmi, whose settings "
        "train.momentum, train.head_weight_decay, inversion.space and 1 more this one does not "
        "have; choose another --workdir, or the version that began it."
    )


def test_exempt_fields_exist():
    paths = [leaf.path for leaf in leaves(Config())]
    assert set(load.MAY_DIFFER) <= set(paths)


def test_import_is_light():
    code = """
import sys
import jaxpmi.config.load, jaxpmi.runs.writers, jaxpmi.runs.checkpoint
heavy = {"tyro", "PIL", "matplotlib", "orbax", "tensorflow", "tensorflow_datasets"}
heavy &= set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
