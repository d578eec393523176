"""What Mask R-CNN is trained for: two stages' classes and boxes, and masks (He et al. 2017, 3).

Each is a mean over what was drawn to learn from, in all pictures of a batch and on all devices, as
in torchvision: over all drawn boxes, though only those of objects have deltas; a mask's over its
pixels. `outputs` are those of `MaskRCNN` that was given objects.
"""

import jax
import jax.numpy as jnp
import optax

from seg_jax.ops import devices

ANCHORS_BETA = 1 / 9  # where the loss of deltas turns from a square into a distance


def losses(outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """`objectness`, `proposals`, `classes`, `boxes`, and with masks `masks`; float32 scalars."""
  positive, negative = outputs['anchor_positive'], outputs['anchor_negative']
  drawn = _count(positive | negative)
  entropy = optax.sigmoid_binary_cross_entropy(
    outputs['anchor_logits'], positive.astype(jnp.float32)
  )
  terms = {
    'objectness': _sum(entropy, positive | negative) / drawn,
    'proposals': _deltas(outputs, 'anchor') / drawn,
  }
  positive, negative = outputs['box_positive'], outputs['box_negative']
  drawn = _count(positive | negative)
  entropy = optax.softmax_cross_entropy_with_integer_labels(
    outputs['class_logits'], outputs['class_targets']
  )
  terms['classes'] = _sum(entropy, positive | negative) / drawn
  terms['boxes'] = _deltas(outputs, 'box') / drawn
  if 'mask_logits' in outputs:
    entropy = optax.sigmoid_binary_cross_entropy(outputs['mask_logits'], outputs['mask_targets'])
    positive = outputs['mask_positive']
    terms['masks'] = _sum(entropy.mean((2, 3)), positive) / _count(positive)
  return terms


def _deltas(outputs, of):
  errors = jnp.abs(outputs[f'{of}_deltas'] - outputs[f'{of}_targets'])
  small = 0.5 / ANCHORS_BETA * errors**2
  errors = jnp.where(errors < ANCHORS_BETA, small, errors - 0.5 * ANCHORS_BETA)
  return _sum(errors.sum(-1), outputs[f'{of}_positive'])


def _sum(values, where):
  return devices.total(jnp.sum(jnp.where(where, values, 0)))


def _count(where):
  return jnp.maximum(devices.total(jnp.sum(where, dtype=jnp.float32)), 1)
