"""HRNetV2 (Wang et al. 2019, PAMI 2020, https://arxiv.org/abs/1908.07919).

    ./run.sh --config=configs/hrnet.py                                # generated scenes, on a CPU
    ./run.sh --config=configs/hrnet.py:camvid --config.data.dir=PATH  # W18, from scratch, for a GPU
    ./run.sh --config=configs/hrnet.py:cityscapes --config.data.dir=PATH \
        --config.model.pretrained=WEIGHTS                             # the paper's W48

On cityscapes, ade20k and coco_stuff the recipe is the paper's or its authors', who start from
timm's `hrnet_w48` trained on ImageNet: W48, SGD, poly, zooms of 0.5 to 2. Cityscapes: 484 epochs of
12 crops of 512 x 1024, rate 0.01, decay 5e-4, val mIoU 0.811. ADE20K: 120 epochs of 16
crops of 520 x 520, 0.02, 1e-4. COCO-Stuff: 110 epochs of its 10 k pictures, 0.001, ten times that
for the head, 1e-4; here as many steps on all of its pictures.

The generated scenes and folders have a short net: one block in each stage, of two units.
On the generated scenes: mIoU 0.76 on val, 5 minutes on one CPU core.
"""

from configs import common

# Crop, batch, highest rate, weight decay and steps.
RECIPES = {
  'cityscapes': ((512, 1024), 12, 1e-2, 5e-4, 120_000),
  'ade20k': ((520, 520), 16, 2e-2, 1e-4, 152_000),
  'coco_stuff': ((520, 520), 16, 1e-3, 1e-4, 62_000),
}


def get_config(dataset: str = 'shapes'):
  config = common.get_config(dataset)
  config.name = 'hrnet'
  config.model.name = 'hrnet'
  config.model.backbone = 'hrnet_w18'  # hrnet_w18 | hrnet_w32 | hrnet_w48
  config.model.backbone_width = 1.0  # times the backbone's channels
  config.model.output_stride = 32
  config.model.head = 'v2'  # v1 (the finest branch) | v2 (all of them)
  config.model.modules = (1, 4, 3)  # blocks of stages 2, 3 and 4
  config.model.units = 4  # residual units of each branch in a block
  config.model.norm = 'batch'  # batch | frozen_batch | group | none
  config.model.frozen_backbone_norm = False
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 200
  if dataset in RECIPES:
    crop, batch, rate, decay, steps = RECIPES[dataset]
    config.model.backbone = 'hrnet_w48'
    config.data.crop_size = crop
    config.data.batch_size = batch
    config.data.scale_range = (0.5, 2.0)
    config.data.photometric = 0.0
    config.optimizer.name = 'sgd'
    config.optimizer.schedule = 'poly'
    config.optimizer.learning_rate = rate
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = decay
    config.train.num_steps = steps
    if dataset == 'coco_stuff':
      config.optimizer.groups = (('^(?!backbone/)', 10.0, 1.0),)
  elif dataset in ('shapes', 'folder'):
    config.model.modules = (1, 1, 1)
    config.model.units = 2
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 30
    config.train.num_steps = 600
    config.train.eval_every = 300
    config.train.checkpoint_every = 300
  else:
    config.train.num_steps = 6000 if dataset == 'camvid' else 20000
  if dataset not in ('shapes', 'folder'):
    config.dtype = 'bfloat16'
    config.train.eval_every = 5000 if dataset in RECIPES else 1000
    config.train.checkpoint_every = 1000
  return config
