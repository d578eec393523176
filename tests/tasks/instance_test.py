import dataclasses
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs import mask_rcnn
from seg_jax import settings
from seg_jax.data import pipeline
from seg_jax.data.datasets.shapes import INFO
from seg_jax.errors import UserError
from seg_jax.inference.predict import Labeller
from seg_jax.tasks import build_task
from seg_jax.training import checkpoints
from seg_jax.training.evaluation import Evaluator
from seg_jax.training.mesh import make_mesh
from seg_jax.training.optimizer import make_optimizer, make_schedule
from seg_jax.training.step import init_state
from tests.tasks.rectangles import SHARES, SIZE, TINY, A, B, Fixed, Pictures, record


def config(max_instances=4, **fields):
  config = mask_rcnn.get_config()
  config.model.update(TINY | {'detections': 10} | fields)
  config.data.max_instances = max_instances
  config.eval.update({'batch_size': 2, 'size_multiple': 32, 'num_pictures': 2})
  return config


def evaluated(task, records, workdir, config):
  mesh = make_mesh()
  judge = Evaluator(task, Pictures(records), config, 'val', mesh)
  result, sheet = judge(0, {}, Path(workdir))
  return result, sheet


class InstanceTaskTest(parameterized.TestCase):
  @parameterized.product(image_scale=(1.0, 2.0), masks=(True, False))
  def test_what_is_there_and_found_scores_one_and_the_rest_by_its_class(self, image_scale, masks):
    settings_, here = config(), [record(SIZE, [A, B], [1, 4])]
    task = build_task(settings_, INFO)
    # Class 4 is found where class 1 is, too, but with less confidence than the right one.
    found = ((SHARES[B], 4, 0.9), (SHARES[A], 1, 0.8), (SHARES[A], 4, 0.3), (SHARES[A], 2, 0.0))
    task = dataclasses.replace(task, model=Fixed(found, masks), image_scale=image_scale)
    with tempfile.TemporaryDirectory() as folder:
      result, sheet = evaluated(task, here, folder, settings_)
      self.assertTrue((Path(folder) / 'eval/val.png').exists())
      self.assertEqual(json.loads((Path(folder) / 'eval/val.json').read_text()), result)
    self.assertEqual(sheet.dtype, np.uint8)
    self.assertEqual(result['num_images'], 1)
    self.assertAlmostEqual(result['box_ap'], 1.0)
    self.assertEqual('mask_ap75' in result, masks)
    if masks:
      self.assertAlmostEqual(result['mask_ap75'], 1.0)
    self.assertIsNone(result['per_class']['square']['box_ap'])
    self.assertIn('disk', task.table(result))

  def test_a_wrong_class_or_place_scores_nothing(self):
    settings_ = config()
    found = ((SHARES[A], 4, 0.9), (SHARES[B], 2, 0.8))
    task = dataclasses.replace(build_task(settings_, INFO), model=Fixed(found))
    with tempfile.TemporaryDirectory() as folder:
      result, _ = evaluated(task, [record(SIZE, [A, B], [1, 4])], folder, settings_)
    self.assertEqual((result['box_ap'], result['mask_ap']), (0.0, 0.0))

  def test_what_predict_writes(self):
    """Of a picture whose size is no multiple of `eval.size_multiple`, and by its own size alone."""
    padded = (64, 96)
    box, lower = (4, 60, 40, 88), (30, 8, 60, 40)
    beyond = (52, 4, 63, 60)  # of a picture of 50 rows
    found = tuple(
      (tuple(n / m for n, m in zip(box, (*padded, *padded), strict=True)), k, score)
      for box, k, score in ((box, 4, 0.9), (lower, 1, 0.8), (beyond, 2, 0.7), (box, 3, 0.3))
    )
    task = dataclasses.replace(build_task(config(), INFO), model=Fixed(found))
    image = record((50, 90), [], [])['image']
    with tempfile.TemporaryDirectory() as folder:
      folder = Path(folder)
      Image.fromarray(image).save(folder / 'one.png')
      Labeller(config(), task, {}).label_picture(folder / 'one.png', folder, Path('one'))
      told = json.loads((folder / 'objects/one.json').read_text())
      numbers = np.asarray(Image.open(folder / 'objects/one.png'))
      drawn = np.asarray(Image.open(folder / 'overlays/one.png'))
    # The last has less than inference.min_score.
    self.assertEqual(
      told,
      [
        {'number': 1, 'class': 'star', 'score': 0.9, 'box': [4, 60, 40, 88]},
        {'number': 2, 'class': 'disk', 'score': 0.8, 'box': [30, 8, 50, 40]},
      ],
    )
    self.assertEqual(numbers.shape, (50, 90))
    self.assertEqual(set(np.unique(numbers)), {0, 1, 2})
    self.assertEqual((numbers[20, 75], numbers[45, 20], numbers[0, 0]), (1, 2, 0))
    self.assertEqual(drawn.shape, image.shape)

  def test_a_checkpoint_knows_the_things(self):
    here, folder = config(), Path(self.enterContext(tempfile.TemporaryDirectory()))
    here.data.crop_size = (32, 32)
    source = Pictures([record((32, 32), [], [])])
    task, schedule = build_task(here, INFO), make_schedule(here.optimizer, here.train.num_steps)
    optimizer = make_optimizer(here.optimizer, schedule)
    shapes = jax.eval_shape(
      lambda key: init_state(task, optimizer, 0.0, key, task.example(1, (32, 32))),
      jax.random.key(0),
    )
    state = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), shapes)
    with checkpoints.Checkpoints(folder, keep_last=1) as saved:
      saved.save(1, state, checkpoints.origin(here, source), None)
    _, _, info = checkpoints.load_variables(here, folder, make_mesh())
    self.assertEqual((info.things, info.ids), (INFO.things, INFO.ids))

  def test_none_a_hundred_crowds_and_single_pixels_train_and_are_judged(self):
    dots = [(y, x, y + 1, x + 1) for y in range(0, 40, 4) for x in range(0, 40, 4)]
    records = [
      record((64, 64), [], []),
      record((64, 64), dots, [1 + k % 6 for k in range(100)]),
      record((50, 40), [(0, 0, 30, 30)], [2], [True]),
      record((70, 64), [(5, 5, 40, 40), (60, 60, 61, 61)], [3, 5], [False, False]),
    ]
    settings_ = config(max_instances=100)
    task, source = build_task(settings_, INFO), Pictures(records)
    settings_.data.update({'crop_size': (64, 64), 'batch_size': 4, 'scale_range': (1.0, 1.0)})
    batch = next(pipeline.train_batches(source, settings_.data, seed=0))
    arrays = {name: batch[name] for name in task.batch_keys}
    like = task.example(4, (64, 64))
    self.assertEqual(
      {k: (x.shape, x.dtype) for k, x in like.items()},
      {k: (x.shape, x.dtype) for k, x in arrays.items()},
    )
    key = jax.random.key(0)
    variables = jax.jit(task.init)(key, arrays)
    gradient = jax.jit(
      jax.value_and_grad(
        lambda params: task.loss(variables | {'params': params}, arrays, key, True), has_aux=True
      )
    )
    (loss, (_, logs)), grads = gradient(variables['params'])
    for name, value in {'loss': loss, **logs}.items():
      self.assertTrue(np.isfinite(value), name)
    self.assertTrue(all(np.isfinite(g).all() for g in jax.tree.leaves(grads)))
    # Two sizes after rounding up to 32, and so two programs.
    judge = Evaluator(task, source, settings_, 'val', make_mesh())
    with tempfile.TemporaryDirectory() as folder:
      result, _ = judge(0, variables, Path(folder))
    self.assertEqual(result['num_images'], 4)
    self.assertEqual(judge._step._cache_size(), 2)

  @parameterized.parameters(
    ({'task': 'semantic'}, "task is 'semantic'.*mask_rcnn has the decoders instance"),
    ({'task': 'scene'}, "task is 'scene'.*one decoder; expected 'instance'"),
    ({'sigmoid': True}, 'expected no sigmoid'),
    ({'inference': {'crf': 'lattice'}}, "inference.crf is 'lattice'; expected 'none'"),
  )
  def test_what_does_not_go_together_is_told(self, fields, message):
    settings_ = config()
    settings_.update(fields)
    info = INFO
    if fields.get('sigmoid'):
      info = dataclasses.replace(
        INFO, class_names=('no', 'yes'), palette=INFO.palette[:2], things=(1,)
      )
    with self.assertRaisesRegex(UserError, message):
      build_task(settings_, info)

  def test_objects_have_to_be_there(self):
    with self.assertRaisesRegex(UserError, 'tells no objects apart'):
      build_task(config(), dataclasses.replace(INFO, things=()))
    settings_ = config()
    settings_.data.extras = ()
    with self.assertRaisesRegex(UserError, "expected 'instances' in it, as task is 'instance'"):
      settings.check(settings_)


if __name__ == '__main__':
  absltest.main()
