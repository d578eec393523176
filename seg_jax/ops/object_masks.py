"""Masks of objects: from a small square over a box to the picture and back, and what they share."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


def paste(
  masks: Float[Array, 'K m m'], boxes: Float[Array, 'K 4'], size: tuple[int, int]
) -> Float[Array, 'K H W']:
  """Square masks stretched over their boxes in a picture of `size`, bilinearly; 0 outside.

  As in Mask R-CNN's authors' code and in torchvision's, a mask has a border of a zero all around,
  and its box, larger by as much, is cut to whole pixels. Interpolation is along one axis after the
  other, each a matrix product of its own for every object.
  """
  side = masks.shape[-1] + 2
  lengths = boxes[:, 2:] - boxes[:, :2]
  centres = boxes[:, :2] + 0.5 * lengths
  reach = 0.5 * lengths * (side / masks.shape[-1])
  first, last = jnp.trunc(centres - reach), jnp.trunc(centres + reach)
  lengths = jnp.maximum(last - first + 1, 1)
  down, across = (
    _interpolation(first[:, axis], lengths[:, axis], side, size[axis]) for axis in (0, 1)
  )
  # The border of zeros has no share in what it is summed to.
  return jnp.einsum('khi,kij,kwj->khw', down[..., 1:-1], masks, across[..., 1:-1])


def _interpolation(first, lengths, side, size):
  """[K, size, side]: the share of each of `side` values, spread over a length, in every pixel."""
  pixels = jnp.arange(size, dtype=jnp.float32)[None] - first[:, None]
  inside = (pixels >= 0) & (pixels < lengths[:, None])
  places = jnp.clip((pixels + 0.5) * (side / lengths[:, None]) - 0.5, 0, side - 1)
  distance = jnp.abs(places[..., None] - jnp.arange(side, dtype=jnp.float32).reshape(1, 1, -1))
  return jnp.where(inside[..., None], jnp.maximum(1 - distance, 0), 0)


def crop(
  masks: Bool[Array, 'M H W'],
  objects: Int[Array, ' R'],
  boxes: Float[Array, 'R 4'],
  size: int,
  samples: int = 2,
) -> Float[Array, 'R size size']:
  """RoIAlign of masks: what part of each cell of a box the object `objects` [R] covers.

  The middle of a picture's first pixel is at 0.5.
  """
  height, width = masks.shape[1:]
  steps = (jnp.arange(size * samples, dtype=jnp.float32) + 0.5) / (size * samples)
  lengths = boxes[:, 2:] - boxes[:, :2]
  points = boxes[:, :2, None] + lengths[..., None] * steps.reshape(1, 1, -1)
  rows = jnp.clip(jnp.floor(points[:, 0]), 0, height - 1).astype(jnp.int32)
  columns = jnp.clip(jnp.floor(points[:, 1]), 0, width - 1).astype(jnp.int32)
  values = masks[objects[:, None, None], rows[:, :, None], columns[:, None, :]]
  cells = values.reshape(-1, size, samples, size, samples).astype(jnp.float32)
  return cells.mean((2, 4))


def first(masks: Bool[Array, '*N K H W']) -> Int[Array, '*N H W']:
  """The number of the first mask that covers a pixel, from 1; 0 where none does."""
  numbers = jnp.argmax(masks, -3).astype(jnp.int32) + 1
  return jnp.where(jnp.any(masks, -3), numbers, 0)


def last(masks: Bool[Array, '*N K H W']) -> Int[Array, '*N H W']:
  """As `first`, of the last one: datasets list what lies on top behind what it lies on."""
  numbers = first(jnp.flip(masks, -3))
  return jnp.where(numbers > 0, masks.shape[-3] + 1 - numbers, 0)


def overlaps(
  a: Bool[Array, '*N A H W'], b: Bool[Array, '*N B H W']
) -> tuple[Float[Array, '*N A B'], Float[Array, '*N A'], Float[Array, '*N B']]:
  """Pixels that each of `a` shares with each of `b`, and the pixels of each; exact to 2^24.

  Row by row of the pictures, so that no mask is there in floats as a whole.
  """

  def add(row, shared):
    of_a, of_b = (lax.dynamic_index_in_dim(x, row, -2, False).astype(jnp.float32) for x in (a, b))
    return shared + jnp.einsum('...aw,...bw->...ab', of_a, of_b)

  start = jnp.zeros((*a.shape[:-2], b.shape[-3]))
  shared = lax.fori_loop(0, a.shape[-2], add, start)
  areas = (jnp.sum(x, (-2, -1), dtype=jnp.float32) for x in (a, b))
  return shared, *areas
