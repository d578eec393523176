import tempfile
from pathlib import Path

import cv2
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image
from scipy import ndimage

from configs import common
from seg_jax.data.datasets.base import DatasetInfo, voc_colormap
from seg_jax.errors import UserError
from seg_jax.inference import composite


def noise(*size, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def disc(rows, columns, radius):
  """A mask of a disc in the middle."""
  y, x = np.ogrid[:rows, :columns]
  return (y - rows / 2) ** 2 + (x - columns / 2) ** 2 < radius**2


def luminance(picture):
  """Y of sRGB values, by the standard's formula."""
  share = picture / 255
  linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
  return linear @ [0.2126, 0.7152, 0.0722]


class AlphaTest(parameterized.TestCase):
  def test_1_is_what_is_in_front_and_0_what_is_behind(self):
    front, behind = noise(9, 13), noise(9, 13, seed=1)
    for alpha, expected in ((1, front), (0, behind)):
      blended = composite.blend(front, behind, np.full((9, 13), alpha, np.float32))
      np.testing.assert_array_equal(blended, expected)

  def test_in_between_it_is_their_convex_combination(self):
    front, behind = noise(40, 50), noise(40, 50, seed=1)
    alpha = np.random.default_rng(2).random((40, 50), np.float32)
    alpha.setflags(write=False)  # as the device's are
    blended = composite.blend(front, behind, alpha)
    expected = alpha[..., None] * front.astype(float) + (1 - alpha[..., None]) * behind
    np.testing.assert_allclose(blended, expected, atol=0.51)

  def test_a_feather_of_0_leaves_the_mask(self):
    mask = disc(20, 30, 6)
    np.testing.assert_array_equal(composite.soften(mask, 0.0), mask.astype(np.float32))

  def test_a_feather_is_a_gaussian_slope_of_its_pixels(self):
    mask = np.zeros((8, 80), bool)
    mask[:, 40:] = True
    alpha = composite.soften(mask, 3.0)
    expected = ndimage.gaussian_filter1d(mask[0].astype(float), 3.0, mode='mirror')
    np.testing.assert_allclose(alpha, np.tile(expected, (8, 1)), atol=1e-3)
    np.testing.assert_allclose(alpha[:, [0, 20, 60, 79]], [[0, 0, 1, 1]] * 8, atol=1e-6)


class BackgroundTest(parameterized.TestCase):
  @parameterized.parameters(1.5, 9.0)
  def test_the_blur_knows_no_colour_of_what_is_in_front(self, deviation):
    image, mask = noise(60, 80), disc(60, 80, 15)
    other = np.where(mask[..., None], noise(60, 80, seed=1), image)
    alpha = mask.astype(np.float32)
    one, two = (composite.blurred(x, alpha, deviation) for x in (image, other))
    np.testing.assert_array_equal(one, two)

  def test_a_plain_background_stays_as_plain_up_to_the_edge(self):
    image = np.full((60, 80, 3), (200, 90, 30), np.uint8)
    mask = disc(60, 80, 15)
    image[mask] = 0
    for deviation in (2.0, 20.0):
      behind = composite.blurred(image, mask.astype(np.float32), deviation)
      self.assertLessEqual(np.abs(behind[~mask].astype(int) - (200, 90, 30)).max(), 1)

  def test_the_blur_is_a_gaussian_over_the_background(self):
    image = noise(30, 40)
    alpha = np.random.default_rng(1).random((30, 40), np.float32)
    share = 1.0 - alpha.astype(float)
    over, under = (
      ndimage.gaussian_filter(x, (2, 2, 0)[: x.ndim], mode='mirror')
      for x in (image * share[..., None], share)
    )
    blurred = composite.blurred(image, alpha, 2.0)
    np.testing.assert_allclose(blurred, over / under[..., None], atol=1)

  def test_a_wide_blur_is_about_the_same(self):
    mask = disc(120, 160, 30)
    ramp = np.linspace(0, 255, 160)[None, :, None] * np.linspace(0.3, 1, 120)[:, None, None]
    image = np.repeat(ramp, 3, -1).astype(np.uint8)
    share = (~mask).astype(float)
    over, under = (
      ndimage.gaussian_filter(x, (14, 14, 0)[: x.ndim], mode='mirror')
      for x in (image * share[..., None], share)
    )
    behind = composite.blurred(image, mask.astype(np.float32), 14.0)
    np.testing.assert_allclose(behind[~mask], (over / under[..., None])[~mask], atol=4)

  @parameterized.parameters(((20, 30), (40, 60)), ((40, 60), (20, 30)), ((7, 5), (7, 5)))
  def test_a_picture_of_the_same_shape_is_all_seen(self, there, size):
    picture = cv2.GaussianBlur(noise(*there), (0, 0), 3)
    fitted = composite.cover(picture, size)
    self.assertEqual(fitted.shape, (*size, 3))
    expected = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC))
    np.testing.assert_allclose(fitted.astype(int), expected, atol=3)

  @parameterized.parameters((30, 30), (60, 60), (12, 12))
  def test_of_a_wider_one_the_middle_is_seen(self, *size):
    picture = np.zeros((30, 90, 3), np.uint8)
    picture[:, :30], picture[:, 30:60], picture[:, 60:] = 10, 100, 250
    np.testing.assert_array_equal(composite.cover(picture, size), 100)
    turned = np.ascontiguousarray(picture.swapaxes(0, 1))
    np.testing.assert_array_equal(composite.cover(turned, size), 100)

  def test_a_line_of_pixels_covers_a_square(self):
    self.assertEqual(composite.cover(noise(1, 50), (9, 9)).shape, (9, 9, 3))


