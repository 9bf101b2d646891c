"""`parity.compare` on what users bring: models without a fault in many styles, faults, slips."""

import math

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.nn import functional

from data.base.errors import UserError
from parity import compare as command
from parity.comparing import values
from parity.comparing.comparison import compare
from tests.compared.models import TorchBatchNorm

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def torch_of(forward, **parts):
    """A PyTorch module of these parts."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, *inputs):
            return forward(self, *inputs)

    return Model()


def nnx_of(forward, **parts):
    """An NNX module of these parts."""

    class Model(nnx.Module):
        def __init__(self):
            for name, part in parts.items():
                setattr(self, name, part)

        def __call__(self, *inputs):
            return forward(self, *inputs)

    return Model()


def dense(*sizes, **more):
    return nnx.Linear(*sizes, rngs=nnx.Rngs(0), **more)


def conv(*sizes, **more):
    return nnx.Conv(*sizes, rngs=nnx.Rngs(0), **more)


def normal(*shape):
    return torch.tensor(np.random.default_rng(0).normal(size=shape), dtype=torch.float32)


# --- without a fault: (PyTorch's, JAX's, inputs, whether train mode too)


def as_many_tokens_as_channels():
    def ours(self, x):
        y = self.cut(x)
        return self.norm(y.reshape(len(y), -1, 4))

    return (
        torch_of(
            lambda self, x: self.norm(self.cut(x).flatten(2).transpose(1, 2)),
            cut=torch.nn.Conv2d(3, 4, 2, 2),
            norm=torch.nn.LayerNorm(4, eps=1e-6),
        ),
        nnx_of(
            ours,
            cut=conv(3, 4, (2, 2), strides=2, padding="VALID"),
            norm=nnx.LayerNorm(4, use_fast_variance=False, rngs=nnx.Rngs(0)),
        ),
        normal(2, 3, 4, 4),
        True,
    )


def an_image_out_of_a_vector():
    return (
        torch_of(
            lambda self, z: self.paint(self.grow(z).view(-1, 4, 3, 5)),
            grow=torch.nn.Linear(6, 60),
            paint=torch.nn.Conv2d(4, 3, 3, padding=1),
        ),
        nnx_of(
            lambda self, z: self.paint(self.grow(z).reshape(-1, 4, 3, 5).transpose(0, 2, 3, 1)),
            grow=dense(6, 60),
            paint=conv(4, 3, (3, 3), padding=1),
        ),
        normal(2, 6),
        True,
    )


def as_many_channels_as_steps():
    return torch.nn.Conv1d(8, 4, 3, padding=1), conv(8, 4, (3,)), normal(2, 8, 8), False


def a_dense_layer_of_an_image():
    return (
        torch_of(lambda self, x: self.head(x.flatten(1)), head=torch.nn.Linear(48, 5)),
        nnx_of(lambda self, x: self.head(x.reshape(len(x), -1)), head=dense(48, 5)),
        normal(2, 3, 4, 4),
        False,
    )


def an_image_and_a_series():
    return (
        torch_of(
            lambda self, x, y: self.cut(x).mean((2, 3)) + self.read(y).mean(1),
            cut=torch.nn.Conv2d(3, 6, 3),
            read=torch.nn.Linear(5, 6),
        ),
        nnx_of(
            lambda self, x, y: self.cut(x).mean((1, 2)) + self.read(y).mean(1),
            cut=conv(3, 6, (3, 3), padding="VALID"),
            read=dense(5, 6),
        ),
        (normal(2, 3, 5, 5), normal(2, 4, 5)),
        True,
    )


def whole_numbers_before_others():
    def forward(self, i, a, b):
        return self.embed(i).mean(1) + a * 2 + self.read(b)

    return (
        torch_of(forward, embed=torch.nn.Embedding(9, 6), read=torch.nn.Linear(6, 6)),
        nnx_of(forward, embed=nnx.Embed(9, 6, rngs=nnx.Rngs(0)), read=dense(6, 6)),
        (torch.tensor([[1, 4], [8, 0], [3, 3]]), normal(3, 6), normal(3, 6) + 1),
        True,
    )


def a_dict_of_outputs():
    def forward(self, x):
        scores = self.a(x)
        return {"scores": scores, "aux": self.b(x), "best": scores.argmax(-1)}

    return (
        torch_of(forward, a=torch.nn.Linear(4, 3), b=torch.nn.Linear(4, 2)),
        nnx_of(forward, a=dense(4, 3), b=dense(4, 2)),
        normal(3, 4),
        True,
    )


class Scaled(nnx.Module):
    """A norm and a layer scale, which Flax's users keep on the block."""

    def __init__(self):
        self.norm = nnx.LayerNorm(6, use_fast_variance=False, rngs=nnx.Rngs(0))
        self.gamma = nnx.Param(jnp.ones(6))

    def __call__(self, x):
        return x + self.norm(x) * self.gamma[...]


class TorchScaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(6, eps=1e-6)
        self.gamma = torch.nn.Parameter(torch.rand(6))
        torch.nn.init.normal_(self.norm.weight)

    def forward(self, x):
        return x + self.norm(x) * self.gamma


def norms_and_scales():
    theirs = torch.nn.Sequential(TorchScaled(), TorchScaled(), torch.nn.Linear(6, 2))
    return theirs, nnx.Sequential(Scaled(), Scaled(), dense(6, 2)), normal(4, 6), False


def a_table(where):
    """Positions as sines: of NumPy (float32), PyTorch (float32) or of JAX's program (exact)."""
    place = where.arange(7)[:, None] * 1.0
    rate = where.exp(where.arange(4) * (-math.log(10000.0) / 4))
    return where.sin(place * rate)


def constants_in_float32():
    theirs = torch_of(
        lambda self, x: self.head((x - self.mean) / self.std + self.table[: x.shape[1], :3]),
        head=torch.nn.Linear(3, 2),
    )
    for name, array in (("mean", torch.tensor(MEAN)), ("std", torch.tensor(STD))):
        theirs.register_buffer(name, array)
    theirs.register_buffer("table", a_table(torch).float())

    def ours(self, x):
        x = (x - jnp.array(MEAN)) / jnp.array(STD)
        return self.head(x + a_table(jnp)[: x.shape[1], :3])

    return theirs, nnx_of(ours, head=dense(3, 2)), normal(2, 5, 3), True


def dropout_inside_of_a_call():
    return (
        torch_of(
            lambda self, x: self.layer(x, x, x, need_weights=False)[0],
            layer=torch.nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True),
        ),
        nnx.MultiHeadAttention(2, 8, dropout_rate=0.5, decode=False, rngs=nnx.Rngs(0)),
        normal(2, 3, 8),
        True,
    )


def a_rate_that_is_no_dropout():
    ours = nnx_of(lambda self, x: self.head(x * self.rate), head=dense(4, 3), rate=2)
    theirs = torch_of(lambda self, x: self.head(x * 2), head=torch.nn.Linear(4, 3))
    return theirs, ours, normal(3, 4), True


class LinenNet(linen.Module):
    """A Linen module is told its mode when it is called."""

    @linen.compact
    def __call__(self, x, *, train=False):
        x = linen.Dense(8)(x)
        x = linen.BatchNorm(use_running_average=not train, epsilon=1e-5, momentum=0.9)(x)
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=not train)(linen.relu(x)))


def a_linen_module_that_is_told_its_mode():
    theirs = torch.nn.Sequential(
        torch.nn.Linear(4, 8),
        torch.nn.BatchNorm1d(8),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(8, 3),
    )
    ours = nnx.bridge.ToNNX(LinenNet(), rngs=nnx.Rngs(0)).lazy_init(jnp.ones((1, 4)))
    return theirs, ours, normal(6, 4), True


def both_in_bfloat16():
    half = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    return (
        torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()).to(torch.bfloat16),
        nnx_of(lambda self, x: nnx.relu(self.a(x)), a=dense(4, 8, **half)),
        normal(3, 4).to(torch.bfloat16),
        True,
    )


def an_axis_of_one_more():
    theirs, ours = torch.nn.Linear(4, 1), nnx_of(lambda self, x: self.a(x)[:, 0], a=dense(4, 1))
    return theirs, ours, normal(3, 4), True


def tied():
    theirs = torch_of(
        lambda self, i: self.head(torch.tanh(self.embed(i))),
        embed=torch.nn.Embedding(9, 6),
        head=torch.nn.Linear(6, 9, bias=False),
    )
    theirs.head.weight = theirs.embed.weight
    return theirs


def embed():
    return nnx.Embed(9, 6, rngs=nnx.Rngs(0))


def a_tied_head():
    ours = nnx_of(lambda self, i: self.embed.attend(jnp.tanh(self.embed(i))), embed=embed())
    return tied(), ours, torch.tensor([[1, 4], [8, 0]]), True


def a_head_apart():
    parts = {"embed": embed(), "head": dense(6, 9, use_bias=False)}
    ours = nnx_of(lambda self, i: self.head(jnp.tanh(self.embed(i))), **parts)
    return tied(), ours, torch.tensor([[1, 4], [8, 0]]), False


