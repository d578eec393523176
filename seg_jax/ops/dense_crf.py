"""A dense CRF behind any model, untrained.

Krähenbühl and Koltun 2011, Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials: labels that agree with the colours of the picture, with the weights and bandwidths of
the authors' example. `models.crf_rnn` is the same, learned.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax.ops import mean_field


def refine(
  logits: Float[Array, 'N H W C'], colours: Float[Array, 'N H W bands'], form: str
) -> Float[Array, 'N H W C']:
  """Logits of the labels' marginals after ten iterations of mean field, as `mean_field` says.

  `logits` are the unaries; `colours` run from 0 to 255; `form` is one of `mean_field.FILTERS`:
  `lattice` for a CPU, `exact` for an accelerator (its time grows as the square of the pixels),
  `window` where what is near by is enough.
  """
  kernels = mean_field.kernels(
    colours, theta_alpha=80.0, theta_beta=13.0, theta_gamma=3.0, form=mean_field.FILTERS[form]
  )
  potts = mean_field.potts(logits.shape[-1])
  return mean_field.mean_field(logits.astype(jnp.float32), kernels, (10.0, 3.0), potts, 10)
