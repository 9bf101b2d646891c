"""Recipes: the published table spelled out, overrides, wrong values, the form in config.json."""

import copy
import dataclasses
import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tree_hierarchy import anything

from data.base.errors import UserError
from data.images import specs
from data.images.augmentation import Augmentation
from data.recipes import recipe
from data.recipes.recipe import NodeRecipe, Phase, Recipe

ALL = [
    (path.stem, dataset, backbone)
    for path in sorted(recipe.FOLDER.glob("*.toml"))
    for dataset, backbones in tomllib.loads(path.read_text()).items()
    for backbone in backbones
]


# --- docs/trunk.md, section 3


def adam(epochs, lr, weight_decay, schedule, period):
    """PyTorch's Adam with its default betas; every published step schedule multiplies by 0.1."""
    return Phase(
        epochs=epochs,
        optimizer="adam",
        lr=lr,
        weight_decay=weight_decay,
        betas=(0.9, 0.999),
        schedule=schedule,
        period=period,
        factor=0.1,
    )


def sgd(epochs):
    return Phase(
        epochs=epochs,
        optimizer="sgd",
        lr=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="cosine",
        period=200,
    )


def same(volatility, class_phase, group_phase):
    row = NodeRecipe(volatility, class_phase, group_phase)
    return {"root": row, "others": row}


VGG_FAULTS = {
    "warm_batchnorm",
    "subset_batches",
    "train_mode_validation",
    "train_mode_asl",
    "drop_last_validation",
}
MOBILENET_FAULTS = VGG_FAULTS | {"pointwise_padding"}
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)

PUBLISHED = {
    ("emnist", "mobilenet"): {
        "seed": 42,
        "batch_size": 128,
        "eval_batch_size": 128,
        "loss": "nll",
        "mean": (),
        "std": (),
        "augment": Augmentation(),
        "eval_augment": Augmentation(),
        "faults": MOBILENET_FAULTS,
        **same(1.20, adam(5, 1e-3, 1e-4, "cosine", 10), adam(5, 1e-2, 5e-4, "cosine", 10)),
    },
    ("svhn", "mobilenet"): {
        "seed": 42,
        "batch_size": 16,
        "eval_batch_size": 16,
        "loss": "nll",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "augment": Augmentation(),
        "eval_augment": Augmentation(),
        "faults": MOBILENET_FAULTS,
        **same(0.70, adam(20, 1e-4, 5e-4, "cosine", 10), adam(20, 5e-3, 5e-4, "cosine", 10)),
    },
    ("cifar10", "mobilenet"): {
        "seed": 29525,
        "batch_size": 128,
        "eval_batch_size": 100,
        "loss": "cross_entropy",
        "mean": CIFAR10_MEAN,
        "std": (0.2023, 0.1994, 0.2010),
        "augment": Augmentation(crop_padding=4, flip=True),
        "eval_augment": Augmentation(),
        "faults": MOBILENET_FAULTS,
        "root": NodeRecipe(0.72, sgd(5), sgd(10)),
        "others": NodeRecipe(0.63, sgd(30), sgd(90)),
    },
    ("cifar10", "vgg"): {
        "seed": 29525,
        "batch_size": 500,
        "eval_batch_size": 500,
        "loss": "cross_entropy",
        "mean": CIFAR10_MEAN,
        "std": (0.2470, 0.2435, 0.2616),
        "augment": Augmentation(rand_augment=(2, 8), cutout=(2, 4)),
        "eval_augment": Augmentation(rand_augment=(2, 8), cutout=(1, 4)),
        "faults": VGG_FAULTS,
        "root": NodeRecipe(
            0.88, adam(90, 1e-2, 5e-4, "step", 20), adam(250, 1e-3, 5e-4, "step", 30)
        ),
        "others": NodeRecipe(
            1.02,
            adam(200, 1e-2, 5e-4, "step", 30),
            adam(200, 2.3570926966106847e-4, 2.1257445443209662e-4, "step", 30),
        ),
    },
}


@pytest.mark.parametrize("case", PUBLISHED, ids="-".join)
def test_published_recipe(case):
    dataset, backbone = case
    found = recipe.load("published", dataset, backbone)
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    assert fields | {"faults": set(found.faults)} == PUBLISHED[case] | {
        "name": "published",
        "dataset": dataset,
        "backbone": backbone,
        "protocol": "published",
        "grouping": "threshold",
        "ties": "first",
        "limit": 0,
        "joint": None,
        "baseline": None,
        "balanced": False,
        "budget": 0.0,
        "networks": None,
        "exits": None,
        "data": specs.spec(dataset),
    }
    assert len(found.faults) == len(set(found.faults))


