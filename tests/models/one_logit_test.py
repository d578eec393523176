import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from configs import common, crf_rnn, fcn_resnet, recurrent_scene, unet
from seg_jax import losses
from seg_jax.errors import UserError
from seg_jax.models import build_model
from seg_jax.models.one_logit import OneLogit
from seg_jax.weights.load import class_layers, flat


class Pixelwise(nn.Module):
  """The smallest system there is."""

  outputs: int = 1

  @nn.compact
  def __call__(self, images, train=False):
    logits = nn.Dense(self.outputs, name='score')(images)
    return {'logits': logits, 'aux_logits': (2 * logits, -logits), 'depth': images[..., 0]}


def batch():
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.normal(size=(2, 7, 9, 3)), jnp.float32)
  labels = rng.integers(0, 2, (2, 7, 9))
  labels[0, :2] = 255
  return images, jnp.asarray(labels, jnp.int32)


def shapes(config, num_classes=2):
  image = jnp.zeros((1, 32, 32, 3))
  model = build_model(config, num_classes)
  outputs, variables = jax.eval_shape(
    lambda image: model.init_with_output(jax.random.key(0), image), image
  )
  return outputs, {name: leaf.shape for name, leaf in flat(variables).items()}


class OneLogitTest(parameterized.TestCase):
  def test_the_softmax_of_0_and_a_logit_is_its_sigmoid(self):
    images, _ = batch()
    outputs, variables = OneLogit(Pixelwise()).init_with_output(jax.random.key(0), images)
    alone = Pixelwise().apply(variables, images)
    for two, one in zip(
      (outputs['logits'], *outputs['aux_logits']),
      (alone['logits'], *alone['aux_logits']),
      strict=True,
    ):
      self.assertEqual(two.shape, (2, 7, 9, 2))
      np.testing.assert_allclose(
        jax.nn.softmax(two)[..., 1], jax.nn.sigmoid(one[..., 0]), atol=1e-6
      )
    np.testing.assert_array_equal(outputs['depth'], alone['depth'])

  @parameterized.parameters(0.0, 0.2)
  def test_cross_entropy_and_its_gradient_are_those_of_the_sigmoid(self, smoothing):
    images, labels = batch()
    model = OneLogit(Pixelwise())
    variables = model.init(jax.random.key(0), images)
    valid = labels != 255
    targets = (1 - smoothing) * labels.astype(jnp.float32) + smoothing / 2

    def softmax(variables):
      logits = model.apply(variables, images)['logits']
      return losses.cross_entropy(logits, labels, label_smoothing=smoothing)

    def sigmoid(variables):
      logits = Pixelwise().apply(variables, images)['logits'][..., 0]
      costs = optax.sigmoid_binary_cross_entropy(logits, targets)
      return jnp.sum(jnp.where(valid, costs, 0)) / jnp.sum(valid).astype(jnp.float32)

    (loss, gradient), (expected, expected_gradient) = (
      jax.value_and_grad(function)(variables) for function in (softmax, sigmoid)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, expected_gradient
    )

  def test_focal_loss_is_that_of_the_sigmoid(self):
    images, labels = batch()
    outputs, _ = OneLogit(Pixelwise()).init_with_output(jax.random.key(0), images)
    valid = np.asarray(labels) != 255
    costs = optax.sigmoid_focal_loss(
      outputs['logits'][..., 1], jnp.where(labels == 1, 1.0, 0.0), gamma=2.0
    )
    expected = np.asarray(costs)[valid].mean()
    np.testing.assert_allclose(
      losses.focal(outputs['logits'], labels, gamma=2.0), expected, rtol=1e-5
    )

  @parameterized.parameters(unet, fcn_resnet)
  def test_any_system_has_one_output_and_keeps_its_names(self, module):
    config = module.get_config()
    _, before = shapes(config)
    config.sigmoid = True
    outputs, after = shapes(config)
    self.assertEqual(outputs['logits'].shape, (1, 32, 32, 2))
    self.assertEqual(after.keys(), before.keys())
    changed = {name for name in after if after[name] != before[name]}
    self.assertEqual({after[name][-1] for name in changed}, {1})
    self.assertEqual(class_layers(config, 2, 1), changed)

  def test_a_crf_takes_it_for_two_classes(self):
    config = crf_rnn.on(unet.get_config())
    config.sigmoid = True
    outputs, variables = shapes(config)
    self.assertEqual(outputs['logits'].shape, (1, 32, 32, 2))
    self.assertEqual(variables['params/crf/compatibility'], (2, 2))

  def test_it_is_refused_where_it_has_no_meaning(self):
    config = recurrent_scene.get_config()
    config.sigmoid = True
    with self.assertRaisesRegex(UserError, 'recurrent_scene.*expected no sigmoid'):
      build_model(config, 2)

  def test_it_is_off_by_default(self):
    self.assertIs(common.get_config().sigmoid, False)


if __name__ == '__main__':
  absltest.main()
