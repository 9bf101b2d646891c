"""`parity.compare` on layer kinds one by one, and in float32: what is rounding, what a fault."""

import numpy as np
import pytest
import torch
from flax import nnx

from parity.comparing.comparison import compare


def rngs():
    return nnx.Rngs(0)


def normal(*shape):
    values = np.random.default_rng(0).normal(size=shape)
    return torch.tensor(values, dtype=torch.float32)


class TorchTokens(torch.nn.Module):
    """A layer over tokens, then a dense one."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.head = layer, torch.nn.Linear(width, 3)

    def forward(self, x):
        """Scores of each token."""
        return self.head(self.layer(x))


class Tokens(nnx.Module):
    """The same."""

    def __init__(self, layer, width):
        self.layer, self.head = layer, nnx.Linear(width, 3, rngs=rngs())

    def __call__(self, x):
        """Scores of each token."""
        return self.head(self.layer(x))


class TorchAttention(torch.nn.Module):
    """Self-attention by PyTorch's own layer."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.MultiheadAttention(16, 4, batch_first=True)
        with torch.no_grad():
            self.layer.in_proj_bias.normal_()
            self.layer.out_proj.bias.normal_()

    def forward(self, x):
        """Tokens."""
        return self.layer(x, x, x, need_weights=False)[0]


class Attention(nnx.Module):
    """Self-attention by Flax's own layer."""

    def __init__(self):
        self.layer = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs())

    def __call__(self, x):
        """Tokens."""
        return self.layer(x)


class TorchEinsum(torch.nn.Module):
    """A weight of our own in an einsum."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(normal(6, 4, 5))

    def forward(self, x):
        """[b, n, 6] to [b, n, 4, 5]."""
        return torch.einsum("bnd,dhk->bnhk", x, self.weight)


class Einsum(nnx.Module):
    """The same by Flax's layer."""

    def __init__(self):
        self.layer = nnx.Einsum("bnd,dhk->bnhk", (6, 4, 5), rngs=rngs())

    def __call__(self, x):
        """[b, n, 6] to [b, n, 4, 5]."""
        return self.layer(x)


class TorchGru(torch.nn.Module):
    """PyTorch's GRU without a hidden bias of its own, which Flax's has no place for."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.GRU(5, 7, batch_first=True)
        with torch.no_grad():
            self.layer.bias_hh_l0[14:] = 0  # of the candidate

    def forward(self, x):
        """All states."""
        return self.layer(x)[0]


class Gru(nnx.Module):
    """Flax's."""

    def __init__(self):
        self.layer = nnx.RNN(nnx.GRUCell(5, 7, rngs=rngs()))

    def __call__(self, x):
        """All states."""
        return self.layer(x)


def conv(width, size, **more):
    return nnx.Conv(3, 4, (size,) * width, padding=more.pop("padding", "SAME"), rngs=rngs(), **more)


KINDS = {
    "conv 1d": lambda: (
        torch.nn.Conv1d(3, 4, 3, padding=1),
        conv(1, 3),
        normal(2, 3, 9),
    ),
    "conv 3d": lambda: (
        torch.nn.Conv3d(3, 4, 3, padding=1),
        conv(3, 3),
        normal(2, 3, 5, 6, 7),
    ),
    "transposed conv": lambda: (
        torch.nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1),
        nnx.ConvTranspose(
            3,
            4,
            (3, 3),
            strides=(2, 2),
            padding=((1, 1), (1, 1)),
            transpose_kernel=True,
            rngs=rngs(),
        ),
        normal(2, 3, 5, 6),
    ),
    "RMS norm": lambda: (
        TorchTokens(torch.nn.RMSNorm(8, eps=1e-6), 8),
        Tokens(nnx.RMSNorm(8, epsilon=1e-6, rngs=rngs()), 8),
        normal(2, 5, 8),
    ),
    "group norm": lambda: (
        torch.nn.GroupNorm(2, 4, eps=1e-6),
        nnx.GroupNorm(4, num_groups=2, epsilon=1e-6, rngs=rngs()),
        normal(2, 4, 5, 6),
    ),
    "attention": lambda: (TorchAttention(), Attention(), normal(2, 5, 16)),
    "einsum": lambda: (TorchEinsum(), Einsum(), normal(2, 3, 6)),
    "GRU": lambda: (TorchGru(), Gru(), normal(2, 4, 5)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_layer_is_carried_across_and_the_same(kind):
    torch.manual_seed(0)
    theirs, ours, x = KINDS[kind]()
    report = compare(theirs, ours, x, train=kind != "GRU")
    assert report.passed, str(report)
    forward = {section.title: section for section in report.sections}
    assert 0 < forward["forward, float32"].difference < 1e-5
    assert forward["forward, evaluation"].difference < 1e-13


# --- float32


class TorchNorm(torch.nn.Module):
    """A layer norm of values far from nought."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = torch.nn.Linear(6, 8), torch.nn.LayerNorm(8, eps=1e-6)
        with torch.no_grad():
            self.first.bias.fill_(50.0)

    def forward(self, x):
        """[n, 6] to [n, 8]."""
        return self.norm(self.first(x))


class Norm(nnx.Module):
    """The same; Flax takes the variance as the mean square less the squared mean by default."""

    def __init__(self, fast):
        self.first = nnx.Linear(6, 8, rngs=rngs())
        self.norm = nnx.LayerNorm(8, epsilon=1e-6, use_fast_variance=fast, rngs=rngs())

    def __call__(self, x):
        """[n, 6] to [n, 8]."""
        return self.norm(self.first(x))


def test_float32_is_rounding_where_it_is_only_that():
    report = compare(TorchNorm(), Norm(fast=False), normal(32, 6), train=False)
    assert report.passed, str(report)
    layers = [layer for layer in report.layers if layer.errors is not None]
    assert [layer.operation for layer in layers] == ["linear", "layer_norm"]
    for layer in layers:
        assert 0 < max(layer.errors) <= layer.allowed
    # the norm takes a rounding of 50 for one of its own values, and is allowed that
    assert layers[1].allowed > 20 * layers[0].allowed


def test_flaxs_fast_variance_loses_digits_in_float32_and_is_named():
    report = compare(TorchNorm(), Norm(fast=True), normal(32, 6), train=False)
    found = report.first_difference
    assert (found.stage, found.path, found.cause) == ("float32", "norm", "fast variance")
    assert found.after <= 1
    forward = {section.title: section.passed for section in report.sections}
    assert forward == {"forward, evaluation": True, "forward, float32": False}
    assert "JAX's float32" in str(report)
    assert "LESS EXACT" in str(report)
    assert report.verdict.startswith("Same in float64")  # so it is no difference
    assert "at 1 place, 1 with a verified cause" in report.verdict
    assert not report.passed
    page = report.as_html()
    assert 'class="dot-row first' in page
    assert "further from it on" in page


def test_pytorch_can_be_the_one_that_loses_digits():
    class Coarse(TorchNorm):
        """Of whose result float32 has half the digits."""

        def forward(self, x):
            """The same calls in either type."""
            y = self.norm(self.first(x))
            return y * (1 + 2.0**-12 * (y.dtype == torch.float32))

    theirs = Coarse()
    with torch.no_grad():  # near nought, where the norm amplifies nothing
        theirs.first.bias.zero_()
    report = compare(theirs, Norm(fast=False), normal(32, 6), train=False)
    found = report.first_difference
    assert (found.stage, found.operation, found.cause) == ("float32", "mul", "")
    assert found.words.startswith("PyTorch's float32")
    assert found.difference == pytest.approx(2.0**-12, rel=0.05)
