"""The normalizing flow: an invertible map whose Jacobian determinant costs nothing extra.

Affine coupling after Real NVP (Dinh et al. 2017, https://arxiv.org/abs/1605.08803), in the form
of GLOW (Kingma and Dhariwal 2018, https://arxiv.org/abs/1807.03039): one subnet gives both the
scale and the shift. Blocks, order and clamping are those of ``GLOWCouplingBlock`` in FrEIA 0.2,
which the released code builds its flow from (model/flow/model.py:41), so copied weights give the
same numbers.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddfp_lib.errors import UserError

ATAN_SLOPE = 0.636
"""FrEIA's rounding of 2 / pi: the clamped log-scale stays within 0.9990 * clamp."""


class CouplingBlock(nn.Module):
    r"""An invertible map of two halves that transform each other, then a fixed permutation.

    .. math::
        y_a & = x_a \odot \exp(s(x_b)) + t(x_b) \\
        y_b & = x_b \odot \exp(s'(y_a)) + t'(y_a) \\
        z & = [y_a, y_b]_{\text{permutation}}, \qquad
        \log \left| \det \frac{\partial z}{\partial x} \right| = \sum_i s_i + \sum_i s'_i

    Each half is scaled by numbers that only depend on the other one, so the Jacobian is a product
    of two triangular matrices. With u for what a subnet puts out, the log-scale is soft-clamped to
    :math:`s = c \cdot 0.636 \arctan(u)`, so no input can make a block explode. (FrEIA 0.1 had
    :math:`\arctan(u / c)`.)

    Args:
        features: D, at least 2. The first round(D / 2) make the left half.
        hidden: width of the two hidden layers of each subnet.
        clamp: c, the bound of the absolute log-scale.
        init_std: every weight and bias starts as ``init_std`` * N(0, 1).
        generator: CPU generator that the permutation and the weights are drawn from.
    """

    def __init__(
        self,
        features: int,
        hidden: int = 256,
        clamp: float = 2.0,
        init_std: float = 0.05,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if features < 2:
            raise UserError(f"a coupling block needs at least 2 features to split, got {features}")
        # Halves round to even, as in FrEIA: 5 features are split into 2 + 3, 7 into 4 + 3.
        self.left = round(features / 2)
        self.right = features - self.left
        self.clamp = clamp
        self.from_right = _Subnet(self.right, hidden, 2 * self.left)
        self.from_left = _Subnet(self.left, hidden, 2 * self.right)
        self.register_buffer("permutation", torch.randperm(features, generator=generator))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=init_std, generator=generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x to z.

        Args:
            x: (N, D).

        Returns:
            z, (N, D), and log abs det dz/dx, (N,), in nats; both differentiable once.
        """
        x_a, x_b = x.split((self.left, self.right), dim=1)
        y_a, log_det_a = _Affine.apply(x_a, self.from_right(x_b), self.clamp)
        y_b, log_det_b = _Affine.apply(x_b, self.from_left(y_a), self.clamp)
        z = torch.cat((y_a, y_b), dim=1).index_select(1, self.permutation)
        return z, log_det_a + log_det_b

    def inverse(self, z: Tensor) -> Tensor:
        """Map z, (N, D), back to the x, (N, D), it came from."""
        y = z.index_select(1, self.permutation.argsort())
        y_a, y_b = y.split((self.left, self.right), dim=1)
        log_scale_b, shift_b = _log_scale_and_shift(self.from_left(y_a), self.clamp)
        x_b = (y_b - shift_b) * torch.exp(-log_scale_b)
        log_scale_a, shift_a = _log_scale_and_shift(self.from_right(x_b), self.clamp)
        x_a = (y_a - shift_a) * torch.exp(-log_scale_a)
        return torch.cat((x_a, x_b), dim=1)


class Flow(nn.Module):
    r"""A chain of coupling blocks, :math:`z = f_B \circ \dots \circ f_1(x)`.

    .. math:: \log \left| \det \frac{\partial z}{\partial x} \right|
        = \sum_{b=1}^{B} \log \left| \det \frac{\partial f_b}{\partial f_{b-1}} \right|

    Args:
        features: D, at least 2.
        blocks: B; 0 makes the identity, which an ablation uses.
        hidden: width of the two hidden layers of each subnet.
        clamp: bound of the absolute log-scale of one coupling.
        seed: seed of the permutations and the starting weights.
        init_std: every weight and bias starts as ``init_std`` * N(0, 1), small enough that the
            fresh flow is near a permutation (model/flow/model.py:22).

    Raises:
        UserError: fewer than 2 features, or a negative number of blocks.

    Example:
        >>> flow = Flow(features=4, hidden=8)
        >>> x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        >>> z, log_det = flow(x)
        >>> z.shape, log_det.shape
        (torch.Size([3, 4]), torch.Size([3]))
        >>> torch.allclose(flow.inverse(z), x, atol=1e-6)
        True

    Source: Dinh et al., Density estimation using Real NVP, ICLR 2017
    (https://arxiv.org/abs/1605.08803); Kingma and Dhariwal, Glow, NeurIPS 2018
    (https://arxiv.org/abs/1807.03039); model/flow/model.py:41 of the release.
    """

    def __init__(
        self,
        features: int,
        blocks: int = 2,
        hidden: int = 256,
        clamp: float = 2.0,
        seed: int = 0,
        init_std: float = 0.05,
    ) -> None:
        super().__init__()
        if features < 2:
            raise UserError(f"a flow needs at least 2 features to split, got {features}")
        if blocks < 0:
            raise UserError(f"a flow has 0 (identity) or more blocks, got {blocks}")
        generator = torch.Generator().manual_seed(seed)
        self.blocks = nn.ModuleList(
            CouplingBlock(features, hidden, clamp, init_std, generator=generator)
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to latents.

        Args:
            x: (N, D), of the parameters' dtype.

        Returns:
            z, (N, D), and log abs det dz/dx, (N,), in nats.
        """
        log_det = x.new_zeros(len(x))
        for block in self.blocks:
            x, block_log_det = block(x)
            log_det = log_det + block_log_det
        return x, log_det

    def inverse(self, z: Tensor) -> Tensor:
        """Map latents z, (N, D), back to data x, (N, D): exact up to rounding."""
        for block in reversed(self.blocks):
            z = block.inverse(z)
        return z


def _log_scale_and_shift(output: Tensor, clamp: float) -> tuple[Tensor, Tensor]:
    """Cut a subnet's output, (N, 2 H), into clamped log-scale and shift, each (N, H)."""
    u, shift = output.chunk(2, dim=1)
    return u.atan().mul_(clamp * ATAN_SLOPE), shift


class _Affine(torch.autograd.Function):
    r"""A half, scaled and shifted, and the log-determinant of that.

    .. math:: y = x \odot e^s + t, \qquad \ell = \sum_i s_i, \qquad s = a \arctan(u)

    x and y are (N, H), the subnet's output [u, t] is (N, 2 H), the log-determinant l is (N,), in
    nats, and a is ``clamp * ATAN_SLOPE``. The gradient is written out, since most of a
    coupling's time outside of its matrix products goes into fetching arrays, and this fetches fewer
    than autograd would:

    .. math::
        g_x = g_y \odot e^s, \qquad g_t = g_y, \qquad
        g_u = (g_x \odot x + g_\ell) \odot \frac{a}{1 + u^2}
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor, clamp: float) -> tuple[Tensor, Tensor]:
        log_scale, shift = _log_scale_and_shift(output, clamp)
        log_det = log_scale.sum(1)
        scale = log_scale.exp_()
        ctx.clamp = clamp
        ctx.save_for_backward(x, output, scale)
        return torch.addcmul(shift, x, scale), log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Tensor, Tensor, None]:
        x, output, scale = ctx.saved_tensors
        u, _ = output.chunk(2, dim=1)
        grad_x = grad_y * scale
        grad_u = torch.addcmul(grad_log_det[:, None], grad_x, x)
        grad_u.mul_(ctx.clamp * ATAN_SLOPE).div_(u.square().add_(1))
        return grad_x, torch.cat((grad_u, grad_y), dim=1), None


class _Subnet(nn.Sequential):
    """The network that reads one half and returns log-scale and shift of the other.

    Three linear layers with ReLU between them: (N, inputs) to (N, outputs). Its parameters are
    allocated but have no values yet; :class:`CouplingBlock` draws them.

    Args:
        inputs: number of features that it reads.
        hidden: width of the two hidden layers.
        outputs: twice the number of features of the other half.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        # nn.Linear's own start would draw from the global generator.
        first, second, third = (
            nn.utils.skip_init(nn.Linear, *widths)
            for widths in ((inputs, hidden), (hidden, hidden), (hidden, outputs))
        )
        super().__init__(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True), third)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs) to (N, outputs)."""
        if _onednn_takes(x, self[0].out_features):
            return super().forward(x.to_mkldnn()).to_dense()
        return super().forward(x)


ONEDNN_WIDTH = 256
"""Hidden layers narrower than this gain less from oneDNN than its conversions cost."""


def _onednn_takes(x: Tensor, hidden: int) -> bool:
    """Say whether the subnets compute by oneDNN, as torch's convolutions do, and not by MKL.

    Both compute the same sums in the same precision. With AVX-512 the two are equally fast on
    Intel's processors, and oneDNN is faster on AMD's, where MKL does not use AVX-512. With AVX2
    alone MKL is faster. A processor always gets the same answer, so a run's bits do not depend on
    what else the processor does.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and hidden >= ONEDNN_WIDTH
        and len(x) > 0
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )
