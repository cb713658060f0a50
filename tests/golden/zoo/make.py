"""Makes tests/golden/zoo: what torchvision, timm and transformers compute of drawn weights.

Where PyTorch, torchvision, timm and transformers are: `python tests/golden/zoo/make.py [NAME ...]`;
made with torch 2.14.1, torchvision 0.29.1, timm 1.0.31 and transformers 5.24.0. Weights are drawn
by name (drawn.py), so that no file of weights has to be kept.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
import torchvision
import transformers

sys.path.insert(0, str(Path(__file__).parent))
import drawn  # noqa: E402

PER_LAYER = 4  # channels of a BatchNorm whose moments are kept
STEP = 37  # every which value of the input gradient is kept


def hugging_face(kind, config, **fields):
    return getattr(transformers, kind)(getattr(transformers, config)(num_labels=10, **fields))


def hugging_face_vit():
    return hugging_face(
        "ViTForImageClassification", "ViTConfig", hidden_size=384, num_attention_heads=6,
        intermediate_size=1536, image_size=64,
    )  # fmt: skip


def torchvision_net(name):
    return getattr(torchvision.models, name)(num_classes=10)


def narrow_vgg(depth):
    """torchvision's VGG at an eighth of its width."""
    letter = {11: "A", 16: "D"}[depth]
    channels = [n if n == "M" else n // 8 for n in torchvision.models.vgg.cfgs[letter]]
    features = torchvision.models.vgg.make_layers(channels, batch_norm=True)
    net = torchvision.models.VGG(features, num_classes=10)
    for i, sizes in ((0, (64 * 49, 512)), (3, (512, 512)), (6, (512, 10))):
        net.classifier[i] = torch.nn.Linear(*sizes)
    return net


def resnet(depth, kind):
    counts = {18: [2, 2, 2, 2], 50: [3, 4, 6, 3]}[depth]
    sizes = [n * (4 if kind == "bottleneck" else 1) for n in (64, 128, 256, 512)]
    return hugging_face(
        "ResNetForImageClassification",
        "ResNetConfig",
        depths=counts,
        layer_type=kind,
        hidden_sizes=sizes,
        embedding_size=64,
    )


# Name of the file, how the network is made, pixels.
CASES = {
    "torchvision_resnet18": (lambda: torchvision_net("resnet18"), 64),
    "torchvision_resnet34": (lambda: torchvision_net("resnet34"), 64),
    "torchvision_resnet50": (lambda: torchvision_net("resnet50"), 64),
    "torchvision_resnet101": (lambda: torchvision_net("resnet101"), 64),
    "torchvision_resnet152": (lambda: torchvision_net("resnet152"), 64),
    "torchvision_mobilenet_v2": (lambda: torchvision_net("mobilenet_v2"), 64),
    "torchvision_vgg11": (lambda: narrow_vgg(11), 64),
    "torchvision_vgg16": (lambda: narrow_vgg(16), 64),
    "torchvision_vit_base": (
        lambda: torchvision.models.VisionTransformer(64, 16, 12, 12, 768, 3072, num_classes=10),
        64,
    ),
    "timm_resnet50": (lambda: timm.create_model("resnet50", num_classes=10), 64),
    "timm_mobilenet_v2": (lambda: timm.create_model("mobilenetv2_100", num_classes=10), 64),
    "timm_deit_small": (
        lambda: timm.create_model("deit_small_patch16_224", num_classes=10, img_size=64), 64
    ),
    "timm_vit_base_patch32": (
        lambda: timm.create_model("vit_base_patch32_224", num_classes=10, img_size=64), 64
    ),
    "transformers_resnet18": (lambda: resnet(18, "basic"), 64),
    "transformers_resnet50": (lambda: resnet(50, "bottleneck"), 64),
    "transformers_mobilenet_v2": (
        lambda: hugging_face("MobileNetV2ForImageClassification", "MobileNetV2Config"), 64
    ),
    "transformers_vit_small": (lambda: hugging_face_vit(), 64),
    "transformers_vit_small_in_memory": (lambda: hugging_face_vit(), 64),
}  # fmt: skip


def main(names):
    for name in names or CASES:
        make, size = CASES[name]
        net = make()
        if name.startswith("transformers") and not name.endswith("memory"):
            net, shapes = through_a_folder(net)
        else:
            shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
            net.load_state_dict(draw(shapes))
        write(name, net.eval(), shapes, size)


def draw(shapes):
    return {key: torch.from_numpy(np.asarray(drawn.tensor(key, s))) for key, s in shapes.items()}


def through_a_folder(net):
    """transformers calls layers otherwise in files than in memory."""
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        file = f"{folder}/model.safetensors"
        shapes = {key: tuple(t.shape) for key, t in safetensors.torch.load_file(file).items()}
        safetensors.torch.save_file(draw(shapes), file, {"format": "pt"})
        return type(net).from_pretrained(folder), shapes


def answer_and_gradient(net, images):
    images = images.detach().requires_grad_()
    logits = answer(net(images))
    cotangent = torch.from_numpy(drawn.cotangent(logits.shape)).to(images.dtype)
    (logits * cotangent).sum().backward()
    return logits.detach(), images.grad


def is_smooth_at(net, images):
    """Whether no ReLU's input is 0 but for rounding, or the gradient would be another one."""
    _, gradient = answer_and_gradient(net, images)
    noise = (images * (1 + 3e-6 * torch.randn_like(images)) for _ in range(4))
    others = [answer_and_gradient(net, other)[1] for other in noise]
    return all((o - gradient).abs().max() < 1e-4 * gradient.abs().max() for o in others)


def write(name, net, shapes, size):
    seed, images = next(
        (seed, images)
        for seed in range(1, 100)
        if is_smooth_at(net, images := torch.from_numpy(drawn.images(size, seed)))
    )
    logits, gradient = answer_and_gradient(net, images)
    arrays = {
        "size": np.asarray(size),
        "seed": np.asarray(seed),
        "logits": logits.numpy(),
        # as ours, channels last
        "input_gradient": gradient.numpy().transpose(0, 2, 3, 1).ravel()[::STEP],
    }
    seen = {}
    norms = {
        key: part for key, part in net.named_modules() if isinstance(part, torch.nn.BatchNorm2d)
    }
    for key, part in norms.items():
        part.register_forward_hook(lambda m, x, y, key=key: seen.update({key: x[0].detach()}))
    with torch.no_grad():
        net(images)
    for key, x in seen.items():
        x = x.double()
        moments = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        arrays[f"moments/{key}"] = torch.stack(moments)[:, :PER_LAYER].float().numpy()
    arrays["names"] = np.asarray(list(shapes))
    arrays["shapes"] = np.asarray([" ".join(map(str, shape)) for shape in shapes.values()])
    np.savez_compressed(Path(__file__).parent / f"{name}.npz", **arrays)
    print(name, "seed", seed, logits[0, :4].numpy())


def answer(y):
    return y if isinstance(y, torch.Tensor) else y.logits


if __name__ == "__main__":
    main(sys.argv[1:])
