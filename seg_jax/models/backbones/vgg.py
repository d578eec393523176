"""VGG's 16 layers: Very Deep Convolutional Networks (Simonyan and Zisserman 2014, column D).

Five stages of 3x3 convolutions, each followed by a 2x2 max pooling that the systems do themselves:
FCN pools, SegNet and DeconvNet also keep where the maxima stood.
"""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # (channels / 64, convolutions) of each


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
