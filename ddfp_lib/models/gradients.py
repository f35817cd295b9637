"""Compute gradients of a convolution's weights in less time on a CPU than PyTorch does."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

COLUMNS = 3
"""oneDNN has a fast gradient for depthwise kernels of at most so many columns."""


def plain_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    wanted: tuple[bool, bool],
) -> Tensor:
    r"""Return PyTorch's own gradient of a convolution: the input's or the weights'.

    .. math:: \frac{\partial L}{\partial x} \text{ or } \frac{\partial L}{\partial w}
        \quad \text{of } y = x * w, \quad \text{from } G = \frac{\partial L}{\partial y}

    All tensors have one floating-point dtype and are on one device.

    Args:
        grad: G, (B, O, H', W').
        x: (B, C, H, W), the input as the convolution got it.
        weight: (O, C / groups, k, k').
        stride: pixels between outputs, vertically and horizontally.
        padding: pixels of zeros at each side, vertically and horizontally.
        dilation: pixels between taps, vertically and horizontally.
        groups: number of groups of channels.
        wanted: (True, False) for the input's gradient, (False, True) for the weights'.

    Returns:
        The shape of ``x``, or of ``weight``.

    Source: ``aten::convolution_backward`` of PyTorch.
    """
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (*wanted, False)
    )
    return found[0 if wanted[0] else 1]


def depthwise_weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: int,
) -> Tensor:
    r"""Return the gradient of a depthwise convolution's weights.

    .. math:: g_{c, i, j} = \sum_{b, h, w} G_{b, c, h, w} \, x_{b, c, s h + d i - p, s w + d j - p}

    With dilation d, output pixels of equal (h mod d, w mod d) meet input pixels of one such class
    alone: the d * d classes are images of their own, convolved without dilation. Columns j are
    taken :data:`COLUMNS` at a time.

    Args:
        grad: G, (B, C, H', W') float32, channels last.
        x: (B, C, H, W) float32.
        weight: (C, 1, k, k'); only its shape is used.
        stride: s, (1, 1) where ``dilation`` is above 1.
        padding: p, pixels of zeros above and to the left; others follow from the shapes.
        dilation: d.

    Returns:
        As ``weight``.
    """
    rows, columns = weight.shape[2:]
    outputs = [-(-side // dilation) for side in grad.shape[2:]]
    height = stride[0] * (outputs[0] - 1) + rows
    split_grad = _classes(grad, dilation, (0, 0), (outputs[0], outputs[1]))
    parts = []
    for first in range(0, columns, COLUMNS):
        part = weight[:, :, :, first : first + COLUMNS].contiguous()
        size = height, stride[1] * (outputs[1] - 1) + part.shape[3]
        begin = -padding[0], first * dilation - padding[1]
        split_x = _classes(x, dilation, begin, size)
        settings = stride, (0, 0), (1, 1), len(weight)
        parts.append(plain_gradient(split_grad, split_x, part, *settings, (False, True)))
    return torch.cat(parts, dim=3)


def _classes(images: Tensor, step: int, begin: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Cut images into the classes of their pixels modulo ``step``.

    Args:
        images: (B, C, H, W).
        step: d.
        begin: row and column that the first class starts from; outside of the image are zeros.
        size: (h, w) of the result.

    Returns:
        (d * d * B, C, h, w), channels last: of class (a, b) the pixels
        (begin + (a, b) + d * (r, s)), one class after the other.
    """
    if step == 1 and begin == (0, 0) and size == tuple(images.shape[2:]):
        return images.contiguous(memory_format=torch.channels_last)
    pixels = images.permute(0, 2, 3, 1)
    count, height, width, channels = pixels.shape
    result = pixels.new_zeros(step * step, count, *size, channels)
    for a, b in itertools.product(range(step), repeat=2):
        to_rows, from_rows = _span(begin[0] + a, step, height, size[0])
        to_columns, from_columns = _span(begin[1] + b, step, width, size[1])
        found = pixels[:, from_rows, from_columns]
        result[step * a + b, :, to_rows, to_columns] = found
    return result.flatten(0, 1).permute(0, 3, 1, 2)


def _span(first: int, step: int, length: int, count: int) -> tuple[slice, slice]:
    """Return which of the positions first + step * r, r < count, are in 0 .. length - 1.

    Returns:
        A slice of r, and the slice of the positions; both are empty if there are none.
    """
    begin = max(0, -(first // step))
    end = max(begin, min(count, (length - 1 - first) // step + 1))
    if begin == end:
        return slice(0, 0), slice(0, 0)
    return slice(begin, end), slice(first + step * begin, first + step * (end - 1) + 1, step)


def taps_of(
    x: Tensor, weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int]
) -> Iterator[tuple[range, range]]:
    r"""Yield, for each tap, the rows and columns of the output at which it meets the image.

    A convolution of stride 1 reads pixel :math:`(h + d i - p, w + d j - p)` for output (h, w) and
    tap (i, j). The tap meets the image where that pixel is not padding:

    .. math:: \max(0, p - d i) \le h < \min(H', H + p - d i), \qquad H' = H + 2 p - d (k - 1)

    Args:
        x: (B, C, H, W); only its shape is used.
        weight: (O, C, k, k'); only its shape is used.
        padding: p, pixels of zeros at each side, vertically and horizontally.
        dilation: d, pixels between taps, vertically and horizontally.

    Yields:
        Rows and columns of each of the k k' taps, row by row of the kernel: (0, 0), (0, 1), ...
        A range is empty where the tap meets nothing but padding.
    """
    sides = []
    for side, kernel, pad, step in zip(
        x.shape[2:], weight.shape[2:], padding, dilation, strict=True
    ):
        outputs = side + 2 * pad - step * (kernel - 1)
        offsets = [step * tap - pad for tap in range(kernel)]
        sides.append([range(max(0, -o), max(0, -o, min(outputs, side - o))) for o in offsets])
    yield from itertools.product(*sides)


def tapwise_weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    r"""Return the gradient of a dilated convolution's weights, tap by tap.

    .. math:: g_{o, c, i, j} = \sum_{b, h, w} G_{b, o, h, w} \, x_{b, c, h + d i - p, w + d j - p}

    The sum goes over the pixels at which a tap meets the image, not over its padding.

    Args:
        grad: G, (B, O, H', W') float32.
        x: (B, C, H, W) float32.
        weight: (O, C, k, k'); only its shape is used.
        padding: p, pixels of zeros at each side.
        dilation: d.

    Returns:
        As ``weight``.
    """
    outputs, inputs = grad.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    result = weight.new_zeros(*weight.shape[2:], *weight.shape[:2])
    taps = itertools.product(*(range(kernel) for kernel in weight.shape[2:]))
    for (i, j), (rows, columns) in zip(taps, taps_of(x, weight, padding, dilation), strict=True):
        if not rows or not columns:
            continue
        down, right = dilation[0] * i - padding[0], dilation[1] * j - padding[1]
        met = inputs[:, rows.start + down : rows.stop + down]
        met = met[:, :, columns.start + right : columns.stop + right]
        moved = outputs[:, rows.start : rows.stop, columns.start : columns.stop]
        result[i, j] = moved.flatten(0, 2).t() @ met.flatten(0, 2)
    return result.permute(2, 3, 0, 1)
