"""Classifiers: a backbone under the head that it was trained with, torchvision's or timm's.

They show that weights are what they should be, and label whole pictures. They segment nothing, so
no config names them.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.models.backbones import build_backbone
from seg_jax.models.backbones.resnet import UNITS
from seg_jax.models.layers import make_conv
from seg_jax.models.norms import make_norm


class Classifier(nn.Module):
  """Logits of the classes of pictures of any size, as torchvision's and timm's classifiers take.

  `backbone` is one of `HEADS`, at its own stride; HRNet's classifier stands beside its backbone.
  Training needs a key for 'dropout' with the heads that have it: MobileNetV2's, VGG16's, AlexNet's.
  """

  num_classes: int = 1000
  backbone: str = 'resnet50'
  padding: str = ''  # MobileNetV2's and AlexNet's; '': as torchvision's
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N num_classes']]:
    """`{'logits': [N, num_classes]}`, float32.

    Raises:
      UserError: an unknown `backbone`, or a `padding` that it does not have.
    """
    if self.backbone not in HEADS:
      raise errors.UserError(
        f'model.backbone is {self.backbone!r}{errors.nearest(self.backbone, HEADS)}'
      )
    padding = self.padding or {'alexnet': 'valid'}.get(self.backbone)
    backbone = build_backbone(
      self.backbone,
      norm=self.norm,
      dtype=self.dtype,
      name='backbone',
      **({'padding': padding} if padding else {}),
    )
    logits = HEADS[self.backbone](self, backbone(images, train), train)
    return {'logits': logits.astype(jnp.float32)}


def _mean_and_fc(model: Classifier, features: dict[int, jax.Array], train: bool) -> jax.Array:
  return _fc(model, features[32].mean((1, 2)))


def _mobilenet_v2(model, features, train):
  """A last 1x1 convolution, to 1280 channels, before the mean."""
  conv, norm = make_conv(model.dtype), make_norm(model.norm, train, model.dtype)
  x = conv(1280, 1, bias=model.norm == 'none', name='head_conv')(features[32])
  x = nn.relu6(norm(name='head_norm')(x)).mean((1, 2))
  return _fc(model, nn.Dropout(0.2, deterministic=not train)(x))


def _fully_connected(model, features, train, *, cells, dropout_first):
  """fc6 to fc8 over a map of `cells` x `cells`; torchvision drops before or behind the first two.

  fc6's kernel is [rows, columns, channels, 4096], that of FCN's convolution of this name.
  """
  x = adaptive_mean_pool(features[32], cells)
  for name, axes in (('fc6', (1, 2, 3)), ('fc7', (1,))):
    drop = nn.Dropout(0.5, deterministic=not train)
    x = drop(x) if dropout_first else x
    x = nn.relu(nn.DenseGeneral(4096, axes, dtype=model.dtype, name=name)(x))
    x = x if dropout_first else drop(x)
  return _fc(model, x, 'fc8')


def _fc(model, x, name='fc'):
  return nn.Dense(model.num_classes, dtype=model.dtype, name=name)(x)


HEADS = {
  **{f'resnet{depth}': _mean_and_fc for depth in UNITS},
  'xception65': _mean_and_fc,
  'alexnet': functools.partial(_fully_connected, cells=6, dropout_first=True),
  'mobilenet_v2': _mobilenet_v2,
  'vgg16': functools.partial(_fully_connected, cells=7, dropout_first=False),
}


def adaptive_mean_pool(x: Float[Array, 'N H W C'], cells: int) -> Float[Array, 'N cells cells C']:
  """PyTorch's: cell i is the mean of rows floor(i * H / cells) to ceil((i + 1) * H / cells) - 1.

  Columns likewise. A map of `cells` x `cells` stays as it is; in a smaller one cells share pixels.
  """
  for axis in (1, 2):
    n = x.shape[axis]
    bounds = [(i * n // cells, -(-(i + 1) * n // cells)) for i in range(cells)]
    means = [lax.slice_in_dim(x, *bound, axis=axis).mean(axis) for bound in bounds]
    x = jnp.stack(means, axis)
  return x
