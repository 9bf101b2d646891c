"""The shapes of what the nodes of a tree are given: images, or the features of the node above."""

from collections.abc import Callable

from data.tree.hierarchy import ROOT, Node

Shape = tuple[int, int, int]


def input_shape(
    node: Node,
    image_shape: Shape,
    features: Callable[[Node, Shape], tuple[int, ...]],
    known: dict[Node, Shape] | None = None,
) -> Shape:
    """What `node` is given, its axes in the order in which `image_shape` has them.

    Args:
      node: of a tree.
      image_shape: what the root is given.
      features: (a node above, what it is given) to the shape of what its children are given.
      known: shapes that were asked for before, so that none is worked out twice; those that are
        worked out are added.

    Example:
      >>> input_shape((0, 1), (32, 32, 3), lambda node, shape: (shape[0] // 2, shape[1] // 2, 8))
      (8, 8, 8)

    """
    known = {} if known is None else known
    if node not in known:
        known[node] = image_shape
        if node != ROOT:
            above = node[:-1]
            first, second, third = features(above, input_shape(above, image_shape, features, known))
            known[node] = first, second, third
    return known[node]
