from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from seg_jax.ops import convolution, winograd

# [N, H, W, C, D], padding and rate
GEOMETRIES = {
  'same': ((2, 8, 6, 5, 7), ((1, 1), (1, 1)), 1),
  'odd': ((1, 7, 9, 3, 4), ((1, 1), (1, 1)), 1),
  'valid': ((2, 9, 8, 3, 4), ((0, 0), (0, 0)), 1),
  'full': ((2, 5, 4, 3, 4), ((2, 2), (2, 2)), 1),
  'uneven': ((2, 9, 8, 3, 4), ((2, 0), (1, 2)), 1),
  'one_row': ((2, 3, 3, 3, 4), ((0, 0), (2, 2)), 1),
  'dilated': ((2, 8, 9, 3, 4), ((2, 2), (2, 2)), 2),
  'dilated_uneven': ((2, 8, 9, 3, 4), ((4, 2), (0, 2)), 2),
  'dilated_more': ((1, 11, 10, 3, 4), ((3, 3), (3, 3)), 3),
}


def arrays(shape):
  n, rows, columns, inputs, outputs = shape
  rng = np.random.default_rng(0)
  x = rng.normal(size=(n, rows, columns, inputs))
  kernel = rng.normal(size=(3, 3, inputs, outputs)) / np.sqrt(9 * inputs)
  return x.astype(np.float32), kernel.astype(np.float32)


def by_definition(x, kernel, padding, rate):
  """The convolution, tap by tap, in float64."""
  x = np.pad(x.astype(np.float64), ((0, 0), *padding, (0, 0)))
  rows, columns = (n - 2 * rate for n in x.shape[1:3])
  return sum(
    x[:, i * rate : i * rate + rows, j * rate : j * rate + columns] @ kernel[i, j]
    for i in range(3)
    for j in range(3)
  )


def one_by_one(x, kernel, cotangent):
  """Value and gradients, padded by 1 on all sides: product after product is added, in x's dtype."""
  rows, columns = x.shape[1:3]
  border = ((0, 0), (1, 1), (1, 1), (0, 0))
  padded, padded_cotangent = np.pad(x, border), np.pad(cotangent, border)
  y, of_x, of_kernel = np.zeros_like(cotangent), np.zeros_like(x), np.zeros_like(kernel)
  for i in range(3):
    for j in range(3):
      seen = padded[:, i : i + rows, j : j + columns]
      for c in range(kernel.shape[2]):
        y += seen[..., c, None] * kernel[i, j, c]
      turned = padded_cotangent[:, 2 - i : 2 - i + rows, 2 - j : 2 - j + columns]
      for d in range(kernel.shape[3]):
        of_x += turned[..., d, None] * kernel[i, j, :, d]
      for pixel in np.ndindex(cotangent.shape[:3]):
        of_kernel[i, j] += np.outer(seen[pixel], cotangent[pixel])
  return y, of_x, of_kernel


