"""What a long search has found so far, value by value, so that a killed one goes on without losing any."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Journal:
    """Plain values by key in a file of JSON lines, each on the disk before the next is asked for.

    A line that a kill cut short is dropped. One process writes.
    """

    def __init__(self, path: Path):
        self.path, self.values = path, dict[str, Any]()
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.read_bytes() if path.exists() else b""
        whole = written[: written.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                key, value = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path} line {number} is no entry of a journal ({error}); delete the file") from error
            self.values[key] = value
        if len(whole) < len(written):
            os.truncate(path, len(whole))

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps([key, value]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.values[key] = value

    def once(self, key: str, find: Callable[[], Any]) -> Any:
        """The value of `key`; found now, and written down, where it is not known yet."""
        if key not in self:
            self[key] = find()
        return self[key]
