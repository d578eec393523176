"""Pictures of any size, for models that need whole cells."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def pad_behind(
  images: Float[Array, 'N H W C'], multiple: int, least: int = 0
) -> Float[Array, 'N h w C']:
  """The last row and column repeated, until both lengths are multiples of `multiple` >= `least`.

  `least` is itself a multiple.
  """
  margins = [max(-n % multiple, least - n) for n in images.shape[1:3]]
  return jnp.pad(images, ((0, 0), *((0, margin) for margin in margins), (0, 0)), 'edge')
