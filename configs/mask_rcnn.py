"""Mask R-CNN (He et al. 2017, https://arxiv.org/abs/1703.06870): the objects, and their outlines.

    ./run.sh --config=configs/mask_rcnn.py                                # on a CPU
    ./run.sh --config=configs/mask_rcnn.py:dsb2018 --config.data.dir=PATH  # nuclei, on a CPU
    ./run.sh --config=configs/mask_rcnn.py:coco --config.data.dir=PATH \
        --config.model.pretrained=PATH  # the paper's recipe, for several GPUs

The last starts from a ResNet-50 trained on ImageNet and has the paper's rates and its 160,000
steps of 16 pictures (section 3.1), with batch norm, the first convolution and the first stage
frozen, as in the authors' code; pictures are not brought to 800 rows but cut from a zoom, as one
program wants one shape. The larger net is `--config.model.backbone=resnet101`. Without masks,
`--config.model.masks=false`, it is Faster R-CNN, which says what is where.

On the generated scenes: mask AP50 0.77 and AP 0.45 on val, 15 minutes on one CPU core. On 133
of dsb2018's pictures: mask AP50 0.76 and AP 0.44 on the 19 of val, 37 minutes on one core.
"""

import ml_collections

from configs import common

PAPERS = ('coco', 'cityscapes')  # datasets that section 4 and appendix A train on


def get_config(dataset: str = 'shapes'):
  config = common.get_config(dataset)
  config.name = 'mask_rcnn'
  config.task = 'instance'
  config.data.extras = ('instances',)
  config.loss = ml_collections.ConfigDict()  # the paper's terms are added up as they are
  config.model.name = 'mask_rcnn'
  config.model.backbone = 'resnet50'  # any of seg_jax.models.backbones.BACKBONES
  config.model.backbone_width = 1.0  # times the backbone's channels
  config.model.output_stride = 32
  config.model.frozen_backbone_norm = False
  config.model.norm = 'batch'  # of the backbone: batch | frozen_batch | group | none
  config.model.head_norm = 'none'  # of pyramid, box and mask head: batch | group | none
  config.model.width = 256  # channels of the pyramid and of the heads
  config.model.proposal_convs = 1
  config.model.box_convs = 0  # 0: two fully connected layers; else so many convolutions and one
  config.model.box_features = 1024  # of the fully connected layers
  config.model.mask_convs = 4
  config.model.masks = True
  config.model.anchor_scales = (32, 64, 128, 256, 512)  # pixels, at strides 4 to 64
  config.model.anchor_aspects = (0.5, 1.0, 2.0)  # height over width
  config.model.proposals = (2000, 1000)  # of a picture, in training and after it
  config.model.proposal_overlap = 0.7
  config.model.anchor_samples = 256  # of a picture, that the first stage learns from
  config.model.box_samples = 512  # that the second learns from
  config.model.candidates = 1000  # that detections are chosen from
  config.model.detections = 100
  config.model.score_threshold = 0.05
  config.model.overlap = 0.5
  if dataset in ('shapes', 'dsb2018', 'folder'):
    small(config)
  if dataset == 'shapes':
    config.data.max_instances = 16
    config.train.num_steps = 900
    config.train.eval_every = 300
    config.train.checkpoint_every = 300
  elif dataset == 'dsb2018':
    config.data.crop_size = (192, 192)
    config.data.scale_range = (0.5, 1.5)
    config.model.proposals = (500, 300)
    config.model.candidates = 600
    config.model.detections = 200
    config.data.max_instances = 200
    config.eval.batch_size = 1  # of many sizes, up to 1040 x 1388
    config.train.num_steps = 1500
    config.train.eval_every = 500
  elif dataset in PAPERS:
    papers_recipe(config, dataset)
  elif dataset != 'folder':
    config.dtype = 'bfloat16'
    config.train.num_steps = 20000
    config.train.eval_every = 2000
    config.train.checkpoint_every = 1000
  return config


def small(config) -> None:
  """A net for few pixels and two CPU cores, from scratch."""
  config.model.backbone = 'resnet18'
  config.model.backbone_width = 0.5
  config.model.head_norm = 'batch'
  config.model.width = 48
  config.model.box_features = 128
  config.model.mask_convs = 2
  config.model.anchor_scales = (10, 20, 40, 60, 80)
  config.model.proposals = (150, 100)
  config.model.anchor_samples = 64
  config.model.box_samples = 64
  config.model.candidates = 200
  config.model.detections = 30
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 50
  config.optimizer.clip_norm = 5.0


def papers_recipe(config, dataset: str) -> None:
  """How the authors train on COCO (section 3.1), and on Cityscapes (appendix A), in bfloat16."""
  config.dtype = 'bfloat16'
  config.model.frozen_backbone_norm = True
  config.optimizer.groups = (('^backbone/(conv1|layer1)|^backbone/.*norm', 0.0, 0.0),)
  config.data.batch_size = 16
  config.data.crop_size = (1024, 1024)
  config.data.photometric = 0.0
  config.data.num_threads = 2  # a picture's masks alone are 100 MiB
  config.eval.batch_size = 8
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.02
  config.optimizer.warmup_steps = 500
  config.optimizer.schedule = 'step'
  config.optimizer.step_boundaries = (0.75,)
  config.train.num_steps = 160000
  if dataset == 'coco':
    config.data.image_scale = 1.6  # about 800 rows, as most pictures have 480 or more
    config.data.scale_range = (0.8, 1.25)
  else:
    config.data.batch_size = 8
    config.data.scale_range = (0.78, 1.0)
    config.optimizer.learning_rate = 0.01
    config.train.num_steps = 24000
  config.train.eval_every = 5000 if dataset == 'coco' else 2000
  config.train.checkpoint_every = 1000
