import ast
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
from absl.testing import absltest

from seg_jax.training import loop
from seg_jax.training.logs import read_metrics
from tests.training import tiny


def train() -> list[tuple[str, float]]:
  """What a run on all devices of this process logs: the splits and their losses or mIoU."""
  with tempfile.TemporaryDirectory() as folder:
    loop.train(tiny.config(train__num_steps=4, eval__splits='val'), Path(folder))
    lines = read_metrics(Path(folder))
  return [(line['split'], line[k]) for line in lines for k in ('loss', 'miou') if k in line]


def train_elsewhere(devices: int) -> list[tuple[str, float]]:
  """The same of a process that has so many devices."""
  script = (
    'import jax; from tests.training import mesh_test; '
    f'assert jax.device_count() == {devices}; print(); print(mesh_test.train())'
  )
  process = subprocess.run(
    [sys.executable, '-c', script],
    cwd=Path(__file__).parents[2],
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr[-3000:]
  return ast.literal_eval(process.stdout.splitlines()[-1])


class MeshTest(absltest.TestCase):
  def test_four_devices_log_what_one_does(self):
    """Batch norm included: its statistics are those of the whole batch."""
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it
    self.assertEqual(jax.device_count(), 1)
    here, elsewhere = train(), train_elsewhere(4)
    self.assertEqual({split for split, _ in here}, {'train', 'val'})
    for (split, one), (_, four) in zip(here, elsewhere, strict=True):
      self.assertAlmostEqual(one, four, delta=1e-5 * abs(one) if split == 'train' else 1e-3)


if __name__ == '__main__':
  absltest.main()
