"""Trees whose nodes score classes: how they grow and train, and where images stop."""

import inspect
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from onnx import TensorProto

from data import table, versus
from data.base.errors import UserError
from data.inference import curve, stopping
from data.inference.model import Visit, answer, predictions
from data.inference.stopping import Stopping
from data.recipes import recipe as recipes
from data.recipes.recipe import DISTIL_TEMPERATURE, Exits
from data.training import growth, joint
from data.training.stages import stages_of
from data.tree import grouping, hierarchy
from data.tree.hierarchy import ROOT, Tree
from parity.checks.stopping import check_stopping
from trunk_jax import compress, metrics
from trunk_jax import nodes as jax_nodes
from trunk_jax.inference import route as jax_route
from trunk_jax.inference import single
from trunk_jax.inference.model import Model as JaxModel
from trunk_jax.inference.single import program_of
from trunk_jax.interchange import builder, runtime, trained
from trunk_jax.interchange import exits as exits_onnx
from trunk_jax.layers.basic import EVAL
from trunk_jax.network import exchange as jax_exchange
from trunk_jax.network.network import apply, split
from trunk_jax.pictures import accuracy_cost
from trunk_jax.training import fit as jax_fit
from trunk_jax.training import joint as jax_joint
from trunk_torch_ref import nodes as torch_nodes
from trunk_torch_ref.inference import route as torch_route
from trunk_torch_ref.inference.model import Model as TorchModel
from trunk_torch_ref.network import exchange as torch_exchange
from trunk_torch_ref.training import joint as torch_joint

# root: class 1, and children for {0, 2} and {3, 4, 5}; the latter with one for {4, 5}
TREE = Tree(
    ((0, 0), (1,), (0, 1), (2, 0), (2, 1, 0), (2, 1, 1)),
    {(): "root", (0,): "a", (2,): "b", (2, 1): "c"},
    exits=True,
)
LABELS = np.repeat(np.arange(6), [40, 80, 40, 80, 20, 60])
RECIPE = recipes.load("efficient", "digits", "resnet")
COUNT = 90


def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def networks():
    """(JAX's, PyTorch's) random networks of equal weights whose classes are each some image's."""
    ours, theirs, inputs = {}, {}, {ROOT: jnp.asarray(images(), jnp.float32) / 255}
    for index, node in enumerate(TREE.nodes):
        x, name = inputs[node], TREE.names[node]
        rng = np.random.default_rng(index)
        width = TREE.width(node)
        network = split(jax_nodes.build("digits", "resnet", name, x.shape[1:], width, rng=rng))
        (features, scores), _ = jax.jit(apply)(network, x)
        weights = jax_exchange.to_state_dict(network)
        last = [key for key in weights if key.startswith("classifier")]
        spread = np.float32(1.5 / np.asarray(scores).std(0).mean())
        weights |= {key: spread * weights[key] for key in last}
        bias = next(key for key in last if key.endswith("bias"))
        weights[bias] = weights[bias] - spread * np.asarray(scores.mean(0))
        ours[node] = jax_exchange.from_state_dict(network, weights)
        shape = (x.shape[3], *x.shape[1:3])
        theirs[node] = torch_exchange.from_state_dict(
            torch_nodes.build("digits", "resnet", name, shape, width), weights
        )
        inputs |= dict.fromkeys(TREE.children(node), features)
    return ours, theirs


@pytest.fixture(scope="module")
def scores(networks):
    """Of every node, its scores of all images, float64."""
    found, inputs = {}, {ROOT: torch.tensor(images().transpose(0, 3, 1, 2)).double() / 255}
    for node in TREE.nodes:
        with torch.no_grad():
            exact = networks[1][node].double().eval()
            features, mine = exact(inputs[node])
            networks[1][node].float()
        found[node] = mine.numpy()
        inputs |= dict.fromkeys(TREE.children(node), features)
    return found


