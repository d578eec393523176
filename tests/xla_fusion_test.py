import os
import subprocess
import sys

from absl.testing import absltest

import seg_jax

SCRIPT = """
import sys
if sys.argv[1] == 'guarded':
  import seg_jax
import jax, jax.numpy as jnp, numpy as np
rng = np.random.default_rng(0)
m, r = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 3), (32769, 3)))
f = jax.jit(jax.vmap(lambda row: jnp.sum((m @ row) ** 2)))
exact = ((r.astype(np.float64) @ m.astype(np.float64).T) ** 2).sum(1)
print(np.abs(f(r) - exact).max())
"""


def error(kind):
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'} | {'JAX_PLATFORMS': 'cpu'}
  run = subprocess.run(
    [sys.executable, '-c', SCRIPT, kind],
    env=environment | {'PYTHONPATH': os.path.dirname(os.path.dirname(seg_jax.__file__))},
    capture_output=True,
    text=True,
    check=True,
    timeout=120,
  )
  return float(run.stdout)


class XlaFusionTest(absltest.TestCase):
  def test_the_suite_is_guarded_against_the_wrong_sum(self):
    self.assertLess(error('guarded'), 1e-4)

  def test_the_guard_is_still_needed_where_it_is_set(self):
    """When this fails, `seg_jax/__init__.py` can let this version of jaxlib do without the flag."""
    if seg_jax._SAFE_FUSION not in os.environ.get('XLA_FLAGS', ''):
      self.skipTest('this jaxlib is not guarded')
    self.assertGreater(error('bare'), 1e-2)


if __name__ == '__main__':
  absltest.main()
