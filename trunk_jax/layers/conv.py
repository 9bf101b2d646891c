"""Convolution in the form that is fast where it runs; the same values in every form.

Images are channel-last, kernels [height, width, in / groups, out]. Padding is explicit and
symmetric, as in PyTorch, never "SAME".

XLA's CPU backend has fast code for the plain convolution over NHWC and for matrix products;
the gradients that JAX derives have other forms, which inside a loop (a compiled epoch is
one) run 20 to 100 times slower. So on the CPU both gradients are written here as matrix
products over a few images at a time, depthwise convolution as a sum of shifted products,
and everywhere 1x1 convolution as a matrix product.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from trunk_jax.layers import forms, microbatch

Images = Float[Array, "b h w c"]
Maps = Float[Array, "b _ _ _"]  # of the same images; height, width and channels of its own

# XLA's own convolution writes out all windows of a batch; from this many values on, a few
# images at a time are faster.
WINDOWS_IN_CACHE = 2**24


def conv(
    x: Images,
    kernel: Float[Array, "kh kw i o"],
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Maps:
    """2-D cross-correlation (torch.nn.functional.conv2d), square stride and padding, no bias."""
    if kernel.shape[:2] == (1, 1) and stride == 1 and groups == 1:
        return _pad(_pointwise(x, kernel[0, 0]), padding)
    if kernel.shape[2] == 1 and groups == x.shape[3] == kernel.shape[3]:
        return lax.platform_dependent(
            x,
            kernel,
            cpu=lambda x, k: _depthwise(x, k[:, :, 0], stride, padding),
            default=lambda x, k: general(x, k, stride, padding, groups),
        )
    if groups > 1:
        return general(x, kernel, stride, padding, groups)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, k: _dense(x, k, stride, padding),
        default=lambda x, k: general(x, k, stride, padding),
    )


def general(x: Images, kernel: Array, stride: int, padding: int, groups: int = 1) -> Maps:
    """XLA's own convolution, with XLA's own gradients."""
    more = -x.shape[3] % forms.now().channels if groups == 1 else 0
    if more:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))
        kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, more), (0, 0)))
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _pad(x: Images, by: int) -> Maps:
    return jnp.pad(x, ((0, 0), (by, by), (by, by), (0, 0))) if by else x


def _pointwise(x: Images, kernel: Float[Array, "i o"]) -> Maps:
    """One 2-D product, so that the gradient of the kernel is one as well."""
    return (x.reshape(-1, x.shape[3]) @ kernel).reshape(*x.shape[:3], -1)


def _window(x: Images, row: int, column: int, stride: int, height: int, width: int) -> Maps:
    """The pixels that one tap of a kernel sees, [b, height, width, c]."""
    rows = slice(row, row + (height - 1) * stride + 1, stride)
    columns = slice(column, column + (width - 1) * stride + 1, stride)
    return x[:, rows, columns]


def _shifted_products(x: Images, kernel: Float[Array, "kh kw c"], stride: int) -> Maps:
    """Depthwise cross-correlation of an already padded image."""
    kh, kw, _ = kernel.shape
    height, width = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    taps = [(i, j) for i in range(kh) for j in range(kw)]
    products = (_window(x, i, j, stride, height, width) * kernel[i, j] for i, j in taps)
    return sum(products, start=jnp.zeros((), x.dtype))


def _spread(dy: Images, kernel: Array, size: tuple[int, int], stride: int, padding: int) -> Maps:
    """The gradient of the output, ready for that of the input as a sum over plain windows.

    Its values are set `stride` apart and framed by zeros, such that windows of stride 1
    over it meet the input's pixels. Rows and columns of the padded input that no window
    reached get zeros.
    """

    def edges(of: int, out: int, k: int) -> tuple[int, int, int]:
        unreached = of + 2 * padding - ((out - 1) * stride + k)
        return (k - 1 - padding, k - 1 - padding + unreached, stride - 1)

    (height, width), (kh, kw) = size, kernel.shape[:2]
    rows, columns = edges(height, dy.shape[1], kh), edges(width, dy.shape[2], kw)
    return lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense(x: Images, kernel: Array, stride: int, padding: int) -> Maps:
    return general(x, kernel, stride, padding)


def _dense_forward(x, kernel, stride, padding):
    kh, kw, channels, _ = kernel.shape
    saved = (x, kernel)
    if stride > 1 or channels < 32 or x.size * kh * kw < WINDOWS_IN_CACHE:
        return general(x, kernel, stride, padding), saved
    rows = kernel.reshape(kh, kw * channels, -1)

    def some_images(carry, x):
        x = _pad(x, padding)
        size = (x.shape[1] - kh + 1, x.shape[2] - kw + 1)
        windows = _row_windows(x, kh, kw, size)
        y = sum(window @ row for window, row in zip(windows, rows, strict=True))
        return carry, y.reshape(-1, *size, kernel.shape[3])

    return microbatch.scan(some_images, (), x, _images_at_once(x))[1], saved


def _dense_backward(stride, padding, saved, dy):
    x, kernel = saved
    kh, kw, channels, _ = kernel.shape
    # The output's gradient, spread, is crossed with the turned kernel for dx and with the
    # input for dkernel: both are made from the same rows of windows, a few images at a time.
    spread = partial(_spread, kernel=kernel, size=x.shape[1:3], stride=stride, padding=padding)
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2).reshape(kh, -1, channels)

    def some_images(total, pair):
        x, dy = pair
        windows = _row_windows(spread(dy), kh, kw, x.shape[1:3])
        flat = x.reshape(-1, channels).T
        dkernel = jnp.stack([flat @ rows for rows in windows])
        dx = sum(rows @ part for rows, part in zip(windows, turned, strict=True))
        return total + dkernel, dx.reshape(x.shape)

    zero = jnp.zeros((kh, channels, kw * kernel.shape[3]), dy.dtype)
    dkernel, dx = microbatch.scan(some_images, zero, (x, dy), _images_at_once(x))
    dkernel = dkernel.reshape(kh, channels, kw, -1).transpose(0, 2, 1, 3)
    return dx, dkernel[::-1, ::-1]


def _row_windows(x: Images, kh: int, kw: int, size: tuple[int, int]) -> list[Array]:
    """For each row of a kernel what it sees at each of `size` places: [b * h * w, kw * c]."""
    height, width = size
    wide = jnp.concatenate([x[:, :, j : j + width] for j in range(kw)], 3)
    return [wide[:, i : i + height].reshape(-1, wide.shape[3]) for i in range(kh)]


def _images_at_once(x: Images) -> int:
    """So many that the windows of a layer stay in a core's cache."""
    return max(1, 4096 // (x.shape[1] * x.shape[2]))


_dense.defvjp(_dense_forward, _dense_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: Images, kernel: Float[Array, "kh kw c"], stride: int, padding: int) -> Maps:
    # without the barrier XLA makes the middle tap anew from what comes before the padding, and
    # for that writes it out unpadded as well; in training it is written out in any case
    return _shifted_products(lax.optimization_barrier(_pad(x, padding)), kernel, stride)


def _depthwise_forward(x, kernel, stride, padding):
    return _shifted_products(_pad(x, padding), kernel, stride), (x, kernel)


def _depthwise_backward(stride, padding, saved, dy):
    x, kernel = saved
    kh, kw, channels = kernel.shape
    height, width = dy.shape[1:3]
    spread = _spread(dy, kernel, x.shape[1:3], stride, padding)
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
