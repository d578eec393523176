"""Convolutions alone, at full resolution from the first layer to the last, without any pooling.

The plainest net that labels every pixel. Nothing about location is ever lost, but what a pixel sees
grows only by `kernel_size - 1` pixels a layer, where a pooling doubles the step of all layers
behind it, and every layer pays for every pixel: with 64 channels, 3x3 kernels and as many layers as
it takes to see 404 pixels, as FCN's VGG16 does, 202 of them, a picture of 360 x 480 takes 1.3e12
multiply-adds, 16 times VGG16's (`receptive_field`, `multiply_adds`).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax.models.layers import Conv, conv_before_norm
from seg_jax.models.norms import make_norm


class ConvOnly(nn.Module):
  """Logits for pictures of any height and width; nothing needs padding or cropping."""

  num_classes: int
  width: int = 64  # channels of every layer
  layers: int = 10  # of kernel_size, before the 1x1 classifier
  kernel_size: int = 3
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N H W num_classes']]:
    """`{'logits': [N, H, W, num_classes]}`, float32."""
    conv = conv_before_norm(
      self.norm, self.dtype, features=self.width, kernel_size=(self.kernel_size, self.kernel_size)
    )
    norm = make_norm(self.norm, train, self.dtype)
    x = images.astype(self.dtype)
    for number in range(1, self.layers + 1):
      x = nn.relu(norm(name=f'norm{number}')(conv(name=f'conv{number}')(x)))
    logits = Conv(self.num_classes, (1, 1), dtype=self.dtype, name='score')(x)
    return {'logits': logits.astype(jnp.float32)}


def receptive_field(model: ConvOnly) -> int:
  """Rows, and columns, of the picture that a pixel's logits depend on."""
  return 1 + model.layers * (model.kernel_size - 1)


def multiply_adds(model: ConvOnly, height: int, width: int, channels: int = 3) -> int:
  """Of one picture's forward pass, convolutions alone, zeros of the padding included.

  Each layer takes `(kernel_size * width) ** 2` a pixel, the first and the classifier less; a
  training step takes three times as many.
  """
  inputs = [channels] + [model.width] * (model.layers - 1)
  layers = sum(model.kernel_size**2 * n * model.width for n in inputs)
  return height * width * (layers + model.width * model.num_classes)
