import dataclasses
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl.testing import absltest
from PIL import Image

from configs import panoptic_fpn
from seg_jax.data import pipeline
from seg_jax.data.datasets.shapes import INFO
from seg_jax.errors import UserError
from seg_jax.inference.predict import Labeller
from seg_jax.tasks import build_task
from seg_jax.training.evaluation import Evaluator
from seg_jax.training.mesh import make_mesh
from tests.tasks.rectangles import SHARES, SIZE, TINY, A, B, Fixed, Pictures, record


def config():
  config = panoptic_fpn.get_config()
  config.model.update(TINY | {'detections': 10, 'semantic_width': 8})
  config.data.max_instances = 4
  config.eval.update({'batch_size': 2, 'size_multiple': 32, 'num_pictures': 2})
  return config


def fixed(found):
  return dataclasses.replace(build_task(config(), INFO), model=Fixed(found, num_stuff=1))


class PanopticTaskTest(absltest.TestCase):
  def evaluated(self, task, records):
    with tempfile.TemporaryDirectory() as folder:
      judge = Evaluator(task, Pictures(records), config(), 'val', make_mesh())
      result, _ = judge(0, {}, Path(folder))
      self.assertEqual(json.loads((Path(folder) / 'eval/val.json').read_text()), result)
    return result

  def test_quality_of_what_is_found_once_missed_and_made_up(self):
    # Star and disk where they are, a square that is not; in the second picture there is no disk.
    found = ((SHARES[B], 4, 0.9), (SHARES[A], 1, 0.8))
    # One is smaller than it is in its batch.
    records = [record(SIZE, [A, B], [1, 4]), record((62, 90), [B], [4])]
    result = self.evaluated(fixed(found), records)
    scores = result['per_class']
    self.assertEqual(result['num_images'], 2)
    self.assertAlmostEqual(scores['star']['rq'], 1.0)
    self.assertGreater(scores['star']['sq'], 0.9)  # a mask of 28 x 28 misses a pixel at its border
    self.assertAlmostEqual(scores['disk']['rq'], 1 / 1.5)  # one is right, one is made up
    self.assertIsNone(scores['square']['pq'])
    self.assertAlmostEqual(scores['background']['rq'], 1.0)
    self.assertAlmostEqual(result['pq_stuff'], scores['background']['pq'])
    self.assertIn('box_ap', result['instance'])

  def test_void_is_neither_right_nor_wrong(self):
    """What is ignored, and a thing's label outside of its objects."""
    here = record(SIZE, [B], [4])
    here['label'][16:48, 8:56] = 255  # A
    found = ((SHARES[B], 4, 0.9), (SHARES[A], 1, 0.8))
    ignored = self.evaluated(fixed(found), [here])
    here['label'][16:48, 8:56] = 1
    thing = self.evaluated(fixed(found), [here])
    for result in (ignored, thing):
      self.assertIsNone(result['per_class']['disk']['pq'])
      self.assertAlmostEqual(result['rq'], 1.0)

  def test_predict_writes_cocos_format(self):
    task = fixed(((SHARES[B], 4, 0.9), (SHARES[A], 1, 0.8), (SHARES[A], 2, 0.1)))
    task = dataclasses.replace(task, info=dataclasses.replace(INFO, ids=tuple(range(10, 17))))
    image = record((50, 90), [A], [1])['image']
    folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    Image.fromarray(image).save(folder / 'one.png')
    labeller = Labeller(config(), task, {})
    for name in ('a/000000000139', '000000000139', 'of another run'):
      labeller.label_picture(folder / 'one.png', folder, Path(name))
    task.finish(folder, ['a/000000000139', '000000000139'])
    told = json.loads((folder / 'panoptic.json').read_text())
    rgb = np.asarray(Image.open(folder / 'panoptic/000000000139.png')).astype(int)
    drawn = np.asarray(Image.open(folder / 'overlays/000000000139.png'))
    self.assertEqual(rgb.shape, image.shape)
    ids = rgb @ (1, 256, 65536)
    first, second = told['annotations']
    self.assertEqual((first['image_id'], second['image_id']), ('a/000000000139', 139))
    self.assertEqual(first['file_name'], 'a/000000000139.png')
    segments = {row['id']: row for row in second['segments_info']}
    self.assertEqual(set(segments), set(np.unique(ids)))
    self.assertEqual([row['category_id'] for row in segments.values()], [14, 11, 10])
    for number, row in segments.items():
      x, y, width, height = row['bbox']
      self.assertEqual(row['area'], (ids == number).sum())
      self.assertEqual((ids[y : y + height, x : x + width] == number).sum(), row['area'])
    self.assertEqual(
      [row for row in told['categories'] if row['isthing'] == 0],
      [{'id': 10, 'name': 'background', 'isthing': 0}],
    )
    self.assertEqual(drawn.shape, image.shape)

  def test_little_stuff_is_void(self):
    task = dataclasses.replace(fixed(((SHARES[A], 1, 0.8),)), min_stuff_area=SIZE[0] * SIZE[1])
    predictions = task.predict({}, {'image': record(SIZE, [A], [1])['image'][None]})
    self.assertEqual(set(np.unique(predictions['panoptic'])), {0, 1})

  def test_in_truth_what_comes_later_lies_on_top(self):
    inner = (20, 20, 36, 36)  # within A
    share = tuple(n / m for n, m in zip(inner, (*SIZE, *SIZE), strict=True))
    task = fixed(((share, 4, 0.9), (SHARES[A], 1, 0.8)))
    result = self.evaluated(task, [record(SIZE, [A, inner], [1, 4])])
    for name in ('disk', 'star'):  # but for what pasting moves A's edges by
      self.assertGreater(result['per_class'][name]['pq'], 0.9)

  def test_needs_masks(self):
    settings = config()
    settings.model.masks = False
    with self.assertRaisesRegex(UserError, "model.masks is False; expected True, as task is 'pan"):
      build_task(settings, INFO)

  def test_a_step_has_all_terms(self):
    settings = config()
    settings.data.update({'crop_size': (64, 64), 'batch_size': 2})
    task, source = build_task(settings, INFO), Pictures([record(SIZE, [A, B], [1, 4])])
    batch = next(pipeline.train_batches(source, settings.data, seed=0))
    arrays = {name: batch[name] for name in task.batch_keys}
    example = task.example(2, (64, 64))
    self.assertEqual(
      {name: (x.shape, x.dtype) for name, x in example.items()},
      {name: (x.shape, x.dtype) for name, x in arrays.items()},
    )

    @jax.jit
    def loss(key):
      return task.loss(task.init(key, arrays), arrays, key, train=True)

    total, (_, logs) = loss(jax.random.key(0))
    semantic, weight = logs.pop('semantic'), logs.pop('weight')
    self.assertEqual(weight, 2)
    terms = ['boxes', 'classes', 'masks', 'objectness', 'proposals']
    self.assertCountEqual(logs, terms)
    np.testing.assert_allclose(total, 0.5 * semantic + sum(logs.values()), rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
