import numpy as np
from PIL import Image

from bench.datasets.views.render import View, make_view, overlap


def _photo() -> Image.Image:
    rng = np.random.default_rng(1)
    return Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((320, 240))


def test_views_know_where_they_look():
    photo = _photo()
    views = [make_view(photo, [photo.transpose(Image.Transpose.ROTATE_180)], np.random.default_rng(s)) for s in (3, 4)]
    again = make_view(photo, [photo.transpose(Image.Transpose.ROTATE_180)], np.random.default_rng(3))
    assert isinstance(again, View) and np.array_equal(views[0].image, again.image)
    assert views[0].image.shape[:2] == views[0].visible.shape
    y, x = np.argwhere(views[0].visible)[::97].T
    place = np.stack([x, y, np.ones_like(x)]).T @ views[0].to_photo.T
    place = place[:, :2] / place[:, 2:] * 320
    assert (place > -1.5).all() and (place < [321.5, 241.5]).all()
    assert 0 <= overlap(views[0].coverage, views[1].coverage) <= 1
