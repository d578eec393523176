"""The one schema: every key that all systems share, with its default.

A system's config (`configs/unet.py`) calls `get_config`, then changes what its paper asks for. An
unknown key on the command line is an error, so nothing is configured that nothing reads.
"""

import ml_collections


def get_config(dataset: str = 'shapes') -> ml_collections.ConfigDict:
  """Defaults for `dataset`, one of `seg_jax.data.datasets.DATASETS`.

  What depends on the dataset alone (crops, batches, splits) is set here; a system's file adds its
  model, its optimizer and how long it trains.
  """
  config = ml_collections.ConfigDict()
  config.name = ''  # the system; the config file sets it
  config.task = 'semantic'  # semantic | depth | scene, all a model's decoders | instance | panoptic
  config.seed = 0  # of parameters, shuffling, augmentation and dropout
  config.sigmoid = False  # two classes by one logit and a sigmoid; else by two logits and a softmax
  config.dtype = 'float32'  # of the computation; parameters, losses and metrics stay float32
  config.parallel = 'jit'  # jit: one program over all devices | pmap: one a device, which is older
  config.distributed = False  # this is one of several processes, on one machine or on many
  config.profile = False  # write a trace of a few steps into the workdir, and where their time goes

  config.mesh = mesh = ml_collections.ConfigDict()
  mesh.data = -1  # devices that a batch is split over; -1: all that are left
  mesh.space = 1  # devices that the rows of a picture are split over, if it is too large for one

  config.data = data = ml_collections.ConfigDict()
  data.name = dataset
  data.dir = ''  # the dataset as its owners ship it, unpacked
  data.variant = ''  # which edition of it, where there are several; '' is the first in its file
  data.extras = ()  # what is read besides pictures and labels: 'instances', 'depth'
  data.max_instances = 100  # objects of a picture in a batch; the largest, if it has more
  data.max_depth = 0.0  # metres; what is farther counts as unknown; 0: nothing does
  data.shapes_size = (96, 96)  # rows, columns of a generated scene
  data.batch_size = 16  # over all devices
  data.crop_size = (96, 96)  # rows, columns of a training crop, after image_scale
  data.image_scale = 1.0  # the model works at this multiple of the picture's own size
  data.scale_range = (0.75, 1.5)  # random zoom of a training crop, log-uniform
  data.flip = True  # left to right, one time in two
  data.photometric = 0.3  # largest relative change of brightness, contrast and saturation; 0: off
  data.channels = 3  # of a picture; other numbers are bands of TIFF or PNG files, in 'folder' only
  data.bits = 8  # of each value, 8 or 16; likewise
  data.mean = (0.485, 0.456, 0.406)  # of a picture in [0, 1], per channel
  data.std = (0.229, 0.224, 0.225)
  data.num_threads = 4  # that read and augment, in each process
  data.num_workers = 0  # processes; 0: threads alone, which is faster for small data sets
  data.cache_gib = 4.0  # of memory for each split; its decoded pictures are kept if all of them fit

  config.model = model = ml_collections.ConfigDict()
  model.name = ''
  model.pretrained = ''  # weights that a fresh run starts with: a file, or another run's workdir

  config.loss = loss = ml_collections.ConfigDict()  # the weight of each term; 0: not computed
  loss.cross_entropy = 1.0
  loss.dice = 0.0
  loss.focal = 0.0
  loss.lovasz = 0.0
  loss.auxiliary = 0.4  # of the same terms over each of a model's further outputs, if it has any
  loss.class_weights = 'none'  # none | median_frequency | enet, in cross entropy and focal
  loss.label_smoothing = 0.0
  loss.focal_gamma = 2.0
  loss.hard_pixel_fraction = 1.0  # cross entropy over this share of the pixels, the worst ones
  loss.depth = 'berhu'  # l1 | berhu | scale_invariant, of a depth decoder
  loss.weights = ml_collections.ConfigDict()  # of a scene's decoders, unless learned; in panoptic
  loss.weights.semantic = 1.0
  loss.weights.depth = 1.0

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.name = 'adamw'  # sgd | adamw | rmsprop
  optimizer.learning_rate = 1e-3  # the highest
  optimizer.schedule = 'cosine'  # poly | cosine | step | constant
  optimizer.warmup_steps = 0  # linear, from 0
  optimizer.poly_power = 0.9
  optimizer.step_boundaries = (0.5, 0.75)  # shares of num_steps at which the rate falls
  optimizer.step_factor = 0.1
  optimizer.momentum = 0.9  # sgd and rmsprop
  optimizer.weight_decay = 1e-4  # on kernels only
  optimizer.groups = ()  # (pattern, rate, decay): paths, times the rate (0: frozen) and the decay
  optimizer.sharded = False  # its state is split over mesh.data (ZeRO-1), to save memory
  optimizer.clip_norm = 0.0  # of the whole gradient; 0: off
  optimizer.ema_decay = 0.0  # evaluate an average of the weights; 0: off

  config.train = train = ml_collections.ConfigDict()
  train.split = 'train'
  train.num_steps = 1000
  train.steps_per_call = 1  # spares small models the time of a call; a divisor of all other steps
  train.recompute = False  # what lies between convolutions in the backward pass, to save memory
  train.accumulation = 1  # a batch is taken in this many parts, to save memory
  train.log_every = 20
  train.eval_every = 500  # steps; also at the end
  train.checkpoint_every = 500
  train.keep_last = 2  # checkpoints, besides the best

  config.eval = evaluate = ml_collections.ConfigDict()
  evaluate.splits = 'val'  # comma-separated; the first is watched during training
  evaluate.batch_size = 16
  evaluate.size_multiple = 32  # pictures are padded to it, so that few shapes are compiled
  evaluate.checkpoint = 'best'  # best | last | a step
  evaluate.num_pictures = 8  # in eval/SPLIT.png

  config.inference = inference = ml_collections.ConfigDict()
  inference.crf = 'none'  # none | exact | lattice | window: a dense CRF behind the model, untrained
  inference.threshold = 0.5  # of two classes, a pixel is the second if its probability is above it
  inference.min_score = 0.5  # of objects: those with less are neither drawn nor written
  inference.min_stuff_area = 4096  # pixels: less of a kind of stuff is void, in panoptic
  # The rest is of predict alone: pictures put together by what the model sees.
  inference.background = ''  # behind what is in front: a picture's file, a colour, or blur
  inference.blur = 0.02  # deviation of that blur, as a share of the picture's diagonal
  inference.foreground = ''  # classes in front, with commas between; '': all but 'background'
  inference.repaint = ''  # classes that get another colour or texture, in the same light
  inference.paint = ''  # a colour such as '#204060', or the file of a texture, laid in tiles
  inference.feather = -1.0  # pixels: the edges of labels, softened; -1: probabilities as they are
  inference.smoothing = 0.0  # of a video: weight of the frames before in each frame's probabilities

  if dataset == 'shapes':
    data.batch_size = 8
    data.scale_range = (1.0, 1.0)  # the scenes vary enough by themselves
    data.photometric = 0.0
    loss.dice = 0.5
  elif dataset == 'camvid':
    data.batch_size = 8
    data.crop_size = (352, 480)
    loss.dice = 0.5  # the rare classes count as much as the road
    evaluate.splits = 'val,test'
    evaluate.batch_size = 8
    evaluate.size_multiple = 8  # 360 x 480 stays as it is
  elif dataset == 'folder':
    data.batch_size = 8
    data.crop_size = (224, 224)
    loss.dice = 0.5
    evaluate.batch_size = 4
  else:  # a start, on a GPU; nothing here has been tuned
    data.batch_size = 8
    data.crop_size = (320, 320)
    evaluate.batch_size = 4
    if dataset == 'nyuv2':
      evaluate.splits = 'test'  # its owners have no val
  return config
