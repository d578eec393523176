"""Fully Convolutional Networks for Semantic Segmentation (Long et al. 2015, Shelhamer et al. 2017).

A classifier's fully connected layers are convolutions over its last pooled map, so a picture of any
size gives a map of scores, one for each 32 x 32 pixels (section 3.1 of 2015). FCN-32s interpolates
it; FCN-16s doubles it and adds scores of pool4, FCN-8s doubles that and adds scores of pool3
(section 4.2, figure 3). As in the paper, the doublings are transposed convolutions that start as
bilinear interpolation and are learned (in the authors' published nets they are not), the last
interpolation is fixed, and the scores of the poolings start at zero: a finer net starts with the
scores of the coarser that it was loaded from (`config.model.pretrained`). The coarsest scores start
at random, as training starts from scratch.

The authors pad pictures by 100 pixels and crop with offsets; here a picture is padded behind to
whole cells and fc6 with zeros, so that each cell lies in the middle of what its score is computed
from (AlexNet's lie 2.5 pixels aside) and small pictures stay cheap. To train FCN-8s at once, they
scale pool4 by 0.01 and pool3 by 0.0001, which makes the streams about equally large in a net
without norm on colours of up to 255; with normalised pictures and layers they are that already, and
nothing is scaled.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.models.backbones import alexnet, vgg
from seg_jax.models.layers import Conv, conv_before_norm
from seg_jax.models.norms import make_norm
from seg_jax.models.padding import pad_behind
from seg_jax.ops.pooling import max_pool
from seg_jax.ops.resizing import bilinear_kernel, resize_bilinear, upsample
from seg_jax.ops.unpooling import unpool_nearest

STRIDE = 32  # of both backbones
FC6 = {'vgg16': 7, 'alexnet': 6}  # the size of its kernel, that of the classifier's last map
# The doublings of each head, and the pooling whose scores are added after it; the authors' names.
FUSED = {
  'heatmap': (),
  '32s': (),
  '16s': (('upscore2', 4),),
  '8s': (('upscore2', 4), ('upscore_pool4', 3)),
}


class FCN(nn.Module):
  """Logits for pictures of any height and width.

  The paper's is width 64, 4096 features, dropout 0.5, no norm, head 8s (or 16s, 32s). 'heatmap' is
  32s without interpolation, with the same parameters: each score fills its cell.
  """

  num_classes: int
  backbone: str = 'vgg16'
  head: str = '8s'
  width: int = 64  # channels of VGG's first stage; AlexNet's conv1 has 3/2 as many
  fc_features: int = 4096  # channels of fc6 and fc7
  dropout: float = 0.5  # after fc6 and fc7
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N H W num_classes']]:
    """`{'logits': [N, H, W, num_classes]}`, float32; padding and cropping happen inside."""
    self._check()
    height, width = images.shape[1:3]
    images = pad_behind(images, STRIDE)
    scores = self.scores(images, train)
    if self.head == 'heatmap':
      logits = unpool_nearest(scores, STRIDE)
    else:
      logits = resize_bilinear(scores, images.shape[1:3])
    return {'logits': logits[:, :height, :width]}

  def _check(self):
    for field, known in {'backbone': FC6, 'head': FUSED}.items():
      if (value := getattr(self, field)) not in known:
        raise errors.UserError(f'model.{field} is {value!r}{errors.nearest(value, known)}')
    if self.backbone == 'alexnet':
      if FUSED[self.head]:
        raise errors.UserError(
          f"model.head is {self.head!r}; expected '32s' or 'heatmap' with AlexNet"
        )
      if self.width % 4:
        raise errors.UserError(
          f'model.width is {self.width}; expected a multiple of 4 with AlexNet, for its groups'
        )

  @nn.compact
  def scores(self, images: Float[Array, 'N H W C'], train: bool) -> Float[Array, 'N h w classes']:
    """The map of scores before the last interpolation, float32, at stride 32, 16 or 8.

    H and W are multiples of 32.
    """
    conv = conv_before_norm(self.norm, self.dtype)
    norm = make_norm(self.norm, train, self.dtype)
    x, pools = images.astype(self.dtype), {}
    if self.backbone == 'alexnet':
      x = alexnet.features(x, self.width, conv, norm)
    else:
      for number in (1, 2, 3, 4, 5):
        x = pools[number] = max_pool(vgg.stage(x, number, self.width, conv, norm))
    for name, size in (('fc6', FC6[self.backbone]), ('fc7', 1)):
      x = conv(self.fc_features, (size, size), name=name)(x)
      x = nn.relu(norm(name=f'{name}_norm')(x))
      x = nn.Dropout(self.dropout, deterministic=not train)(x)

    score = functools.partial(Conv, self.num_classes, (1, 1), dtype=self.dtype)
    x = score(name='score_fr')(x)
    for name, number in FUSED[self.head]:
      x = UpScore(dtype=self.dtype, name=name)(x)
      skip = score(kernel_init=nn.initializers.zeros, name=f'score_pool{number}')
      x += skip(pools[number])
    return x.astype(jnp.float32)


class UpScore(nn.Module):
  """Twice the size by a learned transposed convolution, 4x4 with stride 2 and without bias.

  It starts as `resize_bilinear`, borders included: there the last score is repeated, where zeros
  would make it fade.
  """

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'N H W C']) -> Float[Array, 'N 2H 2W C']:
    kernel = self.param('kernel', lambda key, channels: bilinear_kernel(2, channels), x.shape[-1])
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), 'edge')
    return upsample(x, kernel.astype(self.dtype), 2)[:, 2:-2, 2:-2]
