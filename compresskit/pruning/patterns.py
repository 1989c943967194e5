"""Which weights of a matrix go together, and how large such a group is.

Letters: R rows (outputs) and C columns (inputs) of a matrix as `nn.Linear` keeps it; a group is r rows by c columns.
"""

from typing import Literal

import torch
from torch import Tensor

Pattern = Literal["unstructured", "4x1", "8x1", "16x1", "1x2", "1x4", "2:4"]
GROUPS: dict[Pattern, tuple[int, int]] = {  # (r, c); of 2:4 each weight goes by itself, but not any of them may
    "unstructured": (1, 1),
    "4x1": (4, 1),
    "8x1": (8, 1),
    "16x1": (16, 1),
    "1x2": (1, 2),
    "1x4": (1, 4),
    "2:4": (1, 1),
}
DIVISORS = {**GROUPS, "2:4": (1, 4)}  # of R and C
TWO_OF_FOUR = 0.5  # the one sparsity of 2:4


def check(pattern: Pattern, weight: Tensor, name: str = "the matrix") -> None:
    """Raise ValueError where the pattern's groups do not divide the matrix."""
    for axis, size, divisor in zip(("rows", "columns"), weight.shape, DIVISORS[pattern], strict=False):
        if size % divisor:
            raise ValueError(
                f"{name} has {size} {axis}, no multiple of {divisor}, so it cannot be pruned by the pattern "
                f"{pattern}; choose another pattern, or leave its kind out of the matrices to prune"
            )


def magnitudes(weight: Tensor, pattern: Pattern) -> Tensor:
    """How large each group is, (R / r, C / c): its L2 norm, which for a single weight is |w|.

    Of 2:4 the two largest of every four consecutive inputs are infinitely large, so that they stay whatever the
    others are; among equal ones the first.
    """
    if pattern == "2:4":
        size = weight.abs()
        fours = size.unflatten(-1, (-1, 4))
        first_two = fours.argsort(dim=-1, descending=True, stable=True)[..., :2]
        return fours.scatter(-1, first_two, torch.inf).view_as(size)
    if GROUPS[pattern] == (1, 1):
        return weight.abs()
    return torch.linalg.vector_norm(_grouped(weight, pattern), dim=(1, 3))


def occupied(mask: Tensor, pattern: Pattern) -> Tensor:
    """Which groups hold a weight that the mask keeps, (R / r, C / c), boolean."""
    return mask if GROUPS[pattern] == (1, 1) else _grouped(mask, pattern).any(dim=3).any(dim=1)


def _grouped(weight: Tensor, pattern: Pattern) -> Tensor:
    """(R, C) as (R / r, r, C / c, c)."""
    rows, columns = GROUPS[pattern]
    return weight.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))


def spread(kept: Tensor, pattern: Pattern) -> Tensor:
    """The mask of the weights, (R, C), from that of the groups, (R / r, C / c)."""
    rows, columns = GROUPS[pattern]
    if (rows, columns) == (1, 1):
        return kept
    return kept.repeat_interleave(rows, dim=0).repeat_interleave(columns, dim=1)
