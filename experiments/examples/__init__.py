"""Example importance: how much each training example matters for the explanation of a test sample.

    scores = importance({"name": "influence", "damping": 0.1}, model, train_x, train_y,
                        test_x, test_y)                        # [N_test, N_train]
    scores = importance("tracin", autoencoder, train_x, None, test_x, None,
                        loss="reconstruction", weights="encoder", checkpoints=[...])

One sign for all: the higher, the more the training example speaks for the test sample, that is,
training on it lowers the loss of the test sample, or their representations are alike. Negative
values of methods that know a sign are opponents.

Without labels (Crabbé & van der Schaar 2022) the same methods run on a loss that needs
none (see `losses`), on the weights of the encoder alone (`weights`), or on its latents (`encoder`).

A method is a function

    def my_method(examples: Examples, *, scale: float = 1.0) -> Tensor

that returns [N_test, N_train]; it becomes known by `@example_method` or by its dotted path.
Several methods of the same samples share gradients and latents through one `Examples`. Importing
this package, listing methods and checking their parameters import no torch.
"""

from experiments.examples import gradient_methods, latent_methods  # noqa: F401  they register
from experiments.examples.agreement import similarity_rate
from experiments.examples.problem import Examples, importance
from experiments.examples.registry import (
    ExampleMethod,
    example_method,
    example_methods,
    resolve,
)

__all__ = [
    "ExampleMethod",
    "Examples",
    "example_method",
    "example_methods",
    "importance",
    "resolve",
    "similarity_rate",
]
