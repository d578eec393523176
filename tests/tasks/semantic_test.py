import dataclasses
import tempfile
from pathlib import Path

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from configs import unet
from seg_jax import losses
from seg_jax.data.datasets.base import DatasetInfo, voc_colormap
from seg_jax.errors import UserError
from seg_jax.metrics import semantic as metrics
from seg_jax.ops import dense_crf
from seg_jax.tasks import build_task
from seg_jax.training.evaluation import Evaluator
from seg_jax.training.mesh import make_mesh
from tests.tasks.memory import Memory

CLASSES = 7
INFO = DatasetInfo('memory', tuple('abcdefg'), voc_colormap(CLASSES))


class RedIsTheClass(nn.Module):
  """Reads the class off the red channel, so that predictions are known without a network."""

  @nn.compact
  def __call__(self, images, train=False):
    red = jnp.round(images[..., :1] * 255.0)
    return {'logits': -jnp.abs(red - jnp.arange(CLASSES, dtype=jnp.float32).reshape(1, 1, 1, -1))}


class Labels(Memory):
  """Records of odd and different sizes: the red channel is a wrong guess on some pixels."""

  info = INFO

  def __init__(self, sizes):
    rng = np.random.default_rng(0)
    self.names = [str(size) for size in sizes]
    self._records = []
    for size in sizes:
      label = rng.integers(0, CLASSES - 1, size)  # the last class is only ever guessed
      guess = np.where(rng.random(size) < 0.3, rng.integers(0, CLASSES, size), label)
      label[rng.random(size) < 0.1] = 255
      image = np.stack([guess, guess * 0, guess * 0], -1).astype(np.uint8)
      self._records.append({'image': image, 'label': label.astype(np.uint8)})

  def counted(self):
    """The confusion matrix and the top five, one pixel at a time, and the outlines by class."""
    confusion, top5 = np.zeros((CLASSES, CLASSES), np.int64), np.zeros(CLASSES, np.int64)
    boundary = np.zeros((3, CLASSES), np.int64)
    for record in self._records:
      for c in range(CLASSES):
        truth = outline(record['label'] == c)
        guess = outline((record['image'][..., 0] == c) & (record['label'] != 255))
        boundary[:, c] += [np.sum(truth & guess), np.sum(truth), np.sum(guess)]
      for truth, guess in zip(
        record['label'].ravel(), record['image'][..., 0].ravel(), strict=True
      ):
        if truth != 255:
          confusion[truth, guess] += 1
          nearest = sorted(range(CLASSES), key=lambda c: (abs(c - int(guess)), c))
          top5[truth] += int(truth) in nearest[:5]
    images = np.int64(len(self))
    return {'confusion': confusion, 'top5': top5, 'boundary': boundary, 'images': images}


def outline(mask):
  """Its pixels that are beside another region or the border; 2 % of these diagonals is 1 pixel."""
  eroded = cv2.erode(np.pad(mask.astype(np.uint8), 1), np.ones((3, 3), np.uint8))
  return mask & (eroded[1:-1, 1:-1] == 0)


def known_task(image_scale=1.0):
  task = build_task(unet.get_config(), INFO)
  plain = {'mean': (0.0,) * 3, 'std': (1.0,) * 3, 'image_scale': image_scale}
  return dataclasses.replace(task, model=RedIsTheClass(), **plain)


