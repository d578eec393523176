"""One encoder and several decoders, each of which says another thing of every pixel.

Scene understanding as in Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry
and Semantics (Kendall, Gal and Cipolla, CVPR 2018, figure 1). Its encoder is DeepLab v3's; here it
is U-Net's contracting path (Ronneberger et al. 2015), whose layers keep their names, or any of the
backbones. Each decoder is U-Net's expanding path, with skips from all of the encoder's maps, where
the paper's are two convolutions. Upsampling is bilinear, behind the 1x1 convolution that narrows
what is enlarged: the two commute, and this order is the cheaper one.

Under `jax.jit` what nobody reads is not computed: whoever asks for one decoder's output pays for
the encoder and for that decoder alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.models.backbones import BACKBONES, backbone_of
from seg_jax.models.layers import conv_before_norm
from seg_jax.models.norms import make_norm
from seg_jax.models.padding import pad_behind
from seg_jax.models.unet import contracting_path, double_conv
from seg_jax.ops.resizing import resize_bilinear


class Output(NamedTuple):
  """What a decoder tells."""

  name: str  # among the model's outputs
  channels: int | None  # of its scores; None: as many as there are classes
  read: Callable  # of the scores, float32 [N, H, W, channels]


# A further decoder is a further line, and a task of `seg_jax.tasks` that trains and judges it.
DECODERS = {
  'semantic': Output('logits', None, lambda scores: scores),
  # In metres: the score is the logarithm (as in Eigen et al. 2014), so depth is always above 0.
  'depth': Output('depth', 1, lambda scores: jnp.exp(scores[..., 0])),
}


class SeveralDecoders(nn.Module):
  """The outputs of all `decoders`, for pictures of any height and width."""

  num_classes: int
  decoders: tuple[str, ...] = ('semantic', 'depth')
  backbone: str = 'unet'  # the encoder: U-Net's path, or the name of a backbone
  backbone_width: float = 1.0  # times a backbone's channels
  output_stride: int = 32  # of a backbone
  width: int = 64  # channels at full resolution, of U-Net's path and of the decoders
  depth: int = 4  # poolings of U-Net's path
  uncertainty: bool = False  # learn how the decoders' losses are weighed
  frozen_backbone_norm: bool = False
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'N H W C'], train: bool = False) -> dict[str, jax.Array]:
    """By the names in DECODERS, float32: `logits` [N, H, W, num_classes], `depth` [N, H, W].

    With `uncertainty` also `log_variances`, {decoder: a scalar that is a parameter}.

    Raises:
      UserError: an unknown decoder or backbone, or one that cannot have the other fields.
    """
    self._check()
    conv = conv_before_norm(self.norm, self.dtype)
    norm = make_norm(self.norm, train, self.dtype)
    height, width = images.shape[1:3]
    features, size = self._encode(images, train, conv, norm)
    outputs = {}
    for name in self.decoders:
      told = DECODERS[name]
      decoder = Decoder(
        told.channels or self.num_classes, self.width, conv, norm, name=f'{name}_decoder'
      )
      scores = resize_bilinear(decoder(features), size)
      outputs[told.name] = told.read(scores[:, :height, :width])
    if self.uncertainty:
      outputs['log_variances'] = {
        name: self.param(f'{name}_log_variance', nn.initializers.zeros, ())
        for name in self.decoders
      }
    return outputs

  def _encode(self, images, train, conv, norm):
    """The maps by their strides, and rows and columns of the picture that they show."""
    if self.backbone != 'unet':
      return backbone_of(self)(images, train), images.shape[1:3]
    images = pad_behind(images, 2**self.depth)
    levels = contracting_path(images.astype(self.dtype), self.width, self.depth, conv, norm)
    return {2**level: x for level, x in enumerate(levels)}, images.shape[1:3]

  def _check(self):
    for name in self.decoders:
      if name not in DECODERS:
        raise errors.UserError(f'model.decoders has {name!r}{errors.nearest(name, DECODERS)}')
    if self.backbone not in (known := ('unet', *BACKBONES)):
      raise errors.UserError(
        f'model.backbone is {self.backbone!r}{errors.nearest(self.backbone, known)}'
      )


class Decoder(nn.Module):
  """U-Net's expanding path over any encoder's maps; `width` times the stride channels at each."""

  channels: int  # of the scores
  width: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, features: dict[int, jax.Array]) -> Float[Array, 'N h w channels']:
    """Scores, float32, at the size of the finest of `features`, maps by their strides."""
    *finer, coarsest = sorted(features)
    x = features[coarsest]
    for stride in reversed(finer):
      skip, channels = features[stride], self.width * stride
      x = self.conv(channels, (1, 1), use_bias=True, name=f'up{stride}_upconv')(x)
      x = resize_bilinear(x, skip.shape[1:3])
      x = double_conv(jnp.concatenate([skip, x], -1), channels, f'up{stride}', self.conv, self.norm)
    return self.conv(self.channels, (1, 1), use_bias=True, name='head')(x).astype(jnp.float32)
