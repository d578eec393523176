"""RefineNet (Lin et al. 2017, https://arxiv.org/abs/1611.06612).

    ./run.sh --config=configs/refinenet.py                                # on a CPU
    ./run.sh --config=configs/refinenet.py:camvid --config.data.dir=PATH  # from scratch, for a GPU
    ./run.sh --config=configs/refinenet.py:voc2012 --config.data.dir=PATH \
        --config.model.pretrained=WEIGHTS                                 # the paper's

On voc2012, cityscapes, ade20k and nyuv2, which the paper reports, the recipe is its authors': a
ResNet-101 trained on ImageNet whose batch norms keep their statistics, one crop a step, of 400 x
400 (Cityscapes: 600), zooms of 0.7 to 1.3, SGD at 5e-4, then a tenth of it, and decay 5e-4. They
lower the rate by hand when val no longer improves, here it falls at two thirds; the backbone's is a
tenth of the others'. VOC is `train_aug`, with the masks of SBD (without them:
`--config.train.split=train`). Without WEIGHTS such norms do nothing: instead, take
`--config.model.frozen_backbone_norm=False --config.data.batch_size=8` and
`'--config.optimizer.groups=()'`.

Test mIoU, at several scales: VOC 2012 0.834 (ResNet-152, COCO besides, a CRF behind),
Cityscapes 0.736.

On the generated scenes: mIoU 0.74 on val, 5 minutes on one CPU core.
"""

from configs import common

RECIPE = ('voc2012', 'cityscapes', 'ade20k', 'nyuv2')


def get_config(dataset: str = 'shapes'):
  config = common.get_config(dataset)
  config.name = 'refinenet'
  config.model.name = 'refinenet'
  config.model.backbone = 'resnet50'
  config.model.backbone_width = 1.0  # times the backbone's channels
  config.model.preactivation = False  # ResNets': norm and ReLU before their convolutions
  config.model.output_stride = 32
  config.model.cascade = 4  # blocks: 4 | 2 | 1
  config.model.width = 256
  config.model.residual_units = True
  config.model.chained_pooling = 2  # poolings in a chain; 0: none
  config.model.dropout = 0.0  # of the stages at strides 16 and 32, and before the classifier
  config.model.norm = 'batch'  # of the backbone: batch | frozen_batch | group | none
  config.model.frozen_backbone_norm = False
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 200
  if dataset in RECIPE:
    size = 600 if dataset == 'cityscapes' else 400
    config.model.backbone = 'resnet101'
    config.model.dropout = 0.5
    config.model.frozen_backbone_norm = True
    config.data.crop_size = (size, size)
    config.data.batch_size = 1
    config.data.scale_range = (0.7, 1.3)
    config.data.photometric = 0.0
    config.optimizer.name = 'sgd'
    config.optimizer.schedule = 'step'
    config.optimizer.step_boundaries = (2 / 3,)
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 5e-4
    config.optimizer.groups = (('^backbone/', 0.1, 1.0),)
    config.train.num_steps = 150_000
    if dataset == 'voc2012':
      config.train.split = 'train_aug'
  elif dataset in ('shapes', 'folder'):
    config.model.backbone = 'resnet18'
    config.model.width = 32
    config.optimizer.warmup_steps = 30
    config.train.num_steps = 400
    config.train.eval_every = 200
    config.train.checkpoint_every = 200
  else:
    config.train.num_steps = 6000 if dataset == 'camvid' else 20000
  if dataset not in ('shapes', 'folder'):
    config.dtype = 'bfloat16'
    config.train.eval_every = 5000 if dataset in RECIPE else 1000
    config.train.checkpoint_every = 1000
  return config
