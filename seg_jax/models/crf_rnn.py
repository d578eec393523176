"""Conditional Random Fields as Recurrent Neural Networks (Zheng et al., ICCV 2015), on any system.

Mean-field inference of a dense CRF, written as layers and iterated with the same weights, is a
recurrent network on top of one that gives the unaries, and the two are trained as one (sections 4
and 5): five iterations in training, where more make gradients vanish, ten at test. Learned are the
weights of the appearance and the smoothness kernel, for each class of its own, and the cost of each
label beside each other, which starts as the Potts model. The kernels' bandwidths are not.

Untrained it is the usual post-processing by a dense CRF (Krähenbühl and Koltun 2011), with the
weights and bandwidths of its examples, where the paper starts from bandwidths found for its FCN-8s
(160, 3 and 3). Further departures: filters are normalised on both sides, and a pixel hears itself,
both as in Krähenbühl's code; the wrapped system's layers keep their names, so that its own run is
what the CRF's may start from (`config.model.pretrained`), as in the paper; where evaluation pads
pictures, the padding sends messages, too.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.ops import mean_field


class CRFRNN(nn.Module):
  """What `system` says, with `logits` that were made to agree with the picture's colours.

  The filters are those of `ops.mean_field`: `lattice` for a CPU, `exact` for an accelerator (its
  time grows as the square of the pixels), `window` where what is near by is enough.
  """

  num_classes: int
  system: nn.Module  # its logits are the unaries
  std: tuple[float, ...]  # that colours in [0, 1] were divided by, as in `config.data`
  filter: str = 'lattice'
  radius: int = 3  # of the window, in pixels
  theta_alpha: float = 80.0  # pixels; the appearance kernel's
  theta_beta: float = 13.0  # of 255 values of a colour; the appearance kernel's
  theta_gamma: float = 3.0  # pixels; the smoothness kernel's
  appearance: float = 10.0  # weight of the kernel at first
  smoothness: float = 3.0
  train_iterations: int = 5
  iterations: int = 10

  @nn.compact
  def __call__(self, images: Float[Array, 'N H W C'], train: bool = False) -> dict[str, jax.Array]:
    """`system`'s outputs, `logits` [N, H, W, num_classes] refined, and its own as `unary_logits`.

    The CRF is computed in float32.
    """
    if self.filter not in mean_field.FILTERS:
      raise errors.UserError(
        f'model.filter is {self.filter!r}{errors.nearest(self.filter, mean_field.FILTERS)}'
      )
    nn.share_scope(self, self.system)
    outputs = self.system(images, train)
    unaries = outputs['logits'].astype(jnp.float32)
    # Only differences of colours count, so the mean that was taken off stays off.
    scale = 255 * jnp.asarray(self.std, jnp.float32).reshape(1, 1, 1, -1)
    form = mean_field.FILTERS[self.filter]
    if self.filter == 'window':
      form = functools.partial(form, radius=self.radius)
    kernels = mean_field.kernels(
      scale * images.astype(jnp.float32),
      self.theta_alpha,
      self.theta_beta,
      self.theta_gamma,
      form,
    )
    crf = MeanField(self.num_classes, (self.appearance, self.smoothness), name='crf')
    logits = crf(unaries, kernels, self.train_iterations if train else self.iterations)
    return {**outputs, 'logits': logits, 'unary_logits': unaries}


class MeanField(nn.Module):
  """Mean-field inference whose weights of kernels and costs of labels are learned."""

  num_classes: int
  weights: tuple[float, float]  # of the appearance and the smoothness kernel, at first

  @nn.compact
  def __call__(
    self, unaries: Float[Array, 'N H W K'], kernels: tuple, iterations: int
  ) -> Float[Array, 'N H W K']:
    weights = [
      self.param(name, nn.initializers.constant(weight), (self.num_classes,))
      for name, weight in zip(('appearance', 'smoothness'), self.weights, strict=True)
    ]
    compatibility = self.param('compatibility', lambda _: mean_field.potts(self.num_classes))
    return mean_field.mean_field(unaries, kernels, weights, compatibility, iterations)
