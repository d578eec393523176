import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.refinenet import (
  RefineNet,
  RefineNetBlock,
  chained_residual_pooling,
  fuse,
  residual_conv_unit,
)


def small(**fields):
  defaults = {'num_classes': 3, 'backbone': 'resnet18', 'backbone_width': 0.125, 'width': 4}
  return RefineNet(**defaults | {'chained_pooling': 1} | fields)


def shapes_of(model):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))['params']


def num_parameters(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def random_like(shapes):
  """Kernels and biases that keep the size of what goes through them; norms' scales are one."""
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    if path[-1].key == 'scale':
      return jnp.ones(leaf.shape)
    scale = math.sqrt(1 / math.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
    return jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def times(factor):
  """A constructor of layers that multiply every value by `factor`, and cut channels off."""

  def conv(features, use_bias=False, name=None):
    return lambda x: factor * x[..., :features]

  return conv


class PartsTest(parameterized.TestCase):
  def test_chained_pooling_of_one_pixel_by_hand(self):
    """A 1 becomes 5 x 5 of 2, and those 9 x 9 of 4; what is below zero counts as zero."""
    x = np.full((1, 13, 15, 1), -3, np.float32)
    x[0, 6, 7] = 1
    expected = np.zeros((13, 15))
    expected[2:11, 3:12] += 4
    expected[4:9, 5:10] += 2
    expected[6, 7] += 1
    y = jax.jit(lambda x: chained_residual_pooling(x, 2, times(2.0)))(x)
    np.testing.assert_array_equal(y[0, ..., 0], expected)

  def test_no_pooling_leaves_all_values(self):
    x = jnp.asarray([-1.0, 2.0]).reshape(1, 1, 2, 1)
    np.testing.assert_array_equal(chained_residual_pooling(x, 0, times(2.0)), x)

  def test_a_unit_adds_what_two_convolutions_make_of_what_is_above_zero(self):
    x = jnp.asarray([-1.0, 0.0, 2.0]).reshape(1, 1, 3, 1)
    y = residual_conv_unit(x, times(3.0), 'unit')
    np.testing.assert_array_equal(y.ravel(), [-1, 0, 2 + 9 * 2])
    # The second ReLU stops what a negative kernel makes.
    np.testing.assert_array_equal(residual_conv_unit(x, times(-3.0), 'unit'), x)

  def test_fusion_sums_at_the_finest_size_with_the_fewest_channels(self):
    """Bilinear from 2 columns to 4: the new lie a quarter and three quarters between them."""
    coarse = jnp.asarray([[0.0, 8.0]]).reshape(1, 1, 2, 1) * jnp.ones((1, 1, 1, 5))
    fine = jnp.ones((1, 3, 4, 2))
    y = fuse({'coarser': coarse, 'stage4': fine}, times(0.5))
    row = 0.5 * np.array([0, 2, 6, 8]) + 0.5
    np.testing.assert_allclose(y, np.broadcast_to(row.reshape(1, 1, 4, 1), (1, 3, 4, 2)))

  def test_a_single_path_is_not_convolved(self):
    x = jnp.ones((1, 3, 4, 2))
    self.assertIs(fuse({'stage32': x}, times(0.5)), x)

  def test_fresh_weights_keep_the_size_of_values(self):
    """Without norm, the usual initial weights make them more than ten times as large."""
    x = {16: jnp.asarray(np.random.default_rng(0).normal(size=(1, 24, 24, 32)), jnp.float32)}

    def deviation(scale):
      init = nn.initializers.variance_scaling(scale, 'fan_in', 'normal')
      conv = functools.partial(nn.Conv, kernel_size=(3, 3), kernel_init=init)
      block = RefineNetBlock(32, True, 2, conv)
      return jax.jit(lambda key: block.init_with_output(key, x, None)[0].std())(jax.random.key(0))

    self.assertBetween(float(deviation(0.25)), 0.1, 3)
    self.assertGreater(float(deviation(2.0)), 10)


class RefineNetTest(parameterized.TestCase):
  # Kernels in multiples of 3 * 3 * 256 * 256, and biases. Those that reduce the stages' 2048, 1024,
  # 512 and 256 channels are 16 + 4 + 2 + 1 = 23; a unit at 512 channels has 8, at 256 it has 2.
  @parameterized.parameters(
    # Each block has 2 + 3 units and 4 poolings, the first at 512 channels. Fused are 512 + 256,
    # then 256 + 256 twice.
    (4, 23 + 5 * 8 + 3 * 5 * 2 + 4 * 4 + 3 * 4 + 3 + 2 + 2, 5 * (512 + 3 * 256)),
    # Two units for each stage, three behind each fusion, of 512 + 256 and of three times 256.
    (2, 23 + 2 * 8 + 3 * 2 * 2 + 2 * 3 * 2 + 2 * 4 + 3 + 3, 2 * 512 + (3 * 2 + 2 * 3) * 256),
    (1, 23 + 2 * 8 + 3 * 2 * 2 + 3 * 2 + 4 + 2 + 1 + 1 + 1, 2 * 512 + (3 * 2 + 3) * 256),
  )
  def test_has_the_parameters_of_the_authors(self, cascade, convolutions, biases):
    """RefineNet-101 with four poolings has 118 M (Nekrasov et al. 2018, Light-Weight RefineNet)."""
    shapes = shapes_of(RefineNet(num_classes=21, cascade=cascade, chained_pooling=4))
    resnet = 44_549_160 - 2_049_000  # torchvision's, less its classifier
    self.assertEqual(num_parameters(shapes['backbone']), resnet)
    classifier = 9 * 256 * 21 + 21
    expected = resnet + convolutions * 9 * 256 * 256 + biases + classifier
    self.assertEqual(num_parameters(shapes), expected)
    if cascade == 4:
      self.assertEqual(round(expected / 1e6), 118)

  def test_each_part_can_be_left_out_and_the_others_keep_their_parameters(self):
    def names(**fields):
      paths = jax.tree_util.tree_leaves_with_path(shapes_of(small(**fields)))
      return {jax.tree_util.keystr(path) for path, _ in paths}

    everything = names(chained_pooling=2)
    for fields, part in (({'residual_units': False}, '_unit'), ({'chained_pooling': 0}, 'pool')):
      left_out = {name for name in everything if part in name}
      self.assertNotEmpty(left_out)
      self.assertEqual(names(**{'chained_pooling': 2} | fields), everything - left_out)

  @parameterized.parameters(4, 2, 1)
  @pytest.mark.slow
  def test_every_stage_and_block_reaches_the_logits(self, cascade):
    model = small(cascade=cascade)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 96, 3)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    params = random_like(shapes['params'])
    stats = jax.tree_util.tree_map_with_path(
      lambda path, leaf: jnp.full(leaf.shape, float(path[-1].key == 'var')), shapes['batch_stats']
    )

    def energy(params):
      return (model.apply({'params': params, 'batch_stats': stats}, x)['logits'] ** 2).sum()

    gradient = jax.jit(jax.grad(energy))(params)
    for path, value in jax.tree_util.tree_leaves_with_path(gradient):
      self.assertGreater(float(jnp.abs(value).max()), 0, jax.tree_util.keystr(path))

  @parameterized.parameters(
    (4, 32, (33, 47)), (4, 16, (64, 65)), (2, 32, (7, 130)), (1, 32, (33, 47)), (1, 8, (7, 130))
  )
  def test_any_size_comes_back(self, cascade, output_stride, size):
    model, x = small(cascade=cascade, output_stride=output_stride), jnp.zeros((1, *size, 4))
    out, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), x)
    self.assertEqual((out['logits'].shape, out['logits'].dtype), ((1, *size, 3), jnp.float32))

  def test_the_refinement_has_no_norm(self):
    model, x = small(), jnp.zeros((1, 64, 64, 3))
    self.assertEqual(
      jax.eval_shape(model.init, jax.random.key(0), x)['batch_stats'].keys(), {'backbone'}
    )

  @parameterized.parameters(
    ({'cascade': 3}, 'model.cascade is 3; expected one of 4, 2, 1'),
    ({'chained_pooling': -1}, 'model.chained_pooling is -1'),
    ({'backbone': 'resnet19'}, 'did you mean'),
    ({'norm': 'bach'}, 'model.norm'),
    ({'backbone': 'mobilenet_v2', 'preactivation': True}, 'model.preactivation is True'),
  )
  def test_what_cannot_be_built_is_the_users_error(self, fields, message):
    with self.assertRaisesRegex(UserError, message):
      shapes_of(small(**fields))


if __name__ == '__main__':
  absltest.main()
