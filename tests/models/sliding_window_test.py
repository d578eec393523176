import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.sliding_window import METHODS, SlidingWindow

SMALL = SlidingWindow(num_classes=3, width=4, depth=1, hidden=5)


def images(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def random_variables(model, x):
  """No zeros and no ones, so that whatever is left out shows."""
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    noise = rng.normal(size=leaf.shape)
    if 'kernel' in jax.tree_util.keystr(path):
      return jnp.asarray(noise * np.sqrt(2 / np.prod(leaf.shape[:-1])), jnp.float32)
    return jnp.asarray(np.exp(0.3 * noise), jnp.float32)

  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  return jax.tree_util.tree_map_with_path(draw, shapes)


def logits(model, variables, x):
  return np.asarray(jax.jit(lambda v, x: model.apply(v, x)['logits'])(variables, x))


def classify(model, variables, crops):
  """The patch classifier in NumPy: [M, window, window, C] -> [M, num_classes]."""
  params, stats = (jax.tree.map(np.asarray, variables[k]) for k in ('params', 'batch_stats'))

  def conv(x, name):
    kernel = params[name]['kernel']
    height, width = (n - k + 1 for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True))
    taps = np.ndindex(kernel.shape[:2])
    return sum(x[:, u : u + height, v : v + width] @ kernel[u, v] for u, v in taps)

  def norm(x, name):
    (mean, var), (scale, bias) = (
      (tree[name][a], tree[name][b])
      for tree, a, b in ((stats, 'mean', 'var'), (params, 'scale', 'bias'))
    )
    return np.maximum((x - mean) / np.sqrt(var + 1e-5) * scale + bias, 0)

  x = crops
  for stage in range(1, model.depth + 2):
    for i in range(1, model.convolutions + 1):
      x = norm(conv(x, f'conv{stage}_{i}'), f'norm{stage}_{i}')
    if stage <= model.depth:
      x = np.maximum(x[:, ::2], x[:, 1::2])
      x = np.maximum(x[:, :, ::2], x[:, :, 1::2])
  x = norm(conv(x, 'fc'), 'norm_fc')
  return (conv(x, 'score') + params['score']['bias'])[:, 0, 0]


def window_by_window(model, variables, x):
  """Each pixel by its own window, one after the other."""
  n, height, width, _ = x.shape
  before = (model.window - 1) // 2
  margin = (before, model.window - 1 - before)
  padded = np.pad(np.asarray(x), ((0, 0), margin, margin, (0, 0)), 'symmetric')
  scores = np.zeros((n, height, width, model.num_classes), np.float32)
  for i in range(height):
    for j in range(width):
      crops = padded[:, i : i + model.window, j : j + model.window]
      scores[:, i, j] = classify(model, variables, crops)
  return scores


class SlidingWindowTest(parameterized.TestCase):
  @parameterized.parameters((0, 2, 5), (1, 1, 8), (1, 2, 14), (2, 2, 32), (3, 2, 68), (3, 3, 98))
  def test_the_classifier_makes_one_pixel_of_its_window(self, depth, convolutions, window):
    model = SlidingWindow(2, width=2, depth=depth, convolutions=convolutions, hidden=3)
    self.assertEqual(model.window, window)
    x = jnp.zeros((1, window, window, 3))
    for output_stride in (1, model.stride):
      out, _ = jax.eval_shape(
        lambda key, s=output_stride: model.init_with_output(key, x, False, s, method='classifier'),
        jax.random.key(0),
      )
      self.assertEqual(out.shape, (1, 1, 1, 2))

  @parameterized.parameters((1, 2, (2, 7, 10)), (2, 2, (1, 9, 6)), (1, 1, (1, 12, 4)))
  def test_the_dense_methods_equal_a_loop_over_windows(self, depth, convolutions, shape):
    """Everywhere, also where the picture is mirrored, which is smaller than the window."""
    model = SMALL.clone(depth=depth, convolutions=convolutions)
    x = images(*shape, 3)
    variables = random_variables(model, x)
    expected = window_by_window(model, variables, x)
    self.assertGreater(expected.std(axis=(0, 1, 2)).min(), 0.03)
    for method in ('atrous', 'shift_and_stitch', 'crops'):
      actual = logits(model.clone(method=method), variables, x)
      np.testing.assert_allclose(actual, expected, atol=1e-4, err_msg=method)

  def test_the_heatmap_fills_each_cell_with_the_score_of_its_middle(self):
    model = SMALL.clone(depth=2)
    x = images(1, 10, 15, 3)
    variables = random_variables(model, x)
    dense = logits(model, variables, x)
    heatmap = logits(model.clone(method='heatmap'), variables, x)
    self.assertEqual(heatmap.shape, dense.shape)
    for i in range(10):
      for j in range(15):
        middle = (i // 4 * 4 + 1, j // 4 * 4 + 1)  # of four the second, as of a window
        if middle[0] < 10 and middle[1] < 15:
          np.testing.assert_allclose(heatmap[:, i, j], dense[:, *middle], atol=1e-4)

  def test_the_heatmap_is_crops_at_the_nets_stride(self):
    model = SMALL.clone(depth=2)
    x = images(2, 9, 13, 3)
    variables = random_variables(model, x)
    heatmap = logits(model.clone(method='heatmap'), variables, x)
    crops = logits(model.clone(method='crops', crop_stride=4), variables, x)
    np.testing.assert_allclose(crops, heatmap, atol=1e-4)

  @parameterized.parameters(2, 3, 14)
  def test_crops_at_any_stride_are_the_dense_map_with_steps(self, stride):
    x = images(1, 20, 17, 3)
    variables = random_variables(SMALL, x)
    dense = logits(SMALL, variables, x)
    crops = logits(SMALL.clone(method='crops', crop_stride=stride), variables, x)
    middle = (stride - 1) // 2
    expected = dense[:, middle::stride, middle::stride]
    rows, columns = expected.shape[1:3]
    blocks = crops[:, ::stride, ::stride][:, :rows, :columns]
    np.testing.assert_allclose(blocks, expected, atol=1e-4)
    np.testing.assert_array_equal(crops[:, 0, 0], crops[:, stride - 1, stride - 1])

  def test_training_is_dense_whatever_the_method(self):
    x = images(2, 8, 9, 3)
    variables = random_variables(SMALL, x)
    runs = {}
    for method in METHODS:
      model = SMALL.clone(method=method)
      train = functools.partial(model.apply, train=True, mutable=['batch_stats'])
      runs[method] = jax.jit(train)(variables, x)
    out, state = runs['atrous']
    self.assertGreater(float(jnp.abs(out['logits'][:, 0] - out['logits'][:, 1]).max()), 1e-3)
    for other in runs.values():
      jax.tree.map(np.testing.assert_array_equal, other, (out, state))

  @parameterized.parameters(
    {'method': 'atrou'}, {'crop_stride': 0}, {'crop_stride': 15}, {'norm': 'bach'}
  )
  def test_a_wrong_choice_is_the_users_error(self, **fields):
    with self.assertRaisesRegex(UserError, f'model.{next(iter(fields))} is'):
      SMALL.clone(**fields).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


if __name__ == '__main__':
  absltest.main()
