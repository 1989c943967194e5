"""The trials of a search in an Optuna journal file, from which any number of machines take work.

A trial of ours has a number, and what it is follows from that number (search/progressive.py), so no harm is done where
two machines work on the same one: both find the same. A claim, which keeps them from it, is a running Optuna trial; a
result is a finished one. A claim whose process is gone, or that nobody has renewed for LEASE_SECONDS, is void.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial, TrialState, create_trial

from compresskit.search.optuna_journal import open_journal

LEASE_SECONDS = 120.0
RENEW_SECONDS = 20.0


def own_name() -> str:
    """This process, unlike every other on any machine."""
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


@dataclass
class Trials:
    """What has been found, by trial number. Use as a context: claims are renewed until its end.

    path: of the journal file; another study may stand in it. study: a name that only equal searches share.
    """

    path: Path
    study: str
    owner: str = field(default_factory=own_name)

    def __post_init__(self) -> None:
        """Open the file, or begin it."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = open_journal(self.path)
        optuna.create_study(storage=self._storage, study_name=self.study, direction="maximize", load_if_exists=True)
        self._study = self._storage.get_study_id_from_name(self.study)
        self._claims: dict[int, int] = {}  # ours, by trial number: the id of the running Optuna trial
        self._seen: dict[int, tuple[int, float]] = {}  # others', by Optuna's id: last renewal, and when we saw it first
        self._finished: dict[int, dict[str, Any]] = {}
        self._stop = threading.Event()

    def __enter__(self) -> Trials:
        self._renewing = threading.Thread(target=self._renew, daemon=True)
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._renewing.join()
        for claim in list(self._claims.values()):
            with suppress(Exception):  # the file may be what has failed
                self._storage.set_trial_state_values(claim, TrialState.FAIL)

    def finished(self) -> dict[int, dict[str, Any]]:
        """The results of all machines so far, by trial number."""
        for trial in self._read(TrialState.COMPLETE):
            self._finished.setdefault(trial.user_attrs["number"], trial.user_attrs["result"])
        return self._finished

    def claim(self, number: int) -> bool:
        """Whether a trial is ours to work on: nobody has finished it, or claimed it before us."""
        if number in self._claims or number in self.finished():
            return False
        if self._claimant(number) is not None:
            return False
        claim = create_trial(state=TrialState.RUNNING, user_attrs={"number": number, "owner": self.owner, "renewed": 0})
        mine = self._storage.create_new_trial(self._study, template_trial=claim)
        first = self._claimant(number)
        if number in self.finished() or (first is not None and first != mine):
            self._storage.set_trial_state_values(mine, TrialState.FAIL)
            return False
        self._claims[number] = mine
        return True

    def finish(self, number: int, result: dict[str, Any]) -> None:
        """Keep a result (plain values, with its "score") of a trial that was claimed."""
        mine = self._claims[number]
        self._storage.set_trial_user_attr(mine, "result", result)
        self._storage.set_trial_state_values(mine, TrialState.COMPLETE, [result["score"]])
        del self._claims[number]

    def _claimant(self, number: int) -> int | None:
        """Optuna's id of the earliest claim on a trial that is alive."""
        claims = (trial for trial in self._read(TrialState.RUNNING) if trial.user_attrs["number"] == number)
        return next((trial._trial_id for trial in claims if self._alive(trial)), None)

    def _alive(self, claim: FrozenTrial) -> bool:
        owner, renewed = claim.user_attrs["owner"], claim.user_attrs["renewed"]
        if owner == self.owner:
            return True
        host, pid, created = owner.rsplit(":", 2)
        if host == socket.gethostname():
            with suppress(psutil.Error):
                return f"{psutil.Process(int(pid)).create_time():.2f}" == created
            return False
        last, since = self._seen.get(claim._trial_id, (-1, 0.0))
        if renewed != last:
            self._seen[claim._trial_id] = (renewed, time.monotonic())  # clocks of machines differ; changes do not
            return True
        return time.monotonic() - since < LEASE_SECONDS

    def _read(self, state: TrialState) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._study, deepcopy=False, states=(state,))

    def _renew(self) -> None:
        renewals = 0
        while not self._stop.wait(RENEW_SECONDS):
            renewals += 1
            for claim in list(self._claims.values()):
                with suppress(Exception):  # finished meanwhile
                    self._storage.set_trial_user_attr(claim, "renewed", renewals)
