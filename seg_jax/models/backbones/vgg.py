"""VGG's 16 layers: Very Deep Convolutional Networks (Simonyan and Zisserman 2014, column D).

Five stages of 3x3 convolutions, each followed by a 2x2 max pooling that the systems do themselves:
FCN pools, SegNet and DeconvNet also keep where the maxima stood. `VGG16` pools as the classifier
does, and less where it is told to.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax.models.layers import make_conv
from seg_jax.models.norms import make_norm
from seg_jax.ops.atrous import atrous_plan
from seg_jax.ops.pooling import max_pool

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # (channels / 64, convolutions) of each


class VGG16(nn.Module):
  """Features of pictures of any size, by the stride that they have in the classifier.

  Without norm it is the paper's and torchvision's `vgg16`, with biases; with batch norm it is
  `vgg16_bn`, without the biases that the norms would take away again. A 2x2 window has no middle
  pixel: what a value of the last map sees has its middle in the middle of its cell of 32 pixels,
  and at output stride 8, where the windows are as wide but the cells are not, 12 pixels further.
  """

  output_stride: int = 32  # of the last pooling
  width: int = 64  # channels of stage 1
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[int, Float[Array, 'N h w D']]:
    """`{2: pool1, 4: pool2, 8: pool3, 16: pool4, 32: pool5}`.

    Maps have ceil(H / s) rows, s the smaller of the key and `output_stride`: a last row without a
    partner is pooled alone, where torchvision drops it.
    """
    make = make_conv(self.dtype)
    norm = make_norm(self.norm, train, self.dtype)

    def conv(features, size, rate, name):
      return make(features, size[0], rate=rate, bias=self.norm == 'none', name=name)

    x, features = images.astype(self.dtype), {}
    plan = atrous_plan([2] * len(STAGES), self.output_stride)
    for number, (stride, rate) in enumerate(plan, start=1):
      x = stage(x, number, self.width, functools.partial(conv, rate=rate), norm)
      x = features[2**number] = _pool(x, stride, rate)
    return features


def _pool(x: jax.Array, stride: int, rate: int) -> jax.Array:
  """2x2 windows, of which the last may reach over the border: ceil(H / stride) rows of them."""
  margins = [(0, rate if stride == 1 else -n % stride) for n in x.shape[1:3]]
  x = jnp.pad(x, ((0, 0), *margins, (0, 0)), constant_values=-jnp.inf)
  return max_pool(x, 2, stride, dilation=rate)


def stage(
  x: Float[Array, 'N H W C'],
  number: int,
  width: int,
  conv: Callable[..., nn.Module],
  norm: Callable[..., nn.Module],
) -> Float[Array, 'N H W D']:
  """Stage `number`, 1 to 5, without its pooling: convolutions, each with norm and ReLU.

  `width` is the channels of stage 1, 64 in the paper, which has no norm. `conv(features, size,
  name=...)` and `norm(name=...)` are constructors made once for a whole model; the layers are
  called conv1_1, norm1_1 and so on, as the authors' are.
  """
  times, convolutions = STAGES[number - 1]
  for i in range(1, convolutions + 1):
    x = conv(times * width, (3, 3), name=f'conv{number}_{i}')(x)
    x = nn.relu(norm(name=f'norm{number}_{i}')(x))
  return x


def mirrored_stage(
  x: Float[Array, 'N H W D'],
  number: int,
  width: int,
  conv: Callable[..., nn.Module],
  norm: Callable[..., nn.Module],
) -> Float[Array, 'N H W C']:
  """Stage `number` of a decoder, after its upsampling: `stage` backwards, each with norm and ReLU.

  The last convolution narrows to the channels of the stage below; stage 1 keeps its own. The layers
  are called conv5_3d and so on, numbered as the encoder's that they mirror.
  """
  times, convolutions = STAGES[number - 1]
  below, _ = STAGES[max(number - 2, 0)]
  for i in range(convolutions, 0, -1):
    features = width * (times if i > 1 else below)
    x = conv(features, (3, 3), name=f'conv{number}_{i}d')(x)
    x = nn.relu(norm(name=f'norm{number}_{i}d')(x))
  return x