def test_a_node_has_an_output_for_each_class_below_it():
    assert [TREE.width(node) for node in TREE.nodes] == [6, 2, 3, 2]
    assert TREE.branches(()) == ((0, 2), (1,), (3, 4, 5))
    assert TREE.columns((2,)) == ((0,), (1, 2))
    assert TREE.targets((2,)).tolist() == [-1, -1, -1, 0, 1, 2]
    assert hierarchy.from_json(hierarchy.to_json(TREE)) == TREE
    plain = replace(TREE, exits=False)
    assert [plain.width(node) for node in plain.nodes] == [3, 2, 2, 2]
    assert "exits" not in hierarchy.to_json(plain)
    assert [stage.phase for stage in stages_of(TREE)] == ["class"] * 4
    with pytest.raises(UserError, match="exits must be true or false"):
        hierarchy.from_json(hierarchy.to_json(TREE) | {"exits": 1})


def test_a_single_child_needs_exits():
    paths = tuple((0, label) for label in range(3))
    Tree(paths, {(): "root", (0,): "a"}, exits=True)
    with pytest.raises(UserError, match="single child"):
        Tree(paths, {(): "root", (0,): "a"})


@pytest.mark.parametrize(
    ("kind", "groups", "nodes", "phases"),
    [
        ("threshold", ((0, 2), (1,), (3,)), 2, ["root/class", "sg1/class"]),
        ("one", None, 2, ["root/class", "sg1/class"]),
    ],
)
def test_growth_trains_each_node_once(kind, groups, nodes, phases):
    recipe = replace(RECIPE, exits=Exits(), grouping=kind)
    trained = []

    def decide(tree, node, take):
        if kind == "one":
            asl = np.eye(len(tree.members(node)))
            return growth.decision_of(recipe, tree, node, asl, None, None).groups
        return groups if node == ROOT else tuple((k,) for k in range(len(tree.members(node))))

    tree = growth.grow(
        4,
        fit=lambda tree, node, phase: trained.append(f"{tree.names[node]}/{phase}"),
        likelihood=lambda tree, node: np.empty(0),
        decide=decide,
        finish=lambda tree, node: None,
        **growth.kind_of(recipe),
    )
    assert trained == phases
    assert tree.exits
    assert len(tree.nodes) == nodes
    assert tree.width(ROOT) == 4
    assert tree.members((0,)) == ((0, 1, 2, 3) if kind == "one" else (0, 2))


def test_one_group_and_networks_are_checked():
    with pytest.raises(UserError, match="grouping one"):
        recipes.check(replace(RECIPE, grouping="one"))
    with pytest.raises(UserError, match=r"exits\.distil"):
        recipes.check(replace(RECIPE, exits=Exits(distil=-1.0)))
    own = recipes.load("exits", "digits", "resnet")
    assert own.network("root").blocks[0].out == 16
    assert own.network("sg3") == own.networks.others
    block = replace(own.networks.root.blocks[0], stride=3)
    wrong = replace(own.networks, root=replace(own.networks.root, blocks=(block,)))
    with pytest.raises(UserError, match="stride is 3"):
        recipes.check(replace(own, networks=wrong))


# --- joint training


def expected_loss(scores, labels, exits):
    """The loss written out, an image at a time: (loss, right answers). `scores`: by node, row."""

    def log_softmax(values):
        return values - np.log(np.exp(values).sum())

    total, right = 0.0, 0
    for row, label in enumerate(labels):
        path = TREE.paths[label]
        above = None
        for depth in range(len(path)):
            node = path[:depth]
            members, mine = TREE.members(node), scores[node][row]
            weight = exits.weight if TREE.children(node) else 1.0
            total -= weight * log_softmax(mine)[members.index(label)]
            if above is not None:
                parent = TREE.members(node[:-1])
                taught = above[[parent.index(member) for member in members]]
                wanted = np.exp(log_softmax(mine / DISTIL_TEMPERATURE))
                given = log_softmax(taught / DISTIL_TEMPERATURE)
                total -= exits.distil * DISTIL_TEMPERATURE**2 * (wanted * given).sum()
            above = mine
        right += members[mine.argmax()] == label
    return total / len(labels), right


