"""FPN: Feature Pyramid Networks for Object Detection (Lin et al. 2017, figure 3).

From the coarsest map of a backbone down, each map is brought to the same number of channels and the
coarser one, repeated to its size, is added to it; a 3x3 convolution ends each level.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax.models.layers import make_conv
from seg_jax.models.norms import make_norm
from seg_jax.ops.resizing import resize_nearest

STRIDES = (4, 8, 16, 32)  # of the backbone's maps


class FeaturePyramid(nn.Module):
  """Maps of `width` channels at strides 4 to 64 pixels."""

  width: int = 256
  norm: str = 'none'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, features: dict[int, Float[Array, 'N _ _ _']], train: bool = False
  ) -> dict[int, Float[Array, 'N _ _ width']]:
    """`features` of a backbone by stride; stride 64 is every other pixel of 32's."""
    conv, norm = make_conv(self.dtype), make_norm(self.norm, train, self.dtype)
    bias = self.norm == 'none'
    above, pyramid = None, {}
    for k, stride in reversed(list(enumerate(STRIDES))):
      x = conv(self.width, 1, bias=bias, name=f'inner{k}_conv')(features[stride])
      x = norm(name=f'inner{k}_norm')(x)
      if above is not None:
        x += resize_nearest(above, x.shape[1:3])
      above = x
      x = conv(self.width, 3, bias=bias, name=f'layer{k}_conv')(x)
      pyramid[stride] = norm(name=f'layer{k}_norm')(x)
    pyramid = {stride: pyramid[stride] for stride in STRIDES}
    return pyramid | {64: pyramid[32][:, ::2, ::2]}
