import tempfile
from pathlib import Path

import jax
import numpy as np
from absl.testing import absltest, parameterized

from configs import unet
from seg_jax import settings
from seg_jax.data.datasets import DATASETS
from seg_jax.data.datasets.shapes import INFO
from seg_jax.tasks import build_task
from seg_jax.training.optimizer import make_optimizer, make_schedule
from seg_jax.training.step import init_state, make_step

CONFIGS = {'unet': unet.get_config}


class ConfigsTest(parameterized.TestCase):
  @parameterized.product(name=list(CONFIGS), dataset=list(DATASETS))
  def test_each_takes_any_dataset_and_names_its_splits(self, name, dataset):
    config = CONFIGS[name](dataset)
    settings.check(config)
    self.assertEqual(config.data.name, dataset)
    self.assertEqual(config.train.eval_every % config.train.checkpoint_every, 0)
    for info in getattr(DATASETS[dataset], 'INFOS', {}).values():
      if 'train' in info.num_images:  # or else train and val are split off by a hash
        splits = {config.train.split, *settings.eval_splits(config)}
        self.assertContainsSubset(splits, info.num_images)

  @parameterized.product(name=list(CONFIGS), dataset=('shapes', 'camvid', 'folder'))
  def test_each_is_valid_and_takes_a_step_that_lowers_the_loss(self, name, dataset):
    """With its own dtype, loss and optimizer, on a small crop and at a small width."""
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # Flax's batch norm in bfloat16
    config = CONFIGS[name](dataset)
    with tempfile.TemporaryDirectory() as folder:
      settings.for_training(config, Path(folder))
    config.model.update({'width': 4, 'depth': 2})
    config.optimizer.update({'warmup_steps': 0, 'learning_rate': 1e-2})
    task = build_task(config, INFO)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    shapes = task.example(2, (32, 48))
    key = jax.random.key(0)
    state = jax.jit(lambda key: init_state(task, optimizer, 0.0, key, shapes))(key)
    step = jax.jit(make_step(task, optimizer, schedule))
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(6), 8)[None, None].repeat(32, 1).repeat(2, 0).astype(np.int32)
    image = (40 * label[..., None] + rng.integers(0, 20, (2, 32, 48, 3))).astype(np.uint8)
    batch = {'image': image, 'label': label, 'valid': np.ones(2, bool)}
    losses = []
    for _ in range(8):
      state, logs = step(state, batch, key)
      losses.append(float(logs['loss']))
    self.assertLess(losses[-1], 0.8 * losses[0])
    self.assertEqual({leaf.dtype for leaf in jax.tree.leaves(state.params)}, {np.dtype('float32')})


if __name__ == '__main__':
  absltest.main()
