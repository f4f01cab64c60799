"""The command line: one command a step, one line and exit code 2 for a mistake."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pruning import PruningError
from search.errors import SearchError, SweepError, SweepInterruptedError

if TYPE_CHECKING:
    from search.apply import Applied
    from search.sweep import Sweep

app = typer.Typer(
    name="prunesearch",
    help="Search for channel-pruning policies: run a sweep, look at its front, take one policy home.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ExperimentFile = Annotated[Path, typer.Argument(help="Experiment file (YAML).", metavar="EXPERIMENT")]
ExperimentOrSweep = Annotated[
    Path, typer.Argument(help="Experiment file, or a sweep's folder: names weights and images.", metavar="EXPERIMENT")
]
SweepFolder = Annotated[Path, typer.Argument(help="A sweep's folder.", metavar="SWEEP")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Set a value of the experiment, e.g. --set search.trials=50."),
]
Plain = Annotated[bool, typer.Option("--plain", help="Lines instead of a live view, also in a terminal.")]
Address = Annotated[str, typer.Option(help="Ray cluster to join; 'local' starts one on this machine.")]


def _say(line: str) -> None:
    print(line, flush=True)


@app.command()
def baseline(experiment: ExperimentFile, settings: Settings = None) -> None:
    """Train the baseline where the experiment names no weights, and measure it on validation and test images.

    Example: prunesearch baseline experiments/digits.yaml
    """
    from pruning import count_cost, evaluate
    from search.config import load_experiment
    from search.prepare import device_for, load_baseline
    from search.units import percent, short_count

    asked = load_experiment(experiment, settings or ())
    trained, device = load_baseline(asked, _say), device_for(asked)
    cost = count_cost(trained.network, trained.example)
    splits = (trained.data.val, trained.data.test)
    val, test = (evaluate(trained.network, split, device=device).accuracy for split in splits)
    _say(f"validation {percent(val, 2)}   test {percent(test, 2)}")
    _say(f"{cost.macs:,} MACs ({short_count(cost.macs)})   {cost.params:,} parameters")


@app.command()
def run(
    experiment: ExperimentFile, settings: Settings = None, plain: Plain = False, address: Address = "local"
) -> None:
    """Run a new sweep: trials in parallel, a live view, the front at the end.

    Example: prunesearch run experiments/digits.yaml --set search.trials=40 --set name=digits-40
    """
    from search.config import load_experiment
    from search.sweep import run_sweep

    _finish(run_sweep(load_experiment(experiment, settings or ()), say=_say, address=address, live=not plain))


@app.command()
def resume(sweep: SweepFolder, plain: Plain = False, address: Address = "local") -> None:
    """Go on with a sweep that was interrupted; what is finished stays.

    Example: prunesearch resume sweeps/digits
    """
    from search.sweep import resume_sweep

    _finish(resume_sweep(sweep, say=_say, address=address, live=not plain))


@app.command()
def extend(
    sweep: SweepFolder,
    trials: Annotated[int, typer.Option(help="How many trials to add.")],
    plain: Plain = False,
    address: Address = "local",
) -> None:
    """Add trials to a sweep that is finished or was interrupted.

    Example: prunesearch extend sweeps/digits --trials 20
    """
    from search.sweep import extend_sweep

    _finish(extend_sweep(sweep, trials, say=_say, address=address, live=not plain))


@app.command()
def compare(experiment: ExperimentFile, settings: Settings = None, address: Address = "local") -> None:
    """Run the settings that a file compares, each with several seeds, and write a table of means and deviations.

    Example: prunesearch compare experiments/dcp-losses.yaml --set compare.seeds=[0]
    """
    from search.compare import compare as run_cells
    from search.comparison import load_cells

    table = run_cells(load_cells(experiment, settings or ()), _say, address)
    lines = [line.strip("| \n").split(" | ") for line in table.read_text(encoding="utf-8").splitlines()]
    _table(lines[0], lines[2:])
    _say(f"table written to {table}")


@app.command()
def front(sweep: SweepFolder) -> None:
    """Show the non-dominated trials of a sweep, finished or not, and draw them.

    Example: prunesearch front sweeps/digits
    """
    from search.sweep import load_sweep

    _finish(load_sweep(sweep))


@app.command()
def best(
    sweep: SweepFolder,
    max_macs: Annotated[str | None, typer.Option(help="Most MACs: '50%' of the baseline's, or a number.")] = None,
    max_params: Annotated[str | None, typer.Option(help="Most parameters: '50%', or a number.")] = None,
    max_latency_ms: Annotated[str | None, typer.Option(help="Most milliseconds a batch: '50%', or a number.")] = None,
    min_accuracy: Annotated[str | None, typer.Option(help="Least accuracy: '99%' of the baseline's, or 0.91.")] = None,
    trial: Annotated[int | None, typer.Option(help="Take this trial instead.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the policy goes.")] = Path("policy.json"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Pick the most accurate trial within limits and write its policy.

    Example: prunesearch best sweeps/digits --max-macs 50% --output policy.json
    """
    from search.pareto import Limits, pick
    from search.sweep import load_sweep

    if output.exists() and not force:
        raise SweepError(f"{output}: exists; name another file with --output, or pass --force")
    limits = Limits.parse(
        max_macs=max_macs, max_params=max_params, max_latency_ms=max_latency_ms, min_accuracy=min_accuracy
    )
    found = load_sweep(sweep)
    records = found.records if trial is None else [record for record in found.records if record.number == trial]
    if trial is not None and not records:
        raise SweepError(f"--trial {trial}: expected one of the sweep's {len(found.records)} trials, counted from 0")
    choice = pick(records, found.experiment.objectives, limits, found.baseline)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(choice.record.policy.to_json(), encoding="utf-8")
    _say(choice.explanation)
    _say(f"policy written to {output}")


