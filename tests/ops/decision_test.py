import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops.decision import decide


class DecisionTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 3, 7)
  def test_at_a_half_it_is_the_likeliest_class_and_of_equal_ones_the_lowest(self, num_classes):
    logits = np.random.default_rng(0).integers(-2, 3, (2, 9, 8, num_classes)).astype(np.float32)
    label = decide(jnp.asarray(logits))
    np.testing.assert_array_equal(label, np.argmax(logits, -1))
    self.assertEqual(label.dtype, jnp.int32)

  @parameterized.parameters(0.05, 0.3, 0.5, 0.9)
  def test_two_classes_are_told_apart_at_the_threshold(self, threshold):
    logits = np.random.default_rng(1).normal(0, 3, (1, 40, 50, 2))
    share = 1 / (1 + np.exp(logits[..., 0] - logits[..., 1]))
    label = decide(jnp.asarray(logits, jnp.float32), threshold)
    np.testing.assert_array_equal(label, share > threshold)

  def test_probabilities_that_round_to_0_and_1_are_told_apart(self):
    logits = jnp.array([[0.0, -1e-9], [0.0, 1e-9], [30.0, 60.0], [0.0, -jnp.inf]])
    np.testing.assert_array_equal(jax.jit(decide)(logits), [0, 1, 1, 0])


if __name__ == '__main__':
  absltest.main()
