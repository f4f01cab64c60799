"""A policy is data: it comes back from JSON as it was, its fingerprint is its content, every mistake has a place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from pruning.errors import PolicyError
from pruning.finding import find_groups
from pruning.policy import CriterionSpec, ModelSpec, Policy, Recipe, load_policy

EXAMPLES = settings(deadline=None, derandomize=True)
POLICY = Policy(
    model=ModelSpec(name="resnet20", options={"widths": [16, 32, 64]}),
    network="0123456789abcdef",
    widths={"layer1.0.conv1": 3, "layer1.1.conv1": 4},
    criterion=CriterionSpec(name="taylor", options={"images": 512}),
    recipe=Recipe(epochs=3, clip_norm=1.0),
    seed=7,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
options = st.dictionaries(st.text(max_size=3), json_values, max_size=3)


@st.composite
def drawn_policies(draw: st.DrawFn) -> Policy:
    widths = draw(st.dictionaries(st.text(max_size=8), st.integers(1, 4096), max_size=4))
    named = draw(st.lists(st.sampled_from(sorted(widths)), unique=True)) if widths else []
    return Policy(
        model=draw(st.builds(ModelSpec, name=st.text(), num_classes=st.integers(1, 9), options=options)),
        network=draw(st.text(max_size=16)),
        widths=widths,
        criterion=draw(st.builds(CriterionSpec, name=st.text(max_size=8), options=options)),
        thinned=draw(st.lists(st.text(min_size=1, max_size=3), max_size=3)),
        criteria={name: draw(st.builds(CriterionSpec, name=st.text(max_size=2))) for name in named},
        recipe=draw(
            st.builds(
                Recipe,
                epochs=st.integers(0, 300),
                learning_rate=st.floats(1e-9, 10),
                clip_norm=st.none() | st.just(0.1),
            )
        ),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


policies = drawn_policies()


def changed(**fields: Any) -> str:
    """The policy's JSON with other top-level fields; `None` takes one away."""
    content = json.loads(POLICY.to_json()) | fields
    return json.dumps({key: value for key, value in content.items() if value is not None})


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@EXAMPLES
@given(policy=policies)
def test_a_policy_comes_back_from_json_as_it_was(policy: Policy) -> None:
    again = Policy.from_json(policy.to_json())
    assert again == policy
    assert again.to_json() == policy.to_json()
    assert again.fingerprint == policy.fingerprint
    assert hash(again) == hash(policy)


@EXAMPLES
@given(first=policies, second=policies)
def test_fingerprints_are_equal_where_policies_are(first: Policy, second: Policy) -> None:
    assert (first.fingerprint == second.fingerprint) == (first.to_json() == second.to_json())


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 8},
        {"network": "0123456789abcdee"},
        {"widths": {"layer1.0.conv1": 3, "layer1.1.conv1": 5}},
        {"widths": {"layer1.0.conv1": 3}},
        {"model": ModelSpec(name="resnet20")},
        {"thinned": ("layer1.0.conv2",)},
        {"criterion": CriterionSpec(name="taylor", options={"images": 513})},
        {"criteria": {"layer1.1.conv1": CriterionSpec(name="l1")}},
        {"recipe": Recipe(epochs=3, clip_norm=1.5)},
    ],
)
def test_every_field_counts(other: dict[str, Any]) -> None:
    policy = POLICY.model_copy(update=other)
    assert policy != POLICY
    assert policy.fingerprint != POLICY.fingerprint
    assert len({policy, POLICY}) == 2


def test_the_order_of_widths_and_options_does_not_count() -> None:
    turned = POLICY.model_copy(update={"widths": dict(reversed(POLICY.widths.items()))})
    assert turned == POLICY
    assert turned.fingerprint == POLICY.fingerprint
    assert hash(turned) == hash(POLICY)


def test_the_order_of_what_is_thinned_does_not_count() -> None:
    one, other = (Policy.from_json(changed(thinned=names)) for names in (["b", "a", "b"], ["a", "b"]))
    assert one.thinned == ("a", "b")
    assert one == other
    assert one.fingerprint == other.fingerprint


def test_a_policy_that_thins_nothing_lacks_the_key() -> None:
    assert "thinned" not in POLICY.to_json()
    assert Policy.from_json(changed(thinned=[])) == POLICY
    assert Policy.from_json(changed(thinned=[])).fingerprint == POLICY.fingerprint


