"""A picture that is too large for one device: its rows split over several.

    python -m experiments.large_pictures

A U-Net's forward pass over one picture of 4096 x 4096, on one device and with `mesh.space` 2, 4 and
8, which this machine's CPU plays: the same logits, and what each device has to hold. XLA exchanges
the rows beside the boundaries by itself.

Writes `large_pictures.json`, `large_pictures.png` and `README.md` into `--out`.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from matplotlib.figure import Figure

from configs import unet
from experiments import study
from seg_jax.models import build_model
from seg_jax.training.mesh import replicated, sharded

SIZE = 4096  # rows and columns
SPLITS = (1, 2, 4, 8)
WIDTH = 8  # of the net
EXPLAINED = """
Memory is what the compiled program holds on each device besides weights and picture. The largest
difference is that of a logit from the unsplit result; logits range up to the number beside it.
"""


def logits(split: int, variables, image):
  """The variables, the picture's logits on `split` devices, and the bytes on each meanwhile."""
  config = unet.get_config()
  config.model.width = WIDTH
  model = build_model(config, 7)
  mesh = Mesh(
    np.array(jax.devices()[:split]).reshape(1, split),
    ('data', 'space'),
    axis_types=(AxisType.Auto,) * 2,
  )
  rows = sharded(mesh, 'image')
  if variables is None:
    variables = jax.jit(model.init)(jax.random.key(0), image[:, :64, :64])
  run = jax.jit(
    lambda variables, image: model.apply(variables, image)['logits'],
    in_shardings=(replicated(mesh), rows),
    out_shardings=rows,
  )
  run = run.lower(variables, image).compile()
  result = run(jax.device_put(variables, replicated(mesh)), jax.device_put(image, rows))
  return variables, np.asarray(result), run.memory_analysis().temp_size_in_bytes


def chart(rows: list[dict]) -> Figure:
  figure = Figure(figsize=(5, 3.2), layout='constrained', dpi=130)
  axes = figure.subplots()
  splits = [row['split'] for row in rows]
  axes.loglog(splits, [row['mib'] for row in rows], marker='o', base=2)
  axes.loglog(splits, [rows[0]['mib'] / n for n in splits], ls=':', color='grey', base=2)
  axes.set_xticks(splits, map(str, splits))
  axes.set_yticks([row['mib'] for row in rows], [f'{row["mib"]:,.0f}' for row in rows])
  axes.set_xlabel('devices along mesh.space; dotted: an equal part each')
  axes.set_ylabel('MiB on a device')
  axes.spines[['top', 'right']].set_visible(False)
  return figure


def page(result: dict) -> str:
  lines = [
    (row['split'], f'{row["mib"]:,.0f}', f'{row["difference"]:.1e} of {row["largest"]:.1f}')
    for row in result['rows']
  ]
  columns = ('devices', 'MiB on each', 'largest difference')
  return (
    '# A picture split over devices\n\n'
    f'U-Net of width {WIDTH} on one picture of {SIZE} x {SIZE}, float32, forward.\n\n'
    f'{study.table(columns, lines)}\n{EXPLAINED}\n![memory](large_pictures.png)\n'
  )


def main(name):
  image = np.random.default_rng(0).normal(size=(1, SIZE, SIZE, 3)).astype(np.float32)
  variables, whole, rows = None, None, []
  for split in SPLITS:
    variables, result, held = logits(split, variables, image)
    whole = result if whole is None else whole
    rows.append(
      {
        'split': split,
        'mib': held / 2**20,
        'difference': float(np.abs(result - whole).max()),
        'largest': float(np.abs(whole).max()),
      }
    )
    print(rows[-1], flush=True)
  result = {'machine': study.machine(), 'size': SIZE, 'width': WIDTH, 'rows': rows}
  study.write(name, result, page(result), chart(rows))


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', max(SPLITS))
  study.run(main)
