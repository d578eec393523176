import importlib
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl.testing import absltest, parameterized

from seg_jax import settings
from seg_jax.data.datasets import DATASETS
from seg_jax.data.datasets.shapes import INFO
from seg_jax.models import MODELS, OF_OBJECTS
from seg_jax.tasks import build_task
from seg_jax.training.optimizer import make_optimizer, make_schedule
from seg_jax.training.step import init_state, make_step

FOLDER = Path(__file__).parents[1] / 'configs'
CONFIGS = {
  path.stem: importlib.import_module(f'configs.{path.stem}').get_config
  for path in sorted(FOLDER.glob('[a-z]*.py'))
  if path.stem != 'common'
}
# Seconds to trace: among the slow tests.
DEEP = (
  'deeplab_cascade',
  'deeplab_v3',
  'deeplab_v3plus',
  'fcn_resnet',
  'hrnet',
  'refinenet',
  'several_decoders',
)


class ConfigsTest(parameterized.TestCase):
  def test_every_model_has_a_config(self):
    self.assertEqual({get_config().model.name for get_config in CONFIGS.values()}, set(MODELS))

  @parameterized.product(name=list(CONFIGS), dataset=list(DATASETS))
  def test_each_takes_any_dataset_and_names_its_splits(self, name, dataset):
    config = CONFIGS[name](dataset)
    with tempfile.TemporaryDirectory() as folder:
      settings.for_training(config, Path(folder))
    self.assertEqual(config.name, name)
    self.assertEqual(config.data.name, dataset)
    self.assertEqual(config.train.eval_every % config.train.checkpoint_every, 0)
    for info in getattr(DATASETS[dataset], 'INFOS', {}).values():
      if 'train' in info.num_images:  # or else train and val are split off by a hash
        splits = {config.train.split, *settings.eval_splits(config)}
        self.assertContainsSubset(splits, info.num_images)

  @parameterized.product(
    name=[name for name in CONFIGS if name not in (*DEEP, *OF_OBJECTS)],
    dataset=('camvid', 'voc2012'),
  )
  def test_each_builds_and_steps_at_its_full_size(self, name, dataset):
    self.check_step(name, dataset)

  @parameterized.parameters(*DEEP)
  @pytest.mark.slow
  def test_the_deep_ones_build_and_step_too(self, name):
    self.check_step(name, 'voc2012')

  @parameterized.parameters(*DEEP)
  @pytest.mark.thorough
  def test_the_deep_ones_build_and_step_on_camvid_too(self, name):
    self.check_step(name, 'camvid')

  @parameterized.parameters(*OF_OBJECTS)
  @pytest.mark.slow
  def test_those_of_objects_build_and_step_too(self, name):
    self.check_step(name, 'coco')

  def check_step(self, name, dataset):
    """Traced, with its own dtype, loss and optimizer; nothing is computed."""
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # Flax's batch norm in bfloat16
    config = CONFIGS[name](dataset)
    task = build_task(config, INFO)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    shapes = task.example(config.data.batch_size, config.data.crop_size)
    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: init_state(task, optimizer, 0.0, key, shapes), key)
    after, logs = jax.eval_shape(make_step(task, optimizer, schedule), state, shapes, key)
    self.assertEqual(jax.tree.structure(after), jax.tree.structure(state))
    self.assertEqual({leaf.dtype for leaf in jax.tree.leaves(after.params)}, {jnp.dtype('float32')})
    self.assertEqual(logs['loss'].dtype, jnp.float32)


if __name__ == '__main__':
  absltest.main()