def test_the_published_recipes_are_these():
    assert {(d, b) for name, d, b in ALL if name == "published"} == set(PUBLISHED)


def test_a_root_row_applies_to_the_root_alone():
    found = recipe.load("published", "cifar10", "vgg")
    assert found.node(True).volatility == 0.88
    assert found.node(False).volatility == 1.02


def test_corrected_recipes_have_none_of_the_faults():
    cases = [(d, b) for name, d, b in ALL if name == "corrected"]
    datasets = ("digits", "emnist", "svhn", "cifar10")
    assert set(cases) == {(d, b) for d in datasets for b in ("mobilenet", "vgg")}
    for dataset, backbone in cases:
        found = recipe.load("corrected", dataset, backbone)
        assert found.faults == ()
        assert found.protocol == "holdout"
        assert not found.eval_augment
        for row in (found.root, found.others):
            for phase in (row.class_phase, row.group_phase):
                assert (phase.schedule, phase.period) == ("cosine", 0)


def test_without_a_backbone_it_is_the_first():
    assert recipe.load("published", "cifar10").backbone == "mobilenet"
    first = next(b for name, d, b in ALL if (name, d) == ("corrected", "digits"))
    assert recipe.load("corrected", "digits") == recipe.load("corrected", "digits", first)


def test_groups_are_chosen_by_the_rule_in_every_recipe_of_ours():
    for name, dataset, backbone in ALL:
        found = recipe.load(name, dataset, backbone)
        for row in (found.root, found.others):
            if name == "exits" and row == found.others != found.root:
                assert row.volatility == 1e-6  # specialists that are deep already are not divided
                continue
            chosen = name != "published" and backbone != "monolith"
            # these groups were looked for: the rule does not know that images stop early
            chosen &= (name, dataset) != ("exits", "cifar10")
            assert (row.volatility == recipe.AUTO) == chosen, (name, dataset, backbone)
            value = recipe.from_json(json.loads(json.dumps(recipe.to_json(found))))
            assert value == found


def test_the_recipe_of_a_command_that_names_none():
    datasets = ("digits", "emnist", "svhn", "cifar10")
    assert {recipe.first(dataset, None) for dataset in datasets} == {"efficient"}
    assert recipe.first("svhn", "resnet") == recipe.first("svhn", "monolith") == "efficient"
    assert recipe.first("digits", "mobilenet") == "efficient"
    assert recipe.first("svhn", "vgg") == recipe.first("svhn", "mobilenet") == "corrected"
    assert recipe.first("digits", "alexnet") == "efficient"  # which then says what there is


def test_names():
    assert recipe.names() == ["corrected", "efficient", "exits", "published"]


# --- wrong choices and values


