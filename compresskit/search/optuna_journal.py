"""Optuna's journal file, as a search that may be killed at any moment needs it."""

from __future__ import annotations

import os
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock


def open_journal(path: Path) -> JournalStorage:
    """The storage in that file, which is begun where there is none.

    What a kill or a full disk left of the last line is cut off; Optuna would refuse the file from the next one on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileSymlinkLock(str(path))
    if path.exists():
        lock.acquire()
        try:
            written = path.read_bytes()
            whole = written.rfind(b"\n") + 1
            if whole < len(written):
                os.truncate(path, whole)
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock))