def test_the_fingerprint_is_the_same_on_every_machine() -> None:
    assert Policy(model=ModelSpec(name="a"), network="b", widths={"c": 1}).fingerprint == "ff0965ede166b28b"


def test_json_has_one_key_a_line_in_order() -> None:
    lines = POLICY.to_json().splitlines()
    assert lines[0] == "{"
    assert lines[1] == '  "auxiliary": null,'
    assert POLICY.to_json().endswith("}\n")


def test_tuples_among_the_options_are_lists() -> None:
    assert ModelSpec(name="a", options={"widths": (1, 2)}).options == {"widths": [1, 2]}


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        POLICY.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("value", [object(), Path("a"), torch.zeros(1), float("nan"), {"a": {1, 2}}])
def test_options_that_json_lacks_are_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="expected values that JSON has"):
        CriterionSpec(name="l1", options={"key": value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", -1),
        ("batch_size", 0),
        ("learning_rate", 0),
        ("learning_rate", float("inf")),
        ("temperature", float("inf")),
        ("momentum", 1),
        ("momentum", float("nan")),
        ("milestones", (0.5, 1.0)),
        ("optimizer", "adam"),
    ],
)
def test_a_recipe_refuses_what_makes_no_sense(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        Recipe(**{field: value})


# ── several criteria ─────────────────────────────────────────────────────────────────────────────────────────────────

L1, FPGM, TAYLOR = (CriterionSpec(name=name) for name in ("l1", "fpgm", "taylor"))


def ranked_by(criterion: CriterionSpec, **criteria: CriterionSpec) -> Policy:
    widths = dict.fromkeys("abcd", 1)
    return Policy(model=ModelSpec(name="m"), network="n", widths=widths, criterion=criterion, criteria=criteria)


@EXAMPLES
@given(
    by_group=st.fixed_dictionaries(dict.fromkeys("abcd", st.sampled_from([L1, FPGM, TAYLOR]))),
    defaults=st.tuples(st.sampled_from([L1, FPGM, TAYLOR]), st.sampled_from([L1, FPGM, TAYLOR])),
    left_out=st.booleans(),
)
def test_policies_that_rank_each_group_alike_are_equal(
    by_group: dict[str, CriterionSpec], defaults: tuple[CriterionSpec, CriterionSpec], left_out: bool
) -> None:
    first = ranked_by(defaults[0], **by_group)
    named = {name: spec for name, spec in reversed(by_group.items()) if not left_out or spec != defaults[1]}
    second = ranked_by(defaults[1], **named)
    assert {name: second.criterion_of(name) for name in second.widths} == by_group
    assert first == second
    assert hash(first) == hash(second)
    assert first.to_json() == second.to_json()
    assert first.fingerprint == second.fingerprint


@EXAMPLES
@given(
    first=st.lists(st.sampled_from([L1, FPGM]), min_size=4, max_size=4),
    second=st.lists(st.sampled_from([L1, FPGM]), min_size=4, max_size=4),
)
def test_policies_that_rank_a_group_otherwise_differ(first: list[CriterionSpec], second: list[CriterionSpec]) -> None:
    one, other = (ranked_by(L1, **dict(zip("abcd", chosen, strict=True))) for chosen in (first, second))
    assert (one == other) == (one.fingerprint == other.fingerprint) == (first == second)


def test_the_criterion_is_that_of_most_groups_and_the_others_are_named() -> None:
    policy = ranked_by(TAYLOR, a=L1, b=FPGM, c=FPGM, d=FPGM)
    assert (policy.criterion, policy.criteria) == (FPGM, {"a": L1})
    assert policy.every_criterion == (FPGM, L1)
    tie = ranked_by(L1, c=FPGM, b=FPGM)
    assert (tie.criterion, tie.criteria) == (L1, {"b": FPGM, "c": FPGM})
    assert ranked_by(L1, a=CriterionSpec(name="l1")).criteria == {}
    assert ranked_by(L1).every_criterion == (L1,)


def test_without_several_criteria_a_file_is_what_it_ever_was() -> None:
    assert "criteria" not in json.loads(POLICY.to_json())
    assert "criteria" not in POLICY.model_dump()
    mixed = ranked_by(L1, b=FPGM)
    assert json.loads(mixed.to_json())["criteria"] == {"b": {"name": "fpgm", "options": {}}}
    assert json.loads(mixed.to_json())["format"] == 1
    assert Policy.model_validate(mixed.model_dump(mode="json")) == mixed


def test_a_criterion_of_a_group_that_is_not_cut_is_refused() -> None:
    with pytest.raises(ValidationError, match="criteria: expected groups of `widths`, got 'e'; there are: a, b, c, d"):
        ranked_by(L1, e=FPGM)


# ── mistakes in a file ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed(width={"a": 3}, widths=None), r"^width: unknown key; did you mean 'widths'\? \(and 1 more\)$"),
        (changed(recipe={"epoch": 3}), r"^recipe\.epoch: unknown key; did you mean 'epochs'\?$"),
        (changed(model=None), "^model: expected a value, got none$"),
        (changed(format=2), "^policy: format: expected 1, got 2; written by another version$"),
        (changed(format=2, new_key=True), "^policy: format: expected 1, got 2; written by another version$"),
        (changed(widths={"layer1.0.conv1": 0}), r"^widths\.layer1\.0\.conv1: .*greater than or equal to 1, got 0$"),
        (changed(widths={"a": 2.5}), r"^widths\.a: expected a valid integer.*, got 2\.5$"),
        (changed(recipe={"optimizer": "sdg"}), r"^recipe\.optimizer: expected 'sgd' or 'adamw', got 'sdg'$"),
        (
            changed(criteria={"layer1.0.conv": {"name": "l1"}}),
            r"^policy: criteria: expected groups of `widths`, got 'layer1\.0\.conv'; did you mean 'layer1.0.conv1'\?$",
        ),
        (
            changed(criteria={"layer1.0.conv1": {"name": "l1", "option": {}}}),
            r"^criteria\.layer1\.0\.conv1\.option: unknown key; did you mean 'options'\?$",
        ),
        (changed(criteria={"layer1.0.conv1": "l1"}), r"^criteria\.layer1\.0\.conv1: expected an object, got 'l1'$"),
        ("", "^policy: Invalid JSON: EOF"),
        (POLICY.to_json()[:-9], "^policy: Invalid JSON: EOF"),
        ("[]", r"^policy: expected an object, got \[\]$"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message) as caught:
        Policy.from_json(text)
    assert "\n" not in str(caught.value)
    file = tmp_path / "policy.json"
    file.write_text(text)
    with pytest.raises(PolicyError) as in_file:
        load_policy(file)
    assert str(in_file.value) == f"{file}: {caught.value}"


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(POLICY.to_json())
    assert load_policy(file) == POLICY


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"^policy .*missing.json: No such file or directory$"):
        load_policy(tmp_path / "missing.json")
    with pytest.raises(PolicyError, match=r"^policy .*: Is a directory$"):
        load_policy(tmp_path)
    (tmp_path / "weights").write_bytes(b"\x80\x04\xff")
    with pytest.raises(PolicyError, match=r"^policy .*weights: not a text file$"):
        load_policy(tmp_path / "weights")


