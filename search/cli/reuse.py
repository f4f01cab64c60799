"""Commands that look at policies and move them to other networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli.arguments import Settings, Trust, given, here, refuse_to_overwrite, say, say_lines, say_table
from search.errors import SearchError

if TYPE_CHECKING:
    from search.config import Experiment

commands = typer.Typer()

PolicyFile = Annotated[Path, typer.Argument(help="Policy file.", metavar="POLICY", parser=given)]
Images = Annotated[
    Path | None,
    typer.Argument(
        help="Experiment file or a sweep's folder, whose images are counted.", metavar="EXPERIMENT", parser=given
    ),
]


@commands.command()
def describe(policy: PolicyFile, experiment: Images = None, settings: Settings = None, trust: Trust = None) -> None:
    """Show what a policy does to its network, group by group; no weights are needed, no images either.

    Example: prunesearch describe policy.json
    """
    from pruning import load_policy
    from search.describe import describe_policy, description_lines, description_table
    from search.layouts import check_model, layout_for

    found, asked = load_policy(policy), _asked(experiment, settings)
    if asked is not None:
        check_model(found, asked)
    description = describe_policy(found, layout_for(found.model, asked, trust or (), found.thinned))
    if description.cuts:
        say_table(*description_table(description))
        say("")
    say_lines(description_lines(description))


@commands.command()
def diff(
    first: Annotated[Path, typer.Argument(help="Policy file.", metavar="A", parser=given)],
    second: Annotated[Path, typer.Argument(help="Policy file.", metavar="B", parser=given)],
    experiment: Images = None,
    settings: Settings = None,
    trust: Trust = None,
) -> None:
    """Show where two policies differ: channels group by group, criterion, losses, recipe, and what both cost.

    Example: prunesearch diff policy.json policy2.json
    """
    from pruning import load_policy
    from search.describe import written_model
    from search.diff import diff_policies, difference_lines, difference_table
    from search.layouts import layout_for

    one, other, asked = load_policy(first), load_policy(second), _asked(experiment, settings)
    if one == other:
        say(f"{first} and {second} are equal: fingerprint {one.fingerprint}")
        return
    layout = layout_for(one.model, asked, trust or (), one.thinned)
    alike = (one.model, one.thinned) == (other.model, other.thinned)
    second_layout = layout if alike else layout_for(other.model, asked, trust or (), other.thinned)
    difference = diff_policies(one, layout, other, second_layout)
    if difference.is_empty:
        say(f"{first} and {second} do the same: they only name different groups that keep all channels")
        return
    say(f"A  {first}, {one.fingerprint} for {written_model(one.model)}")
    say(f"B  {second}, {other.fingerprint} for {written_model(other.model)}")
    say("")
    if difference.groups:
        say_table(*difference_table(difference))
        say("")
    say_lines(difference_lines(difference))


@commands.command()
def transfer(
    policy: PolicyFile,
    target: Annotated[
        Path | None,
        typer.Argument(
            help="Experiment file or a sweep's folder with the other network.", metavar="TARGET", parser=given
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The other network: a name, or {name: …, options: {…}}; default: the policy's.")
    ] = None,
    num_classes: Annotated[int | None, typer.Option(help="Its classes; default: the policy's.", min=1)] = None,
    macs: Annotated[str | None, typer.Option(help="What it may cost: '50%' of its MACs, or a number.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", parser=here, help="Where the policy goes.")] = Path(
        "policy2.json"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    settings: Settings = None,
    trust: Trust = None,
) -> None:
    """Move a policy to another depth, width or number of classes: each group keeps the share of its counterpart.

    Example: prunesearch transfer policy.json --model resnet110 --num-classes 100 -o policy2.json
    """
    from pruning import load_policy
    from search.transfer import model_like, move_policy, transfer_lines, transfer_table

    named = model is not None or num_classes is not None
    if named == (target is not None):
        got = "both" if named else "neither"
        raise SearchError(f"transfer: expected TARGET, or --model or --num-classes, got {got}")
    refuse_to_overwrite(output, force=force)
    found, asked = load_policy(policy), _asked(target, settings)
    other = model_like(found.model, model, num_classes) if asked is None else asked.model
    named_here = () if model is None else (other.name,)
    moved = move_policy(found, other, asked, macs, (*(trust or ()), *named_here))
    say_table(*transfer_table(moved), left=(0, 3))
    say("")
    say_lines(transfer_lines(moved))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(moved.transferred.policy.to_json(), encoding="utf-8")
    say(f"policy written to {output}")


def _asked(path: Path | None, settings: list[str] | None) -> Experiment | None:
    """Return the experiment, if there is one.

    Raises:
        SearchError: settings of none.
    """
    from search.config import load_experiment

    if path is None and settings:
        raise SearchError(f"--set {settings[0]}: expected an experiment that it changes, got none")
    return None if path is None else load_experiment(path, settings or ())
