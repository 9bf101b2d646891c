"""When a difference between the frameworks is more than rounding: the rule, stated beforehand.

A training amplifies rounding at a rate that no fixed number knows. So each framework is also run
against itself with the lowest bit of one weight, or of half of all weights, flipped (the control).
For every tensor, at every step:

    the difference is *beyond the control* if it is larger than
    max(K * band, floor)

where `band` is the largest difference that any control showed in that tensor up to that step.

`K` is 100, as in `parity.checks.training`. Flipped bits are rounding errors made once, in the
weights; another framework rounds every operation differently, in every step. The effects of n
independent errors add up like a random walk, to the root of n times one: 100 stands for 10,000
times as many. One flipped weight alone is too weak a control in float32, where the first steps of
Adam turn rounding of gradients near zero into whole steps: with it alone, this rule called a
difference of rounding (SVHN, mobilenet, 8.6e-4 against 6.9e-4 at step 2) one of the frameworks.

`floor` stands for the steps in which flipped bits have not yet reached a tensor: in float64
what `parity.check` allows between the frameworks (1e-12 for values, 1e-10 for gradients and for
what follows from them); in float32 the same number of units in the last place, 2^29 times more.

Amplification is not always smooth: one activation on the other side of a ReLU's kink moves a
gradient at once, in one run steps before it does in another. So whatever is beyond the control is
looked at once more: JAX takes that step from PyTorch's state before it (weights, statistics,
finished ancestors, and moments that JAX's optimiser made of PyTorch's gradients), and again with
lowest bits of these weights flipped. With no past to amplify, a tensor is still beyond the control
if the frameworks' steps are further apart in it than K times what the flips did, and than 1e-12 (in
float32 2^29 times that). Then it is a *finding*. If none is, it was a *jump*, which the report
states, and the steps that follow are looked at in the same way. (SVHN, mobilenet, float64: at step
8 of a phase one gradient was 1e-5 apart, the controls 8e-12.)

In float32 even that step can have an activation within rounding of an edge, on one side of it in
one framework, on the other in the other, while two flips leave it where it was (digits, vgg, seed
1: one gradient 4.7e-3 apart, flips less than 5e-6). There a suspicion is no finding yet: the last
word is that of the same step in float64, see `parity.study.judge`.

The rule can only see what is larger than `max(K * band, floor)`: its *resolution*, which every
report states. Where that has grown to 1, the runs are as far apart as any two runs could be, and
coupled training in that type says nothing any more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from parity.checks.tolerance import GRADIENT_64, VALUE_64
from parity.checks.training import CONTROL as K

FLOORS = {
    "output": VALUE_64,
    "mean": VALUE_64,
    "variance": VALUE_64,
    "loss": VALUE_64,
    "gradient": GRADIENT_64,
    "weight": GRADIENT_64,
}
EDITION = 3  # of this rule: tasks of a study that were judged by another are not mixed
UNITS = {"float64": 1.0, "float32": 2.0**29}
# Within a step things follow each other: forward with its batch statistics, the loss, backward,
# the update. What comes first is named.
ORDER = ("mean", "variance", "loss", "gradient", "weight")
WORDS = {
    "output": "output of a layer in the forward pass",
    "mean": "running mean",
    "variance": "running variance",
    "loss": "loss",
    "gradient": "gradient",
    "weight": "weight after the update",
}


Floor = Callable[[str, str], float]  # (kind, dtype) to a relative difference


@dataclass(frozen=True)
class Finding:
    """Where a difference first went beyond the control.

    `step`: from 1, over the whole stage. `kind`: a key of `WORDS`. `tensor`: its key, empty for
    the loss. `layer`: the module it belongs to. `framework`: the one whose float32 is too far from
    the float64 truth, on which both agree; empty where the two differ from each other.
    """

    step: int
    kind: str
    tensor: str
    layer: str
    difference: float
    allowed: float
    framework: str = ""


def floor(kind: str, dtype: str) -> float:
    """The smallest relative difference that counts at all."""
    return FLOORS[kind] * UNITS[dtype]


def floor_of_a_step(kind: str, dtype: str) -> float:
    """The same where a single step is judged: that of a value, for gradients as well.

    Theirs is wider for steps whose control has not reached them yet, which does not happen here.
    """
    del kind
    return VALUE_64 * UNITS[dtype]


def allowed(kind: str, dtype: str, band: float, floor: Floor = floor) -> float:
    """The largest relative difference that the control explains."""
    return max(K * band, floor(kind, dtype))


def first_beyond(
    step: int,
    dtype: str,
    differences: Mapping[str, Mapping[str, float]],
    bands: Mapping[str, Mapping[str, float]],
    order: Sequence[str],
    floor: Floor = floor,
) -> Finding | None:
    """The first tensor of a step whose difference is beyond the control, or None.

    `differences`, `bands`: by kind and tensor. `order`: the network's tensors as they are
    computed; gradients are taken from the last layer to the first, everything else from the
    first to the last.
    """
    places = {key: place for place, key in enumerate(order)}
    for kind in ORDER:
        keys = sorted(differences[kind], key=lambda key: places.get(key, 0))
        for key in reversed(keys) if kind == "gradient" else keys:
            most = allowed(kind, dtype, bands[kind].get(key, 0.0), floor)
            value = differences[kind][key]
            if not value <= most:  # also if it is not a number
                return Finding(step, kind, key, layer_of(key), value, most)
    return None


def layer_of(tensor: str) -> str:
    """The module that a tensor belongs to."""
    return tensor.rpartition(".")[0]
