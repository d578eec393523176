"""Random changes of colour, on the device, where they cost next to nothing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax.ops import devices

# Of ITU-R BT.601; they sum to 1, so a change of saturation keeps the grey value.
_LUMA = (0.299, 0.587, 0.114)


def photometric(
  key: jax.Array, images: Float[Array, 'N H W 3'], strength: float, largest: float = 255.0
) -> Float[Array, 'N H W 3']:
  """Brightness, contrast and saturation, each times a factor in [1 - strength, 1 + strength].

  Brightness scales the colours, contrast their distance from the picture's mean grey, saturation
  their distance from their own grey; each picture draws its own factors. All three are affine in
  the colour, so they are one affine map, after which the values are clipped to [0, `largest`].
  Strength 0 is the identity.
  """
  if strength == 0:
    return images
  shape = (3, len(images) * devices.num_mapped(), 1, 1, 1)
  factors = jax.random.uniform(key, shape, images.dtype, 1 - strength, 1 + strength)
  brightness, contrast, saturation = devices.own_share(factors, axis=1)
  # Sums rather than a matrix product, which accelerators would round to bfloat16.
  luma = jnp.asarray(_LUMA, images.dtype).reshape(1, 1, 1, 3)
  grey = jnp.sum(images * luma, -1, keepdims=True)
  offset = (1 - contrast) * jnp.mean(grey, (1, 2), keepdims=True)
  changed = contrast * (saturation * images + (1 - saturation) * grey) + offset
  return jnp.clip(brightness * changed, 0, largest)
