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
    if wanted := os.environ.get(KERNELS):
        if wanted not in implementations:
            raise ValueError(f"{KERNELS} is {wanted!r}; there are {', '.join(sorted(implementations))}")
        return implementations[wanted]
    for name in PREFERRED.get(device_type, ()):
        if name in implementations:
            return implementations[name]
    return implementations["torch"]
