"""DeepLab v3+: Encoder-Decoder with Atrous Separable Convolution (Chen et al. 2018).

DeepLab v3's features, backbone and ASPP, are the encoder. The decoder (section 3.1, figure 2)
enlarges them bilinearly, lays features of stride 4 beside them, narrowed to 48 channels so that
they do not outweigh the 256 others, and refines both by two 3x3 convolutions (section 4.1). The 3x3
convolutions of ASPP and decoder are depthwise separable. Which features of stride 4 these are is
the backbone's own choice; Xception's are the authors'.

The authors' MobileNetV2 has neither ASPP nor decoder; here it has both.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax.models.backbones import backbone_of
from seg_jax.models.deeplab_v3 import ASPP, check_image_pooling, conv_norm_relu, scaled_rates
from seg_jax.models.layers import make_conv
from seg_jax.models.norms import make_norm
from seg_jax.ops.resizing import resize_bilinear


class DeepLabV3Plus(nn.Module):
  """Logits for pictures of any height and width; the paper's best is the default."""

  num_classes: int
  backbone: str = 'xception65'
  backbone_width: float = 1.0  # times the backbone's channels
  output_stride: int = 16  # of the encoder
  atrous_rates: tuple[int, ...] = (6, 12, 18)  # at output stride 16; doubled at 8
  features: int = 256  # channels of each branch of ASPP, and of the decoder
  low_features: int = 48  # channels that the features of stride 4 are narrowed to
  separable: bool = True  # the 3x3 convolutions of ASPP and decoder
  dropout: float = 0.1  # behind ASPP
  padding: str = 'symmetric'  # MobileNetV2's: symmetric | same, TensorFlow's
  frozen_backbone_norm: bool = False
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N H W num_classes']]:
    """`{'logits': [N, H, W, num_classes]}`, float32.

    UserError: training with batch norm on a single picture.
    """
    conv = functools.partial(make_conv(self.dtype), bias=self.norm == 'none')
    norm = make_norm(self.norm, train, self.dtype)
    layer = functools.partial(conv_norm_relu, conv=conv, norm=norm)
    padding = {} if self.padding == 'symmetric' else {'padding': self.padding}
    features = backbone_of(self, **padding)(images, train)

    low, x = features[4], features[max(features)]
    check_image_pooling(x, self.norm, train)
    rates = scaled_rates(self.atrous_rates, self.output_stride)
    x = ASPP(self.features, rates, self.dropout, self.separable, conv, norm, name='aspp')(x, train)
    low = layer(low, self.low_features, 1, 'low')
    x = jnp.concatenate([resize_bilinear(x, low.shape[1:3]), low], -1)
    for i in (1, 2):
      x = layer(x, self.features, 3, f'decoder{i}', separable=self.separable)
    scores = conv(self.num_classes, 1, bias=True, name='score')(x).astype(jnp.float32)
    return {'logits': resize_bilinear(scores, images.shape[1:3])}
