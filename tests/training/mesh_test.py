import os
import re
import subprocess
import sys
from pathlib import Path

from absl.testing import absltest

SCRIPT = """
import sys, tempfile, jax
from pathlib import Path
from tests.training import tiny
from seg_jax.training import loop
from seg_jax.training.logs import read_metrics
assert jax.device_count() == int(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
  loop.train(tiny.config(train__num_steps=4, eval__splits='val'), Path(folder))
  for line in read_metrics(Path(folder)):
    print(line['split'], *(repr(line[k]) for k in ('loss', 'miou') if k in line))
"""


def run(devices):
  """What a run on so many devices of its own process logs: [(split, loss or miou), ...]."""
  process = subprocess.run(
    [sys.executable, '-c', SCRIPT, str(devices)],
    cwd=Path(__file__).parents[2],
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  lines = re.findall(r'^(train|val) (\d\S+)$', process.stdout, re.MULTILINE)
  assert process.returncode == 0 and lines, process.stderr[-3000:]
  return [(split, float(value)) for split, value in lines]


class MeshTest(absltest.TestCase):
  def test_four_devices_log_what_one_does(self):
    """Batch norm included: its statistics are those of the whole batch."""
    for (split, one), (_, four) in zip(run(1), run(4), strict=True):
      self.assertAlmostEqual(one, four, delta=1e-5 * abs(one) if split == 'train' else 1e-3)


if __name__ == '__main__':
  absltest.main()
