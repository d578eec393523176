import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.deconvnet import DeconvNet
from tests.models.segnet_test import STAGES, Reference, random_parameters

# Table 2 of the paper: the kernel's size and the channels of each layer, from 3 on.
ENCODER = [(3, 64)] * 2 + [(3, 128)] * 2 + [(3, 256)] * 3 + [(3, 512)] * 6
FULLY_CONNECTED = [(7, 4096), (1, 4096), (7, 512)]
DECODER = [(3, 512)] * 5 + [(3, 256)] * 3 + [(3, 128)] * 2 + [(3, 64)] * 3


class DeconvNetReference(Reference):
  def deconvnet(self, x):
    for stage, convolutions in enumerate(STAGES, 1):
      for i in range(1, convolutions + 1):
        x = np.maximum(self.conv(x, f'conv{stage}_{i}'), 0)
      x = self.pool(x)
    x = np.maximum(self.valid(x, 'fc6'), 0)
    x = np.maximum(self.conv(x, 'fc7'), 0)
    x = np.maximum(self.deconvolution(x, 'fc6d'), 0)
    for stage, convolutions in reversed(list(enumerate(STAGES, 1))):
      x = self.up(x, f'up{stage}')
      for i in range(convolutions, 0, -1):
        x = np.maximum(self.conv(x, f'conv{stage}_{i}d'), 0)
    return self.conv(x, 'output')

  def valid(self, x, name):
    kernel, bias = self.params[name]['kernel'], self.params[name]['bias']
    height, width = (n - k + 1 for n, k in zip(x.shape[1:3], kernel.shape, strict=False))
    taps = np.ndindex(kernel.shape[:2])
    return bias + sum(x[:, u : u + height, v : v + width] @ kernel[u, v] for u, v in taps)

  def deconvolution(self, x, name):
    """Each pixel sets down its kernel, turned by half a turn; overlaps add up."""
    kernel, bias = self.params[name]['kernel'][::-1, ::-1], self.params[name]['bias']
    n, height, width, _ = x.shape
    k, _, _, channels = kernel.shape
    y = np.zeros((n, height + k - 1, width + k - 1, channels), np.float32) + bias
    for i, j in np.ndindex(height, width):
      y[:, i : i + k, j : j + k] += np.einsum('nc,uvcd->nuvd', x[:, i, j], kernel)
    return y


class DeconvNetTest(parameterized.TestCase):
  def test_has_the_papers_parameters(self):
    """Kernels of table 2, with scale and shift of each norm and the biases of the output."""
    layers = ENCODER + FULLY_CONNECTED + DECODER
    expected, channels = 0, 3
    for size, features in layers:
      expected += size * size * channels * features + 2 * features
      channels = features
    expected += (64 + 1) * 21
    model = DeconvNet(num_classes=21)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes['params']))
    self.assertEqual(count, expected)
    self.assertAlmostEqual(expected / 1e6, 252, delta=0.5)

  def test_equals_numpy(self):
    """On a picture with several places for fc6 across, and padded to one down."""
    model = DeconvNet(num_classes=3, width=2, fc_features=8, fc_size=3, norm='none')
    x = np.random.default_rng(1).normal(size=(1, 33, 130, 3)).astype(np.float32)
    params = random_parameters(model, x)
    logits = jax.jit(model.apply)({'params': params}, x)['logits']
    padded = np.pad(x, ((0, 0), (0, 63), (0, 30), (0, 0)), 'edge')
    expected = DeconvNetReference(params).deconvnet(padded)[:, :33, :130]
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())

  def test_batch_norm_of_a_single_value_is_the_users_error(self):
    """It would be 0 whatever the picture, and so would be all that passes through fc6."""
    model = DeconvNet(num_classes=2, width=2, fc_features=4, fc_size=1)
    for count in (1, 2):
      x = jnp.zeros((count, 32, 32, 3))
      variables = jax.eval_shape(model.init, jax.random.key(0), x)
      train = functools.partial(model.apply, train=True, mutable=['batch_stats'])
      if count == 2:
        jax.eval_shape(train, variables, x)
      else:
        with self.assertRaisesRegex(UserError, "model.norm is 'batch'"):
          jax.eval_shape(train, variables, x)


if __name__ == '__main__':
  absltest.main()
