"""Models between stages: saved folders kept with the run that made them, named by run or by registry entry.

A folder in the Hugging Face layout, not an MLflow flavour: `mlflow.pytorch` freezes the sequence length, and guessing
requirements costs 15 s a model.
"""

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from compresskit.tracking.store import client, project_root

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def digest(rows: Any) -> str:
    """The first 16 hex digits of a SHA-256 over a `datasets.Dataset`: its columns and their values, in order."""
    import pyarrow as pa

    table = rows.with_format("arrow")[:].combine_chunks().replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()[:16]


def folder_digest(folder: str | Path) -> str:
    """The first 16 hex digits of a SHA-256 over the names and contents of a folder's files."""
    folder = Path(folder)
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\n{content}\n".encode())
    return total.hexdigest()[:16]


def model_digest(source: str | Path) -> str:
    """`folder_digest` of the model that `source` names."""
    folder = resolve(source)
    if not isinstance(folder, Path):
        raise FileNotFoundError(f"{source} is no folder, run or registered model here, so it has no digest")
    return folder_digest(folder)


def register(name: str, run_id: str, alias: str | None = None) -> str:
    """Enter a run's model in the registry, once, and move `alias` to it.  Returns its version."""
    from mlflow.exceptions import MlflowException

    c = client()
    try:
        c.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = [v.version for v in c.search_model_versions(f"name = '{name}'") if v.run_id == run_id]
    if known:
        number = str(known[0])
    else:
        source = f"{c.get_run(run_id).info.artifact_uri}/model"
        number = str(c.create_model_version(name, source, run_id=run_id).version)
    if alias:
        c.set_registered_model_alias(name, alias, number)
    return number


def resolve(source: str | Path) -> str | Path:
    """Where a model lies: a Path for runs:/<id>/model, models:/<name>@<alias>, models:/<name>/<version> (`latest` is
    the newest in both) or a folder here or in the project; a hub id (`name` or `owner/name`) comes back as it is.

    Raises FileNotFoundError for what is not there, with what is.
    """
    text = str(source)
    if run_id := run_of(text):
        inside = text.removeprefix("runs:/").partition("/")[2] if text.startswith("runs:/") else "model"
        return _artifact(run_id, inside or "model", text)
    for folder in (Path(text).expanduser(), project_root() / text):
        if folder.is_dir():
            return folder.resolve()
    if isinstance(source, Path) or not HUB_ID.fullmatch(text):
        raise FileNotFoundError(f"no model folder {text} (looked in {Path.cwd()} and {project_root()})")
    return text


def run_of(source: str) -> str | None:
    """The run behind runs:/<id>/…, models:/<name>@<alias> or models:/<name>/<version>; None for a folder or hub id."""
    if source.startswith("runs:/"):
        return source.split("/")[1]
    if not source.startswith("models:/"):
        return None
    if not (parts := re.fullmatch(r"models:/([^@/]+)[@/]([^@/]+)", source)):
        raise ValueError(
            f"{source} names no registered model; write models:/<name>@<alias> or models:/<name>/<version>"
        )
    name, which = parts.groups()
    versions = {str(v.version): v for v in client().search_model_versions(f"name = '{name}'")}
    if not versions:
        known = sorted(m.name for m in client().search_registered_models())
        raise FileNotFoundError(f"{source}: no registered model {name!r}; registered: {', '.join(known) or 'none'}")
    numbers = {alias: str(n) for alias, n in client().get_registered_model(name).aliases.items()}
    numbers |= {number: number for number in versions} | {"latest": max(versions, key=int)}
    if which not in numbers:
        raise FileNotFoundError(
            f"{source}: {name!r} has no version or alias {which!r}; it has {', '.join(sorted(numbers))}"
        )
    return versions[numbers[which]].run_id


def _artifact(run_id: str, inside: str, asked: str) -> Path:
    """The local folder of a run's artifact."""
    from mlflow.exceptions import MlflowException

    try:
        run = client().get_run(run_id)
    except MlflowException as error:
        raise FileNotFoundError(f"{asked}: the store has no run {run_id}") from error
    if inside == "model" and "model.digest" not in run.data.tags:  # set when the upload was whole
        stage = run.data.tags.get("stage", "no stage")
        raise FileNotFoundError(f"{asked}: run {run.info.run_name} ({stage}, {run.info.status}) kept no model")
    place = urlsplit(run.info.artifact_uri)
    path = Path(url2pathname(place.path), inside) if place.scheme in ("", "file") else _fetched(run_id, inside)
    if not path.exists():
        raise FileNotFoundError(f"{asked}: run {run_id} has no artifact {inside}")
    return path


def _fetched(run_id: str, inside: str) -> Path:
    """A copy, made once, of what a tracking server keeps."""
    from mlflow.exceptions import MlflowException

    place = project_root() / "mlruns" / "downloads" / run_id
    if not (place / inside).exists():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as folder:
            try:
                path = client().download_artifacts(run_id, inside, folder)
            except MlflowException:
                return place / inside
            (place / inside).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place / inside)
    return place / inside
