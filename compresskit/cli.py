"""The command line.  Every command imports what it needs when it runs: `--help` must answer at once."""

import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

app = typer.Typer(
    help="Make BERT-class encoders small and fast, and see what each step cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Changes = Annotated[list[str] | None, Option("--set", metavar="NAME=VALUE", help="Replace one value; repeatable.")]
Preset = Annotated[str, Option(help="A published architecture: autotinybert-s1, autotinybert-kd-s1, tinybert-4, …")]
Size = Annotated[int | None, Option(min=1)]
Debug = Annotated[bool, Option("--debug", help="Show the traceback of an error.")]


def plainly(command: Callable[..., None]) -> Callable[..., None]:
    """An error as one line on stderr.  Exit code 2 for parameters, 130 when stopped, 1 for the rest."""

    @wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        try:
            command(*args, debug=debug, **kwargs)
        except KeyboardInterrupt as error:
            say(str(error) or "stopped")
            raise typer.Exit(130) from None
        except BrokenPipeError:  # `compresskit … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except typer.Exit:
            raise
        except Exception as error:
            if debug:
                traceback.print_exception(error)
            expected = isinstance(error, ValueError | OSError) or hasattr(error, "exit_code")
            say(f"{error}" if expected else f"{type(error).__name__}: {error} (--debug shows where)")
            raise typer.Exit(getattr(error, "exit_code", 1)) from None

    return run


def say(text: str) -> None:
    """One line on stderr."""
    typer.echo(f"compresskit: {' '.join(text.split())}", err=True)


@app.command()
@plainly
def run(
    stage: Annotated[str, Argument(help="Notebook to run: pretrain, finetune, evaluate, search, distill, prune, …")],
    params: Annotated[Path | None, Option("--params", "-p", help="YAML with that stage's parameters.")] = None,
    change: Changes = None,
    deadline: Annotated[float | None, Option(help="Stop the notebook after this many seconds.")] = None,
    nproc: Annotated[int, Option(min=1, help="Processes that train together, each on a GPU where there are any.")] = 1,
    debug: Debug = False,
) -> None:
    """Run one stage's notebook and record it in MLflow."""
    from compresskit import running

    if nproc > 1:
        running.launch(nproc, stage, params, change or [], deadline_s=deadline)
        return
    if running.assists():
        running.assist(stage, params, change or [])
        return
    done = running.run_stage(stage, params, change or [], deadline_s=deadline)
    typer.echo(f"{stage}: {done.seconds:.0f} s, run {done.run_id}, executed notebook {done.notebook}")


@app.command()
@plainly
def pipeline(
    file: Annotated[Path, Argument(help="A file of params/pipelines.")],
    change: Changes = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Print steps, parameters and estimated hours.")] = False,
    restart: Annotated[bool, Option("--restart", help="Do not go on with an unfinished call.")] = False,
    debug: Debug = False,
) -> None:
    """Run stages in order; after a failure or a stop the next call goes on with the first unfinished one."""
    from compresskit import running

    running.run_pipeline(file, change or [], dry_run=dry_run, restart=restart)


@app.command()
@plainly
def compare(
    task: Annotated[str | None, Argument(help="All tasks with results when none is named.")] = None,
    at_least: Annotated[list[str] | None, Option(metavar="NAME=NUMBER", help="Exit 1 when a measure is below.")] = None,
    out: Annotated[Path | None, Option(help="Where the Pareto plot goes.")] = None,
    debug: Debug = False,
) -> None:
    """Print a task's leaderboard as a table, save its Pareto plot, check bounds."""
    from compresskit import running
    from compresskit.stages import compare as stage

    bounds = dict(bound(text) for text in at_least or [])
    tasks = [task] if task else running.leaderboard_tasks()
    if not tasks:
        raise ValueError("there are no results yet; run a pipeline or the stage evaluate first")
    for name in tasks:
        stage.compare(name, bounds, out or running.plot_path(name))


@app.command()
@plainly
def export(
    model: Annotated[str, Argument(help="runs:/<id>/model, models:/<name>@<alias>, a folder; then ?lengths=2x.")],
    out: Annotated[Path, Argument(help="New folder.")],
    format: Annotated[
        str, Option(help="bert (plain transformers), onnx, openvino, or sparse (for compresskit).")
    ] = "bert",
    seq_len: Annotated[int, Option(min=0, help="Of inputs to a graph that drops tokens; 0: that of its front.")] = 0,
    debug: Debug = False,
) -> None:
    """Write a model for use elsewhere: without compresskit, or by its nonzero weights."""
    from compresskit.stages import export as stage

    stage.export_model(model, out, format, seq_len)
    typer.echo(f"{model} as {format}: {out}")


@app.command()
@plainly
def new(
    out: Annotated[Path, Argument(help="New folder.")],
    vocabulary: Annotated[str, Option(help="A vocab.txt, or a model or folder that has one.")],
    preset: Preset = "",
    num_hidden_layers: Size = None,
    hidden_size: Size = None,
    intermediate_size: Size = None,
    num_attention_heads: Size = None,
    qkv_size: Annotated[int | None, Option(min=1, help="Of all heads together; the preset's, or hidden-size.")] = None,
    max_position_embeddings: Size = None,
    weights: Annotated[bool, Option(help="Random weights, too.")] = True,
    seed: Annotated[int, Option(help="Of the weights.")] = 42,
    debug: Debug = False,
) -> None:
    """Make the folder of a model that has learned nothing: a supernet, unless preset or sizes say otherwise."""
    from compresskit.stages import new as stage

    sizes = given(
        num_hidden_layers=num_hidden_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_attention_heads=num_attention_heads,
        qkv_size=qkv_size,
        max_position_embeddings=max_position_embeddings,
    )
    typer.echo(f"{out}: {stage.new_model(out, vocabulary, preset, sizes, weights, seed)}")


@app.command()
@plainly
def extract(
    model: Annotated[
        str,
        Argument(
            help="A supernet: runs:/<id>/model, models:/<name>@<alias>, a folder, hub id or EfficientBERT's file."
        ),
    ],
    out: Annotated[Path, Argument(help="New folder.")],
    arch: Annotated[
        str, Option(help='AutoTinyBERT\'s text: "{\'sample_layer_num\': …}"; or formulas, one per layer: "…, …".')
    ] = "",
    preset: Preset = "",
    num_hidden_layers: Size = None,
    hidden_size: Size = None,
    intermediate_size: Size = None,
    num_attention_heads: Size = None,
    qkv_size: Annotated[int | None, Option(min=1, help="Of all heads together.")] = None,
    heads: Annotated[
        bool, Option("--heads", help="With the model's heads and projection, for further training.")
    ] = False,
    shrink: Annotated[
        str, Option(metavar="LAYERSxHIDDEN", help="First cut EfficientBERT's supernet, as to 6x360.")
    ] = "",
    vocabulary: Annotated[str, Option(help="A vocab.txt or folder; empty: beside the model.")] = "",
    debug: Debug = False,
) -> None:
    """Write a network inside a supernet as a model of its own; all of it where none is described."""
    from compresskit.stages import extract as stage

    sizes = given(
        num_hidden_layers=num_hidden_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_attention_heads=num_attention_heads,
        qkv_size=qkv_size,
    )
    typer.echo(f"{out}: {stage.extract(model, out, arch, preset, sizes, heads, shrink, vocabulary)}")


@app.command()
@plainly
def predict(
    out: Annotated[Path | None, Argument(help="Folder for the files.")] = None,
    model: Annotated[list[str] | None, Option(metavar="TASK=MODEL", help="A task's model; repeatable.")] = None,
    data_dir: Annotated[str, Option(help="Folder with the test files; empty: $COMPRESSKIT_DATA.")] = "",
    max_seq_len: Annotated[int, Option(help="0: 128 for sentences, 384 for questions.")] = 0,
    doc_stride: Annotated[int, Option(help="SQuAD: tokens between the starts of two windows.")] = 128,
    max_query_length: Annotated[int, Option(help="SQuAD: longer questions are cut, in tokens.")] = 64,
    check: Annotated[Path | None, Option(help="Write nothing; check this folder or zip instead.")] = None,
    debug: Debug = False,
) -> None:
    """Answer GLUE's test rows (and SQuAD's dev questions) as the files to hand in."""
    from compresskit.stages import predict as stage

    if (out is None) == (check is None):
        raise ValueError("name a folder to write to, or one to --check")
    if check is not None:
        stage.check(check, data_dir)
        return
    models = dict(text.partition("=")[::2] for text in model or [])
    if unnamed := [task for task, source in models.items() if not source]:
        raise ValueError(f"--model {unnamed[0]}: expected TASK=MODEL")
    if len(models) < len(model or []):
        raise ValueError("--model: a task is named twice; give each task one model")
    assert out is not None
    stage.predict(
        models, data_dir, out, max_seq_len=max_seq_len, doc_stride=doc_stride, max_query_length=max_query_length
    )


@app.command()
@plainly
def demo(
    model: Annotated[str, Argument(help="A task model: runs:/<id>/model, models:/<name>@<alias>, or a folder.")],
    seed: Annotated[int, Option(help="Of the random input.")] = 42,
    debug: Debug = False,
) -> None:
    """Run a model 20 times on one random input, print its logits; exit 1 when they ever differ by a bit."""
    from compresskit.stages import demo as stage

    raise typer.Exit(0 if stage.demo(model, seed) else 1)


@app.command()
@plainly
def report(
    task: Annotated[str, Argument(help="A leaderboard.")],
    out: Annotated[Path, Argument(help="Markdown file; its data and plots go beside it.")],
    command: Annotated[str, Option(help="How the runs were made, for the reader to repeat.")] = "",
    debug: Debug = False,
) -> None:
    """Write a page of results from the newest evaluation of a task."""
    from compresskit.stages import report as stage

    stage.report(task, out, command)
    typer.echo(f"{task}: {out}")


@app.command()
@plainly
def study(
    pipeline: Annotated[str, Argument(help="Name of a pipeline that was run on one or several tasks and seeds.")],
    out: Annotated[Path, Argument(help="Markdown file; its data and plot go beside it.")],
    against: Annotated[list[str] | None, Option(help="A model that gains refer to; repeatable.")] = None,
    command: Annotated[str, Option(help="How the runs were made, for the reader to repeat.")] = "",
    note: Annotated[str, Option(help="What else the reader has to know of the runs.")] = "",
    also: Annotated[list[str] | None, Option(help="A pipeline that makes some of the same models; repeatable.")] = None,
    debug: Debug = False,
) -> None:
    """Write a page of results from a pipeline's finished runs: scores, gains, speed, by task."""
    from compresskit.stages import lengths_page
    from compresskit.stages import study as stage

    if lengths_page.is_for(pipeline):
        lengths_page.study(pipeline, out, command, note)
    else:
        stage.study(pipeline, against or ["baseline-labels-only"], out, command, note, also or ())
    typer.echo(f"{pipeline}: {out}")


@app.command()
@plainly
def ui(port: Annotated[int, Option(help="On 127.0.0.1.")] = 5000, debug: Debug = False) -> None:
    """Open the MLflow UI on this machine: leaderboards, runs, artifacts."""
    from compresskit import running

    raise typer.Exit(running.serve(port))


@app.command()
@plainly
def reap(
    host: Annotated[str | None, Option(help="A machine that is known to be down.")] = None, debug: Debug = False
) -> None:
    """Mark runs KILLED that say RUNNING while their process is gone."""
    from compresskit import running

    runs = running.reap(host)
    typer.echo(f"{len(runs)} runs closed" + "".join(f"\n  {run_id}" for run_id in runs))


@app.command()
@plainly
def doctor(debug: Debug = False) -> None:
    """Print versions, kernels and the store; exit 1 when something is missing."""
    from compresskit import running

    wrong = running.doctor()
    for sentence in wrong:
        say(sentence)
    raise typer.Exit(1 if wrong else 0)


def given(**options: int | None) -> dict[str, int]:
    """The options that were named."""
    return {name: value for name, value in options.items() if value is not None}


def bound(text: str) -> tuple[str, float]:
    """NAME=NUMBER."""
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise ValueError(f"--at-least {text}: expected NAME=NUMBER") from None


def main() -> None:
    """Entry point of the command `compresskit`."""
    app(prog_name="compresskit")


if __name__ == "__main__":
    main()
