"""What every system keeps, on its small configuration made smaller still."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from seg_jax.data import instances
from seg_jax.data.datasets.shapes import INFO
from seg_jax.tasks import build_task
from tests.configs_test import CONFIGS
from tests.tasks.rectangles import TINY

SMALLER = {
  'conv_only': {'width': 4, 'layers': 2},
  'crf_rnn': {'system': {'width': 4, 'fc_features': 16}},
  'deconvnet': {'width': 4, 'fc_features': 8, 'fc_size': 2},
  'deeplab_cascade': {'backbone_width': 1 / 16},
  'deeplab_v3': {'backbone_width': 1 / 16, 'features': 8},
  'deeplab_v3plus': {'backbone_width': 1 / 16, 'features': 8, 'low_features': 4},
  'fcn_alexnet': {'width': 4, 'fc_features': 16},
  'fcn_heatmap': {'width': 4, 'fc_features': 16},
  'fcn16s': {'width': 4, 'fc_features': 16},
  'fcn32s': {'width': 4, 'fc_features': 16},
  'fcn8s': {'width': 4, 'fc_features': 16},
  'fcn_resnet': {'backbone_width': 1 / 16},
  'hrnet': {'backbone_width': 0.25, 'modules': (1, 1, 1), 'units': 1},
  'mask_rcnn': TINY,
  'multi_scale': {'width': 2, 'scales': 2, 'hidden': 8},
  'panoptic_fpn': TINY | {'semantic_width': 8},
  'recurrent_scene': {'width': 4, 'kernel_size': 3},
  'refinenet': {'backbone_width': 0.125, 'width': 8, 'chained_pooling': 1},
  'segnet': {'width': 4},
  'segnet_basic': {'width': 8},
  'several_decoders': {'width': 4, 'depth': 2},
  'sliding_window': {'width': 4, 'depth': 2, 'hidden': 8},
  'unet': {'width': 4, 'depth': 2},
}
# Trained among the slow tests: FCN-8s and SegNet have nearly all that these have, or they are deep.
SLOW = (
  'crf_rnn',
  'deconvnet',
  'deeplab_cascade',
  'deeplab_v3',
  'deeplab_v3plus',
  'fcn16s',
  'fcn32s',
  'fcn_alexnet',
  'fcn_heatmap',
  'fcn_resnet',
  'hrnet',
  'mask_rcnn',
  'panoptic_fpn',
  'refinenet',
)


def small_task(name):
  config = CONFIGS[name]()
  config.model.update(SMALLER[name])
  return build_task(config, INFO)


def stripes(size):
  """Two pictures of vertical bands, each with the colour of its class, farther to the right.

  The bands of things are objects.
  """
  height, width = size
  rng = np.random.default_rng(0)
  label = np.broadcast_to(6 * np.arange(width) // width, (2, height, width)).astype(np.int32)
  noise = rng.integers(0, 20, (2, height, width, 3))
  image = (40 * label[..., None] * (1, -1, 1) % 235 + noise).astype(np.uint8)
  depth = (1.0 + np.arange(width) + 0.0 * label).astype(np.float32)
  ids = {'instances': label[0], 'classes': np.arange(1, 6), 'is_crowd': np.zeros(5, bool)}
  objects = {k: np.repeat(x[None], 2, 0) for k, x in instances.padded(ids, max_instances=6).items()}
  return {'image': image, 'label': label, 'depth': depth, 'valid': np.ones(2, bool), **objects}


class ContractTest(parameterized.TestCase):
  @parameterized.product(name=list(CONFIGS), size=((33, 161), (97, 64)))
  def test_any_size_comes_back(self, name, size):
    """At the config's own width; parameters and logits are float32, whatever is computed in."""
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # Flax's batch norm in bfloat16
    config = CONFIGS[name]()
    config.dtype = 'bfloat16'
    model = build_task(config, INFO).model
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    outputs, variables = jax.eval_shape(
      lambda x: model.init_with_output(jax.random.key(0), x, train=False), image
    )
    if name == 'mask_rcnn':
      self.assertEqual(outputs['masks'].shape, (1, config.model.detections, 28, 28))
      self.assertEqual({outputs['masks'].dtype, outputs['boxes'].dtype}, {jnp.dtype('float32')})
    else:
      # Panoptic FPN has one class for all things.
      classes = 2 if name == 'panoptic_fpn' else 7
      for logits in (outputs['logits'], *outputs.get('aux_logits', ())):
        self.assertEqual((logits.shape, logits.dtype), ((1, *size, classes), jnp.float32))
    self.assertEqual({x.dtype for x in jax.tree.leaves(variables)}, {jnp.dtype('float32')})

  @parameterized.parameters(*(name for name in CONFIGS if name not in SLOW))
  def test_training_reaches_every_parameter_and_moves_batch_statistics(self, name):
    self.check_training(name)

  @parameterized.parameters(*SLOW)
  @pytest.mark.slow
  def test_training_reaches_those_of_the_others_too(self, name):
    self.check_training(name)

  def check_training(self, name):
    """Eight steps, traced once, lower the loss; at one of them each parameter has a gradient."""
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax
    task, batch, key = small_task(name), stripes((40, 52)), jax.random.key(0)
    variables = jax.jit(task.init)(key, batch)
    optimizer, traces = optax.adam(1e-2), []

    @jax.jit
    def step(variables, opt_state):
      traces.append(1)

      def objective(params):
        return task.loss(variables | {'params': params}, batch, key, train=True)

      (loss, (state, _)), grads = jax.value_and_grad(objective, has_aux=True)(variables['params'])
      updates, opt_state = optimizer.update(grads, opt_state)
      return {'params': optax.apply_updates(variables['params'], updates)} | state, (
        opt_state,
        loss,
        jax.tree.map(lambda g: jnp.abs(g).max(), grads),
      )

    opt_state, losses, largest = optimizer.init(variables['params']), [], []
    before = variables
    for _ in range(8):
      variables, (opt_state, loss, gradients) = step(variables, opt_state)
      losses.append(float(loss))
      largest.append(gradients)
    self.assertLen(traces, 1)
    self.assertLess(losses[-1], 0.9 * losses[0])
    reached = jax.tree.map(lambda *steps: max(map(float, steps)), *largest)
    for path, value in jax.tree_util.tree_leaves_with_path(reached):
      self.assertGreater(value, 0, jax.tree_util.keystr(path))
    for path, value in jax.tree_util.tree_leaves_with_path(before['batch_stats']):
      moved = variables['batch_stats']
      for part in path:
        moved = moved[part.key]
      self.assertTrue(np.any(moved != value), jax.tree_util.keystr(path))

  @parameterized.parameters(*CONFIGS)
  def test_evaluation_leaves_batch_statistics_alone(self, name):
    task, batch = small_task(name), stripes((33, 33))

    def evaluated(key):
      variables = task.init(key, batch)
      _, after = task.model.apply(
        variables, jnp.zeros((1, 33, 33, 3)), train=False, mutable=['batch_stats']
      )
      return variables['batch_stats'], after.get('batch_stats', {})

    # An update that is traced is an output that is no longer its input.
    closed = jax.make_jaxpr(evaluated)(jax.random.key(0))
    count = len(closed.jaxpr.outvars) // 2
    self.assertGreater(count, 0)
    self.assertEqual(closed.jaxpr.outvars[:count], closed.jaxpr.outvars[count:])


if __name__ == '__main__':
  absltest.main()
