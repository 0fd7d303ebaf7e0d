"""Maps computed in bfloat16, once it is shown that they rank the inputs as in full precision."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from experiments import lazy
from experiments.attribution import driver
from experiments.attribution.registry import resolve

if TYPE_CHECKING:
    import torch
    from scipy import stats
    from torch import Tensor, nn

    from experiments.data.dataset import Truth
else:
    stats = lazy.load("scipy.stats")
    torch = lazy.load("torch")


def attribute_bfloat16(
    spec: str | Mapping[str, Any],
    model: nn.Module,
    x: Tensor,
    target: Tensor | int,
    *,
    agreement: float = 0.99,
    check: int = 8,
    autocast: bool = False,
    indices: Sequence[int] | None = None,
    truth: Truth | None = None,
    **rest: Any,
) -> Tensor:
    """The maps of a method, float32 as `driver.attribute` gives them, of a model in bfloat16.

    The first `check` samples are explained in the model's own precision as well. bfloat16 has
    three significant digits: a method that takes differences of outputs may not survive it.

    Args:
        agreement: the least rank correlation (Spearman) that each of these maps must have with
            its counterpart.
        check: how many samples to compare; at least 1.
        autocast: run the model under `torch.autocast`, which keeps its weights, and what is
            sensitive (normalisation, softmax), in its precision, instead of a bfloat16 copy.
        rest: `driver.attribute`'s other arguments.

    Raises:
        ValueError: a map agrees less, or the method cannot compute in bfloat16; and what
            `driver.attribute` raises.
    """
    if check < 1:
        raise ValueError(f"attribute: check must be at least 1 sample, got {check}")
    name = resolve(spec)[0].name
    ids = list(range(len(x)) if indices is None else indices)
    lower = model if autocast else copy.deepcopy(model).to(torch.bfloat16)

    def run(network: nn.Module, start: int, stop: int) -> Tensor:
        rows = slice(start, stop)
        return driver.attribute(
            spec, network, x[rows], target if isinstance(target, int) else target[rows],
            indices=ids[rows], truth=driver.rows_of(truth, rows), **rest,
        )  # fmt: skip

    def run_lower(start: int, stop: int) -> Tensor:
        device = next(model.parameters(), x).device.type
        region = torch.autocast(device, torch.bfloat16) if autocast else nullcontext()
        try:
            with region:
                return run(lower, start, stop)
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"method {name!r} cannot compute in bfloat16 ({reason}); use full precision"
            ) from error

    first, full = run_lower(0, check), run(model, 0, check)
    several = full.ndim - x.ndim  # maps of several targets, [N, T, ...]
    found = rank_agreement(*(maps.flatten(0, several).flatten(1) for maps in (full, first)))
    _refuse_disagreement(name, found, agreement, ids[:check])
    return torch.cat([first, run_lower(check, len(x))]) if len(x) > check else first


def rank_agreement(a: Tensor, b: Tensor) -> Tensor:
    """[M]: Spearman's correlation of rows [M, P], ties by their average rank.

    1 if both rows are constant, 0 if only one is.
    """
    ranks = [torch.from_numpy(stats.rankdata(rows.double().cpu(), axis=1)) for rows in (a, b)]
    x, y = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    size = x.norm(dim=1) * y.norm(dim=1)
    constant = (x == 0).all(1) & (y == 0).all(1)
    found = (x * y).sum(1) / torch.where(size > 0, size, 1)
    return torch.where(constant, 1.0, found)


def _refuse_disagreement(
    name: str, found: Tensor, agreement: float, indices: Sequence[int]
) -> None:
    worst = int(found.argmin())
    if found[worst] < agreement:
        sample = indices[worst // (len(found) // len(indices))]
        raise ValueError(
            f"method {name!r} in bfloat16 ranks the inputs of sample {sample} with an agreement "
            f"of {found[worst]:.4f} with full precision, below {agreement}: use full precision, "
            "or accept a lower agreement"
        )