class SemanticTaskTest(parameterized.TestCase):
  @parameterized.parameters((4, 1), (4, 8), (1, 1), (64, 32))
  def test_every_picture_counts_once_at_its_native_size(self, batch_size, size_multiple):
    """Five pictures, so with batches of four the last one holds a single picture."""
    source = Labels([(9, 7)] * 5 + [(13, 9), (8, 16), (1, 3)])
    config = unet.get_config()
    config.eval.update({'batch_size': batch_size, 'size_multiple': size_multiple})
    evaluator = Evaluator(known_task(), source, config, 'val', make_mesh())
    with tempfile.TemporaryDirectory() as folder:
      result, sheet = evaluator(5, {'params': {}}, Path(folder))
    self.assertEqual(result['step'], 5)
    self.assertEqual(result['num_images'], 8)
    expected = metrics.result(source.counted(), INFO.class_names)
    for name in (
      'miou',
      'boundary_iou',
      'pixel_accuracy',
      'per_class',
      'mean_dice',
      'top5_accuracy',
    ):
      self.assertEqual(result[name], expected[name], name)
    self.assertEqual(result['per_class']['g']['iou'], 0)  # guessed, never true
    self.assertEqual(sheet.dtype, np.uint8)

  def test_further_outputs_are_trained_too_by_their_weight(self):
    class Twice(RedIsTheClass):
      def __call__(self, images, train=False):
        outputs = super().__call__(images)
        return outputs | {'aux_logits': (0.5 * outputs['logits'], 0.0 * outputs['logits'])}

    batch = jax.tree.map(lambda x: jnp.asarray(x)[None], Labels([(9, 7)])[0])
    batch['label'] = batch['label'].astype(jnp.int32)
    key, task = jax.random.key(0), known_task()
    weight = task.loss_config.auxiliary
    plain, _ = task.loss({'params': {}}, batch, key, train=False)
    further = []
    for factor in (0.5, 0.0):
      logits = task.model.apply({'params': {}}, batch['image'].astype(jnp.float32) / 255)['logits']
      loss, _ = losses.combine(factor * logits, batch['label'], task.loss_config)
      further.append(loss)
    twice = dataclasses.replace(task, model=Twice())
    total, (_, logs) = twice.loss({'params': {}}, batch, key, train=False)
    self.assertAlmostEqual(float(logs['auxiliary']), float(sum(further)), places=5)
    self.assertAlmostEqual(float(total), float(plain + weight * sum(further)), places=5)

  def test_nothing_labelled_gives_no_scores(self):
    source = Labels([(5, 5), (5, 5)])
    for record in source._records:
      record['label'][:] = 255
    evaluator = Evaluator(known_task(), source, unet.get_config(), 'val', make_mesh())
    with tempfile.TemporaryDirectory() as folder:
      result, _ = evaluator(5, {'params': {}}, Path(folder))
    self.assertIsNone(result['miou'])
    self.assertIsNone(result['cross_entropy'])

  @parameterized.parameters(0.5, 1.0, 2.0)
  def test_predictions_come_at_the_pictures_own_size(self, image_scale):
    task = known_task(image_scale)
    image = np.zeros((2, 21, 34, 3), np.uint8)
    image[:, :, 17:, 0] = 3
    predictions = task.predict({'params': {}}, {'image': jnp.asarray(image)})
    self.assertEqual(predictions['logits'].shape, (2, 21, 34, CLASSES))
    # Away from the edge, where a scaled picture mixes the two sides.
    np.testing.assert_array_equal(predictions['label'][:, :, :14], 0)
    np.testing.assert_array_equal(predictions['label'][:, :, 20:], 3)

  @parameterized.parameters('none', 'window', 'exact')
  def test_a_crf_behind_the_model_is_that_of_the_pictures_own_colours(self, crf):
    config = unet.get_config()
    config.inference.crf = crf
    task = dataclasses.replace(build_task(config, INFO), model=RedIsTheClass(), mean=(0.0,) * 3)
    image = np.random.default_rng(0).integers(0, CLASSES, (2, 8, 9, 3), np.uint8)
    image[..., 1] = 200 * (np.arange(9) > 4)
    task = dataclasses.replace(task, std=(1.0,) * 3)
    predictions = task.predict({'params': {}}, {'image': jnp.asarray(image)})
    logits = RedIsTheClass().apply({}, jnp.asarray(image, jnp.float32) / 255)['logits']
    if crf != 'none':
      logits = dense_crf.refine(logits, jnp.asarray(image, jnp.float32), crf)
    np.testing.assert_allclose(predictions['logits'], logits, atol=1e-3)
    np.testing.assert_array_equal(predictions['label'], jnp.argmax(predictions['logits'], -1))

  def test_two_classes_are_told_apart_at_the_threshold(self):
    config = unet.get_config()
    config.inference.threshold = 0.9
    info = DatasetInfo('memory', ('a', 'b'), voc_colormap(2))

    class Half(nn.Module):
      def __call__(self, images, train=False):
        return {'logits': jnp.concatenate([0 * images[..., :1], images[..., 1:2]], -1)}

    task = dataclasses.replace(
      build_task(config, info), model=Half(), mean=(0.0,) * 3, std=(0.1,) * 3
    )
    image = np.zeros((1, 1, 256, 3), np.uint8)
    image[..., 1] = np.arange(256)
    share = 1 / (1 + np.exp(-np.arange(256) / 25.5))
    label = task.predict({'params': {}}, {'image': jnp.asarray(image)})['label']
    np.testing.assert_array_equal(label[0, 0], share > 0.9)

  @parameterized.parameters(('sigmoid', True), ('inference.threshold', 0.3))
  def test_what_is_of_two_classes_is_refused_for_others(self, key, value):
    config = unet.get_config()
    config.update_from_flattened_dict({key: value})
    for classes in (2, 3):
      info = DatasetInfo('memory', tuple('abc'[:classes]), voc_colormap(classes))
      if classes == 2:
        build_task(config, info)
        continue
      with self.assertRaisesRegex(UserError, f'{key} is {value}; .* memory has 3 classes'):
        build_task(config, info)

  def test_16_bits_of_any_number_of_bands_are_the_same_as_8(self):
    """65535 = 257 * 255, so a value of 8 bits times 257 is the same part of the whole range."""
    config = unet.get_config()
    config.data.update({'channels': 5, 'bits': 16, 'mean': (0.0,) * 5, 'std': (1.0,) * 5})
    task = dataclasses.replace(build_task(config, INFO), model=RedIsTheClass())
    image = np.random.default_rng(0).integers(0, CLASSES, (2, 9, 8, 5), np.uint16)
    label = task.predict({'params': {}}, {'image': jnp.asarray(image * np.uint16(257))})['label']
    np.testing.assert_array_equal(label, image[..., 0])
    shape = task.example(2, (9, 8))['image']
    self.assertEqual((shape.shape, shape.dtype), ((2, 9, 8, 5), np.uint16))

  def test_colours_change_in_training_alone_and_by_its_key(self):
    seen = []

    class Witness(nn.Module):
      def __call__(self, images, train=False):
        seen.append(np.asarray(images))
        return {'logits': jnp.zeros((*images.shape[:3], CLASSES))}

    task = dataclasses.replace(known_task(), model=Witness(), photometric=0.5)
    image = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 9, 8, 3), np.uint8), 2, 0)
    batch = {'image': jnp.asarray(image), 'label': jnp.zeros((2, 9, 8), jnp.int32)}
    for seed, train in ((0, False), (0, True), (0, True), (1, True)):
      task.loss({'params': {}}, batch, jax.random.key(seed), train)
    judged, trained, again, other = seen
    np.testing.assert_allclose(judged, image / np.float32(255), atol=1e-6)
    np.testing.assert_array_equal(trained, again)
    for pictures in ((trained, judged), (trained, other), trained):
      self.assertGreater(abs(pictures[0] - pictures[1]).mean(), 0.01)
    self.assertBetween(trained.min(), 0, trained.max())
    self.assertLessEqual(trained.max(), 1)

  def test_the_cross_entropy_is_that_of_all_labelled_pixels(self):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 4, 5, CLASSES)).astype(np.float32)
    label = rng.integers(0, CLASSES, (3, 4, 5)).astype(np.int32)
    label[0] = 255
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    costs = [-np.log(probability[i][label[i]]) for i in np.ndindex(3, 4, 5) if label[i] != 255]
    task = known_task()
    state = task.empty()
    for i in range(3):  # batches of one, the first without any label
      batch = {'label': jnp.asarray(label[i : i + 1]), 'valid': jnp.ones(1, bool)}
      part = jnp.asarray(logits[i : i + 1])
      predictions = {'logits': part, 'label': jnp.argmax(part, -1).astype(jnp.int32)}
      state = task.merge(state, jax.device_get(task.count(predictions, batch)))
    self.assertAlmostEqual(task.result(state)['cross_entropy'], np.mean(costs), places=5)


if __name__ == '__main__':
  absltest.main()
