"""The four architectures of the SMERF study: images [B, C, H, W] in [0, 1] to logits [B, classes].

Architectures: Kim, Plumb & Talwalkar, "Sanity Simulations for Saliency Methods", ICML 2022, and
its code, which is Keras: weights are Glorot-uniform, biases 0. Every activation is a module of
its own, used once, so that each attribution rule can be put in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Of the training images of ImageNet, for pixels in [0, 1]; torchvision's networks expect them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Shape = tuple[int, int, int]  # channels, height, width


class ImageCNN(nn.Module):
    """Convolutional `features`, then a dense `head`.

    CAM methods read `features[cam]`, whose output is [B, channels, h, w].
    """

    kind = "cnn"

    def __init__(self, features: nn.Sequential, head: nn.Sequential, cam: int) -> None:
        super().__init__()
        self.features = features
        self.head = head
        self.cam = cam

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        return self.head(self.features(x))

    @property
    def cam_layer(self) -> nn.Module:
        return self.features[self.cam]


def strided_cnn(
    name: str, inputs: Shape, classes: int, channels: Sequence[int], hidden: Sequence[int]
) -> ImageCNN:
    """3×3 convolutions of stride 2 without padding, then dense layers, each with a ReLU.

    Raises ValueError if nothing is left of the image after the convolutions.
    """
    before, height, width = inputs
    layers: list[nn.Module] = []
    for after in channels:
        layers += [nn.Conv2d(before, after, 3, stride=2), nn.ReLU()]
        before, height, width = after, (height - 1) // 2, (width - 1) // 2
    if min(height, width) < 1:
        raise ValueError(_too_small(name, inputs, least=2 ** (len(channels) + 1) - 1))
    head = [nn.Flatten(), *_dense(before * height * width, hidden, classes)]
    return _glorot(ImageCNN(nn.Sequential(*layers), nn.Sequential(*head), cam=-1))


def alexnet(inputs: Shape, classes: int, *, logits_norm: bool) -> ImageCNN:
    """AlexNet with a batch norm between each layer and its ReLU, and dropout 0.4 in the head.

    Convolutions are padded by half of their kernel, which gives as many outputs as Keras' padding
    "same"; only the windows of the first one, of stride 4, lie up to two pixels beside Keras'.
    With `logits_norm` the logits have a batch norm, too, and CAM methods read the last convolution
    before its batch norm instead of after its ReLU: both as in the original code.
    """
    before, height, width = inputs
    layers: list[nn.Module] = []
    for after, kernel, stride, pooled in (
        (96, 11, 4, True), (256, 5, 1, True), (384, 3, 1, False), (384, 3, 1, False),
        (256, 3, 1, True),
    ):  # fmt: skip
        layers += [
            nn.Conv2d(before, after, kernel, stride, padding=kernel // 2),
            _batch_norm(nn.BatchNorm2d, after),
            nn.ReLU(),
        ]
        shrink = stride
        if pooled:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            shrink *= 2
        before, height, width = after, -(-height // shrink), -(-width // shrink)
    head: list[nn.Module] = [nn.Flatten()]
    before *= height * width
    for after in (4096, 4096, 1000):
        norm = _batch_norm(nn.BatchNorm1d, after)
        head += [nn.Linear(before, after), norm, nn.ReLU(), nn.Dropout(0.4)]
        before = after
    head.append(nn.Linear(before, classes))
    if logits_norm:
        head.append(_batch_norm(nn.BatchNorm1d, classes))
    cam = -4 if logits_norm else -2
    return _glorot(ImageCNN(nn.Sequential(*layers), nn.Sequential(*head), cam))


def vgg16(inputs: Shape, classes: int, *, weights: str | None, normalise: bool) -> ImageCNN:
    """VGG16's convolutions (Simonyan & Zisserman 2015, configuration D), frozen, the mean over
    all positions, and dense layers of 1024, 512 and 256 with ReLUs, which are trained.

    `weights` is a file of torchvision's state dict, of which "features.*" is read; without, the
    convolutions are drawn as He et al. 2015 say, which keeps the scale of what passes 13 of them.
    `normalise` makes ImageNet's mean and deviation part of the first convolution, so that every
    method still sees an image in [0, 1]. That is normalising first, but for the outermost pixels:
    what the convolution pads the image with is black, not the mean colour.

    Raises ValueError for images that are not RGB or below 32×32, and for a file that is not there
    or holds something else.
    """
    if inputs[0] != 3 or min(inputs[1:]) < 32:
        raise ValueError(_too_small("smerf_vgg16", inputs, least=32, colour="RGB "))
    layers: list[nn.Module] = []
    before = 3
    for channels, times in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(times):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
            before = channels
        layers.append(nn.MaxPool2d(2))
    features = nn.Sequential(*layers)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *_dense(before, (1024, 512, 256), classes)]
    model = _glorot(ImageCNN(features, nn.Sequential(*head), cam=-2))
    for layer in features:
        if weights is None and isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if weights is not None:
        _load(features, weights)
    if normalise:
        _fold_normalisation(layers[0])
    features.requires_grad_(False)
    return model


def _dense(before: int, hidden: Sequence[int], classes: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for after in hidden:
        layers += [nn.Linear(before, after), nn.ReLU()]
        before = after
    return [*layers, nn.Linear(before, classes)]


def _batch_norm(kind: type[Any], channels: int) -> nn.Module:
    """With Keras' settings; torch's momentum is one minus Keras'."""
    return kind(channels, eps=1e-3, momentum=0.01)


def _glorot(model: ImageCNN) -> ImageCNN:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim > 1:  # not the scales of batch norms, which begin at 1
            nn.init.xavier_uniform_(parameter)
    return model


def _load(features: nn.Sequential, path: str) -> None:
    """Overwrites the convolutions with those of a file. It is read without running any code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        own = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                raise ValueError(f"{name} has shape {tuple(state[name].shape)}")
            tensor.copy_(state[name])
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"model 'smerf_vgg16': weights {path!r} is no state dict of torchvision's VGG16 "
            f"({reason})"
        ) from error


def _fold_normalisation(first: Any) -> None:
    """W · (x − mean) / std + b as a convolution of x."""
    with torch.no_grad():
        first.weight /= torch.tensor(IMAGENET_STD)[:, None, None]
        first.bias -= (first.weight.sum((2, 3)) * torch.tensor(IMAGENET_MEAN)).sum(1)


def _too_small(name: str, inputs: Shape, least: int, colour: str = "") -> str:
    return (
        f"model {name!r} needs {colour}images of at least {least}×{least} pixels, got "
        f"[channels, height, width] {list(inputs)}"
    )
