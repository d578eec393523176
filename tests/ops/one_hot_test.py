import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops import one_hot


class OneHotTest(parameterized.TestCase):
  def test_by_hand(self):
    planes = one_hot.encode(jnp.asarray([[[0, 2], [255, 1]]]), 3)
    expected = [[[[1, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 1, 0]]]]
    np.testing.assert_array_equal(planes, np.asarray(expected, np.float32))
    self.assertEqual(planes.dtype, jnp.float32)

  @parameterized.product(dtype=(np.int32, np.uint8), planes=(jnp.float32, jnp.bfloat16, jnp.bool_))
  def test_there_and_back_again(self, dtype, planes):
    labels = np.random.default_rng(0).integers(0, 22, (2, 5, 7)).astype(dtype)
    labels[labels == 21] = 255
    encoded = one_hot.encode(jnp.asarray(labels), 21, planes)
    self.assertEqual((encoded.shape, encoded.dtype), ((2, 5, 7, 21), planes))
    decoded = one_hot.decode(encoded)
    self.assertEqual(decoded.dtype, jnp.int32)
    np.testing.assert_array_equal(decoded, labels)

  def test_ignore_is_no_class_however_many_there_are(self):
    planes = one_hot.encode(jnp.asarray([254, 255, 256]), 300)
    np.testing.assert_array_equal(jnp.sum(planes, -1), [1, 0, 1])
    np.testing.assert_array_equal(one_hot.decode(planes), [254, 255, 256])

  def test_labels_outside_the_classes_are_in_none(self):
    planes = one_hot.encode(jnp.asarray([-1, 3, 7]), 3)
    np.testing.assert_array_equal(planes, np.zeros((3, 3)))

  def test_the_first_of_equals(self):
    decoded = one_hot.decode(jnp.asarray([[1, 1, 0], [0, 1, 1], [0, 0, 0]]))
    np.testing.assert_array_equal(decoded, [0, 1, 255])


if __name__ == '__main__':
  absltest.main()
