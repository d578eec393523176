"""RoIAlign (He et al. 2017, section 3): features of a box, interpolated and never rounded.

A box is cut into cells, and each cell is the mean of `samples` x `samples` points in it, each
interpolated between the four nearest values of the map. All boxes of a picture are done at once:
maps of several sizes lie behind each other in one table of pixels, of which every point gathers
four rows.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from seg_jax.ops import boxes as box_ops


def roi_align(
  maps: Sequence[Float[Array, 'N _ _ C']],
  strides: Sequence[int],
  boxes: Float[Array, 'N R 4'],
  which: Int[Array, 'N R'],
  size: int,
  samples: int = 2,
  aligned: bool = False,
) -> Float[Array, 'N R size size C']:
  """`size` x `size` cells of every box, from the map that `which` says.

  Args:
    maps: of the same pictures, at `strides` pixels.
    boxes: in pixels of the picture.
    which: the number of a map, for each box.
    samples: points of a cell, along each axis.
    aligned: whether the middle of the picture's first pixel is at 0.5, and not at 0; without it, as
      in torchvision's Mask R-CNN, a box is also at least one cell of its map wide.
  """
  table = jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in maps], 1)
  sizes = np.array([x.shape[1:3] for x in maps], np.int32)
  starts = np.concatenate([[0], np.cumsum(sizes.prod(1))[:-1]]).astype(np.int32)
  scale = 1 / jnp.asarray(strides, jnp.float32)[which]
  extent = jnp.asarray(sizes)[which]  # [N, R, 2] rows, columns
  shift = 0.5 if aligned else 0.0
  corners = boxes * scale[..., None] - shift
  lengths = corners[..., 2:] - corners[..., :2]
  if not aligned:
    lengths = jnp.maximum(lengths, 1.0)
  steps = (jnp.arange(size * samples, dtype=jnp.float32) + 0.5) / (size * samples)
  points = corners[..., :2, None] + lengths[..., None] * steps.reshape(1, 1, 1, -1)  # [N, R, 2, P]
  last = (extent - 1).astype(jnp.float32)[..., None]
  inside = (points >= -1) & (points <= last + 1)
  points = jnp.clip(points, 0.0, last)
  low = jnp.floor(points)
  high_share = points - low
  low = low.astype(jnp.int32)
  ends = jnp.stack([low, jnp.minimum(low + 1, extent[..., None] - 1)], -1)  # [N, R, 2, P, 2]
  shares = jnp.where(inside[..., None], jnp.stack([1 - high_share, high_share], -1), 0)
  rows, columns = ends[:, :, 0].reshape(*which.shape, -1), ends[:, :, 1].reshape(*which.shape, -1)
  offsets = jnp.asarray(starts)[which][..., None, None]
  places = offsets + rows[..., :, None] * extent[..., 1, None, None] + columns[..., None, :]

  cells = 2 * samples  # values along each axis that a cell is summed of
  shares = shares.reshape(*which.shape, 2, size, cells) / samples

  def of_picture(table, places, down, across):
    values = table[places].reshape(-1, size, cells, size, cells, table.shape[-1])
    weights = down[:, :, :, None, None] * across[:, None, None]
    return jnp.sum(values * weights[..., None], (2, 4))

  shares = shares.astype(table.dtype)
  return jax.vmap(of_picture)(table, places, shares[:, :, 0], shares[:, :, 1])


def pyramid_level(
  boxes: Float[Array, '... 4'], levels: tuple[int, int], canonical: tuple[int, float] = (4, 224.0)
) -> Int[Array, '...']:
  """The level, counted from the first of `levels`, whose stride suits a box's size.

  A box of 224 x 224 pixels belongs to level 4, stride 16, one of half that to the level before it
  (Lin et al. 2017, Feature Pyramid Networks, equation 1).
  """
  level, size = canonical
  root = jnp.sqrt(jnp.maximum(box_ops.area(boxes), 1e-12))
  wanted = jnp.floor(level + jnp.log2(root / size) + 1e-6)
  return jnp.clip(wanted, *levels).astype(jnp.int32) - levels[0]
