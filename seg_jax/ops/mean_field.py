"""Mean-field inference of a dense CRF, a few lines, and three ways to pass its messages.

Krähenbühl and Koltun 2011, Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials. Every pixel is connected with every other, by an appearance kernel of position and
colour and by a smoothness kernel of position alone (equation 3), and an iteration sends messages
along all edges at once by filtering the marginals with the kernels (algorithm 1).

The appearance kernel is filtered in one of three forms, functions of the pixels' features that
return the filter: `exact` sums over all pairs, `lattice` approximates that in time linear in the
pixels, and `window` sums over the neighbours near by alone, as in convolutional CRFs (Teichmann and
Cipolla 2018). The smoothness kernel is separable, and filtered exactly.

As in the authors' later code (of their ICML paper of 2013), kernels are normalised on both sides,
and a pixel's message to itself is kept, which the paper leaves out: k(i, i) is 1 before the
normalisation. Gradients reach the filtered values, never the features, so that the bandwidths
are not learned; reverse mode and first order only.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from seg_jax.ops import permutohedral
from seg_jax.ops.convolution import convolve

Filter = Callable[[Float[Array, 'N H W C']], Float[Array, 'N H W C']]


def mean_field(
  unaries: Float[Array, 'N H W C'],
  messages: Sequence[Filter],
  weights: Sequence[Float[Array, '#C'] | float],
  compatibility: Float[Array, 'C C'],
  iterations: int,
) -> Float[Array, 'N H W C']:
  """Logits of the pixels' marginals after `iterations`: `unaries` less what the neighbours ask for.

  Args:
    unaries: logits, such as a network's; minus the unary energies, up to a constant.
    messages: the kernels' filters, normalised.
    weights: of each kernel, for each class or for all.
    compatibility: [l, m] is the cost of label l beside label m; `potts` where nothing is learned.
  """

  def iteration(logits, _):
    marginals = jax.nn.softmax(logits)
    filtered = sum(
      jnp.reshape(weight, (1, 1, 1, -1)) * message(marginals)
      for weight, message in zip(weights, messages, strict=True)
    )
    pairwise = jnp.einsum('nhwm,lm->nhwl', filtered, compatibility, precision='highest')
    return unaries - pairwise, None

  return lax.scan(iteration, unaries, length=iterations)[0]


def potts(num_classes: int) -> Float[Array, 'C C']:
  """The Potts model: different labels cost 1."""
  return 1.0 - jnp.eye(num_classes)


def kernels(
  colours: Float[Array, 'N H W bands'],
  theta_alpha: float,
  theta_beta: float,
  theta_gamma: float,
  form: Callable[[Float[Array, 'N H W d']], Filter],
) -> tuple[Filter, Filter]:
  """The appearance and the smoothness kernel, normalised on both sides.

  Deviations: `theta_alpha` of the position in pixels and `theta_beta` of the colour, in the units
  of `colours`, in the appearance kernel; `theta_gamma` of the position in the smoothness kernel.
  """
  shape = colours.shape[:3]
  rows, columns = jnp.meshgrid(
    *(jnp.arange(n, dtype=jnp.float32) for n in shape[1:]), indexing='ij'
  )
  positions = jnp.broadcast_to(jnp.stack([columns, rows], -1)[None], (*shape, 2))
  features = jnp.concatenate([positions / theta_alpha, colours / theta_beta], -1)
  filters = form(lax.stop_gradient(features)), smoothness(theta_gamma)
  return tuple(_normalised(kernel, shape) for kernel in filters)


def exact(features: Float[Array, 'N H W d'], block: int = 128) -> Filter:
  """sum_j exp(-|f_i - f_j|² / 2) values_j over all pixels j of the picture, i included.

  `block` pixels i of the batch at a time: memory is that times the picture's pixels, time their
  square.
  """
  return _symmetric(functools.partial(_exact, block), features)


def lattice(features: Float[Array, 'N H W d']) -> Filter:
  """`exact`'s sums approximated in the permutohedral lattice, in time linear in the pixels.

  On natural pictures, with deviations of 80 pixels and 13 of 255 colour values, the normalised
  filter is off by 2 to 4 % on average, and by far more at single pixels of a colour of their own.
  Its gradient is that of what it computes. Over several devices, take another form: the
  lattice is one for the whole batch.
  """
  transpose = functools.partial(permutohedral.blur, reverse=True)
  built = permutohedral.build(lax.stop_gradient(features))
  return functools.partial(_linear, permutohedral.blur, transpose, built)


def window(features: Float[Array, 'N H W d'], radius: int = 3) -> Filter:
  """`exact`'s sums over the (2 radius + 1)² pixels around each; 7 x 7 by default."""
  radius = min(radius, max(features.shape[1:3]) - 1)
  return _symmetric(functools.partial(_window, radius), features)


FILTERS = {'exact': exact, 'lattice': lattice, 'window': window}


def smoothness(theta: float) -> Filter:
  """`exact`'s sums for positions alone: a Gaussian along columns, then along rows.

  It ends at six deviations, beyond which weights are below float32's precision.
  """
  reach = math.ceil(6 * theta)
  taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / theta) ** 2).astype(np.float32)
  return _symmetric(_separable, jnp.asarray(taps))


def _normalised(kernel: Filter, shape) -> Filter:
  """D^-1/2 K D^-1/2, where D holds the sums of K's rows."""
  # Behind a barrier, or XLA computes it as it compiles, for seconds, and complains of that.
  ones = lax.optimization_barrier(jnp.ones((*shape, 1)))
  scale = lax.rsqrt(kernel(ones) + 1e-20)
  return lambda values: scale * kernel(scale * values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear(form, transpose, state, values):
  """`form(state, values)`, linear in `values`, whose gradient is `transpose(state, gradient)`."""
  return form(state, values)


def _forward(form, transpose, state, values):
  return form(state, values), state


def _backward(form, transpose, state, gradient):
  return None, transpose(state, gradient)


_linear.defvjp(_forward, _backward)


def _symmetric(form, state):
  return functools.partial(_linear, form, form, state)


def _exact(block, features, values):
  def of_picture(picture):
    f, v = (a.reshape(-1, a.shape[-1]) for a in picture)

    def of_pixel(x):
      distances = sum((here - all_there) ** 2 for here, all_there in zip(x, f.T, strict=True))
      return jnp.dot(jnp.exp(-distances / 2), v, precision='highest')

    at_a_time = max(1, block // len(values))
    return lax.map(of_pixel, f, batch_size=at_a_time).reshape(picture[1].shape)

  # Not a loop over pictures, which would be taken from their devices.
  return jax.vmap(of_picture)((features, values))


def _window(radius, features, values):
  height, width = values.shape[1:3]
  margins = ((0, 0), (radius, radius), (radius, radius), (0, 0))
  padded = [jnp.pad(a, margins) for a in (features, values)]  # values of 0 send no message

  def line(dy, total):
    lines = [lax.dynamic_slice_in_dim(a, dy, height, 1) for a in padded]
    for dx in range(2 * radius + 1):
      f, v = (a[:, :, dx : dx + width] for a in lines)
      total += jnp.exp(-jnp.sum((features - f) ** 2, -1, keepdims=True) / 2) * v
    return total

  return lax.fori_loop(0, 2 * radius + 1, line, jnp.zeros_like(values))


def _separable(taps, values):
  channels = values.shape[-1]
  for size in ((-1, 1), (1, -1)):
    kernel = jnp.broadcast_to(taps.reshape(*size, 1, 1), (*taps.reshape(size).shape, 1, channels))
    values = convolve(values, kernel, (1, 1), 'SAME', feature_group_count=channels)
  return values
