"""DeepLab v3: Rethinking Atrous Convolution for Semantic Image Segmentation (Chen et al. 2017).

A classifier's net whose last strides are taken away and whose later filters have holes instead
(section 3.1), so that its features are dense and see as much as before. Context comes from one of
two heads:

- `aspp`, atrous spatial pyramid pooling (section 3.3, figure 5): side by side a 1x1 convolution,
  3x3 at three rates, and the mean of the whole picture;
- `cascade`, "going deeper" (section 3.2, figure 3): blocks 5 to 7 behind block 4, each a copy of
  it. Without atrous convolution (`output_stride` 256, figure 3a) each halves the map once more;
  with it (16 or 8, figure 3b) each doubles the rate. A multi-grid (section 3.2.1) multiplies the
  rates of the units of a block.

The blocks stride in their first unit, as torchvision's, where the authors' stride in the last: that
unit's 3x3 convolution keeps the rate of the block before. As in torchvision's `deeplabv3_resnet50`
and `_resnet101`, which are the default, a 3x3 convolution follows ASPP, and an auxiliary head is
trained on the features of stride 16; the paper has neither.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.models.backbones import backbone_of
from seg_jax.models.fcn_resnet import FCNHead
from seg_jax.models.layers import make_conv
from seg_jax.models.norms import make_norm
from seg_jax.ops import devices
from seg_jax.ops.resizing import resize_bilinear

HEADS = ('aspp', 'cascade')


class DeepLabV3(nn.Module):
  """Logits for pictures of any height and width.

  The paper's best: ResNet-101, `multi_grid` (1, 2, 4), trained at output stride 16 and evaluated at
  8, without `auxiliary`; the best cascade has `multi_grid` (1, 2, 1).
  """

  num_classes: int
  backbone: str = 'resnet50'
  backbone_width: float = 1.0  # times the backbone's channels
  output_stride: int = 8  # with ResNets in cascade up to 256
  head: str = 'aspp'
  atrous_rates: tuple[int, ...] = (6, 12, 18)  # of ASPP, at output stride 16; doubled at 8
  multi_grid: tuple[int, ...] = (1,)  # ResNets': of the units of block 4 and later
  features: int = 256  # channels of each branch of ASPP, and of what follows
  dropout: float = 0.5  # behind ASPP
  auxiliary: bool = True  # a head on the features of stride 16, for training
  padding: str = 'symmetric'  # MobileNetV2's: symmetric | same, TensorFlow's
  frozen_backbone_norm: bool = False
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N H W num_classes'] | tuple]:
    """`{'logits': [N, H, W, num_classes]}`, float32, and `aux_logits`, a tuple of as many more.

    UserError: training ASPP with batch norm on a single picture.
    """
    if self.head not in HEADS:
      raise errors.UserError(f'model.head is {self.head!r}{errors.nearest(self.head, HEADS)}')
    conv = functools.partial(make_conv(self.dtype), bias=self.norm == 'none')
    norm = make_norm(self.norm, train, self.dtype)
    features = backbone_of(self, **self._backbone_fields())(images, train)

    x = features[max(features)]
    if self.head == 'aspp':
      check_image_pooling(x, self.norm, train)
      rates = scaled_rates(self.atrous_rates, self.output_stride)
      x = ASPP(self.features, rates, self.dropout, False, conv, norm, name='aspp')(x, train)
      scores = FCNHead(self.num_classes, self.features, 0.0, conv, norm, name='head')(x, train)
    else:
      scores = conv(self.num_classes, 1, bias=True, name='score')(x).astype(jnp.float32)
    outputs = {'logits': resize_bilinear(scores, images.shape[1:3])}
    if self.auxiliary:
      x = features[16]
      scores = FCNHead(self.num_classes, x.shape[-1] // 4, 0.1, conv, norm, name='aux')(x, train)
      outputs['aux_logits'] = (resize_bilinear(scores, images.shape[1:3]),)
    return outputs

  def _backbone_fields(self) -> dict:
    """What not every backbone has, where it is asked for."""
    fields = {}
    if self.head == 'cascade':
      if not self.backbone.startswith('resnet'):
        raise errors.UserError(f"model.head is 'cascade'; expected 'aspp' with {self.backbone}")
      fields['extra_stages'] = 3
    if tuple(self.multi_grid) != (1,):
      fields['multi_grid'] = tuple(self.multi_grid)
    if self.padding != 'symmetric':
      fields['padding'] = self.padding
    return fields


class ASPP(nn.Module):
  """Atrous spatial pyramid pooling (section 3.3, figure 5), each branch with norm and ReLU."""

  features: int  # channels of each branch and of the output
  rates: tuple[int, ...]
  dropout: float
  separable: bool  # the branches of 3x3 (DeepLab v3+)
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: Float[Array, 'N h w C'], train: bool) -> Float[Array, 'N h w features']:
    layer = functools.partial(conv_norm_relu, conv=self.conv, norm=self.norm)
    branches = [layer(x, self.features, 1, 'branch0')]
    for i, rate in enumerate(self.rates, start=1):
      branches.append(layer(x, self.features, 3, f'branch{i}', rate, self.separable))
    mean = layer(x.mean((1, 2), keepdims=True), self.features, 1, 'pool')
    branches.append(jnp.broadcast_to(mean, branches[0].shape))
    x = layer(jnp.concatenate(branches, -1), self.features, 1, 'project')
    return nn.Dropout(self.dropout, deterministic=not train)(x)


def conv_norm_relu(
  x: Float[Array, 'N h w C'],
  features: int,
  size: int,
  name: str,
  rate: int = 1,
  separable: bool = False,
  *,
  conv: Callable[..., nn.Module],
  norm: Callable[..., nn.Module],
) -> Float[Array, 'N h w features']:
  """A convolution, norm and ReLU: the layers `{name}_conv` and `{name}_norm`.

  A `separable` one is depthwise, `{name}_depthwise` and `{name}_depthwise_norm` with a ReLU of
  their own, and then 1x1 (DeepLab v3+, Chen et al. 2018, sections 3.1 and 3.2).
  """
  if separable:
    channels = x.shape[-1]
    x = conv(channels, size, rate=rate, groups=channels, name=f'{name}_depthwise')(x)
    x = nn.relu(norm(name=f'{name}_depthwise_norm')(x))
    size, rate = 1, 1
  x = conv(features, size, rate=rate, name=f'{name}_conv')(x)
  return nn.relu(norm(name=f'{name}_norm')(x))


def scaled_rates(rates: Sequence[int], output_stride: int) -> tuple[int, ...]:
  """Rates for output stride 16 at another: doubled at 8, halved at 32, never below 1."""
  return tuple(max(1, 16 * rate // output_stride) for rate in rates)


def check_image_pooling(features: jax.Array, norm: str, train: bool) -> None:
  """Of a batch of one picture the mean is a single value a channel, which batch norm makes 0.

  The batch is the whole one, on however many devices it lies.

  Raises:
    UserError: training would do that.
  """
  if train and norm == 'batch' and len(features) * devices.num_mapped() == 1:
    raise errors.UserError(
      "model.norm is 'batch', but of a single picture image pooling has one value for it to "
      'average, which becomes 0; expected a larger data.batch_size, fewer parts, '
      "train.accumulation, or model.norm 'group'"
    )