def test_both_frameworks_weigh_and_distil_as_the_recipe_says(networks):
    exits = Exits(weight=0.3, distil=0.7)
    recipe = replace(RECIPE, exits=exits)
    layout = joint.layout(TREE, LABELS, 24, exits=exits)
    index = joint.batches(recipe, "s", 1, TREE, layout, LABELS).index[0]
    labels, x = LABELS[index], np.random.default_rng(1).normal(size=(24, 8, 8, 1))
    names = {TREE.names[node]: node for node in TREE.nodes}

    modules = torch.nn.ModuleDict({name: networks[1][node] for name, node in names.items()}).eval()
    inputs = torch.tensor(x.transpose(0, 3, 1, 2)).float()
    theirs, right = torch_joint.objective(
        recipe, recipe.joint, layout, modules, inputs, torch.tensor(labels)
    )
    found, seen = {}, {ROOT: inputs}
    with torch.no_grad():
        for node in TREE.nodes:
            features, scores = modules[TREE.names[node]](seen[node])
            found[node] = scores.double().numpy()
            seen |= dict.fromkeys(TREE.children(node), features)
    loss, hits = expected_loss(found, labels, exits)
    # float32 against float64: a dozen layers of rounding
    assert theirs.item() == pytest.approx(loss, rel=1e-5)
    assert int(right) == hits

    program = jax_fit.Program(recipe.joint, "cross_entropy", (), (), "float32")
    mine = {name: networks[0][node] for name, node in names.items()}
    ours, (right, _) = jax_joint.objective(
        program, layout, mine, jnp.asarray(x, jnp.float32), jnp.asarray(labels), EVAL
    )
    assert float(ours) == pytest.approx(loss, rel=1e-5)
    assert int(right) == hits


def test_a_child_learns_nothing_from_what_it_teaches():
    scores = np.random.default_rng(0).normal(size=(5, 3))
    child = torch.tensor(scores + 1, requires_grad=True)
    parent = torch.tensor(scores[::-1].copy(), requires_grad=True)
    torch_joint.distilled(parent, child).backward()
    assert child.grad is None
    assert parent.grad.abs().max() > 0.01
    ours = jax.grad(jax_joint.distilled, argnums=(0, 1))(
        jnp.asarray(scores[::-1], jnp.float32), jnp.asarray(scores + 1, jnp.float32)
    )
    assert not np.asarray(ours[1]).any()
    np.testing.assert_allclose(ours[0], parent.grad.numpy(), rtol=1e-4, atol=1e-6)  # float32


# --- where images stop


def walked(scores, rule):
    """(probabilities, nodes met) of each image, written out one at a time."""

    def visit(row, node, mass, shares, met):
        members = TREE.members(node)
        met.add(node)
        mine = scores[node][row] / rule.temperature(TREE.names[node])
        mine = np.exp(mine - mine.max())
        mine /= mine.sum()
        for label, share in zip(members, mine, strict=True):
            shares[label] = mass * share
        if mine.max() >= rule.threshold(TREE.names[node]):
            return
        within = [mine[list(columns)].sum() for columns in TREE.columns(node)]
        order = np.argsort(within)[::-1]
        for rank, branch in enumerate(order[:2]):
            enough = rule.second is not None and within[branch] >= rule.second
            child = (*node, int(branch))
            if child not in TREE.paths and (rank == 0 or enough):
                visit(row, child, mass * within[branch], shares, met)

    result = []
    for row in range(COUNT):
        shares, met = np.zeros(6), set()
        visit(row, ROOT, 1.0, shares, met)
        result.append((shares, met))
    return np.array([shares for shares, _ in result]), [met for _, met in result]


RULES = {
    "to the end": Stopping(),
    "thresholds": Stopping({"root": 1.7, "b": 0.6}, {"root": 0.5, "b": 0.6}),
    "two branches": Stopping({"root": 1.7}, {"root": 0.5}, second=0.25),
}


