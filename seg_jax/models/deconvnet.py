"""DeconvNet: Learning Deconvolution Network for Semantic Segmentation (Noh, Hong and Han 2015).

VGG16 with its fully connected layers as convolutions, fc6 of 7x7 and fc7, and then all of it
backwards: a 7x7 deconvolution, and for each stage unpooling to where the maxima stood and
deconvolutions (figure 2; table 2 has all layers). A deconvolution of stride 1 is a convolution, of
the kernel turned by half a turn: 3x3 with same padding, and 7x7 with as much padding as it takes to
grow from 1x1 to 7x7. Batch norm follows each but the last (section 4.1), as the authors found that
without it training ends in a poor optimum.

The paper's training in two stages (first on crops with one object in the middle, then on object
proposals) and its ensemble with an FCN are not built: it is trained here on whole pictures.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.models.backbones import vgg
from seg_jax.models.layers import Conv, conv_before_norm
from seg_jax.models.norms import make_norm
from seg_jax.models.padding import pad_behind
from seg_jax.ops.pooling import max_pool_with_argmax
from seg_jax.ops.unpooling import max_unpool


class DeconvNet(nn.Module):
  """Logits for pictures of any height and width.

  The paper's is the default, 252 M parameters, of which the two layers of 7x7 have 206 M. Its
  pictures are 224 x 224, so that fc6 sees all of each (224 / 32 = 7); larger ones have several
  places for fc6, smaller ones are padded.
  """

  num_classes: int
  width: int = 64  # channels at full resolution; 8 times as many in the two lowest stages
  fc_features: int = 4096  # of fc6 and fc7
  fc_size: int = 7  # rows and columns of fc6's kernel
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N H W num_classes']]:
    """`{'logits': [N, H, W, num_classes]}`, float32; padding and cropping happen inside.

    UserError: training with batch norm on a batch that leaves it a single value at fc6.
    """
    conv = conv_before_norm(self.norm, self.dtype)
    norm = make_norm(self.norm, train, self.dtype)

    height, width = images.shape[1:3]
    x = pad_behind(images, 32, least=32 * self.fc_size).astype(self.dtype)
    positions = []
    for number in (1, 2, 3, 4, 5):
      x, position = max_pool_with_argmax(vgg.stage(x, number, self.width, conv, norm))
      positions.append(position)

    features, window = x.shape[-1], (self.fc_size, self.fc_size)
    x = conv(self.fc_features, window, padding='VALID', name='fc6')(x)
    if train and self.norm == 'batch' and x.size == self.fc_features:
      raise errors.UserError(
        "model.norm is 'batch', but fc6 has one value for it to average, which becomes 0; expected "
        'a larger data.batch_size, data.crop_size or fewer parts, train.accumulation, or group norm'
      )
    x = nn.relu(norm(name='fc6_norm')(x))
    x = nn.relu(norm(name='fc7_norm')(conv(self.fc_features, (1, 1), name='fc7')(x)))
    x = conv(features, window, padding=self.fc_size - 1, name='fc6d')(x)
    x = nn.relu(norm(name='fc6d_norm')(x))

    for number in (5, 4, 3, 2, 1):
      x = max_unpool(x, positions.pop(), (2 * x.shape[1], 2 * x.shape[2]))
      x = vgg.mirrored_stage(x, number, self.width, conv, norm)
    logits = Conv(self.num_classes, (1, 1), dtype=self.dtype, name='output')(x)
    return {'logits': logits[:, :height, :width].astype(jnp.float32)}
