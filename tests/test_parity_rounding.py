"""What rounding may do to a float32 step: reach, sides of edges, and who is at fault."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from data.run import runfolder
from parity.checks.tolerance import UNIT
from parity.study import command, coupled, findings, rounding, verdict
from parity.study.judge import first_lossy
from parity.study.rounding import Sample, Truth
from parity.study.verdict import Finding

TARGETS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
LOSS = partial(cross_entropy, target=TARGETS)


class Net(nn.Module):
    """Every kind of layer that has an edge; dropout."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU6(),
            nn.Dropout(0.5),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(64, 3)

    def forward(self, x):
        """(features, scores)."""
        features = self.features(x)
        return features, self.classifier(features)


MASK = np.random.default_rng(1).random((8, 4, 4, 4)) < 0.5  # [b, h, w, c]


def network(scale=1.0):
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.features[5].weight *= 4 * scale  # so that ReLU6 meets its cap
    return net.double().train()


def images():
    return np.random.default_rng(0).normal(size=(8, 1, 8, 8))


def stepped(net, x, dtype):
    """PyTorch's own gradients and statistics of a step."""
    net = copy.deepcopy(net).to(dtype)
    mask = torch.tensor(MASK).permute(0, 3, 1, 2)
    net.features[7].register_forward_hook(lambda layer, given, _: given[0] * mask / 0.5)
    value = LOSS(net(torch.tensor(x, dtype=dtype))[1])
    value.backward()
    gradients = {key: p.grad.numpy() for key, p in net.named_parameters()}
    return Sample(gradients, {k: b.numpy() for k, b in net.named_buffers()}, value.item())


@pytest.fixture(scope="module")
def truth():
    return Truth(network(), images(), {"features.7": MASK}, LOSS)


def near_an_edge():
    """The truth of a step with one unit's activation moved to within rounding of 0."""
    net, x = network(), images()
    # batch norm's bias moves a whole channel of what ReLU6 is given; dropout keeps the unit
    z = copy.deepcopy(net).features[:6](torch.tensor(x)).detach()[:, 0]
    kept = torch.where(torch.tensor(MASK)[..., 0], z, torch.inf).reshape(-1)
    place = int(kept.abs().argmin())
    with torch.no_grad():
        net.features[5].bias[0] -= kept[place] - 1e-9
    return Truth(net, x, {"features.7": MASK}, LOSS)


def test_the_truth_is_pytorchs_own_step(truth):
    own = stepped(network(), images(), torch.float64)
    assert own.loss == pytest.approx(truth.sample.loss, rel=1e-15)
    assert max(rounding.apart(own, truth.sample)["gradient"].values()) < 1e-14
    assert max(rounding.apart(own, truth.sample)["variance"].values()) < 1e-15


def test_float32_is_within_reach_and_half_the_digits_are_not(truth):
    allowed = truth.allowances(plain=True)
    fine = rounding.apart(stepped(network(), images(), torch.float32), truth.sample)
    assert all(v <= allowed[kind][key] for kind in fine for key, v in fine[kind].items())
    # the rounding of bfloat16, 2^-9, in one kernel alone
    net = network()
    with torch.no_grad():
        kernel = net.features[4].weight
        kernel.copy_(kernel.to(torch.bfloat16))
    coarse = rounding.apart(stepped(net, images(), torch.float64), truth.sample)
    beyond = [key for key, v in coarse["gradient"].items() if v > allowed["gradient"][key]]
    assert "features.4.weight" in beyond
    assert coarse["loss"]["*"] > allowed["loss"]["*"]


def test_reach_is_of_the_size_of_rounding(truth):
    """Some ten to some hundred units: k is at most 512 here, in six layers there and back."""
    for table in truth.allowances(plain=False).values():
        assert all(UNIT <= most < 2000 * UNIT for most in table.values())


def test_a_plain_sum_is_allowed_its_terms(truth):
    strict, plain = (truth.allowances(plain=p)["gradient"] for p in (False, True))
    assert plain["features.0.bias"] == pytest.approx(max(strict["features.0.bias"], 512 * UNIT))
    assert plain["classifier.weight"] == strict["classifier.weight"]


