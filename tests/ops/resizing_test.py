import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops.resizing import resize_bilinear, transposed_conv

SIZES = ((34, 46), (9, 40), (1, 1))


def random(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


class TransposedConvTest(parameterized.TestCase):
  @parameterized.parameters((1, 3, 4, 2), (2, 5, 3, 3))
  def test_equals_a_loop_over_input_pixels(self, n, height, width, stride):
    x, kernel = random(n, height, width, 4), random(stride, stride, 4, 5)
    y = np.zeros((n, height * stride, width * stride, 5), np.float32)
    for b, i, j, u, v in np.ndindex(n, height, width, stride, stride):
      y[b, stride * i + u, stride * j + v] = x[b, i, j] @ kernel[u, v]
    np.testing.assert_allclose(transposed_conv(jnp.asarray(x), jnp.asarray(kernel)), y, atol=1e-5)

  def test_gradients_equal_pytorch(self):
    try:
      import torch
    except ImportError:
      self.skipTest('PyTorch is not installed')
    x, kernel, gradient = random(2, 5, 7, 4), random(2, 2, 4, 3), random(2, 10, 14, 3)
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    tk = torch.tensor(kernel.transpose(2, 3, 0, 1), requires_grad=True)
    ty = torch.nn.functional.conv_transpose2d(tx, tk, stride=2)
    ty.backward(torch.tensor(gradient.transpose(0, 3, 1, 2)))
    y, pullback = jax.vjp(transposed_conv, jnp.asarray(x), jnp.asarray(kernel))
    dx, dk = pullback(jnp.asarray(gradient))
    np.testing.assert_allclose(y, ty.detach().permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(dx, tx.grad.permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(dk, tk.grad.permute(2, 3, 0, 1), atol=1e-4)


class ResizeBilinearTest(parameterized.TestCase):
  @parameterized.product(size=SIZES, antialias=(True, False))
  def test_value_and_gradient_equal_jax_image_resize(self, size, antialias):
    x, gradient = jnp.asarray(random(2, 17, 23, 3)), jnp.asarray(random(2, *size, 3))

    def oracle(x):
      return jax.image.resize(x, (2, *size, 3), 'bilinear', antialias=antialias)

    y, pullback = jax.vjp(lambda x: resize_bilinear(x, size, antialias), x)
    expected, expected_pullback = jax.vjp(oracle, x)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(pullback(gradient)[0], expected_pullback(gradient)[0], atol=1e-4)

  @parameterized.product(size=SIZES, antialias=(True, False))
  def test_equals_pytorch(self, size, antialias):
    try:
      import torch
    except ImportError:
      self.skipTest('PyTorch is not installed')
    x = random(1, 17, 23, 3)
    expected = torch.nn.functional.interpolate(
      torch.tensor(x.transpose(0, 3, 1, 2)), size, mode='bilinear', antialias=antialias
    )
    y = resize_bilinear(jnp.asarray(x), size, antialias)
    np.testing.assert_allclose(y, expected.permute(0, 2, 3, 1), atol=1e-5)

  def test_same_size_is_the_identity(self):
    x = jnp.asarray(random(1, 5, 6, 2))
    self.assertIs(resize_bilinear(x, (5, 6)), x)


if __name__ == '__main__':
  absltest.main()
