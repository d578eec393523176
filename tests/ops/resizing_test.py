import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops.resizing import (
  bilinear_kernel,
  resize_bilinear,
  resize_nearest,
  transposed_conv,
  upsample,
)

try:
  import torch
except ImportError:
  torch = None

SIZES = ((34, 46), (9, 40), (1, 1))


def random(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def to_torch(x):
  return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2), requires_grad=True)


def from_torch(x):
  return x.detach().permute(0, 2, 3, 1).numpy()


def value_and_gradients(f, *args):
  """The value, a random cotangent for it, and the gradients that it gives; compiled at once."""
  shape = jax.eval_shape(f, *args)
  cotangent = random(*shape.shape).astype(shape.dtype)

  @jax.jit
  def both(cotangent, *args):
    y, pullback = jax.vjp(f, *args)
    return y, pullback(cotangent)

  y, gradients = both(cotangent, *args)
  return y, cotangent, *gradients


def loop_over_pixels(x, kernel, stride, padding):
  """The definition: a kernel for each input pixel, a stride apart; then the border is cut off."""
  n, height, width, _ = x.shape
  rows, columns, _, features = kernel.shape
  y = np.zeros(
    (n, (height - 1) * stride + rows, (width - 1) * stride + columns, features), np.float32
  )
  for i, j in np.ndindex(height, width):
    part = np.einsum('nc,uvcd->nuvd', x[:, i, j], kernel)
    y[:, stride * i : stride * i + rows, stride * j : stride * j + columns] += part
  return y[:, padding : y.shape[1] - padding, padding : y.shape[2] - padding]


