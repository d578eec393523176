"""HRNet for segmentation: Deep High-Resolution Representation Learning for Visual Recognition.

Wang, Sun et al. 2019 and PAMI 2020, section 3.3 and figure 4, https://arxiv.org/abs/1908.07919.
HRNetV1 looks at the branch of stride 4 alone, which the others have reached by exchange. HRNetV2,
which the authors segment with, interpolates all four to that stride, joins them as channels and
mixes them by a 1x1 convolution. In either a 1x1 convolution classifies, and the scores are
interpolated to the picture's size.

The 1x1 convolution that mixes has no bias, which the norm behind it would take away again. V1's
last exchange also computes coarser branches, which the weights have and nothing reads.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.models.backbones import BACKBONES, backbone_of
from seg_jax.models.layers import make_conv
from seg_jax.models.norms import make_norm
from seg_jax.ops.resizing import resize_bilinear

CHOICES = {
  'backbone': tuple(name for name in BACKBONES if name.startswith('hrnet_')),
  'head': ('v1', 'v2'),
}


class HRNet(nn.Module):
  """Logits for pictures of any height and width.

  The paper's is hrnet_w48 with head v2. hrnet_w18 with `modules` (1, 3, 2) and 2 `units` is the
  authors' W18-Small-v2.
  """

  num_classes: int
  backbone: str = 'hrnet_w18'
  backbone_width: float = 1.0  # times the backbone's channels
  output_stride: int = 32  # no other
  head: str = 'v2'
  modules: tuple[int, int, int] = (1, 4, 3)  # blocks of the backbone's stages 2, 3 and 4
  units: int = 4  # residual units of each branch in a block, and of stage 1
  frozen_backbone_norm: bool = False
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N H W num_classes']]:
    """`{'logits': [N, H, W, num_classes]}`, float32.

    Raises:
      UserError: an unknown backbone, head or norm, or what the backbone cannot have.
    """
    for field, known in CHOICES.items():
      if (value := getattr(self, field)) not in known:
        raise errors.UserError(f'model.{field} is {value!r}{errors.nearest(value, known)}')
    conv = functools.partial(make_conv(self.dtype), bias=self.norm == 'none')
    norm = make_norm(self.norm, train, self.dtype)
    backbone = backbone_of(self, modules=tuple(self.modules), units=self.units)
    x, *coarser = backbone(images, train).values()
    if self.head == 'v2':
      x = jnp.concatenate([x, *(resize_bilinear(y, x.shape[1:3]) for y in coarser)], -1)
      x = nn.relu(norm(name='mix_norm')(conv(x.shape[-1], 1, name='mix_conv')(x)))
    logits = conv(self.num_classes, 1, bias=True, name='classifier')(x).astype(jnp.float32)
    return {'logits': resize_bilinear(logits, images.shape[1:3])}
