"""Forward passes in which some of torch's functions follow rules of ours.

LRP and its relatives treat a network operation by operation: linear maps, activations, products,
normalisations. `FunctionRules` finds these operations where torch itself sees them, whether they
were written as a module, as a function or as an operator: `nn.ReLU()`, `F.relu` and `x.relu()`
are one operation here, and so are a residual `x + y` and a module that adds. The model is not
touched, and a module that is used twice is two operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Rule = Callable[..., Any]

CONVOLUTION = (
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
)  # fmt: skip
LINEAR = (F.linear,)
# Activations with f(0) = 0, and the others.
CENTRED = (
    F.relu, torch.relu, Tensor.relu, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish,
    F.hardswish, F.relu6, F.hardtanh, F.tanh, torch.tanh, Tensor.tanh,
)  # fmt: skip
ACTIVATION = (
    *CENTRED, F.prelu, F.sigmoid, torch.sigmoid, Tensor.sigmoid, F.hardsigmoid, F.softplus,
    F.logsigmoid,
)  # fmt: skip
POOLING = (
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    torch.mean, Tensor.mean, torch.sum, Tensor.sum,
)  # fmt: skip
SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
LAYER_NORM = (F.layer_norm, torch.layer_norm)
RMS_NORM = tuple(getattr(F, name) for name in ("rms_norm",) if hasattr(F, name))
OTHER_NORM = (F.group_norm, F.instance_norm)
BATCH_NORM = (F.batch_norm,)
MATMUL = (
    torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.einsum,
)  # fmt: skip
ADD = (
    torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__,
    torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__,
)  # fmt: skip
MULTIPLY = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
SCALE = (torch.div, Tensor.div, Tensor.__truediv__, torch.neg, Tensor.neg, Tensor.__neg__)
IN_PLACE = {
    Tensor.add_: Tensor.add,
    Tensor.sub_: Tensor.sub,
    Tensor.mul_: Tensor.mul,
    Tensor.div_: Tensor.div,
    Tensor.relu_: Tensor.relu,
    torch.relu_: torch.relu,
}


class FunctionRules(TorchFunctionMode):
    """Inside the block, torch's functions of `rules` are computed by `rule(function, *args)`.

    Attention, fused or not, is computed as matrix products and a softmax, so that rules for these
    reach it. A function that works in place is treated as the one that does not.
    """

    def __init__(self, rules: Mapping[Any, Rule]) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if func in EXPLICIT:
            with self:
                return EXPLICIT[func](*args, **options)
        separate = IN_PLACE.get(func)
        if separate in self.rules:
            first, *rest = args
            return first.copy_(self.rules[separate](separate, first.clone(), *rest, **options))
        rule = self.rules.get(func)
        return func(*args, **options) if rule is None else rule(func, *args, **options)


def table(*rows: tuple[tuple[Any, ...], Rule]) -> dict[Any, Rule]:
    """From (functions, rule), (functions, rule), ... to a rule per function."""
    return {function: rule for functions, rule in rows for function in functions}


def differentiable(arguments: tuple[Any, ...]) -> list[int]:
    """The places of the arguments that depend on the input."""
    return [
        i for i, found in enumerate(arguments) if isinstance(found, Tensor) and found.requires_grad
    ]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention, softmax(q kᵀ / √d) v, in single steps (Vaswani et al. 2017)."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * factor, key.transpose(-1, -2))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores + _additive(attn_mask, scores, keep=True)
    weights = F.softmax(scores, dim=-1)
    return torch.matmul(F.dropout(weights, dropout_p), value)


def multi_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What nn.MultiheadAttention computes, [L, N, E] -> [L, N, E], in single steps.

    Raises ValueError for keys that belong to no token (add_bias_kv, add_zero_attn, static keys).
    """
    extra = (bias_k, bias_v, static_k, static_v)
    if add_zero_attn or any(found is not None for found in extra):
        raise ValueError(
            "attention: keys that belong to no token (add_bias_kv, add_zero_attn) have no rule"
        )
    batched = query.ndim == 3
    if not batched:
        query, key, value = query[:, None], key[:, None], value[:, None]
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    separate = (q_proj_weight, k_proj_weight, v_proj_weight)
    joint = () if in_proj_weight is None else in_proj_weight.chunk(3)
    weights: Any = separate if use_separate_proj_weight else joint
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (  # [N, heads, tokens, width of a head]
        F.linear(tokens, weight, bias).unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)
        for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    scores = torch.matmul(q * (1 / math.sqrt(q.shape[-1])), k.transpose(-1, -2))
    if attn_mask is not None:
        mask = _additive(attn_mask, scores, keep=False)
        scores = scores + (mask.unflatten(0, (-1, num_heads)) if mask.ndim == 3 else mask)
    if key_padding_mask is not None:
        scores = scores + _additive(key_padding_mask, scores, keep=False)[:, None, None]
    attention = F.softmax(scores, dim=-1)
    mixed = torch.matmul(F.dropout(attention, dropout_p, training), v)
    out = F.linear(mixed.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    seen = attention.mean(1) if average_attn_weights else attention
    if not batched:
        out, seen = out[:, 0], seen[0]
    return out, seen if need_weights else None


def _additive(mask: Tensor, scores: Tensor, keep: bool) -> Tensor:
    """A mask to be added to the scores; `keep`: True in a boolean mask means "may attend"."""
    if mask.dtype != torch.bool:
        return mask
    hidden = ~mask if keep else mask
    return torch.zeros_like(hidden, dtype=scores.dtype).masked_fill(hidden, -math.inf)


EXPLICIT: dict[Any, Callable[..., Any]] = {
    F.multi_head_attention_forward: multi_head,
    F.scaled_dot_product_attention: attend,
}
