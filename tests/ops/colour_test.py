import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops.colour import photometric

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 30, 20, 3)).astype(np.float32)
LUMA = np.array([0.299, 0.587, 0.114])


def one_after_the_other(image, brightness, contrast, saturation):
  """The three changes of one picture [H, W, 3] in turn, by their definitions, unclipped."""
  image = image.astype(np.float64) * brightness
  image = contrast * image + (1 - contrast) * (image @ LUMA).mean()
  return saturation * image + (1 - saturation) * (image @ LUMA)[..., None]


def factors_of(image, result):
  """The factors that made `result` of `image`: the affine map is fitted to what is not clipped."""
  inside = ((result > 0) & (result < 255)).all(-1)
  pixels = np.c_[image[inside], np.ones(inside.sum())].astype(np.float64)
  fitted = np.linalg.lstsq(pixels, result[inside].astype(np.float64), rcond=None)[0]
  matrix, offset = fitted[:3], fitted[3].mean()
  # matrix[k, i] = brightness * contrast * (saturation * (k == i) + (1 - saturation) * LUMA[k])
  product = matrix.sum(0).mean()
  brightness = product + offset / (image @ LUMA).mean()
  return brightness, product / brightness, (np.trace(matrix) / product - 1) / 2


class PhotometricTest(parameterized.TestCase):
  @parameterized.parameters(0.1, 0.4, 0.8)
  def test_equals_the_three_changes_in_turn(self, strength):
    for seed in range(10):
      results = np.asarray(photometric(jax.random.key(seed), jnp.asarray(IMAGES), strength))
      for image, result in zip(IMAGES, results, strict=True):
        factors = factors_of(image, result)
        expected = np.clip(one_after_the_other(image, *factors), 0, 255)
        np.testing.assert_allclose(result, expected, atol=0.01)
        self.assertTrue(all(1 - strength < factor < 1 + strength for factor in factors), factors)

  def test_factors_are_uniform_and_independent_of_each_other(self):
    images = np.repeat(64 + IMAGES[:1, :6, :6] / 4, 600, 0)  # nothing is clipped
    results = np.asarray(photometric(jax.random.key(1), jnp.asarray(images), 0.4))
    factors = np.array([factors_of(*pair) for pair in zip(images, results, strict=True)])
    quantiles = np.quantile(factors, (0.0, 0.25, 0.5, 0.75, 1.0), axis=0)
    for column in quantiles.T:
      np.testing.assert_allclose(column, (0.6, 0.8, 1.0, 1.2, 1.4), atol=0.05)
    correlation = np.corrcoef(factors.T) - np.eye(3)
    self.assertLess(abs(correlation).max(), 0.15)

  def test_strength_zero_is_the_identity(self):
    np.testing.assert_array_equal(photometric(jax.random.key(0), jnp.asarray(IMAGES), 0.0), IMAGES)

  def test_the_key_decides_and_each_picture_draws_its_own(self):
    same = jnp.repeat(jnp.asarray(IMAGES[:1]), 3, 0)
    first, again, other = (photometric(jax.random.key(k), same, 0.3) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    self.assertGreater(float(jnp.abs(first - other).max()), 1)
    for i in range(3):
      self.assertGreater(float(jnp.abs(first[i] - first[i - 1]).max()), 1)

  def test_stays_within_its_range_which_may_be_another(self):
    key = jax.random.key(0)
    bytes_ = photometric(key, jnp.asarray(IMAGES), 0.5)
    self.assertEqual((float(bytes_.min()), float(bytes_.max())), (0, 255))
    shares = photometric(key, jnp.asarray(IMAGES / 255), 0.5, largest=1.0)
    np.testing.assert_allclose(shares, bytes_ / 255, atol=1e-6)
    self.assertEqual(bytes_.dtype, jnp.float32)

  def test_jit_changes_nothing_that_could_be_seen(self):
    plain = photometric(jax.random.key(2), jnp.asarray(IMAGES), 0.3)
    jitted = jax.jit(photometric, static_argnums=2)(jax.random.key(2), jnp.asarray(IMAGES), 0.3)
    np.testing.assert_allclose(jitted, plain, atol=1e-3)


if __name__ == '__main__':
  absltest.main()
