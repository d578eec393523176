import itertools
import json
import tempfile
import weakref
from pathlib import Path
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from PIL import Image

import main
from configs import unet
from seg_jax import pictures
from seg_jax.data.datasets.base import DatasetInfo, voc_colormap
from seg_jax.errors import UserError
from seg_jax.inference import composite, predict, video
from seg_jax.inference.predict import Labeller, _outputs, find_pictures
from seg_jax.tasks.semantic import SemanticTask
from tests.inference.video_test import needs_pyav
from tests.main_test import folder_config, make_folder

INFO = DatasetInfo('memory', ('background', 'person', 'shirt'), voc_colormap(3))


class Colours(nn.Module):
  """What is red is the second class, what is green the third, each as likely as it is bright."""

  num_classes: int = 3

  @nn.compact
  def __call__(self, images, train=False):
    share = jnp.clip(images, 1e-6, 1 - 1e-6)
    rest = jnp.clip(1 - share[..., :1] - share[..., 1:2], 1e-6, 1)
    shares = jnp.concatenate([rest, share[..., :2]], -1)
    return {'logits': jnp.log(shares[..., : self.num_classes])}


def make_task(num_classes, info, loss_config, threshold=0.5):
  return SemanticTask(
    model=Colours(num_classes),
    info=info,
    loss_config=loss_config,
    class_weights=None,
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    threshold=threshold,
  )


def make_labeller(num_classes=3, **options):
  config = unet.get_config()
  config.eval.size_multiple = 8
  config.inference.update(options)
  info = DatasetInfo('memory', INFO.class_names[:num_classes], INFO.palette[:num_classes])
  task = make_task(num_classes, info, config.loss, config.inference.threshold)
  return Labeller(config, task, {'params': {}})


def red(share, rows=10, columns=12):
  picture = np.zeros((rows, columns, 3), np.uint8)
  picture[..., 0] = round(255 * share)
  return picture


class PredictTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    for name in ('a/x.png', 'a/x.jpg', 'a/b/y.tif', 'z.webp', 'a/notes.txt'):
      (self.folder / name).parent.mkdir(exist_ok=True, parents=True)
      if name.endswith('txt'):
        (self.folder / name).write_text('')
      else:
        Image.new('RGB', (4, 4)).save(self.folder / name)

  def find(self, *inputs):
    found = find_pictures([str(self.folder / name) for name in inputs])
    return [path.relative_to(self.folder).as_posix() for path in found]

  def test_files_folders_and_globs_each_picture_once(self):
    self.assertEqual(self.find('z.webp', 'a'), ['z.webp', 'a/b/y.tif', 'a/x.jpg', 'a/x.png'])
    self.assertEqual(self.find('a/*.png', 'a/x.png'), ['a/x.png'])
    self.assertEqual(self.find('**/*.tif'), ['a/b/y.tif'])

  def test_what_names_no_picture_is_the_users_error(self):
    for inputs in (['nothing.png'], ['*.gif']):
      with self.assertRaisesRegex(UserError, 'no picture there'):
        self.find(*inputs)
    with self.assertRaisesRegex(UserError, 'needs pictures'):
      find_pictures([])

  def test_no_two_pictures_share_an_output(self):
    outputs = dict(_outputs(find_pictures([str(self.folder)])))
    self.assertEqual(sorted(map(str, outputs.values())), ['a/b/y', 'a/x.jpg', 'a/x.png', 'z'])


class LookTest(parameterized.TestCase):
  """What is said of one picture, against sums by hand."""

  def scene(self):
    picture = np.random.default_rng(0).integers(0, 120, (11, 13, 3), np.uint8)
    picture[2:6, 3:9] = (220, 20, 0)
    picture[4:9, 5:12, 1] = 240
    return picture

  def shares(self, picture):
    share = np.clip(picture[..., :2] / 255, 1e-6, 1 - 1e-6)
    rest = np.clip(1 - share.sum(-1), 1e-6, 1)
    shares = np.stack([rest, *np.moveaxis(share, -1, 0)], -1)
    return shares / shares.sum(-1, keepdims=True)

  def test_labels_and_soft_edges_are_the_models_own(self):
    picture = self.scene()
    labeller = make_labeller(background='blur', repaint='shirt', paint='red')
    maps, alphas, probabilities = labeller.look(picture)
    shares = self.shares(picture)
    np.testing.assert_array_equal(maps['label'], shares.argmax(-1))
    np.testing.assert_allclose(alphas[0], shares[..., 2], atol=1e-5)
    np.testing.assert_allclose(alphas[1], shares[..., 1:].sum(-1), atol=1e-5)
    self.assertIsNone(probabilities)

  def test_with_a_feather_edges_are_those_of_the_labels(self):
    picture = self.scene()
    maps, (alpha,), _ = make_labeller(background='blur', feather=1.5).look(picture)
    np.testing.assert_array_equal(alpha, composite.soften(maps['label'] > 0, 1.5))

  @parameterized.parameters(0.21, 0.5, 0.79)
  def test_two_classes_are_told_apart_at_the_threshold(self, threshold):
    picture = np.zeros((1, 256, 3), np.uint8)
    picture[..., 0] = np.arange(256)
    maps, _, _ = make_labeller(2, threshold=threshold).look(picture)
    np.testing.assert_array_equal(maps['label'], picture[..., 0] / 255 > threshold)


class FramesTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 0.6)
  def test_probabilities_are_smoothed_over_time(self, smoothing):
    """Exponentially: s of the frames before, 1 - s of this one, which is all there is at first."""
    labeller = make_labeller(background='white', foreground='person', smoothing=smoothing)
    told, expected, smooth = [], [], None
    before = None
    for share in (0.9, 0.1, 0.1, 0.8, 0.3):
      maps, (alpha,), before = labeller.look(red(share), before, smoothed=True)
      one = round(255 * share) / 255
      smooth = one if smooth is None else smoothing * smooth + (1 - smoothing) * one
      told.append((maps['label'].min(), maps['label'].max(), alpha.min(), alpha.max()))
      expected.append((smooth > 0.5, smooth > 0.5, smooth, smooth))
    np.testing.assert_allclose(told, expected, atol=1e-4)

  def test_a_frame_of_another_size_begins_anew(self):
    labeller = make_labeller(smoothing=0.9, background='white')
    _, _, before = labeller.look(red(0.9), None, smoothed=True)
    _, (alpha,), _ = labeller.look(red(0.1, 30, 40), before, smoothed=True)
    np.testing.assert_allclose(alpha, round(25.5) / 255, atol=1e-4)

  @parameterized.parameters({}, {'background': 'blur', 'smoothing': 0.5})
  def test_no_frame_is_kept(self, **options):
    """Of an endless film: those of before are gone when the next one is asked for."""
    seen = []

    def film():
      for number in itertools.count():
        alive = sum(frame() is not None for frame in seen)
        self.assertLessEqual(alive, 2)
        frame = red(number % 7 / 7)
        seen.append(weakref.ref(frame))
        yield number / 25, frame

    frames = make_labeller(**options).frames(film())
    for number, (seconds, picture) in enumerate(itertools.islice(frames, 40)):
      self.assertEqual(seconds, number / 25)
      self.assertEqual(picture.shape, (10, 12, 3))
    self.assertLen(seen, 40)


