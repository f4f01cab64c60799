"""Commands that hand a pruned network on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.arguments import Settings, Trust, given, here, say, say_table
from search.errors import SearchError

commands = typer.Typer()

PrunedFolder = Annotated[Path, typer.Argument(help="Folder that `apply` wrote.", metavar="PRUNED", parser=given)]


@commands.command()
def export(
    pruned: PrunedFolder,
    formats: Annotated[str, typer.Option("--format", help="Kinds of files: onnx, pt2 (torch.export).")] = "onnx,pt2",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", parser=here, help="Folder for the files; default: beside the network."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Numbers of images whose time is measured.")] = "1,64",
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="EXPERIMENT",
            parser=given,
            help="Compare on its validation images, too: a file, or a sweep's folder.",
        ),
    ] = None,
    test: Annotated[bool, typer.Option("--test", help="Take its test images.")] = False,
    repeats: Annotated[int, typer.Option(help="Passes of each network that are timed.", min=1)] = 30,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files.")] = False,
    settings: Settings = None,
    trust: Trust = None,
) -> None:
    """Export a pruned network for batches of any size; a file is there only if it does what the network does.

    Example: prunesearch export pruned --format onnx --images sweeps/digits --batch 1,64
    """
    from search.config import load_experiment
    from search.export import export_pruned, parse_batches

    if images is None and (test or settings):
        raise SearchError(f"{'--test' if test else '--set'}: expected --images EXPERIMENT with it, got none")
    report = export_pruned(
        pruned,
        output or pruned,
        formats=[name.strip() for name in formats.split(",")],
        batches=parse_batches(batch),
        experiment=None if images is None else load_experiment(images, settings or ()),
        test=test,
        repeats=repeats,
        force=force,
        trusted=trust or (),
        say=say,
    )
    say_table(*report.table())
    for line in report.advice():
        say(line)


Experiment = Annotated[
    Path | None,
    typer.Option(
        "--experiment", metavar="EXPERIMENT", help="Use its MLflow: a file, or a sweep's folder. Else sweeps/mlflow.db."
    ),
]
Uri = Annotated[str | None, typer.Option("--uri", help="MLflow's address, e.g. http://127.0.0.1:5000.")]


@commands.command()
def register(
    pruned: PrunedFolder,
    name: Annotated[str, typer.Argument(help="Name in the registry; versions are counted under it.")],
    alias: Annotated[str | None, typer.Option(help="Name of this version, e.g. champion; moved if it exists.")] = None,
    experiment: Experiment = None,
    uri: Uri = None,
    trust: Trust = None,
) -> None:
    """Bring a pruned network into MLflow's model registry.

    Example: prunesearch register pruned digits --alias champion --experiment sweeps/digits
    """
    from search.model_registry import Store
    from search.model_registry import register as add

    added = add(pruned, name, Store.find(experiment, uri), alias=alias, trusted=trust or (), say=say)
    for fact, value in added.facts.items():
        say(f"  {fact} {value}")
    say(f"registered {added.name}/{added.version}{f' as {added.name}@{alias}' if alias else ''}")


@commands.command()
def fetch(
    network: Annotated[str, typer.Argument(help="digits@champion, or digits/3.", metavar="NAME@ALIAS")],
    output: Annotated[Path, typer.Option("--output", "-o", parser=here, help="New folder for the network.")] = Path(
        "pruned"
    ),
    experiment: Experiment = None,
    uri: Uri = None,
    trust: Trust = None,
) -> None:
    """Get a registered network back: every file checked, the network built again and compared with the logged one.

    Example: prunesearch fetch digits@champion --output pruned-again --experiment sweeps/digits
    """
    from search.model_registry import Store
    from search.model_registry import fetch as get

    fetched = get(network, output, Store.find(experiment, uri), trusted=trust or (), say=say)
    say(f"{fetched.name}/{fetched.version} written to {fetched.folder}, every file as it was registered")
