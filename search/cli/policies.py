"""Commands that take a policy home."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli.arguments import (
    ExperimentOrSweep,
    Settings,
    SweepFolder,
    given,
    here,
    refuse_to_overwrite,
    say,
    say_table,
)

if TYPE_CHECKING:
    from search.apply import Applied

commands = typer.Typer()


@commands.command()
def best(
    sweep: SweepFolder,
    max_macs: Annotated[str | None, typer.Option(help="Most MACs: '50%' of the baseline's, or a number.")] = None,
    max_params: Annotated[str | None, typer.Option(help="Most parameters: '50%', or a number.")] = None,
    max_latency_ms: Annotated[str | None, typer.Option(help="Most milliseconds a batch: '50%', or a number.")] = None,
    min_accuracy: Annotated[str | None, typer.Option(help="Least accuracy: '99%' of the baseline's, or 0.91.")] = None,
    knee: Annotated[
        bool, typer.Option("--knee", help="Take the front's knee within the limits, after which accuracy gets dear.")
    ] = False,
    trial: Annotated[int | None, typer.Option(help="Take this trial instead.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", parser=here, help="Where the policy goes.")] = Path(
        "policy.json"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Pick the most accurate trial within limits, or the front's knee, and write its policy.

    Example: prunesearch best sweeps/digits --max-macs 50% --output policy.json
    """
    from search.sweep import Sweep

    refuse_to_overwrite(output, force=force)
    limits = {"max_macs": max_macs, "max_params": max_params, "max_latency_ms": max_latency_ms}
    choice = Sweep.load(sweep).best(trial=trial, knee=knee, min_accuracy=min_accuracy, **limits)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(choice.policy.to_json(), encoding="utf-8")
    say(choice.explanation)
    say(f"policy written to {output}")


@commands.command()
def apply(
    policy: Annotated[Path, typer.Argument(help="Policy file that `best` wrote.", metavar="POLICY", parser=given)],
    experiment: ExperimentOrSweep,
    output: Annotated[Path, typer.Option("--output", "-o", parser=here, help="New folder for the network.")] = Path(
        "pruned"
    ),
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", metavar="NAME=VALUE", help="Change the policy's recipe, e.g. --recipe epochs=3."),
    ] = None,
    settings: Settings = None,
) -> None:
    """Cut and fine-tune the baseline by a policy; test both networks once; save the pruned one.

    Example: prunesearch apply policy.json sweeps/digits --output pruned --recipe epochs=40
    """
    from pruning import load_policy
    from search.apply import apply_policy, refuse_recipe, with_recipe
    from search.config import load_experiment
    from search.diff import changed_values

    refuse_recipe(settings or ())
    asked, found = load_experiment(experiment, settings or ()), load_policy(policy)
    changed = with_recipe(found, recipe or ())
    for place, (before, after) in changed_values(found, changed).items():
        say(f"{place}: {before} in {policy}, {after} here and in {output / 'policy.json'}")
    _say_tested(apply_policy(changed, asked, output, say))
    say(f"pruned network written to {output}")


def _say_tested(applied: Applied) -> None:
    from search.units import percent

    before, after = applied.baseline, applied.pruned
    points = f"{100 * (after.accuracy - before.accuracy):+.2f} points"
    faster = percent(after.latency_ms / before.latency_ms)

    def counted(name: str, whole: int, cut: int) -> list[str]:
        return [name, f"{whole:,}", f"{cut:,}", percent(cut / whole)]

    memory = []
    if before.memory and after.memory:
        memory = [
            counted("weight bytes", before.memory.weight_bytes, after.memory.weight_bytes),
            counted("peak activation bytes", before.memory.peak_activation_bytes, after.memory.peak_activation_bytes),
        ]
    rows = [
        ["accuracy", percent(before.accuracy, 2), percent(after.accuracy, 2), points],
        counted("MACs", before.macs, after.macs),
        counted("parameters", before.params, after.params),
        *memory,
        ["latency (ms)", f"{before.latency_ms:.2f}", f"{after.latency_ms:.2f}", faster],
    ]
    say_table(["tested once", "baseline", "pruned", ""], rows)
