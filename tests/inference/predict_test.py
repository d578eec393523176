import tempfile
from pathlib import Path

from absl.testing import absltest
from PIL import Image

from seg_jax.errors import UserError
from seg_jax.inference.predict import _outputs, find_pictures


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


if __name__ == '__main__':
  absltest.main()
