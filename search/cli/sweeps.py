"""Commands that run trials, and show what came out."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli.arguments import Address, ExperimentFile, Plain, Settings, SweepFolder, say, say_table
from search.errors import SweepError

if TYPE_CHECKING:
    from search.sweep import Sweep

commands = typer.Typer()


@commands.command()
def baseline(experiment: ExperimentFile, settings: Settings = None) -> None:
    """Train the baseline where the experiment names no weights, and measure it on validation and test images.

    Example: prunesearch baseline experiments/digits.yaml
    """
    from pruning import count_cost, evaluate
    from search.config import load_experiment
    from search.prepare import device_for, load_baseline
    from search.units import percent, short_count

    asked = load_experiment(experiment, settings or ())
    trained, device = load_baseline(asked, say), device_for(asked)
    cost = count_cost(trained.network, trained.example)
    splits = (trained.data.val, trained.data.test)
    val, test = (evaluate(trained.network, split, device=device).accuracy for split in splits)
    say(f"validation {percent(val, 2)}   test {percent(test, 2)}")
    say(f"{cost.macs:,} MACs ({short_count(cost.macs)})   {cost.params:,} parameters")


@commands.command()
def run(
    experiment: ExperimentFile,
    settings: Settings = None,
    plain: Plain = False,
    address: Address = "local",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep if it was run before: for jobs that are retried.")
    ] = False,
) -> None:
    """Run a new sweep: trials in parallel, a live view, the front at the end.

    Example: prunesearch run experiments/digits.yaml --set search.trials=40 --set name=digits-40
    """
    from search.config import load_experiment
    from search.driver import run_or_resume, run_sweep

    start = run_or_resume if resume else run_sweep
    _finish(start(load_experiment(experiment, settings or ()), say=say, address=address, live=not plain))


@commands.command()
def resume(sweep: SweepFolder, plain: Plain = False, address: Address = "local") -> None:
    """Go on with a sweep that was interrupted; what is finished stays.

    Example: prunesearch resume sweeps/digits
    """
    from search.driver import resume_sweep

    _finish(resume_sweep(sweep, say=say, address=address, live=not plain))


@commands.command()
def extend(
    sweep: SweepFolder,
    trials: Annotated[int, typer.Option(help="How many trials to add.")],
    plain: Plain = False,
    address: Address = "local",
) -> None:
    """Add trials to a sweep that is finished or was interrupted.

    Example: prunesearch extend sweeps/digits --trials 20
    """
    from search.driver import extend_sweep

    _finish(extend_sweep(sweep, trials, say=say, address=address, live=not plain))


@commands.command()
def compare(experiment: ExperimentFile, settings: Settings = None, address: Address = "local") -> None:
    """Run the settings that a file compares, each with several seeds, and write a table of means and deviations.

    Example: prunesearch compare experiments/dcp-losses.yaml --set compare.seeds=[0]
    """
    from search.compare import compare as run_cells
    from search.comparison import load_cells

    table = run_cells(load_cells(experiment, settings or ()), say, address)
    lines = [line.strip("| \n").split(" | ") for line in table.read_text(encoding="utf-8").splitlines()]
    say_table(lines[0], lines[2:])
    say(f"table written to {table}")


@commands.command()
def front(sweep: SweepFolder) -> None:
    """Show the non-dominated trials of a sweep, finished or not, and draw all that it found.

    Example: prunesearch front sweeps/digits
    """
    from search.sweep import Sweep

    found = Sweep.load(sweep)
    if found.records:
        found.draw(say)
    _finish(found)


def _finish(sweep: Sweep) -> None:
    """Print the front and where everything lies."""
    from search.figures import FIGURES, FRONT, REPORT, TABLE, front_cells, front_table
    from search.pareto import hypervolume

    records, objectives, folder = sweep.records, sweep.experiment.objectives, sweep.folder
    if not sweep.front:
        see = f"; see {folder / REPORT}" if records else ""
        raise SweepError(f"sweep {folder}: no trial has succeeded yet{see}")
    headers, rows = front_cells(front_table(records, sweep.baseline, objectives))
    say_table(headers, rows)
    volume = hypervolume(records, objectives, sweep.baseline)
    say(f"{len(sweep.front)} of {len(records)} trials; hypervolume {volume:.4f}")
    for kind, name in (("report", REPORT), ("picture", FRONT), ("table", TABLE), ("figures", FIGURES)):
        if (folder / name).exists():
            say(f"{kind:>7}  {folder / name}")
    quoted = shlex.quote(str(folder))
    look = f"   ·   prunesearch ui {quoted}" if sweep.experiment.tracking.enabled else ""
    say(f"next: prunesearch best {quoted} --max-macs 50%{look}")