class FilesTest(parameterized.TestCase):
  """`predict` with a model that needs no checkpoint."""

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.enterContext(
      mock.patch.object(predict.checkpoints, 'load_variables', lambda *_: (7, {'params': {}}, INFO))
    )
    task = make_task(3, INFO, None)
    self.enterContext(mock.patch.object(predict, 'build_task', lambda *_: task))

  def predict(self, *inputs, **options):
    config = unet.get_config()
    config.update_from_flattened_dict({key.replace('__', '.'): v for key, v in options.items()})
    predict.predict(config, self.folder, [str(self.folder / name) for name in inputs])
    return sorted(
      path.relative_to(self.folder / 'predict').as_posix()
      for path in (self.folder / 'predict').rglob('*')
      if path.is_file()
    )

  def picture(self, name='a.png'):
    picture = np.random.default_rng(0).integers(0, 80, (30, 41, 3), np.uint8)
    picture[8:20, 10:30] = (255, 0, 0)
    Image.fromarray(picture).save(self.folder / name)
    return picture

  def test_a_composite_where_one_is_asked_for(self):
    picture = self.picture()
    self.assertEqual(self.predict('a.png'), ['labels/a.png', 'overlays/a.png'])
    written = self.predict('a.png', inference__background='#204060', inference__foreground='person')
    self.assertEqual(written, ['composites/a.png', 'labels/a.png', 'overlays/a.png'])
    composed = np.asarray(Image.open(self.folder / 'predict/composites/a.png'))
    np.testing.assert_array_equal(composed[8:20, 10:30], picture[8:20, 10:30])
    share = picture[..., :1] / 255
    expected = share * picture + (1 - share) * (32, 64, 96)
    dark = picture.sum(-1) < 200
    np.testing.assert_allclose(composed[dark], expected[dark], atol=1)

  def test_a_missing_background_is_told_before_anything_is_written(self):
    self.picture()
    with self.assertRaisesRegex(UserError, 'beach.jpg: no such file'):
      self.predict('a.png', inference__background='beach.jpg')
    self.assertFalse((self.folder / 'predict').exists())

  def test_what_is_no_video_is_told_when_the_others_are_done(self):
    self.picture()
    (self.folder / 'film.mp4').write_bytes(b'no video')
    message = r'^1 of 2 files cannot be used; .*film.mp4: (cannot be read|needs PyAV)[^\n]*$'
    with self.assertRaisesRegex(UserError, message):
      self.predict('film.mp4', 'a.png')
    self.assertTrue((self.folder / 'predict/labels/a.png').exists())

  def test_a_video_for_a_model_of_other_bands(self):
    (self.folder / 'film.mp4').write_bytes(b'')
    with self.assertRaisesRegex(UserError, 'film.mp4: a video; expected .* 5 channels and 16 bits'):
      self.predict('film.mp4', data__channels=5, data__bits=16)

  @needs_pyav
  @parameterized.parameters(
    ({}, 'overlays/film.mp4'),
    ({'inference__background': 'blue', 'inference__smoothing': 0.3}, 'composites/film.mp4'),
  )
  def test_a_video_goes_through(self, options, name):
    count, rate = 9, 12
    frames = []
    for i in range(count):
      frame = np.full((34, 50, 3), 5, np.uint8)
      frame[10:24, 5 + 3 * i : 17 + 3 * i] = (250, 0, 0)
      frames.append((i / rate, frame))
    film = self.folder / 'film.mp4'
    (self.folder / 'silent.wav').write_bytes(wav())
    video.write(film, iter(frames), rate, sound_of=self.folder / 'silent.wav')
    self.assertEqual(self.predict('film.mp4', **options), [name])
    with video.reading(self.folder / 'predict' / name) as clip:
      self.assertEqual((clip.count, clip.rate), (count, rate))
      written = list(clip.frames)
    self.assertLen(written, count)
    for (seconds, frame), (expected_seconds, expected) in zip(written, frames, strict=True):
      self.assertAlmostEqual(seconds, expected_seconds, places=3)
      self.assertEqual(frame.shape, expected.shape)
    if options:
      behind, person = written[-1][1][3, 25], written[-1][1][17, 36]
      np.testing.assert_allclose(behind, (0, 0, 255), atol=25)
      np.testing.assert_allclose(person, (250, 0, 0), atol=60)  # in part as it was before

  def test_overlays_are_drawn_where_nothing_is_composed(self):
    labeller = make_labeller()
    frame = red(0.9)
    ((_, picture),) = labeller.frames(iter([(0.0, frame)]))
    maps, _, _ = labeller.look(frame)
    np.testing.assert_array_equal(picture, pictures.overlay(frame, maps['label'], INFO.palette))


class RunTest(absltest.TestCase):
  @pytest.mark.slow
  def test_one_logit_from_training_to_a_virtual_background(self):
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it
    folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    data, workdir = make_folder(folder / 'data'), folder / 'run'
    main.run(folder_config(data, sigmoid=True), workdir, 'train', {}, [])
    found = [json.loads((workdir / 'eval/val.json').read_text())]
    for overrides in ({}, {'inference.threshold': 1e-6}, {'inference.crf': 'window'}):
      main.run(folder_config(data), workdir, 'eval', overrides, [])
      found.append(json.loads((workdir / 'eval/val.json').read_text()))
    trained, again, all_is_thing, refined = found
    self.assertEqual(trained, again)
    self.assertEqual(all_is_thing['per_class']['thing']['accuracy'], 1)
    self.assertEqual(all_is_thing['per_class']['ground']['accuracy'], 0)
    self.assertNotEqual(refined['cross_entropy'], trained['cross_entropy'])
    overrides = {'inference.background': 'white', 'inference.threshold': 1e-6}
    for feather in (0.0, -1.0):
      overrides['inference.feather'] = feather
      picture = data / 'images/0.png'
      main.run(folder_config(data), workdir, 'predict', overrides, [str(picture)])
      composed = np.asarray(Image.open(workdir / 'predict/composites/0.png')).astype(int)
      grown = composed - np.asarray(Image.open(picture))
      self.assertGreaterEqual(grown.min(), 0)  # a share of white, by the probability alone
      self.assertEqual(grown.max() == 0, feather == 0.0)


def wav(samples=800):
  """A file of silence."""
  import io
  import wave

  buffer = io.BytesIO()
  with wave.open(buffer, 'wb') as file:
    file.setparams((1, 2, 8000, samples, 'NONE', ''))
    file.writeframes(bytes(2 * samples))
  return buffer.getvalue()


if __name__ == '__main__':
  absltest.main()
