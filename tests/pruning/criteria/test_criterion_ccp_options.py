"""The options of ccp: other losses, auxiliary heads, ranking layer by layer, terms between groups."""

import copy
from fractions import Fraction
from itertools import accumulate
from math import floor

import pytest
import torch
import torch.nn.functional as F
from small_networks import IMAGE, Residual, batches, chain, pictures, prepared
from torch.func import functional_call, jacrev

from pruning.auxiliary import AuxiliaryLosses
from pruning.criteria import CRITERIA
from pruning.errors import DataError, OptionError
from pruning.finding import find_groups
from pruning.groups import tensor_of
from pruning.policy import AuxiliaryPlacement
from pruning.ranking import QuadraticRanking, load_ranking
from pruning.statistics import closed_gates

CLASSES = 5


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def ranked(model, data, auxiliary=None, **options):
    return CRITERIA.build("ccp", **options).rank(model, find_groups(model, IMAGE), data, auxiliary)


def gated(model, groups, gates):
    """Return the network's parameters with the weights that read a channel times its gate."""
    weights = dict(model.named_parameters())
    for name, group in groups.items():
        for part in group.readers:
            weight = weights[part.tensor]
            factor = torch.ones(weight.shape[part.axis], dtype=weight.dtype)
            owners = torch.tensor([channel for channel, places in enumerate(part.positions) for _ in places])
            places = torch.tensor([place for places in part.positions for place in places])
            factor = factor.index_copy(0, places, gates[name][owners])
            weights[part.tensor] = weight * factor.reshape([-1 if a == part.axis else 1 for a in range(weight.dim())])
    return weights


def jacobians(model, images, outputs=lambda logits: logits):
    """Return ∂ outputs / ∂ gates for each group, `[images, outputs, channels]`, and the outputs, by torch.func."""
    model, groups = model.eval(), find_groups(model, IMAGE)

    def run(gates):
        return outputs(functional_call(model, gated(model, groups, gates), (images,)))

    ones = {name: torch.ones(width, dtype=torch.float64) for name, width in groups.widths.items()}
    return jacrev(run)(ones), run(ones).detach()


def soft(labels, smoothing):
    return F.one_hot(labels, CLASSES).double() * (1 - smoothing) + smoothing / CLASSES


def same(tensor, expected):
    torch.testing.assert_close(tensor, expected.detach(), rtol=1e-9, atol=1e-13)


each_network = pytest.mark.parametrize("build", [chain, Residual])


# ── losses ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@each_network
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_has_the_jacobian_product_of_the_softmax_outputs_weighted_by_labels(build, smoothing):
    model, (images, labels) = prepared(build()), pictures()
    J, f = jacobians(model, images, lambda logits: logits.softmax(dim=1))
    y = soft(labels, smoothing)
    ranking = ranked(model, batches(images, labels, 5), label_smoothing=smoothing)
    for name, of_group in J.items():
        u, S = 0, 0
        for x in range(len(images)):
            sigma = torch.diag(y[x] / f[x] ** 2)
            S = S + of_group[x].T @ sigma @ of_group[x] / len(images)
            u = u - of_group[x].T @ (y[x] / f[x]) / len(images)
        same(ranking.quadratic[name], S)
        same(ranking.linear[name], u)


@each_network
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_least_squares_has_the_jacobian_product_of_the_outputs(build, smoothing):
    model, (images, labels) = prepared(build()), pictures()
    J, f = jacobians(model, images)
    excess = f - soft(labels, smoothing)
    ranking = ranked(model, batches(images, labels, 5), hessian="least_squares", label_smoothing=smoothing)
    for name, of_group in J.items():
        same(ranking.quadratic[name], sum(j.T @ j for j in of_group) / len(images))
        same(ranking.linear[name], torch.einsum("xki,xk->i", of_group, excess) / len(images))
        assert torch.linalg.eigvalsh(ranking.quadratic[name])[0] > -1e-12


def test_the_linear_term_is_the_gradient_of_the_smoothed_loss():
    model, (images, labels) = prepared(chain()), pictures()
    loss = F.cross_entropy(model.eval()(images), labels, label_smoothing=0.3)
    (gradient,) = torch.autograd.grad(loss, model[4].weight)
    expected = (model[4].weight * gradient).sum(dim=(0, 2, 3))
    same(ranked(model, [(images, labels)], label_smoothing=0.3).linear["0"], expected)


