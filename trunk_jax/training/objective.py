"""Loss, optimisers and schedules, each with PyTorch's definition."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Bool, Float, Int

from data.recipes.recipe import Phase


def loss(
    scores: Float[Array, "b outputs"],
    targets: Int[Array, " b"],
    valid: Bool[Array, " b"] | None,
    kind: str,
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean loss over the valid rows.

    `nll`: scores are log-probabilities (torch.nn.NLLLoss); `cross_entropy`: raw scores
    (torch.nn.CrossEntropyLoss), to which log-softmax is applied first. `smoothing`: the share
    of each target that is spread evenly over all outputs (that class's label_smoothing).
    """
    if kind == "cross_entropy":
        scores = jax.nn.log_softmax(scores, axis=-1)
    each = -jnp.take_along_axis(scores, targets[:, None], axis=1)[:, 0]
    if smoothing:
        each = (1 - smoothing) * each - smoothing * scores.mean(1)
    if valid is None:
        return each.mean()
    return jnp.where(valid, each, 0).sum() / valid.sum()


def learning_rates(phase: Phase, steps: int = 1) -> Float[np.ndarray, " epochs*steps"]:
    """The learning rate of each step, float64, for epochs of `steps` steps; PyTorch's schedulers.

    Cosine is CosineAnnealingLR with eta_min 0: past T_max it rises again, and repeats with
    period 2 T_max. Step is StepLR, or with milestones MultiStepLR. All are stepped once an
    epoch; OneCycleLR once a step.
    """
    if phase.schedule == "onecycle":
        return _one_cycle(phase, phase.epochs * steps)
    epoch = np.arange(phase.epochs, dtype=np.float64).repeat(steps)
    if phase.schedule == "cosine":
        period = phase.period or phase.epochs
        return phase.lr * (1 + np.cos(np.pi * epoch / period)) / 2
    if phase.milestones:
        return phase.lr * phase.factor ** np.searchsorted(phase.milestones, epoch, side="right")
    if phase.schedule == "step":
        return phase.lr * phase.factor ** (epoch // phase.period)
    return np.full(len(epoch), phase.lr)


def _one_cycle(phase: Phase, total: int) -> Float[np.ndarray, " total"]:
    """OneCycleLR over `total` steps: from lr / 25 up to lr, and down to lr / 250,000."""

    def cosine(start: float, end: float, share: np.ndarray) -> np.ndarray:
        return end + (start - end) / 2 * (1 + np.cos(np.pi * share))

    step = np.arange(total, dtype=np.float64)
    low = phase.lr / 25
    top, last = phase.warmup * total - 1, total - 1  # the steps with the highest, lowest rate
    # a phase shorter than a step has no step to show for it
    rise = cosine(low, phase.lr, step / top) if top > 0 else np.full(total, low)
    fall = cosine(phase.lr, low / 1e4, (step - top) / max(last - top, 1e-300))
    return np.where(step <= top, rise, fall)


def optimizer(phase: Phase) -> optax.GradientTransformation:
    """Gradient to step of unit learning rate: coupled L2, then Adam or SGD with momentum."""
    decay = optax.add_decayed_weights(phase.weight_decay)
    if phase.optimizer == "adam":
        return optax.chain(decay, adam(*phase.betas))
    return optax.chain(decay, optax.trace(decay=phase.momentum, nesterov=phase.nesterov))


def adam(b1: float, b2: float, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, 2015, algorithm 1) with the bias corrections at full precision.

    optax.scale_by_adam takes 1 - b2**t in the parameters' type: in float32 the first of
    them, 0.001, is off by one part in 80,000. PyTorch takes it in float64. `expm1` keeps
    all digits in either type.
    """

    def init(params):
        zeros = optax.tree.zeros_like
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros(params), zeros(params))

    def update(gradients, state, params=None):
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradients)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, gradients)
        count = state.count + 1

        def correction(decay: float, dtype: jnp.dtype) -> Array:
            return -jnp.expm1(count.astype(dtype) * math.log(decay))

        def step(m, v):
            v_hat = v / correction(b2, v.dtype)
            return m / correction(b1, m.dtype) / (jnp.sqrt(v_hat) + eps)

        return jax.tree.map(step, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def descend(params, steps, learning_rate: Float[Array, ""]):
    """Parameters after a step: params - learning_rate * steps."""
    return jax.tree.map(lambda p, s: p - learning_rate.astype(p.dtype) * s, params, steps)