def test_the_other_side_of_an_edge_is_found_and_nothing_else_is_excused():
    truth = near_an_edge()
    (unit,) = truth.units
    assert (unit.layer, unit.side, truth.undecided) == ("features.6", 0, 1)
    allowed = truth.allowances(plain=False)["gradient"]
    there = truth.on([unit])
    jump = rounding.apart(there, truth.sample)["gradient"]
    assert max(jump[key] / allowed[key] for key in jump) > 10, "the jump matters"
    # what a float32 step gives that took the other side, with rounding of its own
    rng = np.random.default_rng(2)
    other = {k: g * (1 + UNIT * rng.normal(size=g.shape)) for k, g in there.gradients.items()}
    units, found = truth.fitted(other, allowed)
    assert units == [unit]
    assert all(v <= allowed[k] for k, v in distances(other, found).items())
    # the truth's own side
    assert truth.fitted(truth.sample.gradients, allowed) == ([], truth.sample)
    # a wrong gradient is on neither side
    wrong = other | {"features.0.weight": other["features.0.weight"] * (1 + 1e-3)}
    _, found = truth.fitted(wrong, allowed)
    assert distances(wrong, found)["features.0.weight"] > allowed["features.0.weight"]
    # nor is a unit excused that is far from its edge
    far = replace(unit, index=int(truth._seen["features.6"].reshape(-1).argmax()))
    broken = truth.on([far]).gradients
    _, found = truth.fitted(broken, allowed)
    assert any(v > allowed[k] for k, v in distances(broken, found).items())


def test_several_units_on_their_other_sides_are_found(truth):
    """Of many that may be, those that are; none of them helps enough alone."""
    many = Truth(network(), images(), {"features.7": MASK}, LOSS, error=1e-3)
    assert many.undecided > 12
    allowed = truth.allowances(plain=False)["gradient"]

    def far(sample):
        found = distances(sample.gradients, many.sample)
        return max(found[key] / allowed[key] for key in found)

    wanted = [unit for unit in many.units if far(many.on([unit])) > 5][1:12:3]
    assert len(wanted) == 4
    rng = np.random.default_rng(2)
    right = many.on(wanted).gradients

    def needed(unit):  # of two that are above 0 in one window, the pool passes one
        there = many.on([one for one in wanted if one != unit])
        return any(v > allowed[k] for k, v in distances(right, there).items())

    needs = {unit for unit in wanted if needed(unit)}
    assert len(needs) >= 3
    other = {k: g * (1 + UNIT * rng.normal(size=g.shape)) for k, g in right.items()}
    units, found = many.fitted(other, allowed)
    assert set(units) == needs
    assert all(v <= allowed[k] for k, v in distances(other, found).items())


def test_gradients_that_are_no_numbers_are_on_no_side(truth):
    near = near_an_edge()
    for of in (near, truth):  # `truth` has no undecided unit
        assert len(of.units) == (of is near)
        strange = {key: np.full(g.shape, np.nan) for key, g in of.sample.gradients.items()}
        assert of.fitted(strange, truth.allowances(plain=False)["gradient"]) == ([], of.sample)


def test_a_unit_beyond_the_nearest_is_found_by_what_it_explains():
    """Nearness to the edge says little: of hundreds, the ranking by slopes finds the one."""
    many = Truth(network(), images(), {"features.7": MASK}, LOSS, error=2e-2)
    assert many.undecided > 400
    allowed = dict.fromkeys(many.sample.gradients, 0.001)
    apart = {
        unit: max(distances(many.on([unit]).gradients, many.sample).values())
        for unit in many.units[300:400]
    }
    (unit, most) = max(apart.items(), key=lambda item: item[1])
    assert most > 10 * 1e-3
    units, _ = many.fitted(many.on([unit]).gradients, allowed)
    assert units == [unit]


def test_of_many_undecided_units_the_sides_are_drawn_along(monkeypatch):
    """Steps with errors of the model's size, on whatever side these put each unit."""
    many = Truth(network(), images(), {"features.7": MASK}, LOSS, error=2e-2)
    assert many.undecided > rounding.MOST
    monkeypatch.setattr(rounding, "MOST", 10**9)
    held = Truth(network(), images(), {"features.7": MASK}, LOSS, error=2e-2)
    many._noise = True
    draws = [many._pass({}).gradients for _ in range(50)]

    def beyond(truth):
        allowed = truth.allowances(plain=False)["gradient"]
        found = [distances(draw, truth.sample) for draw in draws]
        return sum(any(value > allowed[key] for key, value in row.items()) for row in found)

    assert beyond(many) == 0  # 42 of 50 where the sides are held fast
    assert beyond(held) > 25


