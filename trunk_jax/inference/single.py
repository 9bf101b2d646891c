"""One image through a whole tree as one compiled program: no Python between nodes."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, UInt8

from data.images.augmentation import Augmentation
from data.inference import stopping
from data.inference.model import Model
from data.inference.stopping import Stopping
from data.tree.hierarchy import ROOT, Node, Tree
from trunk_jax.machine.memory import compile_for_one_image
from trunk_jax.network.augment import prepare
from trunk_jax.network.network import Network, apply, dtype_of

Answer = tuple[Int[Array, ""], Float[Array, ""], Int[Array, " depth"]]


def compile_single(model: Model) -> jax.stages.Compiled:
    """A function of one image, uint8 [h, w, c], compiled ahead of its first call.

    It returns an `Answer`, (label, probability, path): the class, the product of the probabilities
    of the decisions that led to it, and the decision at each depth, -1 below the leaf. In a tree
    with exits the probability is the class's, and the path the branches that the image went on to,
    -1 from where it stopped. The weights are a part of the program. With JAX's persistent
    compilation cache switched on (`jax_compilation_cache_dir`) a later process loads the program
    instead of compiling it.
    """
    image = jax.ShapeDtypeStruct(model.image_shape, jnp.uint8)
    return compile_for_one_image(jax.jit(program_of(model)).lower(image))


def program_of(model: Model) -> Callable[[UInt8[Array, "h w c"]], Answer]:
    """That function, not yet compiled.

    Weights that are arguments, hundreds of small arrays, would have to be looked at in each
    call, which takes a tenth of a mobilenet tree's time for an image.
    """
    recipe, tree, networks = model.recipe, model.tree, model.networks
    stopping.need_one_branch(model.stopping, "a program for one image")
    weights = {tree.names[node]: networks[node] for node in tree.nodes}
    dtype = str(dtype_of(networks[ROOT]))
    way = partial(_stop_early, model.stopping) if tree.exits else _follow

    def program(image: UInt8[Array, "h w c"]) -> Answer:
        x = prepare(image[None], {}, Augmentation(), recipe.mean, recipe.std, dtype)
        return way(tree, weights, x)

    return program


def _follow(tree: Tree, networks: dict[str, Network], x: Array) -> Answer:
    """The answer for the root's input `x`, of one image."""
    leaves = {path: label for label, path in enumerate(tree.paths)}
    depth = max(map(len, leaves))

    def visit(node: Node, likelihood: Array, path: Array, x: Array) -> Answer:
        """The answer below a node for its input `x`."""
        (features, scores), _ = apply(networks[tree.names[node]], x)
        likelihoods = jax.nn.log_softmax(scores[0])
        chosen = scores[0].argmax()

        def leaf(label: int, likelihood: Array, path: Array, features: Array) -> Answer:
            return jnp.int32(label), jnp.exp(likelihood), path

        branches = []
        for output in range(tree.width(node)):
            child = (*node, output)
            branches.append(
                partial(leaf, leaves[child]) if child in leaves else partial(visit, child)
            )
        path = path.at[len(node)].set(chosen.astype(jnp.int32))
        return jax.lax.switch(chosen, branches, likelihood + likelihoods[chosen], path, features)

    return visit(ROOT, jnp.zeros((), x.dtype), jnp.full(depth, -1, jnp.int32), x)


def _stop_early(rule: Stopping, tree: Tree, networks: dict[str, Network], x: Array) -> Answer:
    """As `_follow`, of a tree with exits: `data.inference.model.distribution` in a program."""

    def visit(node: Node, shares: Array, path: Array, x: Array) -> tuple[Array, Array]:
        """(Probability of each class, path) once the image has met `node` and those below it."""
        name, members = tree.names[node], np.array(tree.members(node))
        (features, scores), _ = apply(networks[name], x)
        mine = jax.nn.softmax(scores[0] / rule.temperature(name))
        reached = shares[members].sum()
        shares = shares.at[members].set(mine * reached)
        branches = jnp.stack([mine[np.array(each)].sum() for each in tree.columns(node)])
        best, unsure = branches.argmax(), mine.max() < rule.threshold(name)

        def stop(shares: Array, path: Array, features: Array) -> tuple[Array, Array]:
            return shares, path

        children = {child[-1]: partial(visit, child) for child in tree.children(node)}
        ways: list[Callable[..., tuple[Array, Array]]] = [stop, *children.values()]
        way_of = np.zeros(len(branches), np.int32)  # of a branch, 0 for a single class
        way_of[list(children)] = np.arange(1, len(ways))
        way = jnp.where(unsure, jnp.asarray(way_of)[best], 0)
        went = jnp.where(way > 0, best, -1).astype(jnp.int32)
        return jax.lax.switch(way, ways, shares, path.at[len(node)].set(went), features)

    start = jnp.zeros(len(tree.paths), x.dtype).at[0].set(1)  # the root's classes have 1 together
    shares, path = visit(ROOT, start, jnp.full(tree.depth, -1, jnp.int32), x)
    label = shares.argmax().astype(jnp.int32)
    return label, shares[label], path
