"""From logits to labels."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def decide(logits: Float[Array, '... C'], threshold: float = 0.5) -> Int[Array, '...']:
  """The likeliest class, int32; of equal ones the lowest.

  Of two classes, the second where its probability is above `threshold`, in (0, 1).
  """
  if logits.shape[-1] != 2:
    return jnp.argmax(logits, -1).astype(jnp.int32)
  # In logits, where nothing is rounded to 0 or 1.
  return (logits[..., 1] - logits[..., 0] > math.log(threshold / (1 - threshold))).astype(jnp.int32)
