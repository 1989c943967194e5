"""Which version of a kernel runs: decided at each call, nothing is replaced at import."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

KERNELS = "COMPRESSKIT_KERNELS"  # names a version to be used everywhere, such as "reference"
PREFERRED = {"cuda": ("triton", "torch"), "cpu": ("numba", "torch")}


def choose(implementations: Mapping[str, Callable[..., Any]], device_type: str) -> Callable[..., Any]:
    """The version that $COMPRESSKIT_KERNELS names, else the best of those there are for the device.

    Raises ValueError for a name that is none of them.
    """
    wanted = os.environ.get(KERNELS, "")
    if wanted and wanted not in implementations:
        raise ValueError(f"{KERNELS} is {wanted!r}; there are {', '.join(sorted(implementations))}")
    names = (wanted,) if wanted else PREFERRED.get(device_type, ("torch",))
    return next(implementations[name] for name in names if name in implementations)
