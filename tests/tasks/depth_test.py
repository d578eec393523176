import dataclasses
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs import several_decoders
from seg_jax import depth_losses
from seg_jax.data.datasets.base import DatasetInfo, voc_colormap
from seg_jax.tasks import build_task
from seg_jax.training.evaluation import Evaluator
from seg_jax.training.mesh import make_mesh
from tests.metrics.depth_test import by_numpy
from tests.tasks.memory import Memory

INFO = DatasetInfo('memory', tuple('abc'), voc_colormap(3))


class RedIsTheDepth(nn.Module):
  """In decimetres, so that predictions are known without a network."""

  @nn.compact
  def __call__(self, images, train=False):
    return {'depth': jnp.round(images[..., 0] * 255.0) / 10}


class Depths(Memory):
  """Records of odd and different sizes, of which a fifth of the pixels has no known depth."""

  info = INFO

  def __init__(self, sizes):
    rng = np.random.default_rng(0)
    self.names = [str(size) for size in sizes]
    self._records = []
    for size in sizes:
      image = rng.integers(1, 256, (*size, 3)).astype(np.uint8)
      depth = np.float32(image[..., 0] / 10 * np.exp(rng.normal(0, 0.3, size)))
      depth[rng.random(size) < 0.2] = 0
      label = np.zeros(size, np.uint8)
      self._records.append({'image': image, 'label': label, 'depth': depth})

  def scored(self, max_depth=np.inf):
    """By the formulas, over all pixels of all records."""
    depth = np.concatenate([np.float32(r['image'][..., 0].ravel() / 10) for r in self._records])
    truth = np.concatenate([record['depth'].ravel() for record in self._records])
    truth = np.where(truth <= max_depth, truth, 0)
    return by_numpy(depth[None], truth[None], np.ones(1, bool)) | {'num_images': len(self)}


def known_task(**fields):
  config = several_decoders.get_config()
  config.task = 'depth'
  plain = {'mean': (0.0,) * 3, 'std': (1.0,) * 3}
  return dataclasses.replace(build_task(config, INFO), model=RedIsTheDepth(), **plain | fields)


class DepthTaskTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.parameters((4, 1, 0.0), (4, 8, 0.0), (64, 32, 9.0))
  def test_every_picture_counts_once_at_its_native_size(self, batch_size, multiple, max_depth):
    """Five pictures, so with batches of four the last one holds a single picture."""
    source = Depths([(9, 7)] * 5 + [(13, 9), (8, 16), (1, 3)])
    config = several_decoders.get_config()
    config.eval.update({'batch_size': batch_size, 'size_multiple': multiple})
    evaluator = Evaluator(known_task(max_depth=max_depth), source, config, 'val', make_mesh())
    result, sheet = evaluator(5, {'params': {}}, self.folder)
    expected = source.scored(max_depth or np.inf) | {'step': 5}
    self.assertEqual(result.keys(), expected.keys())
    for name, value in expected.items():
      np.testing.assert_allclose(result[name], value, rtol=1e-5, err_msg=name)
    self.assertEqual((sheet.ndim, sheet.dtype), (3, np.uint8))
    self.assertTrue((self.folder / 'eval' / 'val.png').exists())

  @parameterized.parameters(*depth_losses.LOSSES)
  def test_the_loss_is_that_of_the_known_depths(self, name):
    record = Depths([(9, 7)])[0]
    batch = jax.tree.map(lambda x: jnp.asarray(x)[None], record)
    depth = np.float32(record['image'][None, ..., 0] / 10)
    for max_depth in (0.0, 9.0):
      task = known_task(max_depth=max_depth)
      task.loss_config.depth = name
      truth = np.where(record['depth'] <= (max_depth or np.inf), record['depth'], 0)[None]
      loss, (_, logs) = task.loss({'params': {}}, batch, jax.random.key(0), train=False)
      expected = depth_losses.named(name)(depth, truth)
      np.testing.assert_allclose(loss, expected, rtol=1e-5)
      np.testing.assert_allclose(logs[name], expected, rtol=1e-5)
      self.assertEqual(float(logs['weight']), np.count_nonzero(truth))

  @parameterized.parameters(0.5, 1.0, 2.0)
  def test_predictions_come_at_the_pictures_own_size(self, image_scale):
    image = np.full((2, 21, 34, 3), 20, np.uint8)
    image[:, :, 17:] = 50
    task = known_task(image_scale=image_scale)
    depth = task.predict({'params': {}}, {'image': jnp.asarray(image)})['depth']
    self.assertEqual(depth.shape, (2, 21, 34))
    np.testing.assert_allclose(depth[:, :, :14], 2, rtol=1e-5)
    np.testing.assert_allclose(depth[:, :, 20:], 5, rtol=1e-5)

  def test_a_smaller_error_is_a_better_score(self):
    task = known_task()
    self.assertGreater(task.score({'abs_rel': 0.1}), task.score({'abs_rel': 0.2}))
    self.assertIsNone(task.score({'abs_rel': None}))

  def test_truth_and_prediction_have_the_same_colours_for_the_same_depths(self):
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 9, (300, 400)).astype(np.float32)
    guess = np.where(rng.random(truth.shape) < 0.5, truth, 100 * truth)
    truth[:50] = 0
    picture, of_truth, of_guess = known_task().render(
      np.zeros((300, 400, 3), np.uint8), {'depth': guess}, {'depth': truth}
    )
    self.assertEqual(picture.shape, of_truth.shape)
    same = (guess == truth) & (truth > 0)
    np.testing.assert_array_equal(of_truth[same], of_guess[same])
    blue = known_task().legend[1][1]
    self.assertTrue((of_guess[100:][~same[100:]] == blue).all())
    self.assertLen(np.unique(of_truth[:50].reshape(-1, 3), axis=0), 2)  # stripes

  def test_a_picture_leaves_millimetres_and_colours(self):
    depth = np.float32([[0.0004, 0.5, 1.2344], [2, 65.5, 1000]])
    known_task().save(self.folder, 'a/b', np.zeros((2, 3, 3), np.uint8), {'depth': depth})
    with Image.open(self.folder / 'depth' / 'a' / 'b.png') as stored:
      self.assertEqual(stored.mode, 'I;16')
      values = np.asarray(stored)
    self.assertEqual(values.tolist(), [[1, 500, 1234], [2000, 65500, 65535]])
    with Image.open(self.folder / 'depth_colours' / 'a' / 'b.png') as stored:
      self.assertEqual((stored.mode, stored.size), ('RGB', (3, 2)))


if __name__ == '__main__':
  absltest.main()