class RepaintTest(parameterized.TestCase):
  colours = ((200, 30, 40), (10, 20, 90), (250, 240, 60), (0, 0, 0), (255, 255, 255), (0, 0, 255))

  @parameterized.product(colour=colours, shade=(8, 90, 240))
  def test_a_plain_part_gets_the_colour_itself(self, colour, shade):
    image = np.full((20, 30, 3), shade, np.uint8)
    painted = composite.recolour(image, disc(20, 30, 6).astype(np.float32), np.uint8(colour))
    np.testing.assert_allclose(painted[10, 15], colour, atol=3)

  @parameterized.parameters(*colours)
  def test_what_was_brighter_stays_brighter(self, *colour):
    image = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (4, 1, 3))
    alpha = np.ones((4, 256), np.float32)
    painted = composite.recolour(image, alpha, np.uint8(colour)).astype(float)
    grown = np.diff(luminance(painted[0]))
    self.assertGreaterEqual(grown.min(), -0.006)  # one of 255, at the brightest
    if colour != (0, 0, 0):
      self.assertGreater(luminance(painted[0, 200]) - luminance(painted[0, 60]), 0.003)

  def test_other_pixels_are_left_bit_by_bit(self):
    image, mask = noise(30, 40), disc(30, 40, 9)
    alpha = mask.astype(np.float32)
    for painted in (
      composite.recolour(image, alpha, np.uint8([200, 30, 40])),
      composite.retexture(image, alpha, noise(30, 40, seed=1)),
    ):
      np.testing.assert_array_equal(painted[~mask], image[~mask])
      self.assertFalse((painted[mask] == image[mask]).all(-1).any())

  def test_nothing_to_paint(self):
    image = noise(5, 6)
    for painted in (
      composite.recolour(image, np.zeros((5, 6), np.float32), np.uint8([1, 2, 3])),
      composite.retexture(image, np.zeros((5, 6), np.float32), noise(5, 6, seed=1)),
    ):
      np.testing.assert_array_equal(painted, image)

  def test_a_texture_lies_in_the_light_of_the_part(self):
    image = np.full((20, 40, 3), 60, np.uint8)
    image[:, 20:] = 120
    image[:5] = 255  # not of the part
    alpha = np.ones((20, 40), np.float32)
    alpha[:5] = 0
    texture = noise(20, 40, seed=1)
    painted = composite.retexture(image, alpha, texture)
    light = np.where(np.arange(40) < 20, 60 / 90, 120 / 90)[None, :, None]
    expected = np.minimum(texture * light, 255)
    np.testing.assert_allclose(painted[5:], expected[5:], atol=0.6)

  def test_a_texture_is_tiled_at_its_size(self):
    texture = noise(3, 4)
    tiled = composite.tile(texture, (8, 9))
    for y, x in np.ndindex(8, 9):
      np.testing.assert_array_equal(tiled[y, x], texture[y % 3, x % 4])

  def test_a_larger_texture_is_shrunk_into_the_picture(self):
    tiled = composite.tile(cv2.GaussianBlur(noise(60, 30), (0, 0), 4), (20, 25))
    self.assertEqual(tiled.shape, (20, 25, 3))
    np.testing.assert_array_equal(tiled[:, :10], tiled[:, 10:20])


