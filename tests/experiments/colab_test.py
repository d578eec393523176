"""The notebook from top to bottom, as a reader runs it, but small and without downloads."""

import base64
import importlib.util
import io
import json
import os
import re
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest
from PIL import Image

from seg_jax.data.datasets.shapes import INFO

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / 'experiments' / 'colab.ipynb'
MISSING = [
  name for name in ('nbclient', 'nbformat', 'ipykernel') if not importlib.util.find_spec(name)
]
TIMEOUT = 600  # seconds for a cell

# What a reader may change at the top, here so that everything is done in a small size.
SMALL = """
SCENES = {
  'data.shapes_size': (32, 32),
  'data.crop_size': (32, 32),
  'data.batch_size': 4,
  'model.width': 2,
  'model.depth': 1,
  'optimizer.warmup_steps': 0,
  'train.num_steps': 6,
  'train.log_every': 1,
  'train.eval_every': 3,
}
TFDS = ''
PHOTOS = SCENES | {'data.crop_size': (16, 16), 'eval.size_multiple': 32}
del PHOTOS['data.shapes_size']
"""


class NotebookTest(absltest.TestCase):
  def test_is_kept_without_what_came_out(self):
    notebook = json.loads(NOTEBOOK.read_text())
    cells = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
    self.assertNotEmpty(cells)
    for cell in cells:
      self.assertEqual((cell['outputs'], cell['execution_count']), ([], None), cell['id'])

  @pytest.mark.slow
  @unittest.skipIf(MISSING, f'not installed: {", ".join(MISSING)}')
  def test_runs_from_top_to_bottom_and_shows_pictures(self):
    import nbclient
    import nbformat

    notebook = nbformat.reads(NOTEBOOK.read_text(), as_version=4)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    notebook.cells.insert(1 + ids.index('parameters'), nbformat.v4.new_code_cell(SMALL))
    place = Path(self.enterContext(tempfile.TemporaryDirectory()))
    (place / 'seg_jax').symlink_to(ROOT)  # as if it had been cloned
    environment = {
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': '2',
      'IPYTHONDIR': str(place / 'ipython'),
    }
    self.enterContext(mock.patch.dict(os.environ, environment))
    nbclient.NotebookClient(
      notebook,
      timeout=TIMEOUT,
      kernel_name='python3',
      resources={'metadata': {'path': str(place)}},
    ).execute()  # raises what a cell raises

    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == 'code'}
    counts = {name: len(list(images(shown))) for name, shown in outputs.items()}
    counts = {name: count for name, count in counts.items() if count}
    self.assertEqual(counts, {'show': 3, 'photos-show': 3, 'predict': 2})
    for name in ('show', 'photos-show'):
      table = ''.join(output.data.get('text/markdown', '') for output in outputs[name])
      self.assertRegex(table, r'\*\*mIoU 0\.\d+\*\* on 200 pictures of val')
      self.assertEqual(re.findall(r'\n\| (\w+) \| [-\d.e]+ \|', table), list(INFO.class_names))
    for name in ('scenes', 'photos'):
      self.assertRegex(printed(outputs[name]), r'train: 100%\|.*6/6')  # progress
      self.assertRegex(printed(outputs[name]), r'step 3: val miou 0\.\d+')
    parts = re.findall(r'has \(2, 16, 16, 3\) of \(4, 16, 16, 3\)', printed(outputs['devices']))
    self.assertLen(parts, 2)
    self.assertContainsSubset(
      ['unet-shapes', 'unet-prepared'], [path.name for path in (place / 'runs').iterdir()]
    )


def images(outputs):
  """The pictures that a cell shows; each has more than one colour."""
  for output in outputs:
    if data := output.get('data', {}).get('image/png'):
      picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
      assert picture.std() > 1, 'an empty picture'
      yield picture


def printed(outputs):
  return ''.join(output.get('text', '') for output in outputs)


if __name__ == '__main__':
  absltest.main()
