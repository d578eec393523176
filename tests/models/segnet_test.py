import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.segnet import UPSAMPLINGS, SegNet, SegNetBasic

# The channels that VGG16's convolutions read and make (Simonyan and Zisserman, column D).
VGG = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
STAGES = (2, 2, 3, 3, 3)


def num_parameters(model):
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes['params']))


def random_parameters(model, x, seed=0):
  """No zeros, so that a bias that is left out shows; kernels keep the scale of what they read."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)['params']

  def draw(leaf):
    scale = 1.5 / math.sqrt(math.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
    return (scale * rng.normal(size=leaf.shape)).astype(np.float32)

  return jax.tree.map(draw, shapes)


class Reference:
  """The papers' layers in NumPy."""

  def __init__(self, params, upsampling='max_unpool'):
    self.params = params
    self.upsampling = upsampling
    self.places = []

  def conv(self, x, name):
    kernel, bias = self.params[name]['kernel'], self.params[name]['bias']
    (height, width), border = x.shape[1:3], kernel.shape[0] // 2
    x = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    taps = np.ndindex(kernel.shape[:2])
    return bias + sum(x[:, u : u + height, v : v + width] @ kernel[u, v] for u, v in taps)

  def pool(self, x):
    n, height, width, channels = x.shape
    blocks = x.reshape(n, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4)
    blocks = blocks.reshape(*blocks.shape[:4], 4)
    self.places.append(blocks.argmax(-1))
    return blocks.max(-1)

  def up(self, x, name):
    n, height, width, channels = x.shape
    place = self.places.pop()
    y = np.zeros((n, 2 * height, 2 * width, channels), np.float32)
    if self.upsampling == 'max_unpool':
      for b, i, j, c in np.ndindex(x.shape):
        u, v = divmod(place[b, i, j, c], 2)
        y[b, 2 * i + u, 2 * j + v, c] = x[b, i, j, c]
    elif self.upsampling == 'nearest':
      y = x.repeat(2, 1).repeat(2, 2)
    elif self.upsampling == 'bed_of_nails':
      y[:, ::2, ::2] = x
    elif self.upsampling == 'bilinear':
      # A new pixel lies a quarter from one old pixel and three quarters from the next.
      for axis in (1, 2):
        last = x.shape[axis] - 1
        before = np.take(x, [max(i - 1, 0) for i in range(last + 1)], axis)
        after = np.take(x, [min(i + 1, last) for i in range(last + 1)], axis)
        pairs = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = y = pairs.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
    elif self.upsampling == 'transposed':
      kernel, bias = self.params[name]['kernel'], self.params[name]['bias']
      for u, v in np.ndindex(2, 2):
        y[:, u::2, v::2] = x @ kernel[u, v] + bias
    return y

  def segnet(self, x):
    for stage, convolutions in enumerate(STAGES, 1):
      for i in range(1, convolutions + 1):
        x = np.maximum(self.conv(x, f'conv{stage}_{i}'), 0)
      x = self.pool(x)
    for stage, convolutions in reversed(list(enumerate(STAGES, 1))):
      x = self.up(x, f'up{stage}')
      for i in range(convolutions, 0, -1):
        x = self.conv(x, f'conv{stage}_{i}d')
        x = x if (stage, i) == (1, 1) else np.maximum(x, 0)
    return x

  def segnet_basic(self, x):
    for i in range(1, 5):
      x = self.pool(np.maximum(self.conv(x, f'conv{i}'), 0))
    for i in range(4, 0, -1):
      x = self.conv(self.up(x, f'up{i}'), f'conv{i}d')
    return self.conv(x, 'classifier')


class SegNetTest(parameterized.TestCase):
  def test_has_the_papers_parameters(self):
    """VGG's convolutions there and back, the last for 11 classes; scale and shift of each norm."""
    pairs = list(itertools.pairwise(VGG))
    back = [(wide, narrow) for narrow, wide in reversed(pairs[1:])] + [(64, 11)]
    expected = sum(9 * a * b for a, b in pairs + back)
    expected += sum(2 * b for _, b in pairs + back[:-1]) + 11
    self.assertEqual(num_parameters(SegNet(num_classes=11)), expected)
    self.assertBetween(expected / 1e6, 29.4, 29.5)

  def test_basic_has_the_papers_parameters(self):
    """Eight 7x7 layers of 64 with batch norm and no bias, and a classifier."""
    expected = 49 * (3 * 64 + 7 * 64 * 64) + 8 * 2 * 64 + (64 + 1) * 11
    self.assertEqual(num_parameters(SegNetBasic(num_classes=11)), expected)
    self.assertAlmostEqual(expected / 1e6, 1.4, delta=0.05)

  @parameterized.parameters((SegNet, (512, 512, 256, 128, 64)), (SegNetBasic, (64,) * 4))
  def test_only_transposed_upsampling_has_parameters(self, model, channels):
    counts = {way: num_parameters(model(num_classes=11, upsampling=way)) for way in UPSAMPLINGS}
    learned = sum(4 * c * c + c for c in channels)
    self.assertEqual(counts.pop('transposed'), counts['nearest'] + learned)
    self.assertLen(set(counts.values()), 1)

  @parameterized.parameters(*UPSAMPLINGS)
  def test_basic_equals_numpy(self, upsampling):
    model = SegNetBasic(num_classes=3, width=4, norm='none', upsampling=upsampling)
    x = np.random.default_rng(1).normal(size=(2, 19, 30, 3)).astype(np.float32)
    params = random_parameters(model, x)
    logits = jax.jit(model.apply)({'params': params}, x)['logits']
    padded = np.pad(x, ((0, 0), (0, 13), (0, 2), (0, 0)), 'edge')
    expected = Reference(params, upsampling).segnet_basic(padded)[:, :19, :30]
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())

  @parameterized.parameters('max_unpool', 'transposed')
  def test_equals_numpy(self, upsampling):
    model = SegNet(num_classes=3, width=2, norm='none', upsampling=upsampling)
    x = np.random.default_rng(1).normal(size=(1, 33, 64, 3)).astype(np.float32)
    params = random_parameters(model, x)
    logits = jax.jit(model.apply)({'params': params}, x)['logits']
    padded = np.pad(x, ((0, 0), (0, 31), (0, 0), (0, 0)), 'edge')
    expected = Reference(params, upsampling).segnet(padded)[:, :33]
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())

  @parameterized.product(
    model=(SegNet, SegNetBasic), fields=({'upsampling': 'max_pool'}, {'norm': 'bach'})
  )
  def test_an_unknown_choice_is_the_users_error(self, model, fields):
    with self.assertRaisesRegex(UserError, f'model.{next(iter(fields))} is'):
      model(num_classes=2, **fields).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


if __name__ == '__main__':
  absltest.main()
