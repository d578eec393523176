import os
import tempfile
from pathlib import Path
from unittest import mock

from absl.testing import absltest

from seg_jax import atomic


class WriteBytesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_makes_the_folder_and_replaces_what_was_there(self):
    path = self.folder / 'deep' / 'er' / 'a.json'
    atomic.write_bytes(path, b'old')
    atomic.write_bytes(path, b'new')
    self.assertEqual(path.read_bytes(), b'new')
    self.assertEqual(os.listdir(path.parent), ['a.json'])

  def test_a_write_that_fails_half_way_leaves_the_old_file_alone(self):
    path = self.folder / 'a.png'
    atomic.write_bytes(path, b'old and whole')

    def half(target, data):
      with open(target, 'wb') as file:
        file.write(data[: len(data) // 2])
      raise OSError('disk full')

    with mock.patch.object(Path, 'write_bytes', half), self.assertRaisesRegex(OSError, 'disk full'):
      atomic.write_bytes(path, b'new')
    self.assertEqual(path.read_bytes(), b'old and whole')
    self.assertEqual(os.listdir(self.folder), ['a.png'])

  def test_the_file_is_as_readable_for_others_as_any(self):
    atomic.write_bytes(self.folder / 'a', b'')
    (self.folder / 'b').write_bytes(b'')
    self.assertEqual((self.folder / 'a').stat().st_mode, (self.folder / 'b').stat().st_mode)


if __name__ == '__main__':
  absltest.main()