class StepsTest(parameterized.TestCase):
  info = DatasetInfo('memory', ('background', 'person', 'shirt', 'hat'), voc_colormap(4))

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.beach = self.folder / 'beach.png'
    Image.fromarray(noise(20, 60)).save(self.beach)

  def steps(self, info=None, **options):
    config = common.get_config()
    config.inference.update(options)
    return composite.steps(config.inference, info or self.info)

  def test_nothing_by_default(self):
    self.assertEmpty(self.steps())

  def test_the_foreground_is_all_but_the_background_or_the_second_of_two(self):
    (step,) = self.steps(background='blur')
    self.assertEqual(step.classes, (1, 2, 3))
    (step,) = self.steps(background='blur', foreground='hat, person')
    self.assertEqual(step.classes, (3, 1))
    two = DatasetInfo('memory', ('street', 'cat'), voc_colormap(2))
    self.assertEqual(self.steps(two, background='blur')[0].classes, (1,))
    two = DatasetInfo('memory', ('cat', 'background'), voc_colormap(2))
    self.assertEqual(self.steps(two, background='blur')[0].classes, (0,))

  @parameterized.parameters(('red', (255, 0, 0)), ('#204060', (32, 64, 96)), ('#fff', (255,) * 3))
  def test_a_colour_behind(self, text, colour):
    (step,) = self.steps(background=text)
    image, mask = noise(9, 12), disc(9, 12, 3)
    expected = np.where(mask[..., None], image, np.uint8(colour))
    np.testing.assert_array_equal(step.apply(image, mask.astype(np.float32)), expected)

  def test_a_picture_behind_pictures_of_any_size(self):
    (step,) = self.steps(background=str(self.beach))
    for size in ((9, 12), (9, 12), (40, 30)):
      image, mask = noise(*size, seed=1), disc(*size, 3)
      behind = composite.cover(noise(20, 60), size)
      expected = np.where(mask[..., None], image, behind)
      np.testing.assert_array_equal(step.apply(image, mask.astype(np.float32)), expected)

  def test_a_blur_behind_as_wide_as_its_share_of_the_diagonal(self):
    (step,) = self.steps(background='blur', blur=0.04)
    image, alpha = noise(30, 40), disc(30, 40, 8).astype(np.float32)
    expected = composite.blend(image, composite.blurred(image, alpha, 2.0), alpha)
    np.testing.assert_array_equal(step.apply(image, alpha), expected)

  def test_clothes_are_painted_before_the_background(self):
    painting, replacing = self.steps(repaint='shirt', paint='red', background='blur')
    self.assertEqual((painting.classes, replacing.classes), ((2,), (1, 2, 3)))
    image, alpha = noise(9, 12), disc(9, 12, 3).astype(np.float32)
    expected = composite.recolour(image, alpha, np.uint8([255, 0, 0]))
    np.testing.assert_array_equal(painting.apply(image, alpha), expected)
    (painting,) = self.steps(repaint='shirt', paint=str(self.beach))
    tiled = composite.tile(noise(20, 60), (9, 12))
    expected = composite.retexture(image, alpha, tiled)
    np.testing.assert_array_equal(painting.apply(image, alpha), expected)

  @parameterized.parameters(
    ({'background': 'no.jpg'}, "background is 'no.jpg'; expected 'blur', a colour.*no such file"),
    ({'repaint': 'hat', 'paint': 'readd'}, "paint is 'readd'; expected a colour.*no such file"),
    (
      {'repaint': 'trousers', 'paint': 'red'},
      "repaint: there is no class 'trousers'; expected one",
    ),
    ({'repaint': 'shrit', 'paint': 'red'}, "no class 'shrit'; did you mean 'shirt'"),
    ({'background': 'blur', 'foreground': 'person,'}, "foreground: there is no class ''"),
  )
  def test_what_is_not_there_is_told_in_one_line(self, options, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      self.steps(**options)
    self.assertNotIn('\n', str(caught.exception))

  def test_a_foreground_that_cannot_be_guessed_has_to_be_named(self):
    three = DatasetInfo('memory', ('road', 'car', 'sky'), voc_colormap(3))
    with self.assertRaisesRegex(UserError, 'expected one or more.* of road, car, sky'):
      self.steps(three, background='blur')


if __name__ == '__main__':
  absltest.main()
