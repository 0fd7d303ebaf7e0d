"""Controls against image libraries and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from experiments.attribution import attribute

SHAPES = [(5,), (2, 7), (3, 6, 8)]


def run(name, x, **parameters):
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 2))
    return attribute({"name": name, **parameters}, model, x, 0)


def images(shape=(3, 6, 8)):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("border", ["mirror", "repeat"])
@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
def test_sobel_is_opencvs(size, border, direction):
    import cv2

    x = images()
    step = {"horizontal": (1, 0), "vertical": (0, 1)}[direction]
    beyond = {"mirror": cv2.BORDER_REFLECT_101, "repeat": cv2.BORDER_REPLICATE}[border]
    maps = run("sobel", x, direction=direction, channels="each", size=size, border=border)
    for found, channel in zip(maps.flatten(0, 1), x.flatten(0, 1), strict=True):
        theirs = cv2.Sobel(channel.numpy(), cv2.CV_32F, *step, ksize=size, borderType=beyond)
        torch.testing.assert_close(found, torch.from_numpy(theirs), rtol=1e-4, atol=1e-4)


def test_size_of_edges_is_that_of_both_directions():
    x = images()
    greys = x.mean(1).numpy()
    steps = [np.stack([ndimage.sobel(g, axis, mode="nearest") for g in greys]) for axis in (0, 1)]
    for absolute, expected in ((False, sum(steps)), (True, (steps[0] ** 2 + steps[1] ** 2) ** 0.5)):
        maps = run("sobel", x, absolute=absolute, border="repeat")
        wanted = torch.from_numpy(expected)[:, None].expand_as(x)
        torch.testing.assert_close(maps, wanted, rtol=1e-4, atol=1e-4)


def test_laplace_is_scipys():
    x = images()
    expected = torch.from_numpy(ndimage.laplace(x.mean(1).numpy(), mode="mirror", axes=(1, 2)))
    wanted = expected[:, None].expand_as(x)
    torch.testing.assert_close(run("laplace", x), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run("laplace", x, absolute=True), wanted.abs())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["sobel", "laplace"])
def test_edges_of_series_and_vectors(name, shape):
    """A ramp has the same slope everywhere but at its ends, and no curvature; a constant none."""
    ramp = torch.arange(float(shape[-1])).expand(1, *shape)
    maps = run(name, ramp)
    slope = (8.0 if len(shape) == 3 else 2.0) if name == "sobel" else 0.0
    assert maps.shape == ramp.shape
    assert torch.equal(maps[..., 1:-1], torch.full_like(maps[..., 1:-1], slope))
    assert torch.equal(run(name, torch.full((1, *shape), 3.0)), torch.zeros(1, *shape))
    single = torch.full((1, *(1 for _ in shape)), 3.0)
    assert torch.equal(run(name, single), torch.zeros_like(single))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_center_gaussian(shape):
    maps = run("center_gaussian", torch.zeros(2, *shape), sigma=0.2)
    places = [(torch.arange(size) + 0.5) / size - 0.5 for size in (shape[1:] or shape)]
    each = [torch.exp(-(place**2) / 0.08) for place in places]
    expected = each[0] if len(each) == 1 else torch.outer(*each)
    torch.testing.assert_close(maps, expected.expand_as(maps))


def test_vertical_edges_need_a_second_axis():
    with pytest.raises(ValueError, match=r"'vertical' needs images.*got inputs \[2, 7\]"):
        run("sobel", torch.zeros(1, 2, 7), direction="vertical")
