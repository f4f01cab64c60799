"""Commands that show networks, rankings, runs and names."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from search.cli.arguments import (
    ExperimentOrSweep,
    Settings,
    SweepFolder,
    given,
    here,
    refuse_to_overwrite,
    say,
    say_lines,
    say_table,
)
from search.places import is_address

commands = typer.Typer()


@commands.command()
def rank(
    experiment: ExperimentOrSweep,
    criteria: Annotated[
        str | None, typer.Option(help="Criteria by name: l1,fpgm; or all. Without it those of search.criterion.")
    ] = None,
    widths: Annotated[str, typer.Option(help="Shares of its channels that a group keeps.")] = "30%,50%,70%",
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Also cut one group at a time by the first criterion, and measure.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", parser=here, help="Folder for tables and pictures; default: STORAGE/NAME-rank."),
    ] = None,
    settings: Settings = None,
) -> None:
    """Rank channels by several criteria, and show how far they agree: channels kept in common, and orders.

    Example: prunesearch rank experiments/digits.yaml --criteria l1,fpgm,taylor --widths 30%,50% --sensitivity
    """
    from search.agreement_tables import agreement_tables
    from search.config import load_experiment
    from search.rank import rank as run_rank

    asked = load_experiment(experiment, settings or ())
    ranked = run_rank(asked, output, criteria=criteria, widths=widths, sensitivity=sensitivity, say=say)
    for headers, rows in agreement_tables(ranked.agreements, ranked.shares) if ranked.agreements else ():
        say("")
        say_table(headers, rows)
    say("")
    for path in ranked.written:
        say(f"written: {path}")


class Device(StrEnum):
    """What `bench` measures on."""

    CPU = "cpu"
    CUDA = "cuda"


@commands.command()
def bench(
    subject: Annotated[
        str,
        typer.Argument(help="Experiment file, a sweep's folder, or a network by name.", metavar="EXPERIMENT_OR_MODEL"),
    ],
    batch: Annotated[
        str | None, typer.Option(help="Numbers of images at a time, e.g. 1,64; default: latency.batch.")
    ] = None,
    device: Annotated[Device | None, typer.Option(help="Default: where the experiment's trials run.")] = None,
    step: Annotated[
        int | None, typer.Option(help="Widths are multiples of it; default: search.widths.round_to.", min=1)
    ] = None,
    widths: Annotated[
        int | None, typer.Option(help="How many networks are measured; default: 40, or those that were.", min=2)
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="One image: 3x128x128; default: the network's usual one, or the experiment's.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Measure once what widths cost on this machine; sweeps with a budget of latency find it.

    Example: prunesearch bench resnet56 --batch 1,64 --step 8
    """
    from search.bench import bench as measure
    from search.config import load_experiment, model_experiment
    from search.export import parse_batches
    from search.layouts import parse_shape

    changes = [*(settings or ()), *([] if step is None else [f"search.widths.round_to={step}"])]
    by_name = not (is_address(subject) or Path(subject).exists() or subject.endswith((".yaml", ".yml")))
    asked = model_experiment(subject, changes) if by_name else load_experiment(given(subject), changes)
    found = measure(
        asked,
        batches=() if batch is None else parse_batches(batch),
        device=device,
        image=None if input_shape is None else parse_shape(input_shape),
        networks=widths,
        by_name=by_name,
        say=say,
    )
    for one in found:
        say("")
        say(f"a batch of {one.batch}")
        say_table(*one.rows(), left=())
        say(one.summary())


