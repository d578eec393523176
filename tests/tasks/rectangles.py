"""Pictures of rectangles, and a model that finds what it was told."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from seg_jax.data import instances
from seg_jax.data.datasets.shapes import INFO
from seg_jax.ops import boxes as box_ops
from tests.tasks.memory import Memory

# A small Mask R-CNN.
TINY = {'backbone_width': 1 / 16, 'width': 8, 'box_features': 8, 'mask_convs': 1}
A, B = (16, 8, 48, 56), (4, 60, 60, 92)  # in pictures of 64 x 96
SIZE = (64, 96)
SHARES = {box: tuple(n / m for n, m in zip(box, (*SIZE, *SIZE), strict=True)) for box in (A, B)}


def record(size, boxes, classes, crowds=None):
  """A picture of rectangles, boxes y0, x0, y1, x1."""
  masks = np.zeros((len(boxes), *size), bool)
  for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
    mask[top:bottom, left:right] = True
  label = np.zeros(size, np.uint8)
  for mask, k in zip(masks, classes, strict=True):
    label[mask] = k
  rows = list(zip(classes, crowds or [False] * len(boxes), strict=True))
  image = (np.repeat(label[..., None], 3, -1) * 30 + 20).astype(np.uint8)
  return {'image': image, 'label': label, **instances.from_masks(masks, rows, size)}


class Pictures(Memory):
  """Records, as the generated scenes are."""

  info = INFO

  def __init__(self, records):
    self._records = records
    self.names = [str(k) for k in range(len(records))]


class Fixed(nn.Module):
  """Finds the same in every picture: full boxes, in shares of what it sees, cut to `sizes`."""

  found: tuple  # of (box, class, score), best first; classes of things
  masks: bool = True
  num_stuff: int = 0  # the first kind of it is everywhere

  @nn.compact
  def __call__(self, images, train=False, sizes=None):
    rows, columns = images.shape[1:3]
    boxes, classes, scores = (
      jnp.array([row[k] for row in self.found], dtype)
      for k, dtype in enumerate((jnp.float32, jnp.int32, jnp.float32))
    )
    boxes *= jnp.array([[rows, columns, rows, columns]], jnp.float32)
    outputs = {'boxes': boxes, 'classes': classes, 'scores': scores, 'found': scores > 0}
    if self.masks:
      outputs['masks'] = jnp.ones((len(scores), 28, 28))
    if self.num_stuff:
      outputs['logits'] = jnp.zeros((rows, columns, 1 + self.num_stuff)).at[..., 1].set(1.0)
    outputs = {name: jnp.repeat(x[None], len(images), 0) for name, x in outputs.items()}
    boxes = jnp.minimum(outputs['boxes'], jnp.tile(sizes, 2)[:, None])
    return outputs | {'boxes': boxes, 'found': outputs['found'] & (box_ops.area(boxes) > 0)}