def plainly(x, kernel, padding, rate):
  return lax.conv_general_dilated(
    x,
    kernel,
    (1, 1),
    padding,
    rhs_dilation=(rate, rate),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def with_gradients(x, kernel, padding, rate, cotangent):
  """The result by the definition, and the gradients of XLA's own convolution."""
  _, pullback = jax.vjp(lambda x, kernel: plainly(x, kernel, padding, rate), x, kernel)
  return by_definition(x, kernel, padding, rate), *pullback(cotangent)


class WinogradTest(parameterized.TestCase):
  # All at once, some pictures at a time, and bands of one row of tiles.
  @parameterized.product(basis=winograd._BASES, geometry=tuple(GEOMETRIES), large=(2**22, 2000, 1))
  def test_value_and_gradients(self, basis, geometry, large):
    shape, padding, rate = GEOMETRIES[geometry]
    x, kernel = arrays(shape)
    size = jax.eval_shape(lambda: plainly(x, kernel, padding, rate)).shape
    cotangent = np.random.default_rng(1).normal(size=size).astype(np.float32)
    expected = with_gradients(x, kernel, padding, rate, cotangent)
    with mock.patch.multiple(winograd, _BASES=(basis,), _LARGE=large):
      y = jax.jit(winograd.convolve, static_argnums=(2, 3))(x, kernel, padding, rate)
      of = jax.jit(winograd.gradients, static_argnums=(3, 4))(x, kernel, cotangent, padding, rate)
    for got, right in zip((y, *of), expected, strict=True):
      np.testing.assert_allclose(got, right, atol=2e-5)

  # Errors (RMS) of the value and of both gradients, by those of a sum of product after product.
  # (What those of XLA's own are depends on the processor: it adds up in blocks that fit the cache.)
  @parameterized.product(basis_limit=((winograd._F2, 1), (winograd._F4, 2.2)), channels=(64, 512))
  def test_is_as_exact_as_it_says(self, basis_limit, channels):
    basis, limit = basis_limit
    x, kernel = arrays((2, 16, 16, channels, 64))
    cotangent = np.random.default_rng(1).normal(size=(2, 16, 16, 64)).astype(np.float32)
    padding = ((1, 1), (1, 1))
    with mock.patch.object(winograd, '_BASES', (basis,)):
      y = winograd.convolve(x, kernel, padding)
      own = y, *winograd.gradients(x, kernel, cotangent, padding)
    exact = one_by_one(*(a.astype(np.float64) for a in (x, kernel, cotangent)))
    plain = one_by_one(x, kernel, cotangent)
    for right, theirs, ours in zip(exact, plain, own, strict=True):
      errors = [np.sqrt(np.mean((got - right) ** 2)) for got in (theirs, ours)]
      self.assertLess(errors[1], limit * errors[0])

  @parameterized.parameters(((2, 16, 16, 64), 2), ((4, 32, 32, 64), 4))
  def test_small_maps_have_small_tiles(self, shape, tile):
    self.assertEqual(winograd._quickest(shape, ((1, 1), (1, 1))).tile, tile)

  @parameterized.parameters(
    ((4, 32, 32, 64), (3, 3, 64, 128), 1, True),
    ((4, 32, 32, 64), (3, 3, 64, 128), 2, True),
    ((4, 32, 32, 64), (3, 3, 64, 128), 12, False),  # half of the tiles would be padding
    ((8, 64, 64, 64), (3, 3, 64, 32), 1, False),  # few channels
    ((1, 8, 8, 512), (3, 3, 512, 1024), 1, False),  # few pixels
    ((1, 32, 32, 64), (3, 3, 64, 128), 1, False),  # little to do
    ((1, 1024, 512, 64), (3, 3, 64, 64), 1, False),  # much to copy
    ((4, 32, 32, 64), (5, 5, 64, 128), 1, False),
  )
  def test_convolve_takes_it_where_it_pays(self, shape, kernel_shape, rate, taken):
    x, kernel = jnp.zeros(shape), jnp.zeros(kernel_shape)

    @jax.grad
    def total(x, kernel):
      return convolution.convolve(x, kernel, (1, 1), 'SAME', rhs_dilation=(rate, rate)).sum()

    with (
      mock.patch.object(winograd, 'convolve', wraps=winograd.convolve) as value,
      mock.patch.object(winograd, 'gradients', wraps=winograd.gradients) as gradients,
    ):
      jax.make_jaxpr(total)(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
      self.assertFalse(value.called or gradients.called)
      jax.make_jaxpr(total)(x, kernel)
      self.assertEqual((value.called, gradients.called), (taken, taken))

  def test_convolve_gives_the_same_with_it(self):
    x, kernel = arrays((4, 32, 32, 64, 128))
    cotangent = np.random.default_rng(1).normal(size=(4, 32, 32, 128)).astype(np.float32)

    @jax.jit
    def run(x, kernel):
      y, pullback = jax.vjp(
        lambda x, kernel: convolution.convolve(x, kernel, (1, 1), 'SAME'), x, kernel
      )
      return y, *pullback(cotangent)

    expected = with_gradients(x, kernel, ((1, 1), (1, 1)), 1, cotangent)
    for got, right in zip(run(x, kernel), expected, strict=True):
      np.testing.assert_allclose(got, right, atol=1e-5 * np.abs(right).max())


if __name__ == '__main__':
  absltest.main()
