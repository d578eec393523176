import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from seg_jax.ops.matrices import conv_matrix
from seg_jax.ops.resizing import transposed_conv

CASES = (  # kernel, input, stride, padding
  ((3,), (7,), 1, 0),
  ((3,), (7,), 2, 1),
  ((4,), (9,), 3, 2),
  ((3, 3), (5, 6), 1, 1),
  ((3, 2), (7, 5), 2, 0),
  ((4, 4), (5, 5), 3, 2),
  ((1, 3), (4, 6), 2, 0),  # strides that skip pixels
)


def random(*shape):
  return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def convolution(a, kernel, stride, padding):
  """lax's, of one channel, in 1-D or 2-D."""
  axes = kernel.ndim
  y = lax.conv_general_dilated(
    a[None, None], kernel[None, None], [stride] * axes, [(padding, padding)] * axes
  )
  return y[0, 0]


class ConvMatrixTest(parameterized.TestCase):
  def test_the_lectures_example_by_hand(self):
    x, y, z = 2.0, 3.0, 5.0
    kernel = jnp.asarray([x, y, z])
    stride1 = [[y, z, 0, 0], [x, y, z, 0], [0, x, y, z], [0, 0, x, y]]
    np.testing.assert_array_equal(conv_matrix(kernel, (4,), 1, 1), stride1)
    np.testing.assert_array_equal(conv_matrix(kernel, (4,), 2, 1), [[y, z, 0, 0], [0, x, y, z]])

  @parameterized.parameters(*CASES)
  def test_equals_convolution_and_its_transpose(self, kernel_shape, input_shape, stride, padding):
    kernel, a = random(*kernel_shape), random(*input_shape)

    @jax.jit
    def both(kernel, a):
      y, transpose = jax.vjp(lambda a: convolution(a, kernel, stride, padding), a)
      return conv_matrix(kernel, input_shape, stride, padding), y, transpose(y)[0]

    matrix, y, transposed = (np.asarray(x) for x in both(kernel, a))
    self.assertEqual(matrix.shape, (y.size, a.size))
    np.testing.assert_allclose(matrix @ a.ravel(), y.ravel(), atol=1e-5)
    np.testing.assert_allclose(matrix.T @ y.ravel(), transposed.ravel(), atol=1e-4)

  @parameterized.parameters((3, 2, 1), (4, 2, 1), (5, 3, 0))
  def test_transpose_is_the_networks_transposed_convolution(self, size, stride, padding):
    kernel, b = random(size, size), random(4, 3)

    @jax.jit
    def both(kernel, b):
      y = transposed_conv(b[None, ..., None], kernel[..., None, None], stride, padding)
      return y, conv_matrix(kernel, y.shape[1:3], stride, padding)

    y, matrix = (np.asarray(x) for x in both(kernel, b))
    np.testing.assert_allclose(matrix.T @ b.ravel(), y.ravel(), atol=1e-5)

  def test_what_does_not_fit_is_an_error(self):
    with self.assertRaises(ValueError):
      conv_matrix(jnp.ones((3, 3)), (5,))
    with self.assertRaises(ValueError):
      conv_matrix(jnp.ones((5,)), (2,), padding=1)


if __name__ == '__main__':
  absltest.main()
