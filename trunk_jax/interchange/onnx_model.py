"""A trained tree as ONNX: a model a node, and from these one of the whole tree, checked."""

from collections.abc import Mapping

import onnx

from trunk_jax.interchange.node import node_model
from trunk_jax.interchange.trained import Trained
from trunk_jax.interchange.tree import tree_model
from trunk_jax.measure.costs import input_shapes

Models = dict[str, onnx.ModelProto]


def node_models(trained: Trained) -> Models:
    """The model of each node by its name, float32.

    UserError, which names it, for a layer that has no form in ONNX here.
    """
    tree, networks = trained.tree, trained.model.networks
    shapes = input_shapes(trained.model)
    return {
        tree.names[node]: checked(node_model(networks[node], shapes[node], tree.names[node]))
        for node in tree.nodes
    }


def whole_model(trained: Trained, nodes: Mapping[str, onnx.ModelProto]) -> onnx.ModelProto:
    """The model of the whole tree from those of its nodes, with its metadata."""
    recipe = trained.recipe
    model = tree_model(
        trained.tree, nodes, trained.image_shape, recipe.mean, recipe.std, trained.model.stopping
    )
    return checked(described(model, trained.about))


def described(model: onnx.ModelProto, about: Mapping[str, str]) -> onnx.ModelProto:
    """The model itself, with this metadata added."""
    onnx.helper.set_model_props(model, dict(about))
    return model


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself. Raises onnx's own errors if it, or the shapes in it, cannot be right."""
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return model
