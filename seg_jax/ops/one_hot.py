"""Label maps as one plane a class, and back."""

import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from seg_jax import IGNORE


def encode(
  labels: Int[Array, '*shape'], num_classes: int, dtype: jnp.dtype = jnp.float32
) -> Shaped[Array, '*shape num_classes']:
  """1 at each label's class, 0 elsewhere: [N, H, W] to [N, H, W, num_classes].

  255 (ignore) is 0 in every class, and so is any other label outside of 0 to num_classes - 1.
  """
  labels = jnp.where(labels == IGNORE, -1, labels.astype(jnp.int32))[..., None]
  classes = jnp.arange(num_classes).reshape([1] * (labels.ndim - 1) + [-1])
  return (labels == classes).astype(dtype)


def decode(planes: Shaped[Array, '*shape num_classes']) -> Int[Array, '*shape']:
  """The class of the largest value, the first of equals, int32; 255 (ignore) where all are 0."""
  labelled = jnp.any(planes, axis=-1)
  return jnp.where(labelled, jnp.argmax(planes, axis=-1).astype(jnp.int32), IGNORE)