def message(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert len(text) < 400
    return text


def test_unknown_names_list_the_choices():
    assert message(recipe.load, "best", "digits") == (
        "no recipe 'best'; the recipes: corrected, efficient, exits, published, or FILE.toml"
    )
    assert message(recipe.load, "corrected", "digits", "alexnet") == (
        "no backbone 'alexnet'; the backbones: mobilenet, vgg, resnet, monolith"
    )
    having = "it has: emnist mobilenet, svhn mobilenet, cifar10 mobilenet, cifar10 vgg"
    assert message(recipe.load, "published", "digits") == (
        "recipe 'published' has none for digits, but corrected and efficient and exits have; "
        f"{having}"
    )
    assert message(recipe.load, "published", "svhn", "vgg") == (
        f"recipe 'published' has none for svhn vgg, but corrected has; {having}"
    )
    message(recipe.load, "../recipes/corrected", "digits")


DIGITS = recipe.load("corrected", "digits")


def test_override():
    changed = recipe.override(
        recipe.load("published", "cifar10", "vgg"),
        epochs=3,
        volatility=0.5,
        batch_size=7,
        seed=9,
        limit=100,
        protocol="holdout",
        grouping="sampled",
    )
    for row in (changed.root, changed.others):
        assert row.volatility == 0.5
        assert (row.class_phase.epochs, row.group_phase.epochs) == (3, 3)
    assert changed.root.class_phase.period == 20  # and nothing else of a phase
    assert changed.others.group_phase.lr == 2.3570926966106847e-4
    assert (changed.batch_size, changed.seed, changed.limit) == (7, 9, 100)
    assert (changed.protocol, changed.grouping) == ("holdout", "sampled")
    assert changed.eval_batch_size == 500


def test_override_with_none_changes_nothing():
    assert recipe.override(DIGITS, epochs=None, volatility=None, seed=None) == DIGITS


def test_override_with_zero_is_not_none():
    assert recipe.override(DIGITS, seed=0, limit=0).seed == 0
    message(recipe.override, DIGITS, epochs=0)
    message(recipe.override, DIGITS, batch_size=0)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"loss": "l2"}, ("loss", "'l2'", "nll, cross_entropy")),
        ({"protocol": "test"}, ("protocol", "'test'", "holdout, published")),
        ({"grouping": "kmeans"}, ("grouping", "'kmeans'", "threshold, sampled")),
        ({"faults": ("typo",)}, ("fault", "'typo'", "train_mode_asl")),
        ({"epochs": 0}, ("epochs", "0", "above 0")),
        ({"epochs": -3}, ("epochs", "-3", "above 0")),
        ({"volatility": "high"}, ("volatility", "'high'")),
        ({"budget": -1.0}, ("budget", "-1.0", "0 or more")),
        ({"volatility": 0.0}, ("volatility", "0.0", "above 0")),
        ({"volatility": -1.0}, ("volatility", "-1.0", "above 0")),
        ({"volatility": float("nan")}, ("volatility", "nan", "above 0")),
        ({"volatility": float("inf")}, ("volatility", "inf", "above 0")),
        ({"batch_size": -1}, ("batch size", "-1", "above 0")),
        ({"eval_batch_size": 0}, ("eval batch size", "0", "above 0")),
        ({"limit": -1}, ("limit", "-1", "0 (all) or more")),
        ({"seed": -1}, ("seed", "-1", "0 or more")),
        ({"seed": 2**63}, ("seed", str(2**63), "0 or more")),
        ({"mean": (0.5,)}, ("std", "()", "one value for each of mean's")),
        ({"mean": (0.5,), "std": (0.0,)}, ("std", "(0.0,)", "above 0")),
    ],
)
def test_wrong_values_are_named(values, parts):
    text = message(recipe.override, DIGITS, **values)
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"optimizer": "lion"}, ("optimizer", "'lion'", "adam, sgd")),
        ({"schedule": "linear"}, ("schedule", "'linear'", "cosine, step, constant")),
        ({"lr": 0.0}, ("lr", "0.0", "above 0")),
        ({"lr": float("nan")}, ("lr", "nan", "above 0")),
        ({"lr": float("inf")}, ("lr", "inf", "above 0")),
        ({"weight_decay": -1e-4}, ("weight_decay", "-0.0001", "0 or more")),
        ({"weight_decay": float("nan")}, ("weight_decay", "nan", "0 or more")),
        ({"momentum": -0.9}, ("momentum", "-0.9", "0 or more")),
        ({"factor": float("inf")}, ("factor", "inf", "0 or more")),
        ({"betas": (0.9, 1.0)}, ("betas", "(0.9, 1.0)", "0 to 1")),
        ({"period": -1}, ("period", "-1", "0 or more")),
        ({"schedule": "step", "period": 0}, ("period", "0", "above 0 for step")),
    ],
)
@pytest.mark.parametrize("row", ["root", "others"])
@pytest.mark.parametrize("phase", ["class_phase", "group_phase"])
def test_wrong_values_of_a_phase_are_named(row, phase, values, parts):
    node = getattr(DIGITS, row)
    wrong = dataclasses.replace(getattr(node, phase), **values)
    bad = dataclasses.replace(DIGITS, **{row: dataclasses.replace(node, **{phase: wrong})})
    text = message(recipe.check, bad)
    for part in parts:
        assert part in text


# --- the form in config.json


@pytest.mark.parametrize("case", ALL, ids="-".join)
def test_json_round_trip_is_the_identity(case):
    found = recipe.load(*case)
    text = json.dumps(recipe.to_json(found))
    again = recipe.from_json(json.loads(text))
    assert again == found
    assert json.dumps(recipe.to_json(again)) == text


def stored(**changes):
    return json.loads(json.dumps(recipe.to_json(DIGITS))) | changes


def without(key):
    return {k: v for k, v in stored().items() if k != key}


def with_phase(**changes):
    value = stored()
    value["others"]["group_phase"] |= changes
    return value


