"""Recurrent Convolutional Neural Networks for Scene Labeling (Pinheiro and Collobert, ICML 2014).

One small net f, again and again: each instance is fed the label planes that the one before it made,
zeros at first, beside the picture, and all have the same weights (section 3.2, figure 2). An
instance's labels are four pixels apart, so the next one sees the picture at a quarter of the size,
and with 8x8 kernels the context grows from 25 to 121 to 505 pixels while the parameters stay. Every
instance is trained to label the middle pixel: the system learns to correct its own mistakes.

The paper labels every pixel by shifting the picture and merging the results (section 3.3). Here the
same net runs à trous: every map keeps the picture's size, instance p reads at steps of 4**(p - 1)
pixels, and the picture at a quarter of the size is, at those steps, a mean over 4 x 4 pixels.

Departures: label planes are probabilities rather than scores, which grow as training goes on; all
instances' losses are summed at each step (`loss.auxiliary` 1), where the paper draws one; beyond
the border, picture and labels repeat their last pixel. Norms are not the paper's. The instances do
not share them, as the first sees no labels.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax.models.norms import make_norm
from seg_jax.ops.atrous import atrous_plan
from seg_jax.ops.convolution import convolve
from seg_jax.ops.pooling import max_pool, mean_pool


class RecurrentScene(nn.Module):
  """Logits for pictures of any height and width.

  The paper's: width 25, kernel_size 8, 2 or 3 instances, no norm.
  """

  num_classes: int
  width: int = 25  # maps of the first layer; the second has twice as many
  kernel_size: int = 8
  instances: int = 2
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @property
  def window(self) -> int:
    """Rows, and columns, of what one instance reads, in its own steps; the middle is its pixel."""
    return 3 * self.kernel_size + 1

  @nn.compact
  def __call__(self, images: Float[Array, 'N H W C'], train: bool = False) -> dict[str, jax.Array]:
    """`{'logits': ..., 'aux_logits': (...)}`, each [N, H, W, num_classes], float32.

    `logits` are the last instance's, `aux_logits` those of the others in their order.
    """
    use_bias = self.norm == 'none'
    conv = functools.partial(DilatedConv, dtype=self.dtype)
    layers = [
      conv(times * self.width, self.kernel_size, use_bias, name=f'conv{i}')
      for i, times in ((1, 1), (2, 2))
    ]
    classify = conv(self.num_classes, 1, name='score')
    norm = make_norm(self.norm, train, self.dtype)
    plan = iter(atrous_plan([1, 2] * len(layers) * self.instances, 1))
    labels = jnp.zeros((*images.shape[:3], self.num_classes), self.dtype)
    outputs = []
    for instance in range(1, self.instances + 1):
      step = 4 ** (instance - 1)
      x = jnp.concatenate([labels, shrunk(images, step).astype(self.dtype)], -1)
      x = surrounded(x, self.window, step)
      for i, layer in enumerate(layers, 1):
        _, rate = next(plan)
        x = norm(name=f'norm{i}_instance{instance}')(layer(x, rate))
        _, rate = next(plan)
        x = nn.tanh(max_pool(x, 2, 1, dilation=rate))
      outputs.append(classify(x).astype(jnp.float32))
      labels = nn.softmax(outputs[-1]).astype(self.dtype)
    *earlier, last = outputs
    return {'logits': last, 'aux_logits': tuple(earlier)}


class DilatedConv(nn.Module):
  """A valid convolution whose rate comes with the call, so that one kernel serves several."""

  features: int
  size: int
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'N H W C'], rate: int = 1) -> Float[Array, 'N h w features']:
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape).astype(self.dtype)
    y = convolve(x, kernel, (1, 1), 'VALID', rhs_dilation=(rate, rate))
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y += bias.astype(self.dtype).reshape(1, 1, 1, -1)
    return y


def surrounded(x: jax.Array, window: int, step: int) -> jax.Array:
  """`x` with its borders repeated: around each pixel fits a window of every `step`th pixel."""
  before, after = (window - 1) // 2 * step, window // 2 * step
  return jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)), 'edge')


def shrunk(x: Float[Array, 'N H W C'], factor: int) -> Float[Array, 'N H W C']:
  """At each pixel, what it would be in a picture `factor` times smaller: a mean around it."""
  x = surrounded(x, factor, 1)
  return mean_pool(mean_pool(x, (factor, 1), 1), (1, factor), 1)