def test_slopes_along_a_direction_are_products_with_jumps():
    """Forward mode against backward mode, of every unit in every kind of layer."""
    many = Truth(network(), images(), {"features.7": MASK}, LOSS, error=1e-3)
    assert {unit.layer for unit in many.units} == {"features.2", "features.3", "features.6"}
    rng = np.random.default_rng(3)
    direction = {k: rng.normal(size=g.shape) for k, g in many.sample.gradients.items()}
    found = many._derived().along(direction, many.units)
    for unit, value in zip(many.units, found, strict=True):
        jump = many._derived().jump(unit)
        product = sum(float((jump[key] * direction[key]).sum()) for key in jump)
        # two float64 passes of 600 terms at most, of values of about 1
        assert value == pytest.approx(product, rel=1e-10, abs=1e-13)


def test_a_jump_is_what_the_other_side_makes():
    near = near_an_edge()
    (unit,) = near.units
    there = near.on([unit]).gradients
    jump = near._derived().jump(unit)
    for key, right in near.sample.gradients.items():
        # the unit's value, 1e-9, is what the jump leaves out
        assert np.abs(there[key] - right - jump[key]).max() < 1e-7
    assert max(np.abs(value).max() for value in jump.values()) > 1e-3


def distances(gradients, sample):
    return rounding.distances.each(gradients, sample.gradients)


