import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from seg_jax.ops import mean_field

FORMS = {'exact': mean_field.exact, 'lattice': mean_field.lattice, 'window': mean_field.window}
THETAS = (4.0, 20.0, 1.5)  # alpha, beta, gamma


def colours(*shape):
  """Pictures of few colours, with noise: [N, H, W, 3]."""
  rng = np.random.default_rng(0)
  blocks = rng.uniform(0, 255, (shape[0], -(-shape[1] // 5), -(-shape[2] // 5), 3))
  blocks = blocks.repeat(5, 1).repeat(5, 2)[:, : shape[1], : shape[2]]
  return (blocks + rng.normal(0, 10, (*shape, 3))).astype(np.float32)


def parameters(num_classes):
  """Weights of the appearance and the smoothness kernel, and costs that are not symmetric."""
  rng = np.random.default_rng(1)
  weights = rng.uniform(0.5, 3, (2, num_classes))
  return (*weights, rng.normal(size=(num_classes, num_classes)))


def kernel_matrices(picture, theta_alpha, theta_beta, theta_gamma, radius=None):
  """Both kernels between all pairs of pixels, normalised, in plain loops: [P, P] each."""
  picture = picture.astype(np.float64)
  pixels = list(np.ndindex(picture.shape[:2]))
  appearance, smoothness = (np.zeros((len(pixels), len(pixels))) for _ in range(2))
  for a, p in enumerate(pixels):
    for b, q in enumerate(pixels):
      apart = (p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2
      unlike = sum((picture[p] - picture[q]) ** 2)
      if radius is None or max(abs(p[0] - q[0]), abs(p[1] - q[1])) <= radius:
        appearance[a, b] = np.exp(-apart / (2 * theta_alpha**2) - unlike / (2 * theta_beta**2))
      smoothness[a, b] = np.exp(-apart / (2 * theta_gamma**2))
  matrices = []
  for matrix in (appearance, smoothness):
    norm = [sum(row) for row in matrix]
    matrices.append(
      [[k / np.sqrt(norm[a] * norm[b]) for b, k in enumerate(row)] for a, row in enumerate(matrix)]
    )
  return np.array(matrices)


def brute_force(unaries, matrices, weights, compatibility, iterations):
  """Algorithm 1 of Zheng et al., loop by loop: logits [P, C] of unaries [P, C]."""
  pixels, classes = unaries.shape
  logits = unaries
  for _ in range(iterations):
    marginals = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    logits = np.zeros_like(unaries)
    for i in range(pixels):
      message = np.zeros(classes)
      for kernel, weight in zip(matrices, weights, strict=True):
        filtered = np.zeros(classes)
        for j in range(pixels):
          filtered += kernel[i, j] * marginals[j]
        message += weight * filtered
      for label in range(classes):
        cost = sum(compatibility[label, other] * message[other] for other in range(classes))
        logits[i, label] = unaries[i, label] - cost
  return logits


@functools.partial(jax.jit, static_argnums=(4, 5))
def inferred(unaries, picture, weights, compatibility, iterations=5, form=mean_field.exact):
  kernels = mean_field.kernels(picture, *THETAS, form)
  return mean_field.mean_field(unaries, kernels, weights, compatibility, iterations)


def single(*arrays):
  return [jnp.asarray(a, jnp.float32) for a in arrays]


class MeanFieldTest(parameterized.TestCase):
  def test_equals_loops_over_all_pairs(self):
    """Every term, two kernels, five iterations, in two pictures of a batch."""
    picture = colours(2, 16, 16)
    unaries = np.random.default_rng(2).normal(size=(2, 16, 16, 3))
    *weights, compatibility = parameters(3)
    u, *w, c = single(unaries, *weights, compatibility)
    actual = inferred(u, picture, w, c)
    for i in range(2):
      matrices = kernel_matrices(picture[i], *THETAS)
      expected = brute_force(unaries[i].reshape(-1, 3), matrices, weights, compatibility, 5)
      self.assertGreater(np.abs(expected - unaries[i].reshape(-1, 3)).max(), 1)
      np.testing.assert_allclose(actual[i].reshape(-1, 3), expected, rtol=1e-5, atol=1e-5)

  def test_gradients_equal_finite_differences(self):
    """Of unaries, kernel weights and costs, against differences of the loops in float64."""
    picture = colours(1, 4, 5)
    rng = np.random.default_rng(2)
    unaries, towards = rng.normal(size=(2, 20, 3))
    weights, compatibility = np.array(parameters(3)[:2]), parameters(3)[2]
    matrices = kernel_matrices(picture[0], *THETAS)

    def loss(u, w, c):
      return (towards * brute_force(u, matrices, w, c, 3)).sum()

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def gradients(u, w, c):
      logits = inferred(u.reshape(1, 4, 5, 3), picture, list(w), c, 3)
      return jnp.sum(single(towards)[0] * logits.reshape(20, 3))

    actual = gradients(*single(unaries, weights, compatibility))
    arguments = [unaries, weights, compatibility]
    for k, argument in enumerate(arguments):
      expected = np.zeros_like(argument)
      for index in np.ndindex(argument.shape):
        shifted = []
        for step in (1e-5, -1e-5):
          changed = argument.copy()
          changed[index] += step
          shifted.append(loss(*arguments[:k], changed, *arguments[k + 1 :]))
        expected[index] = (shifted[0] - shifted[1]) / 2e-5
      np.testing.assert_allclose(actual[k], expected, rtol=1e-4, atol=1e-4)

  def test_no_iteration_is_no_change_and_each_follows_from_the_one_before(self):
    picture, unaries = colours(1, 8, 9), jnp.asarray(colours(1, 8, 9)) / 100
    *w, c = single(*parameters(3))
    np.testing.assert_array_equal(inferred(unaries, picture, w, c, 0), unaries)
    self.assertGreater(
      float(
        jnp.abs(inferred(unaries, picture, w, c, 2) - inferred(unaries, picture, w, c, 1)).max()
      ),
      1e-3,
    )

  @pytest.mark.slow
  def test_gradients_survive_recomputation_and_vmap(self):
    """Which trace the lattice again, outside of the 64 bits that it is numbered in."""
    picture = jnp.asarray(colours(2, 6, 7))
    unaries, *w, c = single(np.random.default_rng(2).normal(size=(2, 6, 7, 3)), *parameters(3))

    def loss(unaries, picture):
      return jnp.sum(inferred(unaries, picture, w, c, 2, mean_field.lattice) ** 2)

    def of_one(unaries, picture):
      return jax.grad(loss)(unaries[None], picture[None])[0]

    expected = jax.jit(jax.grad(loss))(unaries, picture)
    again = jax.jit(jax.grad(jax.checkpoint(loss)))(unaries, picture)
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-4)
    mapped = jax.jit(jax.vmap(of_one))(unaries, picture)
    np.testing.assert_allclose(mapped, expected, rtol=1e-4, atol=1e-4)

  @parameterized.parameters(*FORMS)
  def test_wrong_labels_turn_to_those_of_their_colour(self, form):
    """Two halves of two colours; one pixel in five is thought to be of the other half."""
    rng = np.random.default_rng(0)
    label = np.broadcast_to(np.arange(30) >= 13, (1, 24, 30))
    picture = np.where(label[..., None], 200.0, 60.0) + rng.normal(0, 5, (1, 24, 30, 3))
    thought = label ^ (rng.uniform(size=label.shape) < 0.2)
    unaries = np.log(np.where(thought[..., None] == [False, True], 0.7, 0.3))
    logits = inferred(*single(unaries, picture), (10.0, 3.0), mean_field.potts(2), form=FORMS[form])
    self.assertGreater((thought != label).mean(), 0.15)
    self.assertLess((np.asarray(logits).argmax(-1) != label).mean(), 0.01)


class FilterTest(parameterized.TestCase):
  def kernel(self, form, shape=(1, 9, 10)):
    """The filter for `colours(*shape)`, its smoothness kernel's, or a form's."""
    if form == 'smoothness':
      return mean_field.smoothness(1.5)
    x = jnp.asarray(colours(*shape)) / 20
    return FORMS[form](x)

  @parameterized.parameters(*FORMS, 'smoothness')
  def test_of_ones_is_positive(self, form):
    ones = jnp.ones((1, 9, 10, 1))
    self.assertGreater(float(jax.jit(lambda x: self.kernel(form)(x))(ones).min()), 0.3)

  @parameterized.parameters(*FORMS, 'smoothness')
  def test_gradient_is_the_transposed_filter(self, form):
    """Which is the filter itself where it is exact."""

    @jax.jit
    def run(x, gradient):
      y, pullback = jax.vjp(self.kernel(form), x)
      return y, pullback(gradient)[0]

    identity = np.eye(90, dtype=np.float32).reshape(1, 9, 10, 90)
    forth, back = (y.reshape(90, 90) for y in run(identity, identity))
    np.testing.assert_allclose(back, forth.T, atol=1e-6)
    if form != 'lattice':
      np.testing.assert_allclose(forth, forth.T, atol=1e-6)

  def test_no_gradient_reaches_the_features(self):
    @jax.jit
    @jax.grad
    def gradient(features):
      ones = jnp.ones((1, 6, 7, 1))
      return sum(form(features)(ones).sum() for form in FORMS.values())

    self.assertEqual(float(jnp.abs(gradient(jnp.asarray(colours(1, 6, 7)) / 20)).max()), 0)

  def test_exact_does_not_depend_on_its_blocks(self):
    x = jnp.asarray(colours(2, 9, 11))
    results = [
      jax.jit(functools.partial(self.in_blocks, block))(x / 20, x) for block in (1, 7, 99, 128)
    ]
    for result in results[1:]:
      np.testing.assert_allclose(result, results[0], rtol=1e-5)

  def in_blocks(self, block, features, x):
    y, pullback = jax.vjp(mean_field.exact(features, block), x)
    return jnp.concatenate([y, pullback(x)[0]])

  def test_exact_has_memory_linear_in_pixels(self):
    """Its gradient, too: sixteen times the pixels would be 256 times the pairs."""

    def temporary(height, width):
      shapes = [jax.ShapeDtypeStruct((1, height, width, n), jnp.float32) for n in (5, 4)]
      compiled = jax.jit(functools.partial(self.in_blocks, 64)).lower(*shapes).compile()
      return compiled.memory_analysis().temp_size_in_bytes

    self.assertLess(temporary(128, 128), 20 * temporary(32, 32))

  @parameterized.parameters(((8, 13), 12), ((8, 13), 40), ((16, 16), 15))
  def test_a_window_that_holds_the_picture_is_exact(self, size, radius):
    x = jnp.asarray(colours(2, *size))
    window = jax.jit(lambda f, x: mean_field.window(f, radius)(x))(x / 20, x)
    np.testing.assert_allclose(window, mean_field.exact(x / 20)(x), rtol=1e-5)

  def test_a_smaller_window_equals_loops_over_its_pairs(self):
    picture, x = colours(1, 7, 9), jnp.asarray(colours(1, 7, 9)[..., :2])
    form = functools.partial(mean_field.window, radius=2)
    appearance = jax.jit(lambda x: mean_field.kernels(picture, *THETAS, form)[0](x))(x)
    matrix = kernel_matrices(picture[0], *THETAS, radius=2)[0]
    np.testing.assert_allclose(appearance.reshape(-1, 2), matrix @ x.reshape(-1, 2), rtol=1e-5)

  @parameterized.parameters(0.7, 2.0, 9.0)
  def test_smoothness_is_the_exact_filter_of_positions(self, theta):
    x = jnp.asarray(colours(1, 12, 15))
    positions = np.stack(np.indices((12, 15)), -1)[None].astype(np.float32)
    expected = mean_field.exact(jnp.asarray(positions / theta))(x)
    actual = jax.jit(lambda x: mean_field.smoothness(theta)(x))(x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
