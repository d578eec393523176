import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.models.recurrent_scene import RecurrentScene


def images(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def random_parameters(model, x):
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)['params']

  def draw(leaf):
    scale = 2 / math.sqrt(math.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
    return (scale * rng.normal(size=leaf.shape)).astype(np.float32)

  return jax.tree.map(draw, shapes)


def instance(params, x):
  """f of the paper in NumPy, pooling with its strides: [h, w, K + C] -> [h', w', K] scores."""

  def conv(x, name):
    kernel, bias = params[name]['kernel'], params[name]['bias']
    height, width = (n - k + 1 for n, k in zip(x.shape[:2], kernel.shape[:2], strict=True))
    taps = np.ndindex(kernel.shape[:2])
    return bias + sum(x[u : u + height, v : v + width] @ kernel[u, v] for u, v in taps)

  for name in ('conv1', 'conv2'):
    x = conv(x, name)
    x = np.maximum(x[0:-1:2], x[1::2])
    x = np.tanh(np.maximum(x[:, 0:-1:2], x[:, 1::2]))
  return conv(x, 'score')


class RecurrentSceneTest(parameterized.TestCase):
  @parameterized.parameters(2, 3)
  def test_has_the_papers_parameters_however_many_instances(self, instances):
    model = RecurrentScene(num_classes=8, norm='none', instances=instances)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    expected = (64 * (8 + 3) + 1) * 25 + (64 * 25 + 1) * 50 + (50 + 1) * 8
    self.assertEqual(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)), expected)

  @parameterized.parameters(4, 6)
  def test_each_pixel_is_labelled_as_its_patch_is(self, kernel_size):
    """Away from the border: the paper's f and f o f, with strides, on one patch for each pixel."""
    model = RecurrentScene(num_classes=2, width=3, kernel_size=kernel_size, norm='none')
    window = 3 * kernel_size + 1
    whole = 4 * (window - 1) + window  # of two instances
    size = whole + 9
    x = images(1, size, size, 3)
    params = random_parameters(model, x)
    outputs = jax.jit(model.apply)({'params': params}, x)
    (first,), second = outputs['aux_logits'], outputs['logits']
    picture = np.asarray(x[0])
    for i, j in ((whole // 2, whole // 2), (whole // 2 + 7, whole // 2 + 2)):
      patch = picture[i - whole // 2 :, j - whole // 2 :][:whole, :whole]
      zeros = np.zeros((whole, whole, 2), np.float32)
      scores = instance(params, np.concatenate([zeros, patch], -1))
      self.assertEqual(scores.shape, (window, window, 2))
      np.testing.assert_allclose(first[0, i, j], scores[window // 2, window // 2], atol=1e-4)
      labels = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
      # The picture at a quarter of the size: blocks around the pixels that the labels are for.
      blocks = patch[window // 2 - 1 :, window // 2 - 1 :][: 4 * window, : 4 * window]
      quarter = blocks.reshape(window, 4, window, 4, 3).mean((1, 3))
      scores = instance(params, np.concatenate([labels, quarter], -1))
      np.testing.assert_allclose(second[0, i, j], scores[0, 0], atol=1e-4)
    self.assertGreater(float(jnp.std(second)), 0.1)

  def test_the_context_grows_from_25_to_121_pixels(self):
    """The paper's figure 2; found by gradients, so the pictures are random and several."""
    model = RecurrentScene(num_classes=2, width=2, norm='none')
    x = images(3, 141, 141, 1)
    params = random_parameters(model, x)

    def middle(x):
      outputs = model.apply({'params': params}, x)
      return jnp.stack([o[:, 70, 70].sum() for o in (*outputs['aux_logits'], outputs['logits'])])

    gradients = jax.jit(jax.jacrev(middle))(x)
    for gradient, reach in zip(gradients, (12, 60), strict=True):
      reached = np.argwhere(np.abs(gradient).sum((0, 3)) > 0)
      np.testing.assert_array_equal(reached.min(0), 70 - reach)
      np.testing.assert_array_equal(reached.max(0), 70 + reach)

  def test_only_later_instances_see_labels(self):
    model = RecurrentScene(num_classes=3, width=2, kernel_size=4, instances=3, norm='none')
    x = images(1, 9, 11, 3)
    params = random_parameters(model, x)
    apply = jax.jit(model.apply)
    before = apply({'params': params}, x)
    self.assertLen(before['aux_logits'], 2)
    blind = jax.tree.map(jnp.asarray, params)
    blind['conv1']['kernel'] = blind['conv1']['kernel'].at[:, :, :3].set(0)
    after = apply({'params': blind}, x)
    np.testing.assert_array_equal(after['aux_logits'][0], before['aux_logits'][0])
    self.assertGreater(float(jnp.abs(after['aux_logits'][1] - before['aux_logits'][1]).max()), 1e-2)
    self.assertGreater(float(jnp.abs(after['logits'] - before['logits']).max()), 1e-2)

  def test_the_last_instances_loss_trains_the_first_through_its_labels(self):
    model = RecurrentScene(num_classes=3, width=2, kernel_size=4, norm='batch')
    x = images(2, 12, 12, 3)
    variables = jax.jit(model.init)(jax.random.key(0), x)

    def last(params):
      outputs, _ = model.apply(
        variables | {'params': params}, x, train=True, mutable=['batch_stats']
      )
      return jnp.sum(outputs['logits'] ** 2)

    gradient = jax.jit(jax.grad(last))(variables['params'])
    for name in ('norm1_instance1', 'norm2_instance1'):
      self.assertGreater(float(jnp.abs(gradient[name]['scale']).max()), 0)

  def test_one_instance_is_a_plain_net(self):
    model = RecurrentScene(num_classes=2, width=2, kernel_size=4, instances=1)
    out = jax.eval_shape(
      lambda x: model.init_with_output(jax.random.key(0), x)[0], jnp.zeros((1, 8, 5, 3))
    )
    self.assertEqual(out['logits'].shape, (1, 8, 5, 2))
    self.assertEqual(out['aux_logits'], ())


if __name__ == '__main__':
  absltest.main()
