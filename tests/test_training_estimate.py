"""What training says at its start of how long all of it will take."""

import dataclasses

from data.recipes import recipe as recipes
from data.training import estimate

EFFICIENT = recipes.load("efficient", "digits", "resnet")  # 4 and 4 epochs a node, 30 together


def row(epoch, node="root", phase="class", seconds=10.0):
    return {"node": node, "phase": phase, "epoch": epoch, "seconds": seconds}


def test_the_epochs_of_each_kind_count():
    assert estimate.epochs_to_come(EFFICIENT, 2) == 2 + 4 + 4 + 4 + 30
    single = recipes.load("efficient", "digits", "monolith")  # has one node, and no groups
    assert estimate.epochs_to_come(single, 2) == 2 + 30
    exits = recipes.load("exits", "digits", "resnet")  # no node is trained on groups
    assert estimate.epochs_to_come(exits, 2) == 2 + 4 + 30
    alone = dataclasses.replace(EFFICIENT, joint=None)
    assert estimate.epochs_to_come(alone, 2) == 2 + 4 + 4 + 4


def test_it_is_told_once_after_the_epoch_that_compiles():
    said = []
    listen = estimate.telling(EFFICIENT, said.append)
    for each in (row(1, seconds=99.0), row(2), row(3), row(2, "sg1"), row(2, "tree", "joint")):
        listen(each)
    assert [line.split(" for the")[0] for line in said] == ["about 7:20"]  # 44 epochs of 10 s


def test_a_single_epoch_is_all_there_is_to_go_by():
    said = []
    short = recipes.override(EFFICIENT, epochs=1)
    estimate.telling(short, said.append)(row(1))
    assert len(said) == 1
    assert said[0].startswith("about 0:40 for the whole run: some 4 epochs")
