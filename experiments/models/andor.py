"""The two architectures of the ANDOR study, with logits as output.

Architecture: Schwenke & Atzmueller, "Saliency Methods are Encoders: Analysing Logical Relations
Towards Interpretation", arXiv 2412.16204. Every step that an attribution rule may want to treat
in its own way (activation, softmax, sum of two branches) is a module of its own, used once.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn


class Sum(nn.Module):
    """Adds two branches; a module, so that relevance can be shared between them by a rule."""

    def forward(self, branches: Tensor) -> Tensor:
        """[..., n] -> [...]"""
        return branches.sum(-1)


class ResidualBlock(nn.Module):
    """conv3 → [BN] → ReLU → conv3 → [BN] (+ 1×1 conv [BN] of the input) → ReLU.

    [B, C_in, D, 1] -> [B, C_out, D, 1]. Modules stand in the order of the forward pass, each
    batch norm right after its convolution: that is how canonizers find which belong together.

    In the original code (`paper`) the result of the second convolution is dropped, its batch norm
    is not. Its weight is then `unused`: drawn, never trained, and read by that code's LRP alone
    (`andor_lrp`). No convolution has a bias there.
    """

    def __init__(
        self, before: int, after: int, skip: bool, batch_norm: bool, paper: bool = False
    ) -> None:
        super().__init__()

        def convolution(channels: int, kernel: int) -> nn.Sequential:
            padding, bias = (kernel // 2, 0), not (batch_norm or paper)
            conv = nn.Conv2d(channels, after, (kernel, 1), padding=padding, bias=bias)
            if paper and kernel > 1:
                # Drawn as the middle column of a square kernel, all of it that inputs of width 1
                # and their padding ever meet.
                with torch.no_grad():
                    conv.weight /= math.sqrt(kernel)
            return nn.Sequential(conv, nn.BatchNorm2d(after)) if batch_norm else nn.Sequential(conv)

        self.first = convolution(before, 3)
        self.first_relu = nn.ReLU()
        self.second = convolution(after, 3)
        self.unused: nn.Parameter | None = None
        if paper:
            dropped: Any = self.second[0]
            self.unused = nn.Parameter(dropped.weight.detach(), requires_grad=False)
            self.second = self.second[1:]
        self.skip = convolution(before, 1) if skip else None
        self.sum = Sum() if skip else None
        self.last_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first_relu(self.first(x)))
        if self.skip is not None and self.sum is not None:
            y = self.sum(torch.stack([y, self.skip(x)], -1))
        return self.last_relu(y)


class AndorCNN(nn.Module):
    """Residual blocks, a 1×1 convolution, and one linear layer on all positions.

    Block b has channels · 2^b channels. In the original code (`paper`) the second convolution of a
    block has no effect, and `skip` and `batch_norm` hold for the first block only: the others
    have both.
    """

    kind = "cnn"

    def __init__(
        self,
        inputs: int,
        classes: int,
        channels: int = 8,
        layers: int = 2,
        skip: bool = True,
        batch_norm: bool = True,
        paper: bool = False,
    ) -> None:
        super().__init__()
        sizes = [1, *(channels * 2**block for block in range(layers))]
        self.blocks = nn.Sequential()
        for before, after in itertools.pairwise(sizes):
            later = paper and len(self.blocks) > 0
            block = ResidualBlock(before, after, skip or later, batch_norm or later, paper)
            self.blocks.append(block)
        self.last_conv = nn.Conv2d(sizes[-1], sizes[-1], 1, bias=False)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(sizes[-1] * inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of inputs [B, D]."""
        return self.head(self.flatten(self.last_conv(self.blocks(x[:, None, :, None]))))

    @property
    def cam_layer(self) -> nn.Module:
        return self.last_conv

    def cam_reshape(self, activations: Tensor) -> Tensor:
        """[B, channels, D, 1] -> [B, channels, D]"""
        return activations.squeeze(-1)


class SelfAttention(nn.Module):
    """Multi-head self-attention with softmax and weighted mean as modules.

    The attention weights [B, heads, L, L] are the output of `softmax`: read them with a hook.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_key = nn.Linear(width, 2 * width)
        self.value = nn.Linear(width, width)
        self.softmax = nn.Softmax(dim=-1)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, d] -> [B, L, d]"""
        split = (self.heads, x.shape[-1] // self.heads)
        query, key = self.query_key(x).unflatten(-1, (2, *split)).permute(2, 0, 3, 1, 4)
        value = self.value(x).unflatten(-1, split).transpose(1, 2)
        scores = query @ key.transpose(-1, -2) / math.sqrt(split[1])
        mixed = self.dropout(self.softmax(scores)) @ value
        return self.output(mixed.transpose(1, 2).flatten(-2))


class EncoderBlock(nn.Module):
    """Post-norm encoder layer: attention, add, norm; feed-forward, add, norm."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, hidden)
        self.relu = nn.ReLU()
        self.contract = nn.Linear(hidden, width)
        self.feedforward_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, d] -> [B, L, d]"""
        x = self.attention_norm(x + self.attention(x))
        return self.feedforward_norm(x + self.contract(self.relu(self.expand(x))))


class AndorTransformer(nn.Module):
    """Token i is the number x_i added to the sinusoidal code of its position.

    `feedforward` is the width of the hidden layer relative to `width`. An optional learned CLS
    token, without position, goes first; the head reads all tokens, so CLS is not the read-out.
    Raises ValueError if `heads` does not divide `width`.
    """

    kind = "transformer"

    def __init__(
        self,
        inputs: int,
        classes: int,
        width: int = 32,
        heads: int = 4,
        layers: int = 2,
        feedforward: float = 0.5,
        attention_dropout: float = 0.0,
        cls: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"model 'andor_transformer': width {width} is not a multiple of heads {heads}"
            )
        self.positions: Tensor
        self.register_buffer("positions", sinusoidal_positions(inputs, width), persistent=False)
        self.cls = nn.Parameter(torch.empty(1, 1, width)) if cls else None
        if self.cls is not None:
            nn.init.trunc_normal_(self.cls, std=0.02)
        hidden = max(1, round(feedforward * width))
        self.blocks = nn.Sequential(
            *(EncoderBlock(width, heads, hidden, attention_dropout) for _ in range(layers))
        )
        self.flatten = nn.Flatten()
        self.head = nn.Linear((inputs + cls) * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of inputs [B, D]."""
        tokens = x[:, :, None] + self.positions
        if self.cls is not None:
            tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.flatten(self.blocks(tokens)))

    @property
    def cam_layer(self) -> nn.Module:
        return self.blocks[-1]

    def cam_reshape(self, activations: Tensor) -> Tensor:
        """[B, L, d] -> [B, d, D], without the CLS token"""
        tokens = activations if self.cls is None else activations[:, 1:]
        return tokens.transpose(1, 2)


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Position codes [length, width]: sines in the even, cosines in the odd places.

    Source: Vaswani et al. 2017, "Attention is all you need", section 3.5.
    """
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angle = torch.arange(length)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :width]