# the last rule has both others in it: some images go to the end, some stop by a threshold
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("to the end", marks=pytest.mark.slow),
        pytest.param("thresholds", marks=pytest.mark.slow),
        "two branches",
    ],
)
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_images_stop_where_the_rule_says(networks, scores, framework, name):
    rule, recipe = RULES[name], replace(RECIPE, exits=Exits())
    kind, mine = {"jax": (JaxModel, networks[0]), "torch": (TorchModel, networks[1])}[framework]
    model = kind(recipe, TREE, mine, stopping=rule)
    wanted, met = walked(scores, rule)
    found = answer(model, model.visits(images()), COUNT)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-12)
    # float32 scores, some ten layers; no image is that close to a threshold
    np.testing.assert_allclose(found.probabilities, wanted, rtol=2e-4, atol=1e-6)
    assert (found.labels == wanted.argmax(1)).all()
    assert [set(path) for path in found.paths] == [{TREE.names[n] for n in m} for m in met]
    route = {"jax": jax_route, "torch": torch_route}[framework]
    told = route.predict(model, images(), batch=33)
    assert (told.labels == found.labels).all()
    assert told.met.tolist() == [[node in m for node in TREE.nodes] for m in met]
    lengths = np.bincount([len(m) for m in met], minlength=5)
    few = {"to the end": (5, 0), "thresholds": (5, 5), "two branches": (5, 5)}[name]
    assert lengths[2] >= few[0]
    assert lengths[1] >= few[1]
    assert name != "two branches" or (lengths[3:] > 0).any()


@pytest.mark.parametrize("name", ["to the end", "thresholds"])
def test_the_program_for_one_image_stops_where_the_rule_says(networks, scores, name):
    rule = RULES[name]
    model = JaxModel(replace(RECIPE, exits=Exits()), TREE, networks[0], stopping=rule)
    program = jax.jit(program_of(model))
    wanted, met = walked(scores, rule)
    for image, shares, nodes in zip(images()[:30], wanted, met, strict=False):
        label, probability, path = map(np.asarray, program(image))
        assert label == shares.argmax()
        np.testing.assert_allclose(probability, shares.max(), rtol=2e-4)  # as above
        deepest = max(nodes, key=len)
        assert path.tolist() == [*deepest, *[-1] * (TREE.depth - len(deepest))]


@pytest.fixture
def decided(monkeypatch):
    """By framework, what its root decides of float32 scores by a rule: (best, second, surest)."""
    monkeypatch.setattr(jax_route, "infer", lambda _, x: (x, x))

    def of_jax(tree, scores, rule):
        how = jax_route._rule_at(SimpleNamespace(tree=tree, stopping=rule), ROOT)
        rows = np.arange(len(scores))
        found = jax_route._visit.__wrapped__(None, jnp.asarray(scores), rows, **how)
        _, likelihoods, best, second = found
        return np.asarray(best), np.asarray(second), np.asarray(jnp.exp(likelihoods).max(1))

    def of_torch(tree, scores, rule):
        scores = torch.tensor(scores)
        likelihoods = (scores / rule.temperature("root")).log_softmax(1)
        best, second = torch_route.onward(tree, ROOT, scores, likelihoods, rule)
        return best.numpy(), second.numpy(), likelihoods.exp().amax(1).numpy()

    return {"jax": of_jax, "torch": of_torch}


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_at_a_threshold_an_image_stops_and_of_equals_the_first_is_taken(decided, framework):
    """As `curve.visits`; a probability of float32 is equal to one of float64 that rounds to it."""
    decide = decided[framework]
    scores = np.full((2, 6), -80, np.float32)
    scores[0, 3:5] = 1  # a class has a half, and its branch all
    scores[1, [0, 2, 4, 5]] = 1  # the first and the last branch have a half each
    _, _, (half, quarter) = decide(TREE, scores, Stopping())
    up = np.nextafter(half, np.float32(1))
    for share, wanted in ((half, [-1, 0]), (half * (1 + 1e-9), [-1, 0]), (up, [2, 0])):
        best, second, _ = decide(TREE, scores, Stopping({}, {"root": float(share)}))
        assert best.tolist() == wanted
        assert second.tolist() == [-1, -1]
    assert decide(TREE, scores, Stopping({}, {"root": float(quarter)}))[0].tolist() == [-1, -1]
    for share, wanted in ((2 * quarter, 2), (np.nextafter(2 * quarter, np.float32(1)), -1)):
        best, second, _ = decide(TREE, scores, Stopping({}, {}, second=float(share)))
        assert (best.tolist(), second.tolist()) == ([2, 0], [-1, wanted])


