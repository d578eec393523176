import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from seg_jax import pictures

PALETTE = np.array([[0, 0, 0], [250, 10, 10], [10, 250, 10], [255, 255, 255]], np.uint8)
NAMES = ('none', 'red', 'green', 'white')


def random_label(rng, shape):
  return rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), shape)


class DrawingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.rng = np.random.default_rng(0)

  @parameterized.parameters(np.uint8, np.int32)
  def test_each_class_has_its_colour(self, dtype):
    label = self.rng.integers(0, 4, (7, 9)).astype(dtype)
    picture = pictures.colourise(label, PALETTE)
    self.assertEqual(picture.dtype, np.uint8)
    for row in range(7):
      for column in range(9):
        np.testing.assert_array_equal(picture[row, column], PALETTE[label[row, column]])

  def test_ignored_pixels_look_like_no_class(self):
    picture = pictures.colourise(np.full((40, 40), 255), PALETTE)
    colours = np.unique(picture.reshape(-1, 3), axis=0)
    self.assertLen(colours, 2)  # stripes, as a single colour could be in the palette

  def test_a_value_that_is_no_class_is_not_drawn_silently(self):
    with self.assertRaises(IndexError):
      pictures.colourise(np.array([[4]]), PALETTE)

  def test_overlay_leaves_ignored_pixels_and_blends_the_others(self):
    image = self.rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    label = np.full((40, 60), 1, np.uint8)
    label[:, 20:40] = 255
    label[:, 40:] = 2
    picture = pictures.overlay(image, label, PALETTE, alpha=0.25)
    np.testing.assert_array_equal(picture[:, 20:40], image[:, 20:40])
    np.testing.assert_allclose(picture[:, :18], 0.75 * image[:, :18] + 0.25 * PALETTE[1], atol=0.51)
    # Along the boundary the colour is pure.
    np.testing.assert_array_equal(picture[:, 19], np.tile(PALETTE[1], (40, 1)))
    np.testing.assert_array_equal(picture[:, 40], np.tile(PALETTE[2], (40, 1)))

  def test_overlay_does_not_write_to_its_inputs(self):
    image = self.rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    label = random_label(self.rng, (8, 8))
    image.setflags(write=False)
    label.setflags(write=False)
    pictures.overlay(image, label, PALETTE)

  def test_objects_have_colours_of_their_own_and_outlines(self):
    image = np.zeros((60, 80, 3), np.uint8)
    ids = np.zeros((60, 80, 2), np.int32)
    ids[5:25, 5:25, 0] = 1
    ids[5:25, 25:45, 0] = 2  # touches the first
    ids[40:55, 10:70, 0] = 3
    ids[45:50, 20:60, 1] = 300  # lies over the third
    picture = pictures.draw_instances(image, ids)
    colours = {tuple(picture[y, x].tolist()) for y, x in ((10, 10), (10, 40), (42, 15), (47, 40))}
    self.assertLen(colours | {(0, 0, 0)}, 5)
    for y, x in ((5, 10), (10, 24), (10, 25), (45, 40)):
      self.assertEqual(picture[y, x].tolist(), [255] * 3)
    np.testing.assert_array_equal(picture[(ids == 0).all(-1)], 0)
    np.testing.assert_array_equal(image, 0)

  def test_segments_have_the_given_colours_and_outlines(self):
    image = np.full((30, 60, 3), 100, np.uint8)
    segments = np.zeros((30, 60), np.int32)
    segments[:, 20:40], segments[:, 40:] = 1, 2
    colours = np.uint8([(200, 0, 0), (0, 0, 200)])
    alone = pictures.draw_segments(segments, colours)
    over = pictures.draw_segments(segments, colours, image)
    for x, k in ((30, 0), (50, 1)):
      self.assertEqual(alone[15, x].tolist(), colours[k].tolist())
      self.assertEqual(over[15, x].tolist(), (50 + colours[k] // 2).tolist())
    self.assertEqual(alone[15, 40].tolist(), [255] * 3)
    np.testing.assert_array_equal(over[:, :19], 100)
    self.assertLen(np.unique(alone[:, :19].reshape(-1, 3), axis=0), 2)  # stripes
    np.testing.assert_array_equal(image, 100)

  def test_boxes_are_framed_and_named_inside_of_the_picture(self):
    image = np.zeros((80, 120, 3), np.uint8)
    boxes = np.float32([(20, 10, 60, 50), (0, 100, 70, 120), (-5, -5, 0, 0)])
    colours = np.uint8([(200, 0, 0), (0, 0, 200), (0, 200, 0)])
    picture = pictures.draw_boxes(image, boxes, ['first', 'a long name', ''], colours)
    self.assertEqual(picture.shape, image.shape)
    for y, x, k in ((40, 10, 0), (40, 49, 0), (59, 30, 0), (69, 110, 1), (40, 119, 1)):
      self.assertEqual(picture[y, x].tolist(), colours[k].tolist())
    self.assertEqual(picture[40, 30].tolist(), [0] * 3)
    self.assertTrue((picture[8:20, 10:40] == colours[0]).all(-1).any())  # the caption's ground
    np.testing.assert_array_equal(image, 0)
    self.assertEqual(pictures.draw_boxes(image, boxes[:0], [], colours[:0]).max(), 0)

  def test_text_that_would_hide_the_neighbours_of_a_small_object_is_left_out(self):
    image, colours = np.zeros((80, 120, 3), np.uint8), np.uint8([(200, 0, 0)])
    box = np.float32([(40, 40, 44, 44)])
    framed = pictures.draw_boxes(image, box, ['a long name'], colours)
    self.assertEqual(np.argwhere(framed.any(-1)).min(0).tolist(), [40, 40])
    self.assertEqual(np.argwhere(framed.any(-1)).max(0).tolist(), [43, 43])

  def test_depth_is_coloured_from_near_to_far(self):
    depth = np.zeros((30, 90), np.float32)
    depth[:, 30:60], depth[:, 60:] = 2, 80
    picture = pictures.colour_depth(depth)
    near, far = (np.unique(picture[:, x : x + 30].reshape(-1, 3), axis=0) for x in (30, 60))
    self.assertEqual((len(near), len(far)), (1, 1))
    self.assertGreater(near[0, 0], near[0, 2])  # red
    self.assertGreater(far[0, 2], far[0, 0])  # blue
    self.assertLen(np.unique(picture[:, :30].reshape(-1, 3), axis=0), 2)  # stripes
    pictures.colour_depth(0 * depth)

  def test_depth_has_the_colours_of_another_maps_range(self):
    near, far = np.full((4, 4), 2, np.float32), np.full((4, 4), 8, np.float32)
    both = np.concatenate([near, far])
    expected = pictures.colour_depth(both)
    np.testing.assert_array_equal(pictures.colour_depth(near, like=both), expected[:4])
    np.testing.assert_array_equal(pictures.colour_depth(far, like=both), expected[4:])
    np.testing.assert_array_equal(pictures.colour_depth(both, like=0 * both), expected)


class ContactSheetTest(parameterized.TestCase):
  def contains(self, sheet, panel):
    rows, columns = panel.shape[:2]
    corners = np.argwhere((sheet[: -rows + 1, : -columns + 1] == panel[0, 0]).all(-1))
    return any(np.array_equal(sheet[y : y + rows, x : x + columns], panel) for y, x in corners)

  def test_small_panels_are_enlarged_without_new_colours(self):
    rng = np.random.default_rng(0)
    panels = list(rng.integers(0, 255, (3, 96, 96, 3), dtype=np.uint8))
    sheet = pictures.contact_sheet([panels], ['a'], (NAMES, PALETTE))
    for panel in panels:
      self.assertTrue(self.contains(sheet, panel.repeat(2, axis=0).repeat(2, axis=1)))

  def test_legend_shows_every_colour(self):
    grey = np.full((100, 100, 3), 128, np.uint8)
    sheet = pictures.contact_sheet([[grey] * 3], ['a'], (NAMES, PALETTE))
    for colour in PALETTE:
      self.assertTrue(self.contains(sheet, np.full((10, 16, 3), colour, np.uint8)))

  @parameterized.parameters(1, 2, 5)
  def test_takes_panels_of_any_size(self, count):
    shapes = [(5, 7), (300, 1000), (1000, 90), (200, 200), (1, 2000)]
    rows = [[np.full((*shape, 3), 99, np.uint8)] * 2 for shape in shapes[:count]]
    palette = np.zeros((150, 3), np.uint8)
    names = [f'{"name " * (i % 12)}{i}' for i in range(150)]
    sheet = pictures.contact_sheet(
      rows, ['a long caption ' * 40] * count, (names, palette), headings=('picture', 'prediction')
    )
    self.assertEqual(sheet.dtype, np.uint8)
    self.assertLessEqual(sheet.shape[1], pictures.SHEET_WIDTH)

  def test_enlarge_keeps_labels_and_leaves_large_pictures(self):
    label = random_label(np.random.default_rng(0), (64, 64))
    image, large = pictures.enlarge(np.zeros((64, 64, 3), np.uint8), label)
    self.assertEqual(image.shape[:2], large.shape)
    self.assertGreaterEqual(min(large.shape), 192)
    np.testing.assert_array_equal(large[:: large.shape[0] // 64, :: large.shape[0] // 64], label)
    image, large = pictures.enlarge(np.zeros((300, 300, 3), np.uint8), np.zeros((300, 300)))
    self.assertEqual(large.shape, (300, 300))


class FigureTest(parameterized.TestCase):
  def test_confusion_shows_recall(self):
    figure = pictures.confusion_figure(np.array([[3, 1, 0], [0, 0, 0], [5, 5, 90]]), NAMES[:3])
    axes = figure.axes[0]
    shown = axes.images[0].get_array().filled(np.nan)
    np.testing.assert_allclose(shown, [[75, 25, 0], [np.nan] * 3, [5, 5, 90]])
    self.assertEqual([text.get_text() for text in axes.texts], ['75', '25', '5', '5', '90'])

  @parameterized.parameters((2, True), (20, True), (21, False), (150, False))
  def test_confusion_has_a_sensible_size(self, count, numbers):
    figure = pictures.confusion_figure(
      np.eye(count, dtype=np.int64), [str(i) for i in range(count)]
    )
    self.assertBetween(figure.get_size_inches().min(), 3, 17)
    self.assertEqual(bool(figure.axes[0].texts), numbers)

  def test_curves_show_what_was_logged(self):
    train = [{'step': s, 'split': 'train', 'loss': float(s % 3)} for s in range(0, 900, 10)]
    val = [{'step': s, 'split': 'val', 'cross_entropy': 2.0, 'miou': s / 1000} for s in (300, 600)]
    val += [{'step': 900, 'split': 'val', 'cross_entropy': 1.0, 'miou': None}]
    losses, scores = pictures.curve_figure(train + val).axes
    raw, smooth, _ = losses.lines
    np.testing.assert_array_equal(raw.get_ydata(), [line['loss'] for line in train])
    np.testing.assert_allclose(smooth.get_ydata()[10:-10], 1.0, atol=0.21)
    np.testing.assert_array_equal(scores.lines[0].get_xydata(), [[300, 0.3], [600, 0.6]])

  def test_of_an_error_the_smallest_is_the_best_and_no_cross_entropy_is_no_curve(self):
    lines = [{'step': s, 'split': 'val', 'abs_rel': abs(s - 20) / 100} for s in (10, 20, 30)]
    losses, scores = pictures.curve_figure(lines, 'abs_rel', smaller_is_better=True).axes
    self.assertEmpty(losses.lines)
    self.assertEqual(scores.get_legend_handles_labels()[1], ['val, best 0.0000 at step 20'])

  @parameterized.parameters(0, 1, 2, 40)
  def test_curves_of_a_run_of_any_length(self, length):
    lines = [{'step': i, 'split': 'train', 'loss': 1.0} for i in range(length)]
    pictures.curve_figure(lines).canvas.draw()


class FileTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.path = Path(self.enterContext(tempfile.TemporaryDirectory())) / 'new' / 'a.png'
    self.rng = np.random.default_rng(0)

  def test_png_round_trip(self):
    picture = self.rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    pictures.write_png(self.path, picture)
    np.testing.assert_array_equal(np.asarray(Image.open(self.path)), picture)

  def test_16_bits_round_trip(self):
    values = self.rng.integers(0, 2**16, (5, 6), dtype=np.uint16)
    pictures.write_png(self.path, values)
    np.testing.assert_array_equal(np.asarray(Image.open(self.path)), values)

  def test_palette_png_keeps_classes_and_ignore_and_has_colours(self):
    label = random_label(self.rng, (9, 9))
    pictures.write_palette_png(self.path, label, PALETTE)
    with Image.open(self.path) as file:
      self.assertEqual(file.mode, 'P')
      np.testing.assert_array_equal(np.asarray(file), label)
      colours = np.asarray(file.convert('RGB'))
    classes = label != 255
    np.testing.assert_array_equal(colours[classes], PALETTE[label[classes]])
    np.testing.assert_array_equal(colours[~classes], 255)

  def test_figure_becomes_a_png(self):
    pictures.save_figure(self.path, pictures.curve_figure([]))
    with Image.open(self.path) as file:
      self.assertEqual(file.format, 'PNG')


if __name__ == '__main__':
  absltest.main()
