"""What training says at its start of how long all of it will take."""

import dataclasses

import pytest

from data.recipes import recipe as recipes
from data.training import estimate
from data.tree import hierarchy
from data.tree.hierarchy import ROOT

EFFICIENT = recipes.load("efficient", "digits", "resnet")  # 4 and 4 epochs a node, 30 together


def row(epoch, node="root", phase="class", seconds=10.0):
    return {"node": node, "phase": phase, "epoch": epoch, "seconds": seconds}


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have passed, to be set."""
    now = [0.0]
    monkeypatch.setattr(estimate, "_clock", lambda: now[0])
    return now


def test_the_epochs_of_each_kind_count():
    assert estimate.epochs_of_stages(EFFICIENT) == [4, 4, 4, 4, 30]
    single = recipes.load("efficient", "digits", "monolith")  # has one node, and no groups
    assert estimate.epochs_of_stages(single) == [4, 30]
    exits = recipes.load("exits", "digits", "resnet")  # no node is trained on groups
    assert estimate.epochs_of_stages(exits) == [4, 4, 30]
    alone = dataclasses.replace(EFFICIENT, joint=None)
    assert estimate.epochs_of_stages(alone) == [4, 4, 4, 4]


def test_the_nodes_of_a_tree_that_is_kept_count_by_their_classes():
    groups = ((0, 1, 2, 3), (4, 5), *((label,) for label in range(6, 10)))
    tree = hierarchy.regroup(hierarchy.bare(10), ROOT, groups)
    assert estimate.epochs_of_stages(EFFICIENT, tree) == pytest.approx([4, 1.6, 0.8, 30])
    assert estimate.epochs_of_stages(EFFICIENT, hierarchy.bare(10)) == [4, 30]


def test_it_is_told_once_after_the_epoch_that_compiles(clock):
    said = []
    listen = estimate.telling(EFFICIENT, said.append)
    clock[0] = 99.0
    listen(row(1, seconds=99.0))
    clock[0] = 110.0  # 20 s are of epochs as they are from now on, 90 s of the start
    for each in (row(2), row(3), row(2, "sg1"), row(2, "tree", "joint")):
        listen(each)
    assert said == [
        "about 13:20 to go: some 44 epochs over all images (7:20) and the start of 4 stages "
        "(6:00), as long as those so far"
    ]


def test_a_run_that_compiles_longer_than_it_trains_is_told_so(clock):
    """As measured on digits with 3 epochs: 10.2 s to the second epoch of 0.3 s, 53 s in all."""
    said = []
    short = recipes.override(EFFICIENT, epochs=3)
    listen = estimate.telling(short, said.append)
    for epoch, now in ((1, 9.9), (2, 10.2)):
        clock[0] = now
        listen(row(epoch, seconds=0.3))
    assert said[0].startswith("about 0:42 to go: some 13 epochs over all images (0:04) and ")


def test_a_single_epoch_is_all_there_is_to_go_by(clock):
    said = []
    short = recipes.override(EFFICIENT, epochs=1)
    listen = estimate.telling(short, said.append)
    clock[0] = 10.0
    listen(row(1))
    assert said == [
        "about 0:40 to go: some 4 epochs over all images (0:40) and the start of 4 stages (0:00), "
        "as long as those so far"
    ]


def test_a_training_from_a_finished_tree_is_estimated_too(clock):
    said = []
    tree = hierarchy.regroup(hierarchy.bare(10), ROOT, ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)))
    listen = estimate.telling(EFFICIENT, said.append, tree)
    clock[0] = 30.0
    for each in (row(2, phase="class"), row(1, phase="group"), row(2, phase="group")):
        listen(each)
    # 2 epochs of the root, twice 4 of half the images, 30 together; 10 s besides
    assert said == [
        "about 6:30 to go: some 36 epochs over all images (6:00) and the start of 3 stages (0:30), "
        "as long as those so far"
    ]


def test_nothing_is_told_where_nothing_is_to_come(clock):
    said = []
    alone = recipes.override(recipes.load("efficient", "digits", "monolith"), epochs=2)
    listen = estimate.telling(dataclasses.replace(alone, joint=None), said.append)
    listen(row(1))
    listen(row(2))
    assert said == []
