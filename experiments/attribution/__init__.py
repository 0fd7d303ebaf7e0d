"""Every attribution method behind one signature.

    maps = attribute({"name": "integrated_gradients", "steps": 100}, model, x, target,
                     baseline=None, seed=0, indices=range(len(x)))

A method is a function

    def my_method(model, x, target, *, baseline, generator, scale: float = 1.0) -> Tensor

of inputs x [B, ...] and classes target [B] that returns a raw, signed map [B, ...]: no absolute
value, no scaling, unless a named parameter asks for it. It becomes known by the decorator
`@method`, by an entry point in the group "assay.methods", or by its dotted path in the YAML.
Importing this package, listing methods and checking their parameters import no torch.
"""

# Importing them registers their methods.
from experiments.attribution import (  # noqa: F401
    andor_presets,
    attention_methods,
    backprop_rules,
    cam_methods,
    controls,
    deeplift,
    gradient_methods,
    label_free,
    lrp_methods,
    lrp_presets,
    mask_learning,
    object_methods,
    path_methods,
    perturbation_methods,
    shapley_methods,
    smoothing,
)
from experiments.attribution.driver import attribute
from experiments.attribution.registry import KINDS, Method, method, methods, resolve

__all__ = ["KINDS", "Method", "attribute", "method", "methods", "resolve"]
