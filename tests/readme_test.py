"""The commands of the README, one after the other, as a reader types them, but small.

Left out: those that are the test suite itself, those for clusters, TFDS's builder, which needs
TensorFlow and downloads, and the run without arguments, which takes minutes.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from absl.testing import absltest
from PIL import Image

from tests.main_test import ROOT, make_folder

SHARED = ROOT.parent / 'shared' / 'data'
DATA = {'camvid': SHARED / 'camvid', 'voc2012': SHARED / 'pascal_voc/VOCdevkit/VOC2012'}
SMALL = (
  '--config.train.num_steps=2',
  '--config.train.log_every=1',
  '--config.train.eval_every=2',
  '--config.train.checkpoint_every=2',
  '--config.data.batch_size=2',
  '--config.data.crop_size=(32,32)',
  '--config.data.shapes_size=(32,32)',
  '--config.optimizer.warmup_steps=0',
  '--config.eval.batch_size=2',
  '--config.eval.splits=val',
)
SMALLER_OBJECTS = ('--config.model.backbone_width=0.0625', '--config.model.width=8')
OF_SYSTEM = {
  'unet': ('--config.model.width=2', '--config.model.depth=1', '--config.data.image_scale=0.25'),
  'fcn_resnet': ('--config.model.backbone_width=0.0625',),
  'mask_rcnn': SMALLER_OBJECTS,
  'panoptic_fpn': SMALLER_OBJECTS,
  'several_decoders': ('--config.model.width=2', '--config.model.depth=1'),
}
NOT_RUN = ('./run.sh', './run.sh test', 'python -c', 'python -m', 'gcloud', 'srun')  # or begin so


def commands() -> list[str]:
  """Each command of the README, its continued lines joined."""
  text = (ROOT / 'README.md').read_text().replace('\\\n', ' ')
  lines = [line.strip() for line in re.findall(r'^    (\S.*)$', text, re.MULTILINE)]
  return [line for line in lines if line.startswith(('./run.sh', 'python', 'gcloud', 'srun'))]


def system_of(command: str) -> str:
  return re.search(r'--config=configs/(\w+)\.py', command)[1]


class ReadmeTest(absltest.TestCase):
  def test_each_command_is_run_or_known_not_to_be(self):
    runs = [command for command in commands() if '--config=' in command]
    self.assertGreaterEqual(len(runs), 9)
    for command in commands():
      known = command in NOT_RUN or command.startswith(NOT_RUN[2:])
      self.assertTrue(known or system_of(command) in OF_SYSTEM, command)

  @pytest.mark.slow
  def test_the_commands_work_one_after_the_other(self):
    if missing := [str(path) for path in DATA.values() if not path.exists()]:
      self.skipTest(f'needs {", ".join(missing)}')
    place = Path(self.enterContext(tempfile.TemporaryDirectory()))
    (place / 'configs').symlink_to(ROOT / 'configs')
    for folder in DATA['camvid'].glob('[tv]*'):
      (place / 'CamVid' / folder.name).mkdir(parents=True)
      for path in sorted(folder.iterdir())[:4]:
        (place / 'CamVid' / folder.name / path.name).symlink_to(path)
    (place / 'VOCdevkit').mkdir()
    (place / 'VOCdevkit' / 'VOC2012').symlink_to(DATA['voc2012'])
    make_folder(place / 'my_data')
    picture = Image.fromarray(np.full((40, 30, 3), 90, np.uint8))
    for name in ('photo.jpg', 'more_photos/a.png', 'scans/b.tif'):
      (place / name).parent.mkdir(exist_ok=True)
      picture.save(place / name)
    self.run_command(place, './run.sh --config=configs/fcn_resnet.py')  # what export is of
    ran = [command for command in commands() if '--config=' in command]
    for command in ran:
      if command.startswith('./run.sh') and 'oxford_iiit_pet' not in command:
        with self.subTest(command):
          self.run_command(place, command.replace('=PATH', '=CamVid'))
    for left in (
      'runs/unet-camvid/eval/val.json',
      'runs/unet-folder/predict/overlays/photo.png',
      'runs/unet-folder/predict/composites/photo.png',
      'runs/several_decoders-shapes/predict/depth/photo.png',
      'runs/unet-tfds/eval/val.png',
      'runs/unet-voc2012/inspect',
      'runs/fcn_resnet-shapes/export',
    ):
      self.assertTrue((place / left).exists(), left)

  def run_command(self, place, command):
    _, *arguments = shlex.split(command)
    inputs = [argument for argument in arguments if not argument.startswith('--')]
    flags = [argument for argument in arguments if argument.startswith('--')]
    training = '--mode=' not in command or '--mode=prepare' in command
    small = [*SMALL, *OF_SYSTEM[system_of(command)]] if training else []
    # A tuple that is given twice is joined.
    small = [flag for flag in small if '(' not in flag or flag.partition('=')[0] not in command]
    process = subprocess.run(
      [sys.executable, ROOT / 'main.py', *flags, *small, *inputs],
      cwd=place,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      timeout=600,
    )
    self.assertEqual(process.returncode, 0, process.stderr[-2000:])


if __name__ == '__main__':
  absltest.main()
