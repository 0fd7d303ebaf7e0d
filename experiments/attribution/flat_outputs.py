"""A model of any outputs as one of outputs [B, K]."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class FlatOutputs(nn.Module):
    """`encoder`, its outputs [B, ...] flattened to [B, K] (those of shape [B] to [B, 1]).

    What the encoder says of itself, such as its `kind` or `cam_layer`, holds for this model too.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        found = self.encoder(x)
        return found.reshape(len(found), -1)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "encoder":
                raise
            return getattr(self.encoder, name)