def test_a_window_that_is_dead_but_for_a_unit_near_0_passes_it():
    """The pool chose another of the zeros; above 0, where float32 has it, the unit is chosen."""
    net, x = network(), images()
    z = copy.deepcopy(net).features[:2](torch.tensor(x)).detach()[:, 0]
    windows = z.reshape(8, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(-1, 4)
    best, place = windows.max(1)
    best = best[(best > 0) & (place > 0)]  # of zeros alone a pool passes the first
    with torch.no_grad():  # the largest of the window is just below 0, by moving the channel
        net.features[1].bias[0] -= best.min() + 1e-9
    truth = Truth(net, x, {"features.7": MASK}, LOSS)
    (unit,) = [unit for unit in truth.units if unit.layer == "features.2"]
    assert unit.side == 1
    allowed = truth.allowances(plain=False)["gradient"]
    there = truth.on([unit])
    assert there.loss == pytest.approx(truth.sample.loss, rel=1e-8)
    assert distances(there.gradients, truth.sample)["features.1.bias"] > allowed["features.1.bias"]
    jump = truth._derived().jump(unit)["features.1.bias"]
    off = there.gradients["features.1.bias"] - truth.sample.gradients["features.1.bias"]
    assert jump == pytest.approx(off, rel=1e-5, abs=1e-9)  # though the pool passed another zero
    assert truth.fitted(there.gradients, allowed)[0] == [unit]


def test_a_max_pool_whose_two_largest_are_one_may_pass_either():
    net, x = network(), images()
    net.features[2] = nn.Identity()
    z = copy.deepcopy(net).features[:2](torch.tensor(x)).detach()
    # move one pixel until the two largest of a window are 1e-9 apart: by the channel's own scale
    window = z[0, 0, :2, :2].reshape(-1)
    assert window.unique().numel() == 4
    truth = Truth(copy.deepcopy(net), x, {"features.7": MASK}, LOSS)
    assert not truth.units
    order = window.argsort(descending=True)
    truth._seen["features.3"][0, 0, 0, 0, order[1]] = window[order[0]] - 1e-9
    (unit,) = truth._undecided("features.3")
    assert (unit.index, unit.side) == (0, int(order[1]))
    # equal ones, of dead ReLUs say, are no choice: both frameworks take the first
    truth._seen["features.3"][0, 0, 0, 0, order[1]] = window[order[0]]
    assert truth._undecided("features.3") == []


# --- the verdict, on made-up numbers

KEYS = {kind: ["a.w", "b.w"] for kind in verdict.ORDER} | {"loss": ["*"]}


def table(value, **changed):
    made = {kind: dict.fromkeys(keys, value) for kind, keys in KEYS.items()}
    for kind, row in changed.items():
        made[kind].update(row)
    return made


def lossy(jax, torch_):
    allowed = {"jax": table(1e-5), "torch": table(1e-5, gradient={"a.w": 1e-3})}
    return first_lossy(3, {"jax": jax, "torch": torch_}, allowed, ["a.w", "b.w"])


def test_within_what_rounding_allows_each_nobody_is_at_fault():
    assert lossy(table(0.9e-5), table(0.9e-5)) is None
    assert lossy(table(0.0), table(0.0, gradient={"a.w": 0.9e-3})) is None


@pytest.mark.parametrize("bad", [1.1e-5, np.inf, np.nan])
def test_who_is_beyond_is_at_fault(bad):
    found = lossy(table(0.0, gradient={"a.w": bad}), table(0.0))
    assert (found.step, found.kind, found.tensor, found.layer) == (3, "gradient", "a.w", "a")
    assert found.framework == "jax"
    assert lossy(table(0.0), table(0.0, variance={"b.w": bad})).framework == "torch"
    # the first of a step: forward before backward, the last layer's gradient first
    both = lossy(table(bad), table(0.0))
    assert (both.kind, both.tensor) == ("mean", "a.w")
    assert lossy(table(0.0, gradient={"a.w": bad, "b.w": bad}), table(0.0)).tensor == "b.w"


def test_the_headline_says_differ_only_where_float64_does():
    finding = {
        "stage": "root/class",
        "step": 4,
        "kind": "gradient",
        "tensor": "a.w",
        "layer": "a",
        "difference": 1e-3,
        "allowed": 1e-5,
        "cause": "backward",
        "first": "gradient a.w",
    }

    def said(*frameworks):
        pairs = [{"dtype": "float32", "finding": finding | {"framework": f}} for f in frameworks]
        return findings.headline({"coupled": pairs, "independent": None, "stepwise": []})

    assert said("").startswith("The frameworks differ: root/class, step 4, in a: gradient a.w")
    alone = said("jax")
    assert "differ" not in alone
    assert alone.startswith("In float64 the frameworks agree, but JAX's float32 is further from it")
    assert "1.0e-03 from the float64 truth where rounding allows 1.0e-05" in alone
    assert said("torch", "").startswith("The frameworks differ")


# --- whole steps

TINY = ["--limit", "150", "--epochs", "1", "--controls", "2", "--design", "coupled"]
SUSPECT = Finding(1, "gradient", "features.0.weight", "features.0", 1.0, 0.0)


def suspected(folder, monkeypatch, *more):
    """A float32 study in which every step looks like a difference at first."""
    rule = verdict.first_beyond

    def first(step, dtype, *rest):
        return rule(step, dtype, *rest) if dtype == "float64" else replace(SUSPECT, step=step)

    monkeypatch.setattr(verdict, "first_beyond", first)
    line = [*TINY, "--dtype", "float32", "--out", str(folder), *more]
    code = command.main(line, inline=True)
    return code, runfolder.read_json(folder / "study.json")


@pytest.mark.slow
def test_float64_clears_every_step_of_a_training_without_a_fault(tmp_path, monkeypatch):
    code, value = suspected(tmp_path, monkeypatch)
    (stage,) = value["coupled"][0]["stages"]
    assert (code, value["coupled"][0]["finding"]) == (0, None)
    assert [jump["step"] for jump in stage["jumps"]] == [1, 2]
    for jump in stage["jumps"]:
        truth = jump["truth"]
        assert truth["apart"] < 1e-12
        assert all(0 < truth["errors"][name] <= truth["allowed"][name] for name in ("jax", "torch"))
    text = (tmp_path / "summary.md").read_text()
    assert "2 steps of this stage were cleared like that" in text
    assert "no difference beyond rounding was found in float32" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "framework", "said"),
    [
        ("convolution-in-bfloat16", "jax", "but JAX's float32 is further from it"),
        ("biased-running-variance", "", "The frameworks differ"),
    ],
)
def test_float64_says_whether_a_fault_is_of_float32_alone(
    fault, framework, said, tmp_path, monkeypatch
):
    code, value = suspected(tmp_path, monkeypatch, "--fault", fault)
    finding = value["coupled"][0]["finding"]
    assert (code, finding["step"], finding["framework"]) == (1, 1, framework)
    assert said in findings.headline(value)


@pytest.mark.slow
def test_an_activation_on_another_side_is_no_difference(tmp_path):
    """Seed 1 at step 11: one gradient 4.7e-3 apart in float32, from the same state too."""
    found = {}
    told = coupled.judge

    def note(suspect, *rest):
        found[suspect.step] = told(suspect, *rest)
        return found[suspect.step]

    line = [*TINY[2:], "--dtype", "float32", "--seeds", "2", "--out", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(coupled, "judge", note)
        assert command.main(line, inline=True) == 0
    value = runfolder.read_json(tmp_path / "study.json")
    assert [c["finding"] for c in value["coupled"]] == [None, None]
    # which steps need the last word depends on the processor; on ours some do
    for step, judged in found.items():
        assert judged.finding is None, step
        assert judged.apart < verdict.VALUE_64