@commands.command("show-channels")
def show_channels(
    experiment: ExperimentOrSweep,
    group: Annotated[str, typer.Option(help="Channel group, e.g. layer2.0.conv1.")],
    criterion: Annotated[str | None, typer.Option(help="Criterion; default: the first of search.criterion.")] = None,
    width: Annotated[str, typer.Option(help="Channels to keep: a share, or a number.")] = "50%",
    images: Annotated[int, typer.Option(help="How many validation images.", min=1)] = 3,
    image: Annotated[list[Path] | None, typer.Option(help="Image file to take instead; may be repeated.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", parser=here, help="Where the picture goes.")] = Path(
        "channels.png"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    settings: Settings = None,
) -> None:
    """Draw what the channels see that a criterion keeps, beside what those see that it removes.

    Example: prunesearch show-channels experiments/digits.yaml --group layer2.0.conv1 --criterion fpgm --width 50%
    """
    from search.config import load_experiment
    from search.show_channels import show_channels as draw

    refuse_to_overwrite(output, force=force)
    asked = load_experiment(experiment, settings or ())
    draw(asked, group, output, criterion=criterion, width=width, images=images, files=image or (), say=say)
    say(f"picture written to {output}")


@commands.command()
def groups(
    model: Annotated[
        str,
        typer.Argument(
            help="Network: a name, {name: …, options: {…}}, or an experiment file or a sweep's folder.", metavar="MODEL"
        ),
    ],
    num_classes: Annotated[int | None, typer.Option(help="Its classes; default: 10.", min=1)] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="One image: 3x128x128; default: the network's usual one, or the experiment's.")
    ] = None,
    thinned: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Thin these grouped convolutions: 'layer3.*'; may be repeated."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Every layer and all reasons, however long the lines.")] = False,
    settings: Settings = None,
) -> None:
    """Show a network's channel groups, which a cut can touch, and what is pinned and why; no weights are needed.

    Example: prunesearch groups mobilenet_v2 --input-shape 3x128x128
    """
    from search.groups import group_table, groups_lines, network_of, pinned_table

    network = network_of(model, num_classes, input_shape, settings or (), thinned or ())
    for headers, rows in (group_table(network, full=full), pinned_table(network, full=full)):
        if rows:
            left = {0, *(index for index, header in enumerate(headers) if header in ("kind", "read by", "why"))}
            say_table(headers, rows, left)
            say("")
    say_lines(groups_lines(network))


@commands.command()
def ui(
    folder: Annotated[Path, typer.Argument(help="A sweep's folder, or the one that holds the sweeps.", parser=given)],
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 5000,
) -> None:
    """Open MLflow's user interface on the runs of a sweep; Ctrl-C ends it.

    Example: prunesearch ui sweeps/digits
    """
    from search.tracking import serve

    serve(folder, port, say)


@commands.command()
def sync(sweep: SweepFolder) -> None:
    """Send to MLflow what waits in a sweep's outbox, because the server was away.

    Example: prunesearch sync sweeps/digits
    """
    from search.tracking import sync as send

    say(f"{send(sweep)} entries still wait")


class FileKind(StrEnum):
    """Whose form `schema` tells."""

    POLICY = "policy"
    EXPERIMENT = "experiment"


@commands.command()
def schema(
    kind: Annotated[FileKind, typer.Argument(help="Which files.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", parser=here, help="Where it goes; default: the terminal.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Print the JSON Schema of policies or experiments, by which editors complete and mark mistakes.

    Example: prunesearch schema experiment --output experiment.schema.json
    """
    from search.schema import schema_text

    text = schema_text(kind.value)
    if output is None:
        say(text.removesuffix("\n"))
        return
    refuse_to_overwrite(output, force=force)
    output.write_text(text, encoding="utf-8")
    say(f"schema written to {output}")


class Kind(StrEnum):
    """What `names` lists."""

    MODELS = "models"
    TIMM = "timm"
    CRITERIA = "criteria"
    ALLOCATIONS = "allocations"
    DATA = "data"


@commands.command()
def names(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """List the registered names that an experiment may use; timm's networks, more than a thousand, by themselves.

    Example: prunesearch names criteria
    """
    from pruning import ALLOCATIONS, CRITERIA, DATA, model_names, timm_names

    known = {
        Kind.MODELS: model_names,
        Kind.TIMM: timm_names,
        Kind.CRITERIA: CRITERIA.names,
        Kind.ALLOCATIONS: ALLOCATIONS.names,
        Kind.DATA: DATA.names,
    }
    for name in known[kind]():
        say(name)
