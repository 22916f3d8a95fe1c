import numpy as np
import pytest

from cluster.errors import ConfigError
from cluster.settings import RouterSettings
from router.adapters.encoder import SentenceEncoder
from router.adapters.features import FeatureExtractor

SOURCE = RouterSettings().encoder


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder(SOURCE, window_tokens=32)


def test_rows_are_of_length_one_and_in_the_order_of_the_texts(encoder):
    texts = ["a much longer text than the others are", "short", "", "of middling length"] * 12
    found = encoder.encode(texts)
    assert found.meaning.shape == found.form.shape == (48, 384)
    assert np.allclose(np.linalg.norm(found.meaning, axis=1), 1, atol=1e-4)
    for i in (0, 1, 3):
        alone = encoder.encode([texts[i]])
        assert (alone.meaning @ found.meaning[i]).item() > 0.99
        assert (alone.form @ found.form[i]).item() > 0.99


def test_of_a_long_text_the_ends_count_and_the_middle_does_not(encoder):
    head, tail = "translate this into French now " * 8, " what is the total price of it all " * 6
    one = encoder.encode([head + "dogs and cats " * 50 + tail]).meaning[0]
    other = encoder.encode([head + "planets and stars " * 90 + tail]).meaning[0]
    without_tail = encoder.encode([head + "dogs and cats " * 50]).meaning[0]
    assert one @ other > 0.99
    assert one @ without_tail < 0.95


def test_the_version_tells_encoders_windows_and_prefixes_apart(encoder):
    same = SentenceEncoder(SOURCE, window_tokens=32)
    assert same.version == encoder.version
    others = [
        SentenceEncoder(SOURCE, window_tokens=64),
        SentenceEncoder(SOURCE, prefix="query: ", window_tokens=32),
    ]
    assert len({e.version for e in (encoder, *others)}) == 3
    assert encoder.version in FeatureExtractor(encoder).version


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"router\.encoder.*no_such_package"):
        SentenceEncoder("package:no_such_package/model", window_tokens=32)