@pytest.mark.parametrize("framework", ["jax", "torch"])
@pytest.mark.parametrize("second", [None, 0.4])
def test_where_nodes_score_groups_scores_decide_though_probabilities_are_equal(
    decided, framework, second
):
    near = np.nextafter(np.float32(0.01), np.float32(1))
    scores = np.array([[0.01, near, -9], [near, 0.01, -9]], np.float32)
    likelihoods = np.asarray(jax.nn.log_softmax(jnp.asarray(scores), axis=1))
    assert likelihoods[0, 0] == likelihoods[0, 1]
    tree, rule = replace(TREE, exits=False), Stopping(second=second)
    best, other, _ = decided[framework](tree, scores, rule)
    assert best.tolist() == [1, 0]
    assert other.tolist() == ([-1, -1] if second is None else [0, 1])


@pytest.mark.parametrize("form", ["one image", "onnx"])
def test_at_a_threshold_exported_programs_stop_as_well(monkeypatch, form):
    scores = np.full((1, 6), -80, np.float32)
    scores[0, [0, 2, 4, 5]] = 1  # the first and the last branch have a half each

    def one(rule):
        monkeypatch.setattr(single, "apply", lambda scores, x: ((x, scores), {}))
        found = {name: jnp.zeros((1, TREE.width(n))) for n, name in TREE.names.items()}
        found["root"] = jnp.asarray(scores)
        return int(single._stop_early(rule, TREE, found, jnp.zeros((1, 1)))[2][0])

    def onnx_form(rule):
        graph = builder.Builder("root/")
        (_, ints), chosen, _ = exits_onnx.at_node(TREE, rule, graph, ROOT, "scores", None)
        kinds = [builder.tensor("scores", TensorProto.FLOAT, ["n", 6])]
        told = [builder.tensor(name, TensorProto.INT64, None) for name in (chosen, ints)]
        session = runtime.session(builder.as_model(graph.graph("a node", kinds, told)))
        branch, path = session.run(None, {"scores": scores})
        assert path[0].tolist() == [branch[0], *[-1] * (TREE.depth - 1)]
        return int(branch[0])

    way = {"one image": one, "onnx": onnx_form}[form]
    assert way(Stopping({}, {"root": 0.25})) == -1
    assert way(Stopping({}, {"root": float(np.nextafter(np.float32(0.25), 1))})) == 0
    assert way(Stopping()) == 0
    # half as probable, a quarter of what the six have at no temperature at all
    assert way(Stopping({"root": 1e3}, {"root": 0.25})) == 2


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_training_weighs_by_the_recipe(networks, monkeypatch, framework):
    """Up to the making of batches, which is told what losses count."""

    class ReachedError(Exception):
        pass

    def reached(*arguments, **named):
        raise ReachedError(inspect.signature(real).bind(*arguments, **named).arguments["exits"])

    real = joint.layout
    monkeypatch.setattr(joint, "layout", reached)
    recipe = replace(RECIPE, exits=Exits(weight=0.3, distil=0.7))
    splits = SimpleNamespace(train=SimpleNamespace(labels=LABELS))
    of = {"jax": (jax_joint, networks[0], ()), "torch": (torch_joint, networks[1], (None,))}
    module, mine, images = of[framework]
    hooks = dict.fromkeys(("restore", "save", "report"))
    with pytest.raises(ReachedError) as caught:
        module.fit_tree(recipe, recipe.joint, "s", TREE, mine, *images, splits, **hooks)
    assert caught.value.args == (recipe.exits,)


