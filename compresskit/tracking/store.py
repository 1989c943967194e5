"""Where runs are kept: one sqlite database and its artifacts under `mlruns/`, whatever the working directory is.

MLFLOW_TRACKING_URI names another store; COMPRESSKIT_HOME names another project folder.
"""

import json
import logging
import os
import re
import sqlite3
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock

if TYPE_CHECKING:
    from mlflow import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would call home at import
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

SQLITE = "sqlite:///"
# where MLflow writes absolute paths down; rewritten when the project folder has moved
PATH_COLUMNS = [
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
]


def project_root() -> Path:
    """COMPRESSKIT_HOME, else the nearest folder from here upwards with notebooks/ and params/, else the checkout."""
    if home := os.environ.get("COMPRESSKIT_HOME"):
        return Path(home).expanduser().resolve()
    here = Path.cwd()
    checkout = Path(__file__).resolve().parents[2]
    for folder in (here, *here.parents, checkout):
        if (folder / "notebooks").is_dir() and (folder / "params").is_dir():
            return folder
    raise FileNotFoundError(
        f"no compresskit project here: neither {here} nor a folder above it has notebooks/ and params/; "
        "change into the project or set COMPRESSKIT_HOME to it"
    )


def store_uri() -> str:
    """The tracking store; a sqlite path comes back absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{project_root() / 'mlruns' / 'mlflow.db'}"
    if urlsplit(uri).scheme in ("", "file"):
        raise ValueError(
            f"MLFLOW_TRACKING_URI={uri} is a folder, a store MLflow no longer serves; unset it or name a database, "
            f"for instance {SQLITE}{Path(urlsplit(uri).path).absolute() / 'mlflow.db'}"
        )
    return SQLITE + str(Path(uri[len(SQLITE) :]).absolute()) if uri.startswith(SQLITE) else uri


def store_folder(uri: str) -> Path | None:
    """The folder of a sqlite store, which also holds its artifacts; None when a server keeps them."""
    return Path(uri[len(SQLITE) :]).parent if uri.startswith(SQLITE) else None


def initialise() -> str:
    """Create or upgrade the database once, however many processes ask at the same time. Returns the store's URI.

    MLflow alone lets processes that meet at a fresh database create its tables twice, and most of them die.
    """
    uri = store_uri()
    folder = store_folder(uri)
    if folder is None:
        return uri
    database = Path(uri[len(SQLITE) :])
    stamp = database.with_suffix(".ready.json")
    wanted = {"mlflow": version("mlflow"), "folder": str(folder)}
    if _ready(database, stamp, wanted):
        return uri
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_suffix(".lock")):
        if not _ready(database, stamp, wanted):
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
            from mlflow import MlflowClient
            from mlflow.db import upgrade

            upgrade.callback(uri)  # type: ignore[misc]  # `mlflow db upgrade`, which also fills an empty database
            MlflowClient(uri).search_experiments()  # creates the experiment "Default"
            _relocate(database, stamp, folder)
            temporary = stamp.with_suffix(".tmp")
            temporary.write_text(json.dumps(wanted))
            os.replace(temporary, stamp)
    return uri


@lru_cache(maxsize=8)
def _client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def client() -> "MlflowClient":
    """MLflow's client on the initialised store."""
    return _client(initialise())


def experiment_id(name: str) -> str:
    """The id of the experiment called `name`, made when it is missing, by whichever process comes first."""
    from mlflow.exceptions import MlflowException

    c = client()
    found = c.get_experiment_by_name(name)
    if found is None:
        folder = store_folder(store_uri())
        place = (folder / "artifacts" / re.sub(r"[^\w.-]+", "-", name)).as_uri() if folder else None
        try:
            return c.create_experiment(name, artifact_location=place)
        except MlflowException:  # another process made it in between
            found = c.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":  # in the UI; a finished stage must not be lost for it
        c.restore_experiment(found.experiment_id)
    return found.experiment_id


def _ready(database: Path, stamp: Path, wanted: dict[str, str]) -> bool:
    return database.exists() and stamp.exists() and json.loads(stamp.read_text()) == wanted


def _relocate(database: Path, stamp: Path, folder: Path) -> None:
    """Point the stored absolute artifact paths here after the folder was moved or copied."""
    with sqlite3.connect(database) as db:
        db.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0",  # MLflow put it where we stood
            [(folder / "artifacts" / "Default").as_uri()],
        )
        if stamp.exists() and (before := json.loads(stamp.read_text())["folder"]) != str(folder):
            old, new = Path(before).as_uri() + "/", folder.as_uri() + "/"
            for table, column in PATH_COLUMNS:
                db.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    [new, len(old) + 1, len(old), old],
                )
    db.close()
