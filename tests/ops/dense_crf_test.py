import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax import settings
from seg_jax.models.crf_rnn import CRFRNN
from seg_jax.ops import dense_crf, mean_field
from tests.models.crf_rnn_test import Pixelwise, pictures


class DenseCRFTest(parameterized.TestCase):
  def test_the_config_names_its_filters(self):
    self.assertEqual(set(settings.CRFS), {'none', *mean_field.FILTERS})

  @parameterized.parameters(*mean_field.FILTERS)
  def test_it_is_crf_rnn_before_it_has_learned(self, form):
    picture = jnp.asarray(pictures(1, 9, 12))
    model = CRFRNN(3, Pixelwise(), (1.0,) * 3, filter=form)
    outputs, _ = model.init_with_output(jax.random.key(0), picture / 255)
    found = dense_crf.refine(outputs['unary_logits'], picture, form)
    np.testing.assert_allclose(found, outputs['logits'], atol=1e-3)

  @parameterized.parameters(*mean_field.FILTERS)
  def test_a_label_unlike_all_of_its_colour_is_put_right(self, form):
    colours = np.zeros((1, 12, 16, 3), np.float32)
    colours[:, :, 8:] = 200
    truth = colours[..., 0] > 0
    logits = np.where(truth[..., None], [0.0, 1.0], [1.0, 0.0]).astype(np.float32)
    logits[0, 4, 3], logits[0, 7, 12] = logits[0, 7, 12].copy(), logits[0, 4, 3].copy()
    found = dense_crf.refine(jnp.asarray(logits), jnp.asarray(colours), form)
    np.testing.assert_array_equal(jnp.argmax(found, -1), truth)


if __name__ == '__main__':
  absltest.main()