def test_a_second_branch_where_nodes_score_groups():
    tree = replace(TREE, exits=False)
    root = np.log([[0.5, 0.1, 0.4], [0.5, 0.4, 0.1], [0.4, 0.5, 0.1]])
    a = np.log([[0.6, 0.4], [0.6, 0.4]])
    b = np.log([[0.9, 0.1]])
    visits = [
        Visit((), np.arange(3), np.array([0, 0, 1]), root, np.array([2, 1, 0])),
        Visit((0,), np.array([0, 1]), np.array([0, 0]), a, np.array([-1, -1])),
        Visit((0,), np.array([2]), np.array([1]), np.log([[0.1, 0.9]]), np.array([-1])),
        Visit((2,), np.array([0]), np.array([0]), b, np.array([-1])),
    ]
    found = predictions(tree, visits, 3)
    # 0.5 * 0.6 against 0.4 * 0.9; 0.5 * 0.6 against 0.4; 0.5 against 0.4 * 0.9
    assert found.labels.tolist() == [3, 1, 1]
    np.testing.assert_allclose(found.confidence, [0.36, 0.4, 0.5])
    assert found.met.tolist() == [[True, True, True, False], *[[True, True, False, False]] * 2]

    class Told:
        classes = tuple("abcdef")

    Told.tree = tree
    told = answer(Told, visits, 3)
    np.testing.assert_allclose(told.probabilities[0], [0.3, 0, 0.2, 0.36, 0.02, 0.02])
    np.testing.assert_allclose(told.probabilities[1], [0.3, 0.4, 0.2, 0, 0, 0])
    assert (told.labels == told.probabilities.argmax(1)).all()


def test_the_rule_is_kept_in_the_run_folder(tmp_path):
    assert stopping.read(tmp_path, TREE) == Stopping()
    stopping.write(tmp_path, RULES["two branches"], {"for": "a test"})
    assert stopping.read(tmp_path, TREE) == RULES["two branches"]
    for text, match in (
        ('{"temperatures": {}, "thresholds": {"z": 0.5}, "second": null}', "no node 'z'"),
        ('{"temperatures": {"a": 0}, "thresholds": {}, "second": null}', "0.001 to 1000"),
        ('{"temperatures": {}, "thresholds": {}, "second": -1}', "0 to 1"),
        ('{"temperatures": {}, "thresholds": {}}', "lacks second"),
    ):
        (tmp_path / stopping.FILE).write_text(text)
        with pytest.raises(UserError, match=match):
            stopping.read(tmp_path, TREE)
    stopping.write(tmp_path, RULES["thresholds"], {})
    with pytest.raises(UserError, match="score groups"):
        stopping.read(tmp_path, replace(TREE, exits=False))


def test_groups_of_one_are_whole():
    assert grouping.whole(((0, 1, 2),))
    assert not grouping.whole(((0,), (1,)))


# --- accuracy against cost


def test_a_temperature_makes_the_targets_likeliest():
    """Two outputs 2 apart, of which the better is right 3 times of 4: log 3 apart is likeliest."""
    scores = np.tile([2.0, 0.0], (4, 1))
    found = curve.temperature(scores, np.array([0, 0, 0, 1]))
    assert found == pytest.approx(2 / np.log(3), rel=1e-3)  # the search ends close to the minimum
    assert curve.temperature(scores, np.array([0, 0, 0, 0])) == pytest.approx(0.2, rel=1e-3)
    assert curve.temperature(scores[:0], np.array([], int)) == 1


COSTS = {name: {"multiply_adds": 10**k, "parameters": k} for k, name in enumerate("rabc")}
COSTS["root"] = COSTS.pop("r")


