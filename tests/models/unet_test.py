import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.unet import UNet

PAPER = UNet(num_classes=2, padding='valid', norm='none')


def images(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def num_parameters(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def init(model, x):
  return jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(x)


class UNetTest(parameterized.TestCase):
  def test_has_the_papers_parameters(self):
    """Counted layer by layer from figure 1: one grey channel in, two classes out."""
    widths = [1, 64, 128, 256, 512, 1024]
    expected = 0
    for narrow, wide in itertools.pairwise(widths):  # blue arrows, down
      expected += (9 * narrow + 1) * wide + (9 * wide + 1) * wide
    for narrow, wide in itertools.pairwise(widths[1:]):  # green and blue arrows, up
      expected += (4 * wide + 1) * narrow + (9 * wide + 1) * narrow + (9 * narrow + 1) * narrow
    expected += 64 * 2 + 2
    shapes = jax.eval_shape(PAPER.init, jax.random.key(0), jnp.zeros((1, 572, 572, 1)))
    self.assertEqual(num_parameters(shapes), expected)
    self.assertAlmostEqual(expected / 1e6, 31.0, delta=0.05)

  def test_572_gives_388(self):
    x = jnp.zeros((1, 572, 572, 1))
    out, _ = jax.eval_shape(
      lambda x: PAPER.init_with_output(jax.random.key(0), x, False, method='tile'), x
    )
    self.assertEqual(out.shape, (1, 388, 388, 2))

  @parameterized.parameters(*range(1, 60, 7), 388, 389)
  def test_overlap_tile_takes_the_smallest_input_that_covers(self, length):
    before, after = PAPER._margins(length)
    total = before + length + after
    covered = {}
    for candidate in range(140, total + 1):
      size = candidate
      for _ in range(4):
        size -= 4
        if size % 2 or size <= 0:
          break
        size //= 2
      else:
        size -= 4
        for _ in range(4):
          size = 2 * size - 4
        covered[candidate] = size
    self.assertIn(total, covered)
    self.assertGreaterEqual(covered[total], length)
    self.assertTrue(all(out < length for n, out in covered.items() if n < total))
    self.assertEqual(before, (total - covered[total]) // 2)

  @parameterized.parameters((33, 47), (16, 16))
  def test_valid_convolutions_too_give_any_size_back(self, *size):
    model = UNet(num_classes=3, width=4, depth=2, padding='valid', norm='none')
    x = jnp.zeros((1, *size, 3))
    out = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], x)
    self.assertEqual(out['logits'].shape, (1, *size, 3))

  def test_valid_tiles_agree_with_the_whole_picture(self):
    """Overlap-tile: a tile's logits are those of the whole picture (its shift a multiple of 4)."""
    model = UNet(num_classes=2, width=4, depth=2, padding='valid', norm='none')
    x = images(1, 76, 76, 1)
    variables = init(model, x)
    tile = jax.jit(lambda x: model.apply(variables, x, False, method='tile'))
    whole, part = tile(x), tile(x[:, 4:64, 8:68])
    height, width = part.shape[1:3]
    np.testing.assert_allclose(
      part, whole[:, 4 : 4 + height, 8 : 8 + width], atol=1e-5 * float(jnp.abs(whole).max())
    )

  @parameterized.parameters(('group', 'bilinear'), ('none', 'transposed'))
  def test_every_parameter_and_every_skip_gets_gradient(self, norm, upsampling):
    model = UNet(num_classes=3, width=4, depth=2, norm=norm, upsampling=upsampling)
    x = images(2, 20, 24, 3)
    variables = init(model, x)

    def loss(params):
      outputs, _ = model.apply(
        variables | {'params': params}, x, train=True, mutable=['batch_stats']
      )
      return jnp.sum(outputs['logits'] ** 2)

    gradient = jax.jit(jax.grad(loss))(variables['params'])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
      self.assertGreater(float(jnp.abs(leaf).max()), 0, jax.tree_util.keystr(path))
    for level in range(2):
      # The first half of the channels that this convolution reads is the skip.
      kernel = gradient[f'up{level}_conv1']['kernel']
      skip = kernel[:, :, : kernel.shape[2] // 2]
      self.assertGreater(float(jnp.abs(skip).max()), 0, f'skip {level}')

  def test_without_skips_the_expanding_path_reads_what_comes_from_below_alone(self):
    shapes = [
      jax.eval_shape(
        UNet(num_classes=2, width=4, depth=2, skips=skips).init,
        jax.random.key(0),
        jnp.zeros((1, 16, 16, 3)),
      )['params']
      for skips in (True, False)
    ]
    for level, features in ((0, 4), (1, 8)):
      having, lacking = (tree.pop(f'up{level}_conv1')['kernel'].shape for tree in shapes)
      self.assertEqual(having, (3, 3, 2 * features, features))
      self.assertEqual(lacking, (3, 3, features, features))
    self.assertEqual(*shapes)

  def test_dropout_follows_its_key(self):
    model = UNet(num_classes=2, width=4, depth=1, norm='none', dropout=0.5)
    x = images(1, 8, 8, 3)
    variables = init(model, x)

    @jax.jit
    def logits(seed):
      rngs = {'dropout': jax.random.key(seed)}
      return model.apply(variables, x, train=True, rngs=rngs)['logits']

    np.testing.assert_array_equal(logits(1), logits(1))
    self.assertGreater(float(jnp.abs(logits(1) - logits(2)).max()), 0)

  @parameterized.parameters({'padding': 'sam'}, {'upsampling': 'nearest'}, {'norm': 'bach'})
  def test_an_unknown_choice_is_the_users_error(self, **fields):
    with self.assertRaisesRegex(UserError, f'model.{next(iter(fields))} is'):
      UNet(num_classes=2, **fields).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


if __name__ == '__main__':
  absltest.main()
