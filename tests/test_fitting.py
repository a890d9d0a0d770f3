"""From a data set's shape to the model's: what is done, and what is refused unsent."""

import numpy as np
import pytest

from daemon.datasets import open_dataset
from daemon.errors import DataError
from daemon.transfer.fitting import fit_dataset, fit_rows, image_to_array
from tests.test_datasets import written


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ((6,), (6,)),
        ((1, 2, 3), (6,)),
        ((6,), (1, 2, 3)),
        ((2, 3), (1, 2, 3)),
        ((1, 6), (6, 1)),
        ((1, 2, 3), (2, 3)),
    ],
)
def test_shapes_that_hold_the_same_numbers_in_the_same_order(found, wanted):
    x = np.arange(6).reshape(found)
    fitted = fit_rows(found, wanted)(x)
    assert fitted.shape == wanted
    assert fitted.ravel().tolist() == [*range(6)]


def test_channels_come_first():
    x = np.arange(24).reshape(2, 4, 3)
    np.testing.assert_array_equal(fit_rows((2, 4, 3), (3, 2, 4))(x), np.moveaxis(x, 2, 0))


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ((5,), (6,)),
        ((2, 3), (3, 2)),
        ((6, 4), (2, 3, 4)),
        ((1, 2, 2), (6,)),
        ((4, 2, 3), (3, 2, 4)),
    ],
)
def test_shapes_that_do_not_belong_together(found, wanted):
    with pytest.raises(DataError) as error:
        fit_rows(found, wanted)
    assert f"found samples of shape {[*found]}, the model needs {[*wanted]}" in str(error.value)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("given", ["L", "RGB", "RGBA", "P", "1"])
def test_images_get_the_models_size_and_channels(channels, mode, given):
    image = pytest.importorskip("PIL.Image")
    picture = image.linear_gradient("L").convert(given)  # 256x256
    x = image_to_array((channels, 5, 7))(picture)
    assert (x.shape, x.dtype) == ((channels, 5, 7), np.uint8)
    expected = np.asarray(picture.convert(mode).resize((7, 5), image.Resampling.BILINEAR))
    np.testing.assert_array_equal(np.moveaxis(x, 0, -1).squeeze(), expected)
    same = image_to_array((channels, 256, 256))(picture)
    np.testing.assert_array_equal(np.moveaxis(same, 0, -1).squeeze(), picture.convert(mode))


@pytest.mark.parametrize("name", ["idx", "folder", "folder.zip"])
def test_image_data_sets_fit_models_of_images_and_of_as_many_numbers(tmp_path, name):
    path = written(tmp_path, name)  # grey, 3x2

    def fitted(wanted):
        dataset = open_dataset(path, to_array=image_to_array(wanted))
        fit, note = fit_dataset(dataset, wanted)
        shapes = {fit(row.x).shape for row in dataset.rows()}
        assert shapes == {wanted}
        return note

    assert "coloured and 5x4 pixels" in fitted((3, 4, 5))
    fitted((6,))
    fitted((1, 2, 3))
    for wanted in ((7,), (2, 4)):
        with pytest.raises(DataError, match=r"found samples of shape \[1, 2, 3\], the model needs"):
            fitted(wanted)


def test_of_rows_that_each_have_a_shape_the_first_decides(tmp_path):
    path = tmp_path / "a.ndjson"
    path.write_text('junk\n{"x": [1, 2]}\n{"x": [1]}\n')
    fit, note = fit_dataset(open_dataset(path), (2,))
    assert note is None
    assert fit(np.ones(2)).shape == (2,)
    with pytest.raises(DataError, match=r"shape \[1\], the model needs \[2\]"):
        fit(np.ones(1))
    with pytest.raises(DataError, match=r"shape \[2\], the model needs \[3\]"):
        fit_dataset(open_dataset(path), (3,))
    path.write_text("junk\njunk\n")
    with pytest.raises(DataError, match="none of its rows can be read, first line 1: is no sample"):
        fit_dataset(open_dataset(path), (3,))
