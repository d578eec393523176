import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from configs import crf_rnn, deeplab_v3, unet
from seg_jax import settings
from seg_jax.errors import UserError
from seg_jax.models import build_model
from seg_jax.models.crf_rnn import CRFRNN
from seg_jax.ops import mean_field
from seg_jax.weights.load import flat

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)


class Pixelwise(nn.Module):
  """The smallest system there is."""

  num_classes: int = 3

  @nn.compact
  def __call__(self, images, train=False):
    logits = nn.Dense(self.num_classes, name='score')(images)
    return {'logits': logits, 'aux_logits': (2 * logits,)}


def pictures(*shape):
  return np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.float32)


def normalised(picture):
  return jnp.asarray((picture / 255 - np.array(MEAN)) / np.array(STD), jnp.float32)


def of_images(config, size=(32, 32)):
  image = jnp.zeros((1, *size, config.data.channels))
  model = build_model(config, 3)
  return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), image)


class CRFRNNTest(parameterized.TestCase):
  @parameterized.product(filter=list(mean_field.FILTERS), train=(False, True))
  def test_untrained_it_is_the_dense_crf_of_the_pictures_own_colours(self, filter, train):
    """Ten iterations, five in training, with the Potts model and the weights 10 and 3."""
    picture = pictures(2, 9, 11)
    again = np.asarray(normalised(picture)) * 255 * np.float32(STD)
    np.testing.assert_allclose(again, picture - 255 * np.array(MEAN), atol=1e-3)
    model = CRFRNN(3, Pixelwise(), STD, filter=filter, theta_alpha=5.0, theta_beta=60.0)

    @jax.jit
    def run(images):
      outputs, variables = model.init_with_output(jax.random.key(0), images, train)
      unaries = Pixelwise().apply({'params': {'score': variables['params']['score']}}, images)
      # The lattice's approximation depends on where in it a picture lies, to the last bit where
      # coordinates are equal, so there the colours are got back as they are in the model.
      colours = jnp.float32(picture)
      if filter == 'lattice':
        colours = images * (255 * jnp.asarray(STD, jnp.float32).reshape(1, 1, 1, -1))
      kernels = mean_field.kernels(colours, 5.0, 60.0, 3.0, mean_field.FILTERS[filter])
      logits = mean_field.mean_field(
        unaries['logits'], kernels, (10.0, 3.0), mean_field.potts(3), 5 if train else 10
      )
      return outputs, unaries, logits

    outputs, unaries, expected = run(normalised(picture))
    np.testing.assert_allclose(outputs['logits'], expected, atol=2e-3)
    np.testing.assert_array_equal(outputs['unary_logits'], unaries['logits'])
    np.testing.assert_array_equal(outputs['aux_logits'][0], unaries['aux_logits'][0])
    self.assertGreater(float(jnp.abs(expected - unaries['logits']).max()), 0.5)

  @parameterized.parameters(unet, deeplab_v3)
  def test_any_system_keeps_its_names(self, module):
    """So a run of the system alone is one that the CRF may start from."""
    config = module.get_config()
    config.model.norm = 'group'
    _, alone = of_images(config)
    outputs, variables = of_images(crf_rnn.on(config))
    shapes = {name: leaf.shape for name, leaf in flat(variables).items()}
    added = {
      'params/crf/appearance': (3,),
      'params/crf/smoothness': (3,),
      'params/crf/compatibility': (3, 3),
    }
    self.assertEqual(shapes, {name: leaf.shape for name, leaf in flat(alone).items()} | added)
    self.assertEqual(outputs['logits'].shape, (1, 32, 32, 3))

  def test_all_filters_have_the_same_parameters(self):
    x = jnp.zeros((1, 8, 8, 3))
    trees = [
      jax.eval_shape(CRFRNN(3, Pixelwise(), STD, filter=name).init, jax.random.key(0), x)
      for name in mean_field.FILTERS
    ]
    self.assertEqual(trees[0], trees[1])
    self.assertEqual(trees[0], trees[2])

  @parameterized.parameters(
    ('model.filter', 'latice', "model.filter is 'latice'; did you mean 'lattice'?"),
    ('model.system.name', 'unett', "model.system.name is 'unett'; did you mean 'unet'?"),
    ('model.system.name', 'crf_rnn', "model.system.name is 'crf_rnn'; "),
    ('model.name', 'crfrnn', "model.name is 'crfrnn'; did you mean 'crf_rnn'?"),
  )
  def test_names_that_are_not_known(self, key, value, message):
    config = crf_rnn.get_config()
    config.update_from_flattened_dict({key: value})
    with self.assertRaisesRegex(UserError, message.replace('?', r'\?')):
      of_images(config)

  @parameterized.parameters(
    ('model.system.width', 0, 'model.system.width is 0; expected a whole number above 0'),
    ('model.system.dropout', 1.5, 'model.system.dropout is 1.5; expected a number from 0'),
    ('model.iterations', 0, 'model.iterations is 0; expected a whole number above 0'),
    ('model.theta_beta', 0.0, 'model.theta_beta is 0.0; expected a number above 0'),
  )
  def test_values_that_no_run_can_work_with(self, key, value, message):
    config = crf_rnn.get_config()
    config.update_from_flattened_dict({key: value})
    with self.assertRaisesRegex(UserError, message):
      settings.check(config)


if __name__ == '__main__':
  absltest.main()