def test_whole_numbers_serve_as_floats():
    found = recipe.from_json(with_phase(lr=1, weight_decay=0))
    lr = found.others.group_phase.lr
    assert (lr, type(lr)) == (1.0, float)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        5,
        "recipe",
        [],
        {},
        [["name", "x"]],
        without("name"),
        without("root"),
        without("others"),
        stored(colour="red"),
        stored(**{"two\nlines": 1}),
        stored(name=3),
        stored(dataset=None),
        stored(batch_size="128"),
        stored(batch_size=128.0),
        stored(batch_size=True),
        stored(seed=None),
        stored(seed=0.5),
        stored(mean=0.5),
        stored(mean=["a"], std=["b"]),
        stored(mean=[None] * 3, std=[1.0] * 3),
        stored(mean="abc", std=[1, 1, 1]),
        stored(faults="warm_batchnorm"),
        stored(faults=[[]]),
        stored(faults=[None]),
        stored(root=None),
        stored(root=[]),
        stored(root=""),
        stored(root={}),
        stored(others=[[]]),
        stored(root={"volatility": 1.0}),
        stored(augment=None),
        stored(augment=[]),
        stored(augment=""),
        stored(augment={"flip": "yes"}),
        stored(augment={"cutout": 4}),
        stored(augment={"cutout": [1, 2, 3]}),
        stored(augment={"cutout": ["a", "b"]}),
        stored(augment={"crop_padding": -1}),
        stored(augment={"rand_augment": [2, 31]}),
        stored(eval_augment={"blur": 1}),
        with_phase(lr="fast"),
        with_phase(lr=None),
        with_phase(lr=10**400),
        with_phase(epochs=1.5),
        with_phase(betas=[0.9]),
        with_phase(betas=0.9),
        with_phase(betas=["a", "b"]),
        with_phase(optimizer=None),
        with_phase(optimizer=["adam"]),
        with_phase(nesterov=True),
    ],
)
def test_malformed_recipes_are_refused(value):
    message(recipe.from_json, value)


@given(st.data())
def test_a_damaged_recipe_gives_a_recipe_or_one_line(data):
    value = stored()
    place, key = value, data.draw(st.sampled_from(sorted(value)))
    while isinstance(place[key], dict) and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)))
    place[key] = data.draw(anything | st.just(copy.deepcopy(place)))
    read_or_refuse(value)


@given(anything)
def test_any_json_gives_a_recipe_or_one_line(value):
    read_or_refuse(value)


def read_or_refuse(value):
    text = "one line"
    try:
        found = recipe.from_json(value)
    except UserError as error:
        text = str(error)
    else:
        assert isinstance(found, Recipe)
        assert recipe.from_json(recipe.to_json(found)) == found
    assert len(text.splitlines()) == 1


# --- a file of the user's own


OWN = """
[digits.vgg]
batch_size = 32
[digits.vgg.others]
volatility = 0.3
class = { epochs = 2, lr = 0.01 }
group = { epochs = 3, lr = 0.02 }
"""


def written(tmp_path, text, name="mine.toml"):
    file = tmp_path / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(file)


def test_a_file_is_a_recipe_called_as_it_is(tmp_path):
    found = recipe.load(written(tmp_path, OWN), "digits")
    assert (found.name, found.backbone, found.batch_size) == ("mine", "vgg", 32)
    assert found.root == found.others
    assert (found.root.volatility, found.others.group_phase.lr) == (0.3, 0.02)
    # a shipped recipe's name would pass for it in the run's folder and summary
    assert recipe.load(written(tmp_path, OWN, "corrected.toml"), "digits").name == "corrected.toml"
    assert recipe.load(written(tmp_path, OWN, "OTHER.TOML"), "digits").name == "OTHER"
    assert "nowhere.toml is missing" in message(recipe.load, "nowhere.toml", "digits")


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    marked = written(tmp_path, b"\xef\xbb\xbf" + OWN.encode())
    assert recipe.load(marked, "digits").batch_size == 32


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("lr = 0.01", "lrr = 0.01", ("[digits.vgg]", "'lrr' in others.class;", "did you mean lr")),
        ("batch_size", "batchsize", ("[digits.vgg]", "'batchsize'", "did you mean batch_size")),
        ("volatility = 0.3", "volatility = 0.3\nvolatile = 1", ("'volatile' in others;",)),
        ("lr = 0.02", "lr = -1.0", ("[digits.vgg]", "lr is -1.0", "above 0")),
        ("epochs = 2, ", "", ("epochs missing in others.class",)),
        ("batch_size = 32", 'name = "x"', ("unknown setting 'name'",)),
        ("lr = 0.02", 'lr = "x"', ("others.group.lr must be float",)),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_file_and_table(tmp_path, old, new, parts):
    assert old in OWN
    text = message(recipe.load, written(tmp_path, OWN.replace(old, new)), "digits")
    for part in ("mine.toml, table [digits.vgg]: ", *parts):
        assert part in text


def test_the_recipe_that_has_it_is_named():
    text = message(recipe.load, "corrected", "svhn", "resnet")
    assert text.startswith(
        "recipe 'corrected' has none for svhn resnet, but efficient and exits have;"
    )
