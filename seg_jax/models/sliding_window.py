"""Sliding window: a patch classifier that labels the middle pixel of its window, run in four ways.

Ning et al. 2005, "Toward Automatic Phenotyping of Developing Embryos from Videos", slid a small
convolutional net over 40 x 40 windows; Ciresan et al. 2012, "Deep Neural Networks Segment Neuronal
Membranes in Electron Microscopy Images", a deeper one with max pooling over 95 x 95, where the
picture is mirrored at its borders. Neighbouring windows have nearly everything in common, and the
net computes it again for each. Run over the whole picture it is computed once, but each pooling
halves the map; what gives a score for every pixel again is shift-and-stitch (OverFeat, Sermanet et
al. 2014, section 3.3) or, at less cost, the à trous algorithm (FCN, Long et al. 2015, section 3.2).

Training is dense whatever the method: a whole picture is the batch of all its windows (FCN, section
3.4), with their common features computed once.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.models.layers import Conv, conv_before_norm
from seg_jax.models.norms import make_norm
from seg_jax.ops.atrous import atrous_plan, shift_and_stitch
from seg_jax.ops.pooling import max_pool
from seg_jax.ops.unpooling import unpool_nearest

METHODS = ('atrous', 'shift_and_stitch', 'heatmap', 'crops')
CHUNK = 64  # places whose crops, one of each picture, are classified at once


class SlidingWindow(nn.Module):
  """Logits for pictures of any height and width.

  The classifier has `depth` stages of `convolutions` 3x3 convolutions and a 2x2 max pooling, as
  many convolutions again, which leave one pixel of the window, and two fully connected layers,
  which are 1x1 convolutions. (The layers are neither paper's: Ciresan's has four stages of one
  larger convolution each.) All convolutions have `width` maps, as Ciresan's have 48. Nothing pads:
  the picture is mirrored at its borders, border pixels included, so that each pixel is the middle
  of a window (the upper left one of its four, the window's size being even).

  The methods share their parameters. 'crops' is the sliding window as it was: the net on each
  window by itself, one every `crop_stride` pixels, and its score fills that cell. 'heatmap' is one
  pass over the picture, a score every `stride` pixels, each filling its cell. 'shift_and_stitch'
  and 'atrous' are as 'crops' for every pixel, but for rounding; except with norm 'group', whose
  statistics are of the map that it is given, a window's or the picture's.
  """

  num_classes: int
  width: int = 48
  depth: int = 3
  convolutions: int = 2
  hidden: int = 200  # units of the first fully connected layer
  method: str = 'atrous'
  crop_stride: int = 1
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @property
  def stride(self) -> int:
    """Pixels from one score to the next when the net runs over a picture."""
    return 2**self.depth

  @property
  def window(self) -> int:
    """Rows, and columns, of the window: 68 at depth 3 with 2 convolutions, 98 with 3."""
    lost = 2 * self.convolutions  # in each stage
    window = 1 + lost
    for _ in range(self.depth):
      window = 2 * window + lost
    return window

  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N H W num_classes']]:
    """`{'logits': [N, H, W, num_classes]}`, float32.

    UserError: an unknown method, or a `crop_stride` that is not from 1 to the window's size.
    """
    if self.method not in METHODS:
      hint = errors.nearest(self.method, METHODS)
      raise errors.UserError(f'model.method is {self.method!r}{hint}')
    if self.crop_stride not in range(1, self.window + 1):
      known = f'expected a whole number from 1 to the window, {self.window}'
      raise errors.UserError(f'model.crop_stride is {self.crop_stride!r}; {known}')
    height, width = images.shape[1:3]
    method = 'atrous' if train or self.is_initializing() else self.method
    cell = {'heatmap': self.stride, 'crops': self.crop_stride}.get(method, 1)
    surrounded = self._surround(images, cell)
    if method == 'atrous':
      scores = self.classifier(surrounded, train)
    elif method == 'heatmap':
      scores = self.classifier(surrounded, False, self.stride)
    else:
      # Flax's modules cannot be called within lax.map, pure functions can.
      unbound, variables = self.unbind()
      coarse = functools.partial(
        unbound.apply, variables, train=False, output_stride=self.stride, method='classifier'
      )
      if method == 'shift_and_stitch':
        scores = shift_and_stitch(coarse, surrounded, self.stride)
      else:
        scores = self._slide(coarse, surrounded)
    return {'logits': unpool_nearest(scores, cell)[:, :height, :width]}

  def _surround(self, images: jax.Array, cell: int) -> jax.Array:
    """Mirrored at the borders: its windows, one every `cell` pixels, have the cells' middles."""
    before = (self.window - 1) // 2 - (cell - 1) // 2
    margins = [(0, 0)]
    for length in images.shape[1:3]:
      total = (length - 1) // cell * cell + self.window
      margins.append((before, total - before - length))
    return jnp.pad(images, (*margins, (0, 0)), 'symmetric')

  def _slide(self, classify, surrounded: jax.Array) -> jax.Array:
    """One crop for each score, [N, rows, columns, num_classes]."""
    n, height, width, channels = surrounded.shape
    rows, columns = (1 + (length - self.window) // self.crop_stride for length in (height, width))

    def at(place):
      size = (n, self.window, self.window, channels)
      return classify(lax.dynamic_slice(surrounded, (0, place[0], place[1], 0), size))[:, 0, 0]

    places = self.crop_stride * np.array(list(np.ndindex(rows, columns)), np.int32)
    scores = lax.map(at, jnp.asarray(places), batch_size=CHUNK)
    return scores.reshape(rows, columns, n, self.num_classes).transpose(2, 0, 1, 3)

  @nn.compact
  def classifier(
    self, x: Float[Array, 'N H W C'], train: bool = False, output_stride: int = 1
  ) -> Float[Array, 'N h w num_classes']:
    """Float32 scores of the windows of `x`, one every `output_stride` pixels, 1 to `stride`.

    At `stride` it is the patch classifier as it is, [N, 1, 1, num_classes] for a single window;
    below, strides are taken away, and later kernels and pooling windows dilated.
    """
    conv = conv_before_norm(self.norm, self.dtype, padding='VALID')
    norm = make_norm(self.norm, train, self.dtype)
    ones = [1] * self.convolutions
    plan = iter(atrous_plan([*ones, 2] * self.depth + ones, output_stride))
    x = x.astype(self.dtype)
    for stage in range(1, self.depth + 2):
      for i in range(1, self.convolutions + 1):
        _, rate = next(plan)
        x = conv(self.width, (3, 3), kernel_dilation=rate, name=f'conv{stage}_{i}')(x)
        x = nn.relu(norm(name=f'norm{stage}_{i}')(x))
      if stage <= self.depth:
        stride, rate = next(plan)
        x = max_pool(x, 2, stride, dilation=rate)
    x = nn.relu(norm(name='norm_fc')(conv(self.hidden, (1, 1), name='fc')(x)))
    return Conv(self.num_classes, (1, 1), dtype=self.dtype, name='score')(x).astype(jnp.float32)
