"""Boundary IoU (Cheng et al. 2021, https://arxiv.org/abs/2103.16562): how well outlines fit.

The IoU of a large object hardly depends on its outline. So only those pixels of truth and of
prediction are compared that are near the outline of their own region.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from seg_jax import IGNORE


def distance(size: tuple[int, int]) -> int:
  """The paper's width of the bands for pictures of `size`: 2 % of the diagonal, at least 1."""
  return max(1, round(0.02 * math.hypot(*size)))


def band(labels: Int[Array, 'N H W'], width: int) -> Bool[Array, 'N H W']:
  """Where a pixel is at most `width` rows and columns from another label, or from the border.

  As the authors' erosion, for all classes at once: ignored pixels and what lies around the picture
  are other labels.
  """
  labels = labels.astype(jnp.uint8)  # a quarter of the memory to move
  margins = ((0, 0), (width, width), (width, width))
  around = jnp.pad(labels, margins, constant_values=IGNORE)
  highest, lowest = (_sliding(around, 2 * width + 1, f) for f in (jnp.maximum, jnp.minimum))
  return highest != lowest


def count(
  predicted: Int[Array, 'N H W'], labels: Int[Array, 'N H W'], num_classes: int
) -> Int[Array, '3 num_classes']:
  """Pixels of each class in the bands of both truth and prediction, of truth, of prediction.

  `labels` are classes or 255. What is ignored is cut out of the prediction too, so that it has the
  same outline there. The width is that of `distance` for the size of these arrays.
  """
  labels = labels.astype(jnp.int32)
  predicted = jnp.where(labels == IGNORE, IGNORE, predicted.astype(jnp.int32))
  width = distance(labels.shape[1:3])
  true_band = band(labels, width) & (labels != IGNORE)
  predicted_band = band(predicted, width) & (labels != IGNORE)
  both = true_band & predicted_band & (labels == predicted)
  return jnp.stack(
    [
      jnp.bincount(jnp.where(inside, classes, num_classes).ravel(), length=num_classes + 1)[:-1]
      for inside, classes in ((both, labels), (true_band, labels), (predicted_band, predicted))
    ]
  )


def _sliding(x: jax.Array, window: int, larger) -> jax.Array:
  """The extreme of each window of rows and columns, in log2(window) comparisons an axis."""
  for axis in (1, 2):
    size = 1
    while size < window:
      step = min(size, window - size)
      length = x.shape[axis] - step
      x = larger(
        jax.lax.slice_in_dim(x, 0, length, axis=axis),
        jax.lax.slice_in_dim(x, step, step + length, axis=axis),
      )
      size += step
  return x
