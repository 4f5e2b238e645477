"""The preview shows decoded clips with their captions, and overwrites nothing."""

import cv2
import pytest

from nova_jax.autoencoders.pixels import PixelCodec
from nova_jax.data.pipeline import DataConfig, make_iterator
from nova_jax.data.preview import write_preview
from nova_jax.data.transforms import Encode
from nova_jax.digits.clips import DigitsConfig, DigitsSource
from nova_jax.errors import NovaError
from nova_jax.text.hashed_words import HashedTextEncoder


def batches(**settings):
    source = DigitsSource(DigitsConfig(num_clips=16, frames=4))
    config = DataConfig(batch_size=4, image_batch_size=4, prefetch=0)
    encode = Encode(
        codec=PixelCodec(), text_encoder=HashedTextEncoder(dim=16), text_length=8, **settings
    )
    return make_iterator(source, config, encode)


# FFmpeg is started by a fork, which JAX warns of; the child runs no JAX.
@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_sheet_and_a_video_are_written(tmp_path):
    paths = write_preview(batches(keep_captions=True), PixelCodec(), tmp_path / "new", count=4)
    assert [path.name for path in paths] == ["preview.png", "preview.mp4"]
    sheet = cv2.imread(str(paths[0]))
    assert (sheet.max(-1) - sheet.min(-1)).max() > 200  # color, on a white page
    film = cv2.VideoCapture(str(paths[1]))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 12
    assert film.get(cv2.CAP_PROP_FRAME_WIDTH) % 2 == film.get(cv2.CAP_PROP_FRAME_HEIGHT) % 2 == 0
    assert film.get(cv2.CAP_PROP_FPS) == 4
    again = write_preview(batches(keep_captions=True), PixelCodec(), tmp_path / "new", count=4)
    assert not {*again} & {*paths}


def test_it_asks_for_what_it_needs(tmp_path):
    with pytest.raises(NovaError, match="keep_captions"):
        write_preview(batches(), PixelCodec(), tmp_path)
    with pytest.raises(NovaError, match="at least 1"):
        write_preview(batches(keep_captions=True), PixelCodec(), tmp_path, count=0)
    with pytest.raises(NovaError, match="no batches"):
        write_preview(iter(()), PixelCodec(), tmp_path)