@pytest.mark.parametrize("name", RULES)
def test_a_rule_can_be_followed_on_scores_alone(scores, name):
    """As the frameworks follow it: the same answers, the same nodes, their mean cost."""
    labels = np.arange(COUNT) % 6
    wanted, met = walked(scores, RULES[name])
    found = curve.point(curve.Asked(TREE, scores, labels), RULES[name], COSTS)
    assert found.correct == (wanted.argmax(1) == labels).sum()
    cost = np.mean([sum(COSTS[TREE.names[n]]["multiply_adds"] for n in m) for m in met])
    assert found.multiply_adds == pytest.approx(cost)
    assert sum(found.last.values()) == pytest.approx(1)
    assert found.last["root"] == pytest.approx(np.mean([m == {ROOT} for m in met]))


def test_the_point_for_a_wanted_cost_or_accuracy():
    points = [
        curve.Point(Stopping(), correct, 10, cost, 0.0, {})
        for correct, cost in ((8, 30.0), (6, 10.0), (7, 40.0), (9, 50.0), (6, 20.0))
    ]
    best = curve.frontier(points)
    assert [(p.correct, p.multiply_adds) for p in best] == [(6, 10), (8, 30), (9, 50)]
    assert curve.chosen(points, 49).correct == 8
    assert curve.chosen(points, 0.61).multiply_adds == 30
    assert curve.chosen(points, 0.6).multiply_adds == 10
    with pytest.raises(UserError, match="less than any image costs"):
        curve.chosen(points, 9)
    with pytest.raises(UserError, match=r"the best is 0\.9000"):
        curve.chosen(points, 0.95)


def test_rules_are_calibrated_and_of_group_trees_have_second_branches_alone(scores):
    labels = np.arange(COUNT) % 6
    tried = curve.rules(curve.Asked(TREE, scores, labels), both_ways=True)
    assert set(tried[0].temperatures) == {"root", "a", "b", "c"}
    assert {frozenset(rule.thresholds) for rule in tried} == {frozenset({"root", "b"})}
    assert {rule.second for rule in tried} == {None, *curve._BOTH_FROM}
    assert max(t for rule in tried for t in rule.thresholds.values()) == stopping.NEVER
    # no image is so near to a threshold that rounding, 1e-6 of a probability, decides on it
    heated = scores[ROOT] / tried[0].temperature("root")
    sure = np.exp(curve.log_softmax(heated)).max(1)
    shares = np.array([rule.threshold("root") for rule in tried])
    assert len(np.unique(shares)) > 40
    assert np.abs(sure / shares[:, None] - 1).min() > 1e-5
    assert (sure >= shares.min()).all()  # the first one stops them all
    plain = curve.Asked(replace(TREE, exits=False), scores, labels)
    assert curve.rules(plain, both_ways=False) == [Stopping()]
    assert [rule.second for rule in curve.rules(plain, both_ways=True)] == [None, *curve._BOTH_FROM]


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_tree_is_trained_and_stops_for_a_wanted_cost(framework, tmp_path, capsys):
    import importlib
    import json

    package = {"jax": "trunk_jax", "torch": "trunk_torch_ref"}[framework]
    train = importlib.import_module(f"{package}.train").main
    evaluate = importlib.import_module(f"{package}.evaluate").main
    run, report = tmp_path / "run", tmp_path / "report.json"
    train(["--dataset", "digits", "--recipe", "exits", "--epochs", "6", "--out", str(run)])
    costs = {
        name: node["multiply_adds"]
        for name, node in json.loads((run / "summary.json").read_text())["nodes"].items()
    }
    evaluate([str(run)])  # images have no rule to stop by yet
    assert (run / "predictions-test.csv").exists()
    assert not (run / "stopped-test.json").exists()
    wanted = costs["root"] + 100_000
    flags = ["--stop-at", str(wanted), "--curve", "--json", str(report)]
    evaluate([str(run), "--split", "validation", *flags])
    assert not (run / "predictions-test.csv").exists()  # it would be of no rule that there is
    found = json.loads(report.read_text())
    assert costs["root"] <= found["mean"]["multiply_adds"] <= wanted
    kept = json.loads((run / stopping.FILE).read_text())["about"]["validation"]
    assert kept["correct"] == found["correct"]  # what was chosen on scores is what then happens
    assert kept["multiply_adds"] == pytest.approx(found["mean"]["multiply_adds"])
    mine = [pair["validation"]["multiply_adds"] for pair in found["curve"]]
    assert mine == sorted(mine)
    capsys.readouterr()
    evaluate([str(run), "--split", "validation"])
    assert "ended at root" in capsys.readouterr().out
    evaluate([str(run), "--json", str(report)])
    on_test = json.loads(report.read_text())
    metrics.main([str(run), "--repeats", "0", "--out", str(tmp_path / "m"), "--json", str(report)])
    measured = json.loads(report.read_text())
    assert measured["accuracy"] == on_test["accuracy"]
    assert measured["mean"]["multiply_adds"] == pytest.approx(on_test["mean"]["multiply_adds"])
    # tables compare what was predicted: images that stopped early, at what these cost
    row = versus.compare(run, run)["runs"][0]
    assert (row["correct"], row["mean_multiply_adds"]) == (
        on_test["correct"],
        on_test["mean"]["multiply_adds"],
    )
    assert "images stop early" in table.table([run])
    assert accuracy_cost.point(run).multiply_adds == on_test["mean"]["multiply_adds"]
    summary = json.loads((run / "summary.json").read_text())["accuracy"]["test"]
    small = tmp_path / "small"
    compress.main([str(run), "--quantize", "int8", "--out", str(small), "--json", str(report)])
    assert json.loads(report.read_text())["before"]["accuracy"]["test"] == summary
    assert (small / stopping.FILE).read_bytes() == (run / stopping.FILE).read_bytes()
    evaluate([str(small), "--json", str(report)])
    # half a step of 127 in weights: few images stop elsewhere
    costs = [each["mean"]["multiply_adds"] for each in (json.loads(report.read_text()), on_test)]
    assert 0.9 < costs[0] / costs[1] < 1.1


