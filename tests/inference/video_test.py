import importlib.util
import struct
import tempfile
import unittest
from fractions import Fraction
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.inference import video

needs_pyav = unittest.skipUnless(
  importlib.util.find_spec('av'), "needs PyAV: pip install 'seg_jax[video]'"
)


def scene(number, rows=36, columns=64):
  """A white square that moves to the right over flat colours."""
  picture = np.zeros((rows, columns, 3), np.uint8)
  picture[: rows // 2], picture[rows // 2 :] = (200, 40, 30), (20, 90, 160)
  picture[4:12, number : number + 8] = 255
  return picture


def scenes(count, rate=25, **size):
  return ((number / rate, scene(number, **size)) for number in range(count))


def beep(path, seconds=1.0):
  """A file of sound alone."""
  import av

  with av.open(str(path), 'w', format='mp4') as output:
    stream = output.add_stream('aac', rate=8000)
    stream.codec_context.layout = 'mono'
    wave = np.sin(np.arange(int(8000 * seconds)) / 3).astype(np.float32)[None]
    frame = av.AudioFrame.from_ndarray(wave, format='fltp', layout='mono')
    frame.sample_rate, frame.pts = 8000, 0
    output.mux(stream.encode(frame))
    output.mux(stream.encode(None))
  return path


class VideoTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.folder / 'new' / 'clip.mp4'

  def write(self, frames, rate=25, sound_of=None):
    silent = self.folder / 'silent.mkv'
    if sound_of is None and not silent.exists():
      import av

      with av.open(str(silent), 'w') as output:
        stream = output.add_stream('mpeg4', rate=25)
        stream.height = stream.width = 16
        output.mux(stream.encode(av.VideoFrame(16, 16, 'yuv420p')))
        output.mux(stream.encode(None))
    video.write(self.path, frames, Fraction(rate), sound_of or silent)

  def read(self, path=None):
    with video.reading(path or self.path) as clip:
      return clip, list(clip.frames)

  @needs_pyav
  @parameterized.parameters((36, 64), (35, 64), (36, 63))
  def test_what_is_written_is_read(self, rows, columns):
    self.write(scenes(30, rows=rows, columns=columns))
    clip, frames = self.read()
    self.assertEqual((clip.count, clip.rate), (30, 25))
    self.assertLen(frames, 30)
    for number, (seconds, picture) in enumerate(frames):
      self.assertAlmostEqual(seconds, number / 25, places=4)
      self.assertEqual((picture.shape, picture.dtype), ((rows, columns, 3), np.uint8))
      expected = scene(number, rows, columns).astype(int)
      self.assertLess(abs(picture - expected).mean(), 6)
      np.testing.assert_allclose(picture[-5:, :].mean((0, 1)), (20, 90, 160), atol=4)
    self.assertEqual([path.name for path in self.path.parent.iterdir()], ['clip.mp4'])

  @needs_pyav
  def test_others_read_the_same(self):
    self.write(scenes(10))
    capture = cv2.VideoCapture(str(self.path))
    self.addCleanup(capture.release)
    _, frames = self.read()
    for _, picture in frames:
      there, theirs = capture.read()
      self.assertTrue(there)
      np.testing.assert_allclose(picture.astype(int), theirs[..., ::-1], atol=12)
    self.assertFalse(capture.read()[0])

  @needs_pyav
  def test_each_frame_is_shown_at_its_own_time(self):
    times = [0.0, 0.04, 0.05, 0.3, 0.31, 1.0]
    self.write(iter([(seconds, scene(i)) for i, seconds in enumerate(times)]))
    _, frames = self.read()
    np.testing.assert_allclose([seconds for seconds, _ in frames], times, atol=1e-4)

  @needs_pyav
  def test_no_frame_is_lost_that_comes_at_the_time_of_another(self):
    self.write(iter([(0.0, scene(i)) for i in range(5)]))
    self.assertLen(self.read()[1], 5)

  @needs_pyav
  def test_the_sound_goes_along(self):
    import av

    self.write(scenes(25), sound_of=beep(self.folder / 'beep.mp4', seconds=1.3))
    self.assertLen(self.read()[1], 25)
    with av.open(str(self.path)) as container:
      heard = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    self.assertBetween(heard, 1.29, 1.55)  # whole blocks of samples

  @needs_pyav
  @parameterized.parameters(1, 2, 3)
  def test_frames_come_upright(self, quarters):
    """As OpenCV, another reader, turns them; the file's matrix of MP4 is written by hand."""
    self.write(scenes(2))
    data = bytearray(self.path.read_bytes())
    at = data.index(b'tkhd') + 4 + 40
    one = 1 << 16
    turn = {1: (0, one, -one, 0), 2: (-one, 0, 0, -one), 3: (0, -one, one, 0)}[quarters]
    a, b, c, d = turn
    data[at : at + 36] = struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30)
    self.path.write_bytes(data)
    capture = cv2.VideoCapture(str(self.path))
    self.addCleanup(capture.release)
    _, theirs = capture.read()
    _, [(_, picture), _] = self.read()
    np.testing.assert_allclose(picture.astype(int), theirs[..., ::-1], atol=12)

  @needs_pyav
  def test_one_frame_after_the_other(self):
    """An endless film is read from as far as it is written."""
    asked = []

    def endless():
      number = 0
      while number < 1000:
        asked.append(number)
        yield number / 25, scene(number % 50)
        number += 1
      raise UserError('enough')

    with self.assertRaisesRegex(UserError, 'enough'):
      self.write(endless())
    self.assertLen(asked, 1000)
    self.assertEmpty(list(self.path.parent.iterdir()))  # whole or not at all

  @needs_pyav
  def test_no_video(self):
    for name, content, message in (
      ('a.mp4', b'', 'cannot be read'),
      ('b.mp4', b'no video at all' * 100, 'cannot be read .*; expected a video file'),
    ):
      path = self.folder / name
      path.write_bytes(content)
      with self.assertRaisesRegex(UserError, f'{name}: {message}') as caught:
        self.read(path)
      self.assertNotIn('\n', str(caught.exception))
    with self.assertRaisesRegex(UserError, 'beep.mp4: has no pictures; expected a video'):
      self.read(beep(self.folder / 'beep.mp4'))

  @needs_pyav
  def test_where_nothing_can_be_written(self):
    self.path.parent.write_text('a file, not a folder')
    with self.assertRaisesRegex(UserError, 'clip.mp4 cannot be written'):
      self.write(scenes(3))

  def test_without_pyav_the_user_is_told_what_to_install(self):
    with (
      mock.patch.dict('sys.modules', {'av': None}),
      self.assertRaisesRegex(UserError, r"clip.mp4: needs PyAV; pip install 'seg_jax\[video\]"),
    ):
      self.read()


if __name__ == '__main__':
  absltest.main()