STYLES = [
    as_many_tokens_as_channels,
    an_image_out_of_a_vector,
    as_many_channels_as_steps,
    a_dense_layer_of_an_image,
    an_image_and_a_series,
    whole_numbers_before_others,
    a_dict_of_outputs,
    norms_and_scales,
    constants_in_float32,
    dropout_inside_of_a_call,
    a_rate_that_is_no_dropout,
    a_linen_module_that_is_told_its_mode,
    both_in_bfloat16,
    an_axis_of_one_more,
    a_tied_head,
    a_head_apart,
]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
def test_nothing_is_reported_of_models_in_users_styles(style):
    torch.manual_seed(0)
    theirs, ours, x, train = style()
    report = compare(theirs, ours, x, train=train)
    if style is a_linen_module_that_is_told_its_mode:
        # Flax's running variance is biased, and nothing else differs
        assert [f.cause for f in report.findings] == ["running variance"], str(report)
        return
    assert report.passed, str(report)
    assert not any("no place for" in line for line in report.weights)
    titles = {section.title: section.compared for section in report.sections}
    floats = [x for x in (x if isinstance(x, tuple) else (x,)) if x.is_floating_point()]
    if train:  # of every parameter, and of every input that has one
        count = len(list(theirs.parameters())) + len(floats)
        if style is not dropout_inside_of_a_call:  # whose weights JAX has in three layers
            assert titles["gradients"] == f"{count} arrays"


# --- faults: (PyTorch's, JAX's, inputs, cause, a part of the path, train mode)


def two(forward, ours, inner=6):
    parts = {"a": torch.nn.Linear(6, inner), "b": torch.nn.Linear(inner, 2)}
    return torch_of(forward, **parts), nnx_of(ours, a=dense(6, inner), b=dense(inner, 2))


def another_size_of_output():
    theirs = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 1))
    ours = nnx.Sequential(conv(3, 4, (3, 3), padding="VALID"), conv(4, 2, (1, 1)))
    return theirs, ours, normal(2, 3, 6, 6), "padding", "0", True


def channels_turned_before_they_are_normalised():
    def forward(self, x):
        x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        return self.cut(x).mean((2, 3))

    def ours(self, x):
        x = (x[..., ::-1] - jnp.array(MEAN)) / jnp.array(STD)
        return self.cut(x).mean((1, 2))

    theirs = torch_of(forward, cut=torch.nn.Conv2d(3, 4, 3))
    ours = nnx_of(ours, cut=conv(3, 4, (3, 3), padding="VALID"))
    return theirs, ours, normal(2, 3, 5, 5), "channel order", "", False


def pytorchs_own_dropout():
    models = two(
        lambda self, x: self.b(functional.dropout(torch.relu(self.a(x)), 0.3)),
        lambda self, x: self.b(nnx.relu(self.a(x))),
    )
    return *models, normal(4, 6), "dropout", "", False


def no_shortcut():
    models = two(
        lambda self, x: self.b(x + torch.tanh(self.a(x))),
        lambda self, x: self.b(jnp.tanh(self.a(x))),
    )
    return *models, normal(4, 6), "missing term", "", False


