import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.backbones import build_backbone
from seg_jax.models.backbones.hrnet import HighResolutionNet, HRNetClassifier, MultiResolutionBlock
from seg_jax.models.layers import make_conv
from seg_jax.models.norms import make_norm

SMALL = {'width': 4, 'modules': (1, 1, 1), 'units': 1}


def shapes_of(model, channels=3):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, channels)))['params']


def num_parameters(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def convolution(x, kernel, stride=1):
  """[N, H, W, C] with as many zeros around as the kernel needs, one output after the other."""
  size, border = len(kernel), len(kernel) // 2
  rows, columns = (-(-n // stride) for n in x.shape[1:3])
  x = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
  y = np.zeros((len(x), rows, columns, kernel.shape[-1]))
  for i, j in np.ndindex(rows, columns):
    window = x[:, stride * i : stride * i + size, stride * j : stride * j + size]
    y[:, i, j] = np.einsum('nuvc,uvcd->nd', window, kernel)
  return y


def exchange(branches, params):
  """Every branch the sum of all: figure 3, pixel by pixel where a branch is coarser."""
  fused = []
  for i, own in enumerate(branches):
    total = np.zeros(own.shape)
    for j, x in enumerate(branches):
      if j == i:
        total += x
      elif j > i:
        x = convolution(x, params[f'fuse{i}_{j}_conv']['kernel'])
        for row, column in np.ndindex(own.shape[1:3]):
          total[:, row, column] += x[:, row // 2 ** (j - i), column // 2 ** (j - i)]
      else:
        for k in range(i - j):
          x = np.maximum(x, 0) if k else x
          x = convolution(x, params[f'fuse{i}_{j}_{k}_conv']['kernel'], 2)
        total += x
    fused.append(np.maximum(total, 0))
  return fused


class HRNetTest(parameterized.TestCase):
  def check_count(self, expected, **fields):
    self.assertEqual(num_parameters(shapes_of(HRNetClassifier(**fields))), expected)

  def test_has_the_parameters_of_timms_classifiers(self):
    """`hrnet_w18_small_v2` and `hrnet_w18`, which timm's cards give as 15.6 M and 21.3 M."""
    self.check_count(15_597_464, width=18, modules=(1, 3, 2), units=2)
    self.check_count(21_299_004, width=18)

  @parameterized.parameters((32, 41_232_680), (48, 77_469_864))
  @pytest.mark.slow
  def test_has_those_of_the_wider_ones_too(self, width, expected):
    """41.2 M and 77.5 M."""
    self.check_count(expected, width=width)

  @parameterized.parameters(((9, 14), (5, 7), (3, 4)), ((8, 8), (4, 4), (2, 2)), ((1, 3), (1, 2)))
  def test_an_exchange_equals_a_loop(self, *sizes):
    """Three branches, or two, with sizes that are whole multiples and such that are not."""
    rng = np.random.default_rng(0)
    branches = [
      rng.normal(size=(2, *size, 3 * 2**i)).astype(np.float32) for i, size in enumerate(sizes)
    ]
    block = MultiResolutionBlock(0, make_conv(jnp.float32), make_norm('none', False, jnp.float32))
    shapes = jax.eval_shape(block.init, jax.random.key(0), branches)['params']
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    fused = jax.jit(block.apply)({'params': params}, branches)
    for y, expected in zip(fused, exchange(branches, params), strict=True):
      np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-3)

  @parameterized.parameters((64, 96), (65, 97), (33, 47), (1, 130))
  def test_every_branch_has_its_stride(self, height, width):
    x = jnp.zeros((2, height, width, 5))
    model = HighResolutionNet(**SMALL)
    features, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), x)
    self.assertEqual(
      {stride: y.shape for stride, y in features.items()},
      {s: (2, math.ceil(height / s), math.ceil(width / s), s) for s in (4, 8, 16, 32)},
    )

  @parameterized.parameters(('hrnet_w18', 18), ('hrnet_w32', 32), ('hrnet_w48', 48))
  def test_the_name_is_the_finest_branchs_width(self, name, width):
    model = build_backbone(name, modules=(1, 1, 1), units=1)
    x = jnp.zeros((1, 32, 32, 3))
    features, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), x)
    self.assertEqual([y.shape[-1] for y in features.values()], [width * 2**i for i in range(4)])

  @parameterized.parameters('batch', 'group')
  def test_any_norm_normalises_every_convolution(self, norm):
    """As many scales as convolutions."""
    paths = jax.tree_util.tree_leaves_with_path(shapes_of(HighResolutionNet(**SMALL, norm=norm), 1))
    leaves = [path[-1].key for path, _ in paths]
    self.assertEqual(leaves.count('scale'), leaves.count('kernel'))
    self.assertEqual(leaves.count('bias'), leaves.count('kernel'))  # the norms'

  def test_a_coarse_pixel_reaches_the_finest_branch_at_once(self):
    """A single exchange, whose only input is a pixel of the coarsest branch, fills its cell."""
    branches = [jnp.zeros((1, 16 >> i, 16 >> i, 2 << i)) for i in range(4)]
    branches[3] = branches[3].at[0, 1, 0].set(1.0)
    block = MultiResolutionBlock(0, make_conv(jnp.float32), make_norm('none', False, jnp.float32))
    shapes = jax.eval_shape(block.init, jax.random.key(0), branches)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    finest = jax.jit(functools.partial(block.apply, ones))(branches)[0]
    expected = np.zeros((16, 16))
    expected[8:, :8] = 16  # channels of the coarsest, each 1
    np.testing.assert_array_equal(finest[0, ..., 0], expected)

  @parameterized.parameters(
    ({'output_stride': 8}, 'model.output_stride is 8; expected 32'),
    ({'modules': (1, 4)}, 'model.modules'),
    ({'modules': (1, 0, 3)}, 'model.modules'),
    ({'units': 0}, 'model.units is 0'),
    ({'norm': 'bach'}, 'model.norm'),
  )
  def test_what_cannot_be_built_is_the_users_error(self, fields, message):
    with self.assertRaisesRegex(UserError, message):
      shapes_of(build_backbone('hrnet_w18', **fields))


if __name__ == '__main__':
  absltest.main()
