"""Labels and depth by one encoder and two decoders (Kendall et al. 2018).

https://arxiv.org/abs/1705.07115

    ./run.sh --config=configs/several_decoders.py                          # scenes, on a CPU
    ./run.sh --config=configs/several_decoders.py:nyuv2 --config.data.dir=PATH       # for a GPU
    ./run.sh --config=configs/several_decoders.py:cityscapes --config.data.dir=PATH  # for a GPU

The encoder is U-Net's path on the generated scenes and a ResNet elsewhere; either works on all of
them (`--config.model.backbone=resnet18`, `unet`). `--config.model.uncertainty=true` learns how the
two losses are weighed, as in the paper. Depth alone, and depth alone of a net that has both, at the
cost of that decoder:

    ./run.sh --config=configs/several_decoders.py --config.task=depth \
        "--config.model.decoders=('depth',)" --workdir=runs/depth
    ./run.sh --config=configs/several_decoders.py --mode=predict --config.task=depth photo.jpg

A zoom leaves depth as it is, which a net that sees no zoom can learn best, so there is none. On
cityscapes, pictures have half their size, and what is farther than 80 m counts as unknown.

The generated scenes come in batches of four; on eight devices `--config.data.batch_size=8`. On
their val: mIoU 0.86 and AbsRel 0.105 to 0.113 as rounding has it, 19 minutes on two CPU cores.
"""

from configs import common


def get_config(dataset: str = 'shapes'):
  config = common.get_config(dataset)
  config.name = 'several_decoders'
  config.task = 'scene'  # scene | semantic | depth
  config.data.extras = ('depth',)
  config.data.scale_range = (1.0, 1.0)
  config.loss.depth = 'scale_invariant'
  config.loss.weights.depth = 10.0  # squares of logarithms are small
  config.model.name = 'several_decoders'
  config.model.decoders = ('semantic', 'depth')
  config.model.backbone = 'unet'  # unet | resnet18, resnet50, ... or any other backbone
  config.model.backbone_width = 1.0  # times a backbone's channels
  config.model.output_stride = 32  # of a backbone
  config.model.width = 16  # channels at full resolution, of U-Net's path and of the decoders
  config.model.depth = 4  # poolings of U-Net's path
  config.model.uncertainty = False
  config.model.norm = 'batch'  # batch | group | none
  config.model.frozen_backbone_norm = False
  config.optimizer.learning_rate = 4e-3
  config.optimizer.warmup_steps = 120
  if dataset in ('shapes', 'folder'):
    config.data.batch_size = 4  # depth is learned late, after many steps, however small
    config.train.num_steps = 5400
    config.train.eval_every = 1800
    config.train.checkpoint_every = 600
    return config
  config.dtype = 'bfloat16'
  config.model.backbone = 'resnet50'
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 200
  config.train.num_steps = 20000
  config.train.eval_every = 2000
  config.train.checkpoint_every = 1000
  if dataset == 'cityscapes':
    config.data.image_scale = 0.5
    config.data.crop_size = (384, 768)
    config.data.max_depth = 80.0
  elif dataset == 'nyuv2':
    config.data.crop_size = (416, 544)
    config.data.batch_size = 8
  return config