class TransposedConvTest(parameterized.TestCase):
  @parameterized.parameters(  # kernel, stride, padding
    (2, 2, 0),
    (3, 3, 1),
    (4, 2, 1),
    (6, 2, 3),
    (3, 1, 1),
    (3, 2, 1),
    (3, 2, 4),  # more than a kernel is cut off
    (5, 3, 0),
    (1, 2, 0),  # gaps
  )
  def test_equals_a_loop_and_pytorch_with_gradients(self, size, stride, padding):
    x, kernel = random(2, 6, 7, 3), random(size, size, 3, 4)
    f = functools.partial(transposed_conv, stride=stride, padding=padding)
    y, gradient, dx, dk = value_and_gradients(f, x, kernel)
    self.assertEqual(y.shape[1], 5 * stride - 2 * padding + size)
    np.testing.assert_allclose(y, loop_over_pixels(x, kernel, stride, padding), atol=1e-4)
    if torch is None:
      self.skipTest('PyTorch is not installed: gradients are not compared')
    tx, tk = to_torch(x), torch.tensor(kernel.transpose(2, 3, 0, 1), requires_grad=True)
    torch.nn.functional.conv_transpose2d(tx, tk, stride=stride, padding=padding).backward(
      to_torch(gradient)
    )
    np.testing.assert_allclose(dx, from_torch(tx.grad), atol=1e-4)
    np.testing.assert_allclose(dk, tk.grad.permute(2, 3, 0, 1), atol=1e-4)

  @parameterized.parameters((2, 3), (4, 2), (4, 3))
  def test_kernels_need_not_be_square(self, rows, columns):
    x, kernel = random(1, 3, 4, 2), random(rows, columns, 2, 3)
    y = transposed_conv(jnp.asarray(x), jnp.asarray(kernel), 2, 1)
    np.testing.assert_allclose(y, loop_over_pixels(x, kernel, 2, 1), atol=1e-5)

  def test_the_stride_is_the_kernels_size_by_default(self):
    x, kernel = random(1, 3, 4, 2), random(3, 3, 2, 3)
    y = transposed_conv(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(y, loop_over_pixels(x, kernel, 3, 0), atol=1e-5)

  @parameterized.parameters(2, 3, 4)
  def test_bfloat16_stays_bfloat16(self, size):
    x, kernel = random(1, 3, 4, 2), random(size, size, 2, 3)
    f = functools.partial(transposed_conv, stride=2)
    y, _, *gradients = value_and_gradients(f, x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    self.assertEqual({y.dtype, *(g.dtype for g in gradients)}, {jnp.dtype(jnp.bfloat16)})
    np.testing.assert_allclose(
      np.asarray(y, np.float32), loop_over_pixels(x, kernel, 2, 0), atol=0.1
    )

  def test_padding_that_leaves_nothing_is_an_error(self):
    with self.assertRaises(ValueError):
      transposed_conv(jnp.ones((1, 2, 2, 1)), jnp.ones((4, 4, 1, 1)), 2, 3)


class UpsampleTest(parameterized.TestCase):
  @parameterized.parameters((2, 2), (3, 2), (4, 2), (5, 2), (7, 3), (8, 3))
  def test_equals_laxs_same_padding(self, size, stride):
    x, kernel = jnp.asarray(random(1, 4, 5, 2)), jnp.asarray(random(size, size, 2, 3))
    expected = jax.lax.conv_transpose(x, kernel[::-1, ::-1], (stride, stride), 'SAME')
    self.assertEqual(expected.shape, (1, 4 * stride, 5 * stride, 3))
    np.testing.assert_allclose(upsample(x, kernel, stride), expected, atol=1e-5)

  def test_gaps_are_an_error(self):
    with self.assertRaises(ValueError):
      upsample(jnp.ones((1, 2, 2, 1)), jnp.ones((2, 2, 1, 1)), 3)

  @parameterized.parameters(1, 2, 3, 4, 8)
  def test_bilinear_kernel_is_fcns(self, stride):
    """As `surgery.py` of FCN's authors fills its deconvolutions."""
    size = 2 * stride - stride % 2
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 == 1 else factor - 0.5
    rows, columns = np.ogrid[:size, :size]
    filt = (1 - abs(rows - centre) / factor) * (1 - abs(columns - centre) / factor)
    kernel = bilinear_kernel(stride, 3)
    self.assertEqual((kernel.shape, kernel.dtype), ((size, size, 3, 3), jnp.float32))
    for c, d in np.ndindex(3, 3):
      np.testing.assert_allclose(kernel[:, :, c, d], filt if c == d else 0 * filt, atol=1e-7)

  @parameterized.parameters(2, 3, 4)
  def test_with_the_bilinear_kernel_it_interpolates_but_for_the_border(self, stride):
    x = jnp.asarray(random(2, 5, 6, 3))
    y = upsample(x, bilinear_kernel(stride, 3), stride)
    expected = resize_bilinear(x, (5 * stride, 6 * stride))
    inside = (slice(None), slice(stride, -stride), slice(stride, -stride))
    self.assertEqual(y.shape, expected.shape)
    np.testing.assert_allclose(y[inside], expected[inside], atol=1e-5)


class ResizeBilinearTest(parameterized.TestCase):
  @parameterized.product(size=SIZES, antialias=(True, False))
  def test_value_and_gradient_equal_jax_image_resize(self, size, antialias):
    x = random(2, 17, 23, 3)

    def oracle(x):
      return jax.image.resize(x, (2, *size, 3), 'bilinear', antialias=antialias)

    y, _, dx = value_and_gradients(lambda x: resize_bilinear(x, size, antialias), x)
    expected, _, expected_dx = value_and_gradients(oracle, x)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(dx, expected_dx, atol=1e-4)

  @parameterized.product(size=SIZES, how=({'antialias': True}, {}, {'align_corners': True}))
  def test_value_and_gradient_equal_pytorch(self, size, how):
    if torch is None:
      self.skipTest('PyTorch is not installed')
    x = random(1, 17, 23, 3)
    ours = {'antialias': False, **how}
    y, gradient, dx = value_and_gradients(lambda x: resize_bilinear(x, size, **ours), x)
    tx = to_torch(x)
    expected = torch.nn.functional.interpolate(tx, size, mode='bilinear', **how)
    expected.backward(to_torch(gradient))
    np.testing.assert_allclose(y, from_torch(expected), atol=1e-5)
    np.testing.assert_allclose(dx, from_torch(tx.grad), atol=1e-4)

  def test_corners_stay_in_place(self):
    x = jnp.asarray([0.0, 3.0, 6.0]).reshape(1, 3, 1, 1)
    y = resize_bilinear(x, (7, 1), align_corners=True)
    np.testing.assert_allclose(y.ravel(), [0, 1, 2, 3, 4, 5, 6], atol=1e-6)
    y = resize_bilinear(x, (6, 1))
    np.testing.assert_allclose(y.ravel(), [0, 0.75, 2.25, 3.75, 5.25, 6], atol=1e-6)

  def test_antialias_with_aligned_corners_keeps_a_ramp_in_place(self):
    x = jnp.arange(41, dtype=jnp.float32).reshape(1, 41, 1, 1)
    y = resize_bilinear(x, (11, 1), align_corners=True).ravel()
    np.testing.assert_allclose(y[1:-1], np.arange(4, 40, 4), atol=1e-4)
    # At the border half of the triangle is left: the mean of 0 to 3 with weights 4, 3, 2, 1.
    np.testing.assert_allclose((y[0], y[-1]), (1, 39), atol=1e-4)

  def test_bfloat16_is_summed_in_float32(self):
    x = np.ones((1, 90, 2, 1), jnp.bfloat16)  # 90 small weights that sum to 1
    y = jax.jit(lambda x: resize_bilinear(x, (1, 2)))(x)
    self.assertEqual(y.dtype, jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.ones((1, 1, 2, 1)))

  def test_same_size_is_the_identity(self):
    x = jnp.asarray(random(1, 5, 6, 2))
    self.assertIs(resize_bilinear(x, (5, 6)), x)


class ResizeNearestTest(parameterized.TestCase):
  @parameterized.parameters((34, 46), (8, 41), (1, 1), (51, 5))
  def test_value_and_gradient_equal_pytorchs_nearest_exact(self, *size):
    if torch is None:
      self.skipTest('PyTorch is not installed')
    x = random(1, 17, 23, 3)
    y, gradient, dx = value_and_gradients(lambda x: resize_nearest(x, size), x)
    tx = to_torch(x)
    expected = torch.nn.functional.interpolate(tx, size, mode='nearest-exact')
    expected.backward(to_torch(gradient))
    np.testing.assert_array_equal(y, from_torch(expected))
    np.testing.assert_allclose(dx, from_torch(tx.grad), atol=1e-4)

  @parameterized.product(old=(1, 2, 5, 8), new=(1, 3, 4, 16), align_corners=(True, False))
  def test_equals_a_search_for_the_nearest(self, old, new, align_corners):
    """Distances in units that make them integers, so that ties are ties."""
    expected = []
    for i in range(new):
      if align_corners:
        distances = [abs(i * (old - 1) - j * (new - 1)) for j in range(old)]
        distances = distances if new > 1 else range(old)  # a single one is the first
      else:
        distances = [abs((2 * i + 1) * old - (2 * j + 1) * new) for j in range(old)]
      expected.append(max(j for j in range(old) if distances[j] == min(distances)))
    x = jnp.arange(old, dtype=jnp.int32).reshape(1, 1, old)
    np.testing.assert_array_equal(resize_nearest(x, (1, new), align_corners).ravel(), expected)

  def test_labels_keep_shape_and_dtype(self):
    labels = jnp.asarray([[[0, 255], [7, 3]]], jnp.uint8)
    y = resize_nearest(labels, (4, 2))
    self.assertEqual(y.dtype, jnp.uint8)
    np.testing.assert_array_equal(y, [[[0, 255], [0, 255], [7, 3], [7, 3]]])


if __name__ == '__main__':
  absltest.main()