# ── the network that it is for ───────────────────────────────────────────────────────────────────────────────────────


def network(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, 6, 1), nn.Conv2d(6, 2, 1))


def policy_for(width: int, widths: dict[str, int]) -> Policy:
    signature = find_groups(network(width), torch.zeros(1, 3, 4, 4)).signature
    return Policy(model=ModelSpec(name="three"), network=signature, widths=widths)


def test_a_policy_fits_the_network_that_it_was_made_for() -> None:
    policy_for(8, {"0": 8, "1": 1}).check(find_groups(network(8), torch.zeros(1, 3, 4, 4)))


def test_a_criterion_for_no_group_of_the_network_is_refused() -> None:
    policy = policy_for(8, {"0": 3}).model_copy(update={"criteria": {"1": L1}})
    with pytest.raises(PolicyError, match=r"^criteria: expected groups of `widths`, got '1'; there are: 0$"):
        policy.check(find_groups(network(8), torch.zeros(1, 3, 4, 4)))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (policy_for(8, {"1": 3, "3": 2}), "widths: no channel group '3' in this network; there are: 0, 1"),
        (policy_for(8, {"0": 9}), "widths.0: expected 1 to 8 channels, got 9"),
        (policy_for(10, {"0": 2}), "made for a network with signature .* .three., got one with .* other widths"),
    ],
)
def test_another_network_is_refused(policy: Policy, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        policy.check(find_groups(network(8), torch.zeros(1, 3, 4, 4)))
