"""FCN's scores without interpolation (Long et al. 2015, https://arxiv.org/abs/1411.4038).

    ./run.sh --config=configs/fcn_heatmap.py
    ./run.sh --config=configs/fcn_heatmap.py:camvid --config.data.dir=PATH

Each score labels the 32 x 32 pixels of its cell: what a classifier gives when its fully connected
layers become convolutions (section 3.1), and what all of the paper's ways up have to beat. It has
FCN-32s' parameters. A finished FCN-32s as a heatmap, whose scores take the place of its own in
`eval/`:

    ./run.sh --config=configs/fcn32s.py --mode=eval --workdir=runs/fcn32s-shapes \
        --config.model.head=heatmap

The generated scenes are enlarged twice as much as for FCN-32s: there even a cell's majority label
has an mIoU of 0.69 only, here 0.82.

On the generated scenes: mIoU 0.72 on val, 8 minutes on two CPU cores.
"""

from configs import fcn32s


def get_config(dataset: str = 'shapes'):
  config = fcn32s.get_config(dataset)
  config.name = 'fcn_heatmap'
  config.model.head = 'heatmap'
  if dataset == 'shapes':
    config.data.image_scale = 8.0
    config.data.crop_size = (384, 384)
    config.data.batch_size = 4
    config.eval.batch_size = 2
    config.train.num_steps = 500
    config.train.eval_every = 250
    config.train.checkpoint_every = 250
  return config
