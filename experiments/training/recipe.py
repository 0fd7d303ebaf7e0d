"""What training a model takes, as data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from experiments.specs import Count, Positive, Probability


class Adversary(BaseModel):
    """Who perturbs the inputs of a training, so that it learns to withstand that.

    The defaults are those of Kim et al. 2022 (SMERF, code); theirs is the library ART.

    Attributes:
        attack: "fgsm", one step, or "pgd", projected gradient descent; see `attacks.attack`.
        epsilon: how far an input may be moved, in the units of the inputs; 0.2, for "pgd" 0.3.
        step, iterations: of "pgd".
        low, high: the range of the inputs, which is not left.
        mix: the share of a batch that stays as it is; 0 is training on perturbed inputs alone.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    attack: Literal["fgsm", "pgd"] = "fgsm"
    epsilon: Positive = 0.2
    step: Positive = 0.1
    iterations: Count = 10
    low: float = 0.0
    high: float = 1.0
    mix: Probability = 0.0

    @model_validator(mode="before")
    @classmethod
    def _epsilon_of_the_attack(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("attack") == "pgd":
            return {"epsilon": 0.3, **given}
        return given

    @model_validator(mode="after")
    def _range(self) -> Adversary:
        if not self.low < self.high:
            raise ValueError(f"adversary: low {self.low} is not below high {self.high}")
        return self


class Recipe(BaseModel):
    """How to train. The defaults reach 100 % on the small ANDOR formulas within seconds.

    Attributes:
        learning_rate: the highest rate the schedule reaches.
        schedule: "constant"; "cosine", from the highest rate to 0 over `epochs`; "noam", linear
            over `warmup` steps and then falling with 1/√step (Vaswani et al. 2017, equation 3;
            there the highest rate is 1/√(width · warmup)).
        patience: epochs without a better validation result before training stops.
        balanced: weight each class by the inverse of its frequency in the training split.
        loss: "cross_entropy"; "mse_sigmoid", the squared error between the sigmoid of the logits
            and the one-hot label (Schwenke & Atzmueller 2024); or "clipped_bce", the binary
            cross-entropy of each output, taken for a probability and clipped to
            [1e-7, 1 − 1e-7], with the one-hot label (Kim et al. 2022, code: what Keras makes of
            linear outputs). Its gradient is zero outside of that range.
        stop_at_loss: stop once every validation sample is right and the loss is at most this.
        stop_at_batch_loss: stop after any batch whose training loss is below this; its epoch ends
            there, and is validated (Kim et al. 2022, code: 0.005).
        adversary: perturbs each batch against the model as it is then; see `Adversary`. The
            validation samples stay as they are, so the best epoch is the best on those.
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
    loss: Literal["cross_entropy", "mse_sigmoid", "clipped_bce"] = "cross_entropy"
    stop_at_loss: Positive | None = 0.01
    stop_at_batch_loss: Positive | None = None
    adversary: Adversary | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields that came later, unless they are used: a dump is part of the key of
        what was trained, which stays valid."""
        later = ("stop_at_batch_loss", "adversary")
        return {k: v for k, v in dump(self).items() if k not in later or v is not None}


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
