"""Convolution in the form that is fast where it runs; the same values in every form.

Images are channel-last, kernels [height, width, in / groups, out]. Padding is explicit and
symmetric, as in PyTorch, never "SAME". XLA's CPU backend is slow at depthwise convolution
and at the gradient of its kernel, so there depthwise is a sum of shifted products with a
gradient written by hand; 1x1 convolutions are matrix products everywhere.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

Images = Float[Array, "b h w c"]
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(
    x: Images,
    kernel: Float[Array, "kh kw i o"],
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Images:
    """2-D cross-correlation (torch.nn.functional.conv2d), square stride and padding, no bias."""
    if kernel.shape[:2] == (1, 1) and stride == 1 and groups == 1:
        return _pad(_pointwise(x, kernel[0, 0]), padding)
    if kernel.shape[2] == 1 and groups == x.shape[3] == kernel.shape[3]:
        # `platform_dependent` would keep both branches alive under vmap and in AOT exports
        # for several platforms; the choice is made for the platform that runs the program.
        return lax.platform_dependent(
            x,
            kernel,
            cpu=lambda x, k: _depthwise(x, k[:, :, 0], stride, padding),
            default=lambda x, k: _general(x, k, stride, padding, groups),
        )
    return _general(x, kernel, stride, padding, groups)


def _general(x: Images, kernel: Array, stride: int, padding: int, groups: int) -> Images:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


def _pad(x: Images, by: int) -> Images:
    return jnp.pad(x, ((0, 0), (by, by), (by, by), (0, 0))) if by else x


def _pointwise(x: Images, kernel: Float[Array, "i o"]) -> Images:
    """One 2-D product, so that the gradient of the kernel is one as well."""
    return (x.reshape(-1, x.shape[3]) @ kernel).reshape(*x.shape[:3], -1)


def _window(x: Images, row: int, column: int, stride: int, height: int, width: int) -> Images:
    """The pixels that one tap of a kernel sees, [b, height, width, c]."""
    rows = slice(row, row + (height - 1) * stride + 1, stride)
    columns = slice(column, column + (width - 1) * stride + 1, stride)
    return x[:, rows, columns]


def _shifted_products(x: Images, kernel: Float[Array, "kh kw c"], stride: int) -> Images:
    """Depthwise cross-correlation of an already padded image."""
    kh, kw, _ = kernel.shape
    height, width = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    taps = [(i, j) for i in range(kh) for j in range(kw)]
    return sum(_window(x, i, j, stride, height, width) * kernel[i, j] for i, j in taps)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: Images, kernel: Float[Array, "kh kw c"], stride: int, padding: int) -> Images:
    return _shifted_products(_pad(x, padding), kernel, stride)


def _depthwise_forward(x, kernel, stride, padding):
    return _depthwise(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(stride, padding, saved, dy):
    x, kernel = saved
    kh, kw, channels = kernel.shape
    height, width = dy.shape[1:3]

    # dx: spread dy to the stride, then correlate with the kernel turned by 180 degrees.
    # Rows of the padded image past the last window get no gradient: `rest`.
    def edges(size, out, k):
        low = k - 1 - padding
        rest = size + 2 * padding - ((out - 1) * stride + k)
        return (low, k - 1 + rest - padding, stride - 1)

    spread = lax.pad(
        dy,
        jnp.zeros((), dy.dtype),
        ((0, 0, 0), edges(x.shape[1], height, kh), edges(x.shape[2], width, kw), (0, 0, 0)),
    )
    dx = _shifted_products(spread, kernel[::-1, ::-1], 1)

    # dkernel: image by image. As XLA derives it, nine strided reductions over the whole
    # batch take three times as long; summed in two stages it is also more accurate.
    def one_image(total, pair):
        image, gradient = pair
        image, gradient = _pad(image[None], padding), gradient[None]
        taps = [
            jnp.sum(_window(image, i, j, stride, height, width) * gradient, (0, 1, 2))
            for i in range(kh)
            for j in range(kw)
        ]
        return total + jnp.stack(taps), None

    dkernel, _ = lax.scan(one_image, jnp.zeros((kh * kw, channels), dy.dtype), (x, dy))
    return dx, dkernel.reshape(kernel.shape)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)
