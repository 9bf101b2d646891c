"""What reaches the nodes while a framework trains, written down by its own running program.

JAX's programs are compiled with callbacks in them, at two places: where a node is called, and
around a training step. PyTorch has hooks for the same. The code of the trainers is as it is.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from parity.checks.plain import Call, Course, Step
from trunk_jax.layers.basic import EVAL
from trunk_jax.machine import memory
from trunk_jax.training import fit, joint
from trunk_torch_ref.nodes import NodeNetwork
from trunk_torch_ref.training import fit as torch_fit
from trunk_torch_ref.training import joint as torch_joint


@contextmanager
def jax_recorded(node: type) -> Iterator[Course]:
    """The course of what runs inside; `node`: the class of its nodes' networks.

    Training calls and steps come in any order and carry their keys; others keep theirs.
    """
    course = Course()
    open_step: list[Any] = []  # while a training step is traced: [its key, nodes so far]
    original = node.__call__

    def note_call(place, train, x, scores, valid, step_key, own_key):
        x, scores = (_values(a)[np.asarray(valid)] for a in (x, scores))
        keys = (np.asarray(step_key).tobytes(), np.asarray(own_key).tobytes()) if train else None
        x = x.transpose(0, 3, 1, 2)
        course.calls.append(Call("", "", False, train, x, scores, keys, place))

    def call(self, x, mode=EVAL):
        outputs = original(self, x, mode)
        place, own = 0, jax.random.key(0) if mode.key is None else mode.key
        step = own
        if open_step:
            step, place = open_step
            open_step[1] += 1
        valid = jnp.ones(len(x), bool) if mode.valid is None else mode.valid
        jax.debug.callback(
            partial(note_call, place, mode.train),
            _bits(x),
            _bits(outputs[1]),
            valid,
            jax.random.key_data(step),
            jax.random.key_data(own),
            ordered=not mode.train,
        )
        return outputs

    def note_step(targets, rate, value, valid, key):
        targets = np.array(targets)[np.asarray(valid)]
        rate, value = float(_values(rate)), float(_values(value))
        step = Step("", targets, rate, value, np.asarray(key).tobytes())
        course.steps.append(step)

    def around(step, *arguments):
        *_, targets, mode, rate = arguments
        open_step[:] = [mode.key, 0]
        try:
            result = step(*arguments)
        finally:
            open_step.clear()
        valid = jnp.ones(len(targets), bool) if mode.valid is None else mode.valid
        jax.debug.callback(
            note_step,
            targets,
            _bits(rate),
            _bits(result[1]),
            valid,
            jax.random.key_data(mode.key),
        )
        return result

    forget()
    with ExitStack() as stack:
        stack.enter_context(patch.object(node, "__call__", call))
        for trainer in (fit, joint):
            step = partial(around, trainer.train_step)
            stack.enter_context(patch.object(trainer, "train_step", step))
        try:
            yield course
            jax.effects_barrier()
        finally:
            forget()


def _bits(x: jax.Array) -> jax.Array:
    """float64 as pairs of whole numbers: a callback's thread may not have 64 bits switched on."""
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _values(bits: np.ndarray) -> np.ndarray:
    return np.array(bits).view(np.float64)[..., 0]


def forget() -> None:
    """Drop what JAX has compiled: it holds the functions as they were."""
    memory.forget()
    jax.clear_caches()


@contextmanager
def torch_recorded(node: type[NodeNetwork]) -> Iterator[Course]:
    """The course of what runs inside; `node`: the class of its nodes' networks."""
    course = Course()
    rates: list[float] = []

    def note_call(module, inputs, outputs):
        if isinstance(module, node):
            x, scores = (a.detach().numpy().copy() for a in (inputs[0], outputs[1]))
            course.calls.append(Call("", "", False, module.training, x, scores))

    def note_rate(optimizer, *_):
        rates.extend({group["lr"] for group in optimizer.param_groups})

    def around(step, targets_at, *arguments):
        value, right = step(*arguments)
        targets = arguments[targets_at].numpy().copy()
        course.steps.append(Step("", targets, rates.pop(), value.item()))
        return value, right

    hooks = [
        register_module_forward_hook(note_call),
        register_optimizer_step_pre_hook(note_rate),
    ]
    steps = (
        (torch_fit, partial(around, torch_fit.train_step, 3)),
        (torch_joint, partial(around, torch_joint.train_step, 5)),
    )
    try:
        with ExitStack() as stack:
            for trainer, step in steps:
                stack.enter_context(patch.object(trainer, "train_step", step))
            yield course
    finally:
        for hook in hooks:
            hook.remove()