def biased_with_its_mean():
    def forward(self, x):
        variance, mean = torch.var_mean(self.a(x), -1, keepdim=True)
        return self.b((self.a(x) - mean) * torch.rsqrt(variance + 1e-5))

    def ours(self, x):
        x = self.a(x)
        variance = x.var(-1, keepdims=True)
        return self.b((x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(variance + 1e-5))

    return *two(forward, ours), normal(4, 6), "biased variance", "", False


def masked(hides, shown, ours, axis=-1):
    """Scores of 3 tokens, masked by `hides` in PyTorch, by `ours` in JAX."""

    def forward(self, x, seen):
        scores = hides(self.a(x), seen)
        return self.b(torch.softmax(scores, -1))

    models = two(forward, lambda self, x, seen: self.b(jax.nn.softmax(ours(self.a(x), seen), axis)))
    return *models, (normal(3, 6), torch.tensor(shown))


SHOWN = [[True] * 4 + [False] * 2, [True] * 6, [True, False] * 3]


def mask_of_where_inverted():
    models = masked(
        lambda x, seen: torch.where(seen, x, -math.inf),
        SHOWN,
        lambda x, seen: jnp.where(~seen, x, -1e9),
    )
    return *models, "mask polarity", "", False


def softmax_axis_after_a_mask():
    models = masked(
        lambda x, seen: x.masked_fill(~seen, -math.inf),
        SHOWN,
        lambda x, seen: jnp.where(seen, x, -1e9),
        axis=0,
    )
    return *models, "softmax axis", "", False


def no_positions():
    table = normal(4, 6)
    models = two(
        lambda self, x: self.b(torch.tanh(self.a(x) + table)),
        lambda self, x: self.b(jnp.tanh(self.a(x))),
    )
    return *models, normal(2, 4, 6), "missing term", "", False


def no_mask_of_what_is_padded():
    def hides(x, seen):
        return x.masked_fill(mask=~seen, value=-math.inf)

    models = masked(hides, SHOWN, lambda x, seen: x)
    return *models, "mask", "", False


def a_hidden_bias_that_flax_lacks():
    theirs = torch_of(lambda self, x: self.layer(x)[0], layer=torch.nn.GRU(5, 6, batch_first=True))
    ours = nnx_of(lambda self, x: self.a(x), a=nnx.RNN(nnx.GRUCell(5, 6, rngs=nnx.Rngs(0))))
    return theirs, ours, normal(2, 3, 5), "bias", "layer", False


def two_weights_for_one():
    theirs, ours, x, _ = a_head_apart()
    return theirs, ours, x, "tied weights", "head", True


FAULTS = [
    another_size_of_output,
    channels_turned_before_they_are_normalised,
    pytorchs_own_dropout,
    no_shortcut,
    no_positions,
    biased_with_its_mean,
    mask_of_where_inverted,
    softmax_axis_after_a_mask,
    no_mask_of_what_is_padded,
    a_hidden_bias_that_flax_lacks,
    two_weights_for_one,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_in_users_style_is_located_and_named(fault):
    torch.manual_seed(0)
    theirs, ours, x, cause, where, train = fault()
    report = compare(theirs, ours, x, train=train)
    first = report.first_difference
    assert first is not None
    assert (first.cause, where in first.path) == (cause, True), str(report)
    assert first.after is not None
    assert first.after <= values.SAME


# --- slips


def pair():
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 3))
    return theirs, nnx.Sequential(dense(3, 4), dense(4, 3))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"names": {"one": "layers.0"}}, "the PyTorch model has no layer one; it has 0, 1"),
        ({"names": {"0": "layers.0", "1": "layers.0"}}, "0 and 1 are both to be layers.0"),
        ({"names": ["0"]}, "names: a list; give a dict or a function"),
        ({"inputs": {"x": 1}}, "inputs: number 0 is a dict"),
        ({"loss": torch.sum}, "loss: give a pair"),
        ({"loss": (torch.sum, lambda y: y.no_such)}, "JAX model or its loss fails in train mode"),
        ({"loss": (lambda y: y, jnp.sum)}, "PyTorch model or its loss fails in train mode"),
        ({"optimizer": optax.sgd(0.1).init}, "optimizer: give a pair"),
        ({"optimizer": (torch.optim.SGD, torch.optim.SGD)}, "is no optax transformation"),
        ({"torch_module": 3}, "the PyTorch model is a int; give a torch.nn.Module"),
        ({"jax_model": linen.Dense(3)}, "give a Flax NNX module"),
    ],
)
def test_a_slip_is_one_line(given, line):
    theirs, ours = pair()
    given = {"torch_module": theirs, "jax_model": ours, "inputs": normal(2, 3), **given}
    with pytest.raises(UserError, match=line) as error:
        compare(**given)
    assert "\n" not in str(error.value)


def test_layers_that_are_named_must_hold_as_much():
    theirs, ours = torch.nn.Sequential(torch.nn.Linear(3, 4)), nnx.Sequential(dense(3, 5))
    with pytest.raises(UserError, match=r"0 is to be layers.0, but they hold \(3, 4\) and \(3, 5"):
        compare(theirs, ours, normal(2, 3), {"0": "layers.0"})


def test_a_batch_of_one_cannot_be_trained():
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    ours = nnx.Sequential(dense(3, 4), TorchBatchNorm(4, epsilon=1e-5, rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match=r"fails in train mode \(train=False and --evaluation"):
        compare(theirs, ours, normal(1, 3))


def test_an_input_holds_something():
    for text in ("2x0x3", "2x3:0"):
        with pytest.raises(UserError, match="it holds nothing"):
            command.example(text, 0)


@pytest.mark.parametrize(("layout", "passes"), [("same", False), ("nchw to nhwc", True)])
def test_a_layout_that_is_told_is_not_found(layout, passes):
    theirs, ours, x, _ = as_many_channels_as_steps()
    assert compare(theirs, ours, x, train=False, layout=layout).passed is passes
