"""The same network in both frameworks, and everything that a pass through it computes.

Arrays are returned under PyTorch's names and in PyTorch's layout, images channel-first.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from parity.pairs.conversion import to_torch
from trunk_jax.layers import basic as layers
from trunk_jax.network import exchange
from trunk_jax.network.network import Network, apply, merge, split
from trunk_jax.training import objective
from trunk_torch_ref.baselines.layers import (
    LayerNorm2d,
    Permute,
    SelfAttention,
    StochasticDepth,
)
from trunk_torch_ref.network.calls import recorded
from trunk_torch_ref.nodes import NodeNetwork
from trunk_torch_ref.training import objective as torch_objective

Arrays = dict[str, np.ndarray]
DTYPES = {"float64": (jnp.float64, torch.float64), "float32": (jnp.float32, torch.float32)}
# JAX computes on its default device; so does PyTorch, where there is a GPU for both.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Pair:
    """One network twice, with the same float32 weights."""

    jax: Network
    torch: NodeNetwork


def pair(
    build_jax: Callable[[np.random.Generator], nnx.Module],
    build_torch: Callable[[], NodeNetwork],
    seed: int,
) -> Pair:
    """Random weights, carried across by the converter.

    Batch norm is given parameters and statistics as after some training: at their initial 1
    and 0 a swapped mean and variance, say, would go unseen. Scales reach 3, so that ReLU6
    meets values above 6.
    """
    rng = np.random.default_rng(seed)
    module = build_jax(rng)
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, layers.BatchNorm):
            for variable, most in ((layer.scale, 3.0), (layer.var, 1.5)):
                variable[...] = jnp.asarray(rng.uniform(0.5, most, variable.shape), jnp.float32)
            for variable in (layer.bias, layer.mean):
                variable[...] = jnp.asarray(rng.normal(0, 0.3, variable.shape), jnp.float32)
    network = split(module)
    return Pair(network, to_torch(network, build_torch()))


def cast(network: Network, dtype: str) -> Network:
    """The network with its floating-point arrays in another type."""

    def one(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, DTYPES[dtype][0]) if floating else leaf

    return jax.tree.map(one, network)


@partial(jax.jit, static_argnames=("kind", "gradients"))
def _pass(network: Network, x, targets, keep, kind: str, gradients: bool):
    outputs, _ = apply(network, x)

    def loss(params, x):
        mode = layers.Mode(train=True, masks=keep)
        (features, scores), stats = apply(replace(network, params=params), x, mode)
        return objective.loss(scores, targets, None, kind), (features, scores, stats)

    if not gradients:
        value, (*trained, stats) = loss(network.params, x)
        return outputs, trained, value, replace(network, params={}, stats=stats), None
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, (*trained, stats)), (dparams, dx) = gradient(network.params, x)
    return outputs, trained, value, replace(network, params=dparams, stats=stats), dx


@contextmanager
def compiling(dtype: str) -> Iterator[None]:
    """Inside, JAX compiles for float64 without what takes the compiler long.

    Float64 tells what a program computes, and compiling it is most of a short check's time (a long
    training gains more from a quick program). In float32 it is how it computes that is tested too:
    the program is the one that a user runs.
    """
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, before or dtype == "float64")
    try:
        yield
    finally:
        jax.config.update(name, before)


def jax_pass(
    both: Pair,
    dtype: str,
    x: np.ndarray,
    targets: np.ndarray,
    keep: Arrays,
    kind: str,
    gradients: bool = True,
) -> Arrays:
    """Outputs in both modes, loss, statistics afterwards, and (if asked for) gradients.

    Args:
      both: the network.
      dtype: `float32` or `float64`.
      x: [b, c, h, w].
      targets: [b].
      keep: dropout masks by layer, as `torch_pass` returns them.
      kind: the loss.
      gradients: whether to take them.

    """
    with jax.enable_x64(dtype == "float64"), compiling(dtype):
        network = cast(both.jax, dtype)
        image = jnp.asarray(x.transpose(0, 2, 3, 1), DTYPES[dtype][0])
        masks = by_stream(network, keep)
        outputs, trained, value, after, dx = _pass(
            network, image, jnp.asarray(targets, jnp.int32), masks, kind, gradients
        )
        result = {
            "eval features": channel_first(outputs[0]),
            "eval scores": np.asarray(outputs[1]),
            "train features": channel_first(trained[0]),
            "train scores": np.asarray(trained[1]),
            "loss": np.asarray(value),
        }
        if gradients:
            result["gradient of input"] = channel_first(dx)
        else:
            after = replace(after, params=network.params)
        for key, array in exchange.to_state_dict(after).items():
            if key.endswith(STATISTICS):
                result[f"after {key}"] = array
            elif gradients:
                result[f"gradient of {key}"] = array
    return result


def torch_pass(
    both: Pair, dtype: str, x: np.ndarray, targets: np.ndarray, seed: int, kind: str
) -> tuple[Arrays, Arrays]:
    """As `jax_pass`, and the dropout masks that PyTorch drew from `seed`."""
    module = copy.deepcopy(both.torch).to(DEVICE, DTYPES[dtype][1])
    image = torch.tensor(x, dtype=DTYPES[dtype][1], device=DEVICE)
    with torch.no_grad():
        outputs = module.eval()(image)
    image.requires_grad_(True)
    with recorded_masks(module) as masks, torch.random.fork_rng():
        torch.manual_seed(seed)
        trained = module.train()(image)
    labels = torch.tensor(targets, dtype=torch.int64, device=DEVICE)
    value = torch_objective.loss(trained[1], labels, kind)
    value.backward()
    result = {
        "eval features": outputs[0].cpu().numpy(),
        "eval scores": outputs[1].cpu().numpy(),
        "train features": trained[0].detach().cpu().numpy(),
        "train scores": trained[1].detach().cpu().numpy(),
        "loss": value.detach().cpu().numpy(),
        "gradient of input": gradient_of(image).cpu().numpy(),
    }
    for key, parameter in module.named_parameters():
        unused = parameter.grad is None  # JAX's gradient is then 0
        gradient = torch.zeros_like(parameter) if unused else gradient_of(parameter)
        result[f"gradient of {key}"] = gradient.detach().cpu().numpy()
    result |= {f"after {key}": buffer.cpu().numpy() for key, buffer in module.named_buffers()}
    return result, masks


@contextmanager
def recorded_masks(module: torch.nn.Module) -> Iterator[Arrays]:
    """What PyTorch's dropout layers keep, by layer name, bool, channel-last as JAX takes it.

    A dropped element and a kept 0 look alike in the output; so the draw is repeated on ones.
    """
    masks: Arrays = {}
    states = {}
    hooks = []

    def before(name, layer, inputs):
        states[name] = _generator(inputs[0]).get_state()

    def after(name, layer, inputs, output):
        with torch.random.fork_rng(), torch.no_grad():
            _generator(inputs[0]).set_state(states[name])
            kept = type(layer).forward(layer, torch.ones_like(inputs[0])) != 0
        masks[name] = channel_last(kept.cpu().numpy())

    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Dropout | torch.nn.Dropout2d | StochasticDepth):
            hooks.append(layer.register_forward_pre_hook(partial(before, name)))
            hooks.append(layer.register_forward_hook(partial(after, name)))
    try:
        yield masks
    finally:
        for hook in hooks:
            hook.remove()


def _generator(x: torch.Tensor) -> torch.Generator:
    """What PyTorch draws from on a tensor's device."""
    if x.device.type == "cpu":
        return torch.default_generator
    return torch.cuda.default_generators[x.device.index]


