"""U-Net (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597), with batch norm.

    ./run.sh --config=configs/unet.py                                # generated scenes, on a CPU
    ./run.sh --config=configs/unet.py:camvid --config.data.dir=PATH  # full size, for a GPU
    ./run.sh --config=configs/unet.py:folder --config.data.dir=PATH
    ./run.sh --config=configs/unet.py:voc2012 --config.data.dir=PATH  # or any other dataset

The paper's own, without norm, is `--config.model.norm=none --config.model.padding=valid
--config.model.dropout=0.5 --config.model.width=64`.
"""

from configs import common


def get_config(dataset: str = 'shapes'):
  config = common.get_config(dataset)
  config.name = 'unet'
  config.model.name = 'unet'
  config.model.width = 16
  config.model.depth = 4
  config.model.padding = 'same'  # same | valid, the paper's overlap-tile
  config.model.upsampling = 'transposed'  # transposed | bilinear
  config.model.norm = 'batch'  # batch | group | none
  config.model.dropout = 0.0  # at the end of the contracting path
  config.optimizer.learning_rate = 4e-3
  config.optimizer.warmup_steps = 30
  if dataset == 'shapes':
    config.data.batch_size = 8
    config.data.scale_range = (1.0, 1.0)  # the scenes vary enough by themselves
    config.data.photometric = 0.0
    config.loss.dice = 0.5
    config.train.num_steps = 900
    config.train.eval_every = 300
    config.train.checkpoint_every = 300
  elif dataset == 'camvid':
    config.dtype = 'bfloat16'
    config.model.width = 64
    config.data.batch_size = 8
    config.data.crop_size = (352, 480)
    config.loss.dice = 0.5  # the rare classes count as much as the road
    config.eval.splits = 'val,test'
    config.eval.batch_size = 8
    config.eval.size_multiple = 8  # 360 x 480 stays as it is
    config.optimizer.learning_rate = 2e-3
    config.train.num_steps = 6000
  elif dataset == 'folder':
    config.data.batch_size = 8
    config.data.crop_size = (224, 224)
    config.loss.dice = 0.5
    config.eval.batch_size = 4
  else:  # a start, on a GPU; nothing here has been tuned
    config.model.width = 32
    config.data.batch_size = 8
    config.data.crop_size = (320, 320)
    config.eval.batch_size = 4
    config.optimizer.learning_rate = 2e-3
    config.train.num_steps = 20000
    config.train.eval_every = 2000
  return config