@app.command()
def apply(
    policy: Annotated[Path, typer.Argument(help="Policy file that `best` wrote.", metavar="POLICY")],
    experiment: ExperimentOrSweep,
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the network.")] = Path("pruned"),
    settings: Settings = None,
) -> None:
    """Cut and fine-tune the baseline by a policy; test both networks once; save the pruned one.

    Example: prunesearch apply policy.json sweeps/digits --output pruned
    """
    from pruning import load_policy
    from search.apply import apply_policy
    from search.config import load_experiment

    applied = apply_policy(load_policy(policy), load_experiment(experiment, settings or ()), output, _say)
    _say_tested(applied)
    _say(f"pruned network written to {output}")


@app.command()
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
        Path | None, typer.Option("--output", "-o", help="Folder for tables and pictures; default: STORAGE/NAME-rank.")
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
    ranked = run_rank(asked, output, criteria=criteria, widths=widths, sensitivity=sensitivity, say=_say)
    for headers, rows in agreement_tables(ranked.agreements, ranked.shares) if ranked.agreements else ():
        _say("")
        _table(headers, rows)
    _say("")
    for path in ranked.written:
        _say(f"written: {path}")


@app.command("show-channels")
def show_channels(
    experiment: ExperimentOrSweep,
    group: Annotated[str, typer.Option(help="Channel group, e.g. layer2.0.conv1.")],
    criterion: Annotated[str | None, typer.Option(help="Criterion; default: the first of search.criterion.")] = None,
    width: Annotated[str, typer.Option(help="Channels to keep: a share, or a number.")] = "50%",
    images: Annotated[int, typer.Option(help="How many validation images.", min=1)] = 3,
    image: Annotated[list[Path] | None, typer.Option(help="Image file to take instead; may be repeated.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the picture goes.")] = Path("channels.png"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    settings: Settings = None,
) -> None:
    """Draw what the channels see that a criterion keeps, beside what those see that it removes.

    Example: prunesearch show-channels experiments/digits.yaml --group layer2.0.conv1 --criterion fpgm --width 50%
    """
    from search.config import load_experiment
    from search.show_channels import show_channels as draw

    if output.exists() and not force:
        raise SweepError(f"{output}: exists; name another file with --output, or pass --force")
    asked = load_experiment(experiment, settings or ())
    draw(asked, group, output, criterion=criterion, width=width, images=images, files=image or (), say=_say)
    _say(f"picture written to {output}")


@app.command()
def ui(
    folder: Annotated[Path, typer.Argument(help="A sweep's folder, or the one that holds the sweeps.")],
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 5000,
) -> None:
    """Open MLflow's user interface on the runs of a sweep; Ctrl-C ends it.

    Example: prunesearch ui sweeps/digits
    """
    from search.tracking import serve

    serve(folder, port, _say)


@app.command()
def sync(sweep: SweepFolder) -> None:
    """Send to MLflow what waits in a sweep's outbox, because the server was away.

    Example: prunesearch sync sweeps/digits
    """
    from search.tracking import sync as send

    _say(f"{send(sweep)} entries still wait")


class Kind(StrEnum):
    """What `names` lists."""

    MODELS = "models"
    CRITERIA = "criteria"
    ALLOCATIONS = "allocations"
    DATA = "data"


@app.command()
def names(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """List the registered names that an experiment may use.

    Example: prunesearch names criteria
    """
    from pruning import ALLOCATIONS, CRITERIA, DATA, model_names

    known = {
        Kind.MODELS: model_names,
        Kind.CRITERIA: CRITERIA.names,
        Kind.ALLOCATIONS: ALLOCATIONS.names,
        Kind.DATA: DATA.names,
    }
    for name in known[kind]():
        _say(name)


def _finish(sweep: Sweep) -> None:
    """Print the front and where everything lies."""
    from search.figures import front_cells, front_table
    from search.pareto import hypervolume
    from search.sweep import write_front

    records, objectives = sweep.records, sweep.experiment.objectives
    if not sweep.front:
        raise SweepError(f"sweep {sweep.folder}: no trial has succeeded yet")
    headers, rows = front_cells(front_table(records, sweep.baseline, objectives))
    _table(headers, rows)
    volume = hypervolume(records, objectives, sweep.baseline)
    _say(f"{len(sweep.front)} of {len(records)} trials; hypervolume {volume:.4f}")
    for kind, path in write_front(sweep).items():
        _say(f"{kind:>5}  {path}")
    folder = shlex.quote(str(sweep.folder))
    look = f"   ·   prunesearch ui {folder}" if sweep.experiment.tracking.enabled else ""
    _say(f"next: prunesearch best {folder} --max-macs 50%{look}")


def _say_tested(applied: Applied) -> None:
    before, after = applied.baseline, applied.pruned
    points = f"{100 * (after.accuracy - before.accuracy):+.2f} points"
    faster = f"{after.latency_ms / before.latency_ms:.1%}"
    rows = [
        ["accuracy", f"{before.accuracy:.2%}", f"{after.accuracy:.2%}", points],
        ["MACs", f"{before.macs:,}", f"{after.macs:,}", f"{after.macs / before.macs:.1%}"],
        ["parameters", f"{before.params:,}", f"{after.params:,}", f"{after.params / before.params:.1%}"],
        ["latency (ms)", f"{before.latency_ms:.2f}", f"{after.latency_ms:.2f}", faster],
    ]
    _table(["tested once", "baseline", "pruned", ""], rows)


def _table(headers: list[str], rows: list[list[str]]) -> None:
    """Print columns, the first to the left, the others to the right, however narrow the terminal is."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        first, *others = (
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        _say("  ".join([first, *others]).rstrip())


UsageError: Any = typer.BadParameter.__base__
"""A wrong command, option or argument; in which package it lives depends on typer's version."""


def main() -> NoReturn:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    sys.path.insert(0, str(Path.cwd()))  # `module:function` names may mean a file of the user's
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except UsageError as error:
        _leave(f"error: {error.format_message().rstrip('.')}; see --help", 2)
    except SweepInterruptedError as interruption:
        _leave(str(interruption), 130)
    except (PruningError, SearchError) as error:
        _leave(f"error: {error}", 2)
    except (KeyboardInterrupt, typer.Abort):
        _leave("interrupted", 130)
    except OSError as error:
        if error.filename is None:
            raise
        _leave(f"error: {error.filename}: {error.strerror}", 2)
    if code:  # typer's word for Ctrl-C
        _leave("interrupted", code)
    sys.exit(0)


def _leave(line: str, code: int) -> NoReturn:
    print(" ".join(line.split()), file=sys.stderr)
    sys.exit(code)