def test_hard_labels_take_one_backward_pass_and_soft_ones_one_for_each_class(monkeypatch):
    passes, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: passes.append(1) or grad(*args, **kwargs))
    model, data = prepared(chain()), [pictures()]
    for options, expected in (({}, 1), ({"label_smoothing": 0.1}, CLASSES), ({"hessian": "least_squares"}, CLASSES)):
        passes.clear()
        ranked(model, data, **options)
        assert len(passes) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hessian": "hinge"}, r"'ccp', hessian: unknown loss 'hinge'; there are: cross_entropy, least_squares"),
        ({"hessian": "least_square"}, r"did you mean 'least_squares'\?"),
        ({"label_smoothing": 1.0}, r"'ccp', label_smoothing: expected 0 to less than 1, got 1.0"),
        ({"label_smoothing": -0.1}, r"label_smoothing: expected 0 to less than 1, got -0.1"),
        ({"order": "backward"}, r"'ccp', order: expected one_shot or forward, got 'backward'"),
        ({"rate": 0.5}, r"'ccp', rate: expected order forward, got one_shot with rate 0.5"),
        ({"order": "forward"}, r"'ccp', rate: expected 0 to less than 1 for order forward, got None"),
        ({"order": "forward", "rate": 1}, r"rate: expected 0 to less than 1 for order forward, got 1"),
        ({"order": "forward", "rate": 0.5, "joint": True}, r"'ccp', joint: expected order one_shot, got forward"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(options, message):
    with pytest.raises(OptionError, match=message) as error:
        CRITERIA.build("ccp", **options)
    assert "\n" not in str(error.value)


def test_a_label_without_a_class_is_an_error():
    images, labels = pictures()
    labels[3] = CLASSES
    with pytest.raises(DataError, match="labels: expected classes 0 to 4, got 5"):
        ranked(prepared(chain()), [(images, labels)])


# ── CCP-AC ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Deep(Residual):
    """Two residual blocks, the first inside a module of its own."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Sequential(torch.nn.Conv2d(4, 5, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(5, 4, 1))

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = self.first(x)
        x = torch.relu(x + self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return self.fc(F.avg_pool2d(x, 2).flatten(1))


def with_heads(model, names=("first",), weight=0.3, head="dcp"):
    placement = AuxiliaryPlacement(kind="explicit", positions=names, head=head, weight=weight)
    auxiliary = AuxiliaryLosses(model, placement, CLASSES, IMAGE)
    for module in auxiliary.heads.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    auxiliary.heads.double().train()
    return auxiliary


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"hessian": "least_squares"}, {"joint": True}])
@pytest.mark.parametrize("names", [("first",), ("first.1", "first")])
def test_each_loss_adds_its_own_terms_by_its_weight(options, names):
    model, (images, labels) = prepared(Deep()).eval(), pictures()
    auxiliary = with_heads(model, names)
    found = ranked(model, batches(images, labels, 5), auxiliary, **options)
    plain = ranked(model, batches(images, labels, 5), **options)
    parts = [(1.0, plain)]
    for name, head in zip(auxiliary.names, auxiliary.heads, strict=True):
        alone = ends_in(copy.deepcopy(model), name, copy.deepcopy(head).eval())
        parts.append((0.3, CRITERIA.build("ccp", **options).rank(alone, find_groups(model, IMAGE), [(images, labels)])))
    for name in found.linear:
        same(found.linear[name], sum(weight * ranking.linear[name] for weight, ranking in parts))
        same(found.quadratic[name], sum(weight * ranking.quadratic[name] for weight, ranking in parts))
    if options.get("joint"):
        same(found.joint, sum(weight * ranking.joint for weight, ranking in parts))
    summed = [t1 + 0.3 * t2 for t1, t2 in zip(*(part.linear["first.0"] for _, part in parts[:2]), strict=True)]
    assert not torch.allclose(found.quadratic["first.0"], torch.outer(torch.stack(summed), torch.stack(summed)))


def ends_in(model, name, head):
    """Make a network end in a head."""
    model.forward = lambda x: head(output_of(model, name, x))
    return model


def output_of(model, name, x):
    found = []
    hook = model.get_submodule(name).register_forward_hook(lambda *args: found.append(args[2]))
    try:
        Deep.forward(model, x)
    finally:
        hook.remove()
    return found[0]


def test_layers_behind_a_head_do_not_feel_it():
    model, data = prepared(Deep()), [pictures()]
    plain, found = ranked(model, data), ranked(model, data, with_heads(model))
    assert torch.equal(found.quadratic["conv1"], plain.quadratic["conv1"])
    assert not torch.allclose(found.quadratic["first.0"], plain.quadratic["first.0"])


def test_heads_and_network_are_left_as_found_also_after_an_error():
    model, (images, labels) = prepared(Deep()).train(), pictures()
    auxiliary = with_heads(model)
    before = copy.deepcopy(auxiliary.heads.state_dict())
    labels[0] = CLASSES
    with pytest.raises(DataError, match="labels: expected classes 0 to 4, got 5"):
        ranked(model, [(images, labels)], auxiliary)
    ranked(model, [pictures()], auxiliary)
    assert all(module.training for module in (*auxiliary.heads.modules(), *model.modules()))
    assert all(torch.equal(value, before[key]) for key, value in auxiliary.heads.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with auxiliary.attached(model):  # they are free again
        pass


def test_labels_outside_a_head_s_classes_are_one_clear_line():
    model, (images, labels) = prepared(Deep()), pictures()
    placement = AuxiliaryPlacement(kind="explicit", positions=("first",), head="ccp")
    auxiliary = AuxiliaryLosses(model, placement, 3, IMAGE)
    auxiliary.heads.double()
    labels[0] = 4
    with pytest.raises(DataError, match=r"labels: expected classes 0 to 2, got [34]"):
        ranked(model, [(images, labels)], auxiliary)


# ── one layer after the other ────────────────────────────────────────────────────────────────────────────────────────


@each_network
def test_forward_ranks_each_group_on_the_network_whose_earlier_groups_are_masked(build):
    model, data = prepared(build()), [pictures(30)]
    groups = find_groups(model, IMAGE)
    found = ranked(model, iter(data), order="forward", rate=0.5)
    masked = copy.deepcopy(model)
    for name, group in groups.items():
        expected = ranked(masked, data)
        same(found.linear[name], expected.linear[name])
        same(found.quadratic[name], expected.quadratic[name])
        kept = found.keep(name, group.width - floor(Fraction("0.5") * group.width))
        for part in group.readers:
            weight = tensor_of(masked, part.tensor).data.movedim(part.axis, 0)
            weight[
                [place for channel in set(range(group.width)).difference(kept) for place in part.positions[channel]]
            ] = 0
    first, *others = groups
    one_shot = ranked(model, data)
    same(found.quadratic[first], one_shot.quadratic[first])
    assert not any(torch.allclose(found.quadratic[name], one_shot.quadratic[name], rtol=0.01) for name in others)
    assert found.joint is None


def test_forward_at_rate_0_is_one_shot():
    model, data = prepared(Residual()), [pictures()]
    found, expected = ranked(model, data, order="forward", rate=0.0), ranked(model, data)
    for name, S in expected.quadratic.items():
        same(found.quadratic[name], S)


def test_a_closed_gate_is_a_channel_that_nobody_reads():
    model, (images, _) = prepared(Residual()).eval(), pictures()
    groups = find_groups(model, IMAGE)
    masked = copy.deepcopy(model)
    for part in groups["stem"].readers:
        weight = tensor_of(masked, part.tensor).data.movedim(part.axis, 0)
        weight[[place for channel in (0, 2) for place in part.positions[channel]]] = 0
    with closed_gates(model, groups, {"stem": {0, 2}}):
        torch.testing.assert_close(model(images), masked(images))
    assert not torch.allclose(model(images), masked(images))


# ── terms between groups ─────────────────────────────────────────────────────────────────────────────────────────────


def test_joint_keeps_the_products_of_all_channels(tmp_path):
    model, (images, labels) = prepared(Residual()), pictures()
    plain, found = ranked(model, [(images, labels)]), ranked(model, batches(images, labels, 5), joint=True)
    J, _ = jacobians(model, images, lambda logits: F.cross_entropy(logits, labels, reduction="none"))
    t = torch.cat(list(J.values()), dim=1)
    same(found.joint, t.T @ t / len(images))
    ends = [0, *accumulate(len(u) for u in found.linear.values())]
    for name, start, end in zip(found.linear, ends, ends[1:], strict=False):
        same(found.quadratic[name], plain.quadratic[name])
        assert torch.equal(found.quadratic[name], found.joint[start:end, start:end])
        assert found.keep(name, 2) == plain.keep(name, 2)
    assert plain.joint is None
    found.save(tmp_path / "joint")
    again = load_ranking(tmp_path / "joint")
    assert isinstance(again, QuadraticRanking)
    assert list(again.linear) == list(found.linear) == ["stem", "conv1"]  # the file sorts by name
    assert torch.equal(again.joint, found.joint)
    assert all(torch.equal(again.quadratic[name], S) for name, S in found.quadratic.items())
