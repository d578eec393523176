"""Scores of depth, from sums over all pixels of a split whose depth is known.

As Eigen et al. 2014 define them (section 4.3) and Laina et al. 2016 report them. Three phases, as
in `metrics.semantic`: `count` runs on the device, for one batch, in float32; `merge` adds on the
host, in float64; `result` divides, once. Every pixel counts alike, so a picture with few that are
known counts little; papers on KITTI average pictures instead.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from seg_jax.ops import devices

THRESHOLDS = (1.25, 1.25**2, 1.25**3)
_SUMS = ('abs_rel', 'squared', 'log10', 'squared_log')


def empty() -> dict[str, np.ndarray]:
  """The state before the first batch.

  Float64: the sums of |y - y*| / y*, (y - y*)^2, |log10 y - log10 y*| and (ln y - ln y*)^2. Int64:
  `within` [3], the pixels within each of THRESHOLDS, `pixels`, all that are known, and `images`.
  """
  return {name: np.zeros((), np.float64) for name in _SUMS} | {
    'within': np.zeros(len(THRESHOLDS), np.int64),
    'pixels': np.zeros((), np.int64),
    'images': np.zeros((), np.int64),
  }


def count(depth: jax.Array, truth: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
  """The sums of one batch, float32, and its counts, int32, with `empty`'s names; jit-able.

  `depth` float [N, H, W] in metres, above 0, `truth` float32 [N, H, W], 0 where it is not known,
  `valid` bool [N], False for padding. A batch must stay under 2^31 pixels.
  """
  known = (truth > 0) & valid.reshape(-1, 1, 1)
  truth = jnp.where(known, truth, 1)
  tiny = jnp.finfo(jnp.float32).tiny
  depth = jnp.where(known, jnp.maximum(depth.astype(jnp.float32), tiny), 1)
  error, log = jnp.abs(depth - truth), jnp.log(depth) - jnp.log(truth)
  within = [
    known & (depth < threshold * truth) & (truth < threshold * depth) for threshold in THRESHOLDS
  ]
  # Where nothing is known, depth is truth, and all sums get nothing.
  return {
    'abs_rel': devices.pixel_sum(error / truth),
    'squared': devices.pixel_sum(error**2),
    'log10': devices.pixel_sum(jnp.abs(log)) / math.log(10),
    'squared_log': devices.pixel_sum(log**2),
    'within': devices.pixel_sum(jnp.stack(within, -1).astype(jnp.int32)),
    'pixels': devices.pixel_sum(known.astype(jnp.int32)),
    'images': jnp.sum(valid, dtype=jnp.int32),
  }


def merge(state: dict, counts: dict) -> dict[str, np.ndarray]:
  """`state` and `counts` together, on the host in the 64 bits of `state`; neither is changed."""
  return {name: np.add(total, counts[name], dtype=total.dtype) for name, total in state.items()}


def result(state: dict) -> dict:
  """The scores of the whole split, as written to `eval/SPLIT.json`.

  Errors, the smaller the better: `abs_rel` (AbsRel), `rmse` in metres, `rmse_log` of natural
  logarithms, `log10`. Shares, the larger the better: `delta1` to `delta3`, the pixels where
  max(y / y*, y* / y) is below 1.25, 1.25^2 and 1.25^3. Each is None where nothing is known, or
  where a prediction was not finite.
  """
  pixels = int(state['pixels'])

  def mean(total):
    return float(total) / pixels if pixels and math.isfinite(total) else None

  def root(total):
    return None if mean(total) is None else math.sqrt(mean(total))

  shares = {f'delta{i}': mean(count) for i, count in enumerate(state['within'], start=1)}
  return {
    'abs_rel': mean(state['abs_rel']),
    'rmse': root(state['squared']),
    'rmse_log': root(state['squared_log']),
    'log10': mean(state['log10']),
    **shares,
    'pixels': pixels,
    'num_images': int(state['images']),
  }


def table(result: dict) -> str:
  """The scores of `result` as two lines of text."""

  def shown(name, scale=1, digits=4):
    return '-' if result[name] is None else f'{scale * result[name]:.{digits}f}'

  deltas = ', '.join(shown(f'delta{i}', 100, 2) for i in (1, 2, 3))
  return (
    f'depth: AbsRel {shown("abs_rel")}, RMSE {shown("rmse")} m, RMSE of logs {shown("rmse_log")}, '
    f'log10 {shown("log10")}\n'
    f'within 1.25, 1.25^2, 1.25^3: {deltas} % of {result["pixels"]:,} pixels, '
    f'{result["num_images"]} images'
  )