def by_stream(network: Network, keep: Mapping[str, np.ndarray]) -> dict[int, jax.Array]:
    """Dropout masks by layer name as `Mode.masks` takes them."""
    streams = {
        ".".join(map(str, path)): layer.stream
        for path, layer in nnx.iter_modules(merge(network))
        if isinstance(layer, layers.Dropout)
    }
    return {streams[name]: jnp.asarray(mask) for name, mask in keep.items()}


def gradient_of(x: torch.Tensor) -> torch.Tensor:
    """What a backward pass left there."""
    assert x.grad is not None
    return x.grad


def channel_first(x: jax.Array | np.ndarray) -> np.ndarray:
    """Images turned to PyTorch's order; anything else, tokens say, as it is."""
    array = np.asarray(x)
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


def channel_last(x: np.ndarray) -> np.ndarray:
    """Images turned to JAX's order; anything else as it is."""
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def leaves(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers that compare one by one; attention is one layer, its projections are in it."""
    found: dict[str, torch.nn.Module] = {}
    for name, layer in module.named_modules():
        inside = any(isinstance(found.get(name[:at]), SelfAttention) for at in _dots(name))
        whole = isinstance(layer, SelfAttention) or not list(layer.children())
        if whole and not inside and not isinstance(layer, Permute):
            found[name] = layer
    return found


def _dots(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "."]


def keeps_channels_last(layer: torch.nn.Module) -> bool:
    """Whether PyTorch too gives this layer channel-last images (inside ConvNeXt's blocks)."""
    kinds = torch.nn.Linear | torch.nn.LayerNorm | torch.nn.GELU
    return isinstance(layer, kinds) and not isinstance(layer, LayerNorm2d)


def activations(
    both: Pair, dtype: str, x: np.ndarray, seed: int, train: bool
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(layer, JAX's output, PyTorch's output) of every layer in the order of execution."""
    module = copy.deepcopy(both.torch).to(DEVICE, DTYPES[dtype][1]).train(train)
    called = {id(layer): name for name, layer in leaves(module).items()}
    with (
        recorded(leaves(module).values()) as calls,
        recorded_masks(module) as masks,
        torch.random.fork_rng(),
        torch.no_grad(),
    ):
        torch.manual_seed(seed)
        module(torch.tensor(x, dtype=DTYPES[dtype][1], device=DEVICE))
    theirs = {called[id(layer)]: y.detach().cpu().numpy() for layer, _, y in calls}
    with jax.enable_x64(dtype == "float64"), layers.record() as tape:
        jax_module = merge(cast(both.jax, dtype))
        names = {id(m): ".".join(map(str, path)) for path, m in nnx.iter_modules(jax_module)}
        mode = layers.Mode(train=train, masks=by_stream(both.jax, masks))
        jax_module(jnp.asarray(x.transpose(0, 2, 3, 1), DTYPES[dtype][0]), mode)
    rows = []
    for layer, _, output in tape:
        name, ours = names[id(layer)], np.asarray(output)
        if name in theirs:
            same = keeps_channels_last(both.torch.get_submodule(name))
            rows.append((name, ours if same else channel_first(ours), theirs[name]))
    return rows
