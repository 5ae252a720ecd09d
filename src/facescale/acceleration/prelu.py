"""PReLU with a backward pass for CPUs that reads memory once."""

import torch
from torch import Tensor, nn

from facescale.kernels.cpu.prelu import prelu


class PReLU(nn.PReLU):
    """`torch.nn.PReLU`: the same values, weights and gradients.

    For channels_last images with one slope per channel, in training, the operator does the work.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) to the same shape: x where x > 0, else slope * x."""
        learns = x.device.type == "cpu" and x.requires_grad and torch.is_grad_enabled()
        is_image = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if learns and is_image and x.shape[1] == self.num_parameters:
            return prelu(x, self.weight)  # type: ignore[no-any-return]
        return super().forward(x)
