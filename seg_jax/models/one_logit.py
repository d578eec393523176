"""Two classes by one logit.

The sigmoid of a logit z is the softmax of the two logits (0, z): e^z / (e^0 + e^z). So a system
with one output, the second class's logit, becomes one of two classes when a 0 is put before it, and
is trained, judged and refined as any other: cross entropy is then binary cross entropy, focal loss
its sigmoid form, Dice the mean over both classes, and label smoothing s trains towards s / 2 and
1 - s / 2. What differs from two outputs is their redundant half: adding the same to both logits
changes nothing, and a step of gradient descent on both moves their difference twice as far.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class OneLogit(nn.Module):
  """`model`, made for all classes but the first, as one of all: the first's logit is 0.

  The layers of `model` keep their names.
  """

  model: nn.Module

  @nn.compact
  def __call__(self, images: Float[Array, 'N H W C'], train: bool = False) -> dict:
    """`model`'s outputs; `logits` [N, H, W, 2], and each of `aux_logits` likewise."""
    nn.share_scope(self, self.model)
    outputs = self.model(images, train)
    if 'aux_logits' in outputs:
      outputs = outputs | {'aux_logits': tuple(map(_with_first, outputs['aux_logits']))}
    return outputs | {'logits': _with_first(outputs['logits'])}


def _with_first(logits):
  return jnp.pad(logits, ((0, 0),) * (logits.ndim - 1) + ((1, 0),))
