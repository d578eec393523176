"""Variables for tests: shapes without a computation, and values quicker than `init`'s."""

import math

import jax
import jax.numpy as jnp
import numpy as np

# The fields that make a backbone small.
NARROW = {
  'alexnet': {'width': 4},
  'mobilenet_v2': {'width': 0.25},
  'vgg16': {'width': 4},
  **{f'hrnet_w{n}': {'width': 4, 'modules': (1, 1, 1), 'units': 1} for n in (18, 32, 48)},
  'xception65': {'width': 1 / 16},
  **{f'resnet{depth}': {'width': 4} for depth in (18, 34, 50, 101, 152)},
}


def shapes_of(model, size=(32, 32), channels=3):
  image = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


def feature_shapes(model, size, channels=3):
  image = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
  features = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], image)
  return {stride: x.shape for stride, x in features.items()}


def random_like(shapes):
  """Kernels that keep the size of what goes through them, norms that are not the identity."""
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    values = rng.normal(size=leaf.shape)
    match path[-1].key:
      case 'kernel':
        values *= math.sqrt(2 / math.prod(leaf.shape[:-1]))
      case 'scale' | 'var':
        values = np.exp(0.1 * values)
      case 'bias' | 'mean':
        values *= 0.1
    return jnp.asarray(values, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def num_parameters(variables):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))


def images(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