def test_a_second_branch_is_refused_where_it_is_not_known(networks, monkeypatch, tmp_path):
    recipe = replace(RECIPE, exits=Exits())
    model = JaxModel(recipe, TREE, networks[0], stopping=RULES["two branches"])
    with pytest.raises(UserError, match="a program for one image knows no second branch; take"):
        program_of(model)
    for module in (metrics, trained):
        monkeypatch.setattr(module, "load", lambda run: model)
    monkeypatch.setattr(trained, "_measured", lambda run, ruled: {})
    with pytest.raises(UserError, match="export knows no second branch; take"):
        trained.of_run(tmp_path)
    data = SimpleNamespace(spec=recipe.spec, test=None)
    with pytest.raises(UserError, match="metrics knows no second branch; take"):
        metrics.measure(tmp_path, data, recipe, data, 0)


def test_images_are_counted_on_the_way_that_they_took(networks, scores):
    recipe = replace(RECIPE, exits=Exits())
    model = JaxModel(recipe, TREE, networks[0], stopping=RULES["thresholds"])
    found = jax_route.predict(model, images())
    _, met = walked(scores, RULES["thresholds"])
    counted = {path: mine for path, _, mine in metrics.ways(TREE, np.zeros(COUNT, int), found)}
    assert sum(mine.sum() for mine in counted.values()) == COUNT
    for path, mine in counted.items():
        assert mine.tolist() == [set(path) == nodes for nodes in met]


def test_an_error_of_scores_is_no_excuse(networks):
    """Images too close to call are left out, so what makes all of them so has to fail itself."""
    recipe, rule = replace(RECIPE, exits=Exits()), RULES["two branches"]
    theirs = TorchModel(recipe, TREE, networks[1], stopping=rule)
    labels = np.zeros(COUNT, np.int64)

    def failed(ours):
        model = JaxModel(recipe, TREE, ours, stopping=rule)
        found = check_stopping("a tree", model, theirs, images(), labels)
        return {check.what for check in found if not check.passed}

    assert failed(networks[0]) == set()
    root = networks[0][ROOT]
    off = replace(root, params=jax.tree.map(lambda x: 1.5 * x, root.params))
    assert "error of scores, larger of both" in failed(networks[0] | {ROOT: off})
