"""What training a model takes, as data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Recipe(BaseModel):
    """How to train. The defaults reach 100 % on the small ANDOR formulas within seconds.

    Attributes:
        learning_rate: the highest rate the schedule reaches.
        schedule: "constant"; "cosine", from the highest rate to 0 over `epochs`; "noam", linear
            over `warmup` steps and then falling with 1/√step (Vaswani et al. 2017, equation 3;
            there the highest rate is 1/√(width · warmup)).
        patience: epochs without a better validation result before training stops.
        balanced: weight each class by the inverse of its frequency in the training split.
        loss: "cross_entropy", or "mse_sigmoid", the squared error between the sigmoid of the
            logits and the one-hot label (Schwenke & Atzmueller 2024).
        stop_at_loss: stop once every validation sample is right and the loss is at most this.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    optimiser: Literal["adam"] = "adam"
    learning_rate: Positive = 0.003
    betas: tuple[float, float] = Field((0.9, 0.98), strict=False)  # YAML and JSON have lists
    epsilon: Positive = 1e-8
    schedule: Literal["constant", "cosine", "noam"] = "constant"
    warmup: Count = 10_000
    epochs: Count = 300
    batch_size: Count = 64
    patience: Count = 50
    balanced: bool = True
    loss: Literal["cross_entropy", "mse_sigmoid"] = "cross_entropy"
    stop_at_loss: Positive | None = 0.01


def paper_recipe(
    width: int, *, epochs: int, batch_size: int, patience: int, warmup: int = 10_000
) -> Recipe:
    """How Schwenke & Atzmueller (2024, code) train a network of `width` channels or features.

    Their rate is width^-½ · min(step^-½, step · warmup^-3/2), whose highest value is
    1/√(width · warmup). They stop once *more* than `patience` epochs have passed since the best
    one, we once so many have: ours is one more. Classes are balanced by copies of rows
    (`AndorSpec(preset="paper")`), not by weights.
    """
    return Recipe(
        learning_rate=(width * warmup) ** -0.5,
        betas=(0.9, 0.99),
        epsilon=1e-9,
        schedule="noam",
        warmup=warmup,
        epochs=epochs,
        batch_size=batch_size,
        patience=patience + 1,
        balanced=False,
        loss="mse_sigmoid",
        stop_at_loss=None,
    )
