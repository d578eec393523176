import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from seg_jax.models.multi_scale import MultiScale, laplacian_pyramid, local_norm


def images(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def shapes(model):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']


def random_parameters(model):
  rng = np.random.default_rng(1)

  def draw(leaf):
    scale = 1.5 / math.sqrt(math.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
    return jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32)

  return jax.tree.map(draw, shapes(model))


def num_parameters(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def grown(x, size):
  return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), 'linear')


class MultiScaleTest(parameterized.TestCase):
  def test_has_the_papers_widths(self):
    """16, 64 and 256 maps, fully connected, once for all scales; 768 features, 1024 hidden."""
    expected = (49 * 3 + 1) * 16 + (49 * 16 + 1) * 64 + (49 * 64 + 1) * 256
    expected += (3 * 256 + 1) * 1024 + (1024 + 1) * 8
    self.assertEqual(num_parameters(shapes(MultiScale(num_classes=8, norm='none'))), expected)

  def test_all_scales_share_the_features(self):
    one, three = (shapes(MultiScale(num_classes=8, norm='none', scales=n)) for n in (1, 3))
    extra = num_parameters(three) - num_parameters(one)
    self.assertEqual(extra, 2 * 256 * 1024)  # only the classifier grows

  def test_is_the_classifier_of_all_scales_upsampled_features(self):
    """The paper's order, upsample, concatenate, classify, with `lax`'s and `jax.image`'s parts."""
    model = MultiScale(num_classes=3, width=2, hidden=6, norm='none')
    x = images(2, 32, 48, 3)
    params = random_parameters(model)

    def conv(x, name):
      kernel, bias = params[name]['kernel'], params[name]['bias']
      layout = ('NHWC', 'HWIO', 'NHWC')
      y = lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=layout)
      return y + bias.reshape(1, 1, 1, -1)

    def pool(x):
      return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')

    @jax.jit
    def reference(yuv):
      features = []
      for band in laplacian_pyramid(yuv, 3):
        maps = local_norm(band)
        maps = pool(jnp.tanh(conv(maps, 'conv1')))
        maps = pool(jnp.tanh(conv(maps, 'conv2')))
        features.append(grown(conv(maps, 'conv3'), (8, 12)))
      features = jnp.concatenate(features, -1)
      self.assertEqual(features.shape, (2, 8, 12, 3 * 32))
      kernel = jnp.concatenate([params[f'hidden_scale{s}']['kernel'][0, 0] for s in (1, 2, 3)])
      hidden = features @ kernel + params['hidden_scale1']['bias'].reshape(1, 1, 1, -1)
      return grown(conv(jnp.tanh(hidden), 'score'), (32, 48))

    r, g, b = (np.asarray(x)[..., i] for i in range(3))
    y = 0.299 * r + 0.587 * g + 0.114 * b  # and U and V from their definition
    expected = reference(jnp.asarray(np.stack([y, 0.492 * (b - y), 0.877 * (r - y)], -1)))
    actual = jax.jit(model.apply)({'params': params}, x)['logits']
    self.assertGreater(float(jnp.std(expected)), 0.1)
    # The published U and V are rounded to three digits.
    np.testing.assert_allclose(actual, expected, atol=2e-2 * float(jnp.std(expected)))

  def test_pictures_of_other_bands_fit_too(self):
    model = MultiScale(num_classes=2, width=1, hidden=2)
    out = jax.eval_shape(
      lambda x: model.init_with_output(jax.random.key(0), x)[0], jnp.zeros((1, 33, 18, 5))
    )
    self.assertEqual(out['logits'].shape, (1, 33, 18, 2))


class LaplacianPyramidTest(parameterized.TestCase):
  def test_adds_up_to_the_picture(self):
    x = images(2, 24, 40, 3)
    bands = laplacian_pyramid(x, 3)
    self.assertEqual([band.shape[1:3] for band in bands], [(24, 40), (12, 20), (6, 10)])
    total = bands[-1]
    for band in bands[-2::-1]:
      total = band + grown(total, band.shape[1:3])
    np.testing.assert_allclose(total, x, atol=1e-5)

  def test_a_flat_picture_is_in_the_last_band_alone(self):
    *bands, last = laplacian_pyramid(jnp.full((1, 16, 16, 1), 3.0), 3)
    np.testing.assert_allclose(last, 3, atol=1e-5)
    for band in bands:
      np.testing.assert_allclose(band, 0, atol=1e-5)


class LocalNormTest(parameterized.TestCase):
  @parameterized.parameters((5, (9, 13)), (15, (6, 20)))
  def test_equals_a_loop_over_neighbourhoods(self, size, shape):
    x = 1 + 2 * np.asarray(images(1, *shape, 2))
    x[:, :3, :3] *= 1e-3  # so that the floor is reached

    def around(x, i, j):
      half = size // 2
      return x[:, max(i - half, 0) : i + half + 1, max(j - half, 0) : j + half + 1]

    centred, expected = np.zeros_like(x), np.zeros_like(x)
    for i, j in np.ndindex(shape):
      centred[:, i, j] = x[:, i, j] - around(x, i, j).mean((1, 2))
    for i, j in np.ndindex(shape):
      deviation = np.sqrt((around(centred, i, j) ** 2).mean((1, 2)))
      expected[:, i, j] = centred[:, i, j] / np.maximum(deviation, 0.4)
    actual = jax.jit(local_norm, static_argnums=(1, 2))(x, size, 0.4)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


if __name__ == '__main__':
  absltest.main()
