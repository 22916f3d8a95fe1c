import json

import numpy as np
import pytest
import torch

from cluster.errors import ConfigError
from cluster.settings import BaseModelSettings, RouterSettings
from router.adapters.encoder import SentenceEncoder
from router.adapters.features import FeatureExtractor
from router.adapters.reader import Reader, first_layers
from tests.tiny_model import words, write_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("reader") / "tiny"
    write_tiny_model(found)
    return found


@pytest.fixture(scope="module")
def reader(folder) -> Reader:
    return Reader(str(folder), layers=2, window_tokens=24)


def said(*numbers: int) -> str:
    return " ".join(f"w{n}" for n in numbers)


def alike(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_a_text_is_read_the_same_alone_and_among_longer_ones(reader):
    texts = [said(*range(3, 20)), said(5), "", said(7, 8, 9), said(*range(100, 400))] * 9
    together = reader.read(texts)
    assert together.shape == (45, 2, 128)
    for i in range(5):
        (alone,) = reader.read([texts[i]])
        for mine, same in zip(alone, together[i], strict=True):
            assert alike(mine, same) > 0.999


def test_what_it_says_is_what_the_whole_model_says_there(folder, reader):
    """The mean without the first token, and the last state, of the second layer's output."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    # The text, between the mark of a beginning and an end of line that this tokenizer lacks.
    tokens = torch.tensor([[1, *range(30, 40)]])
    with torch.inference_mode():
        seen = model(tokens, output_hidden_states=True).hidden_states[2]
        states = model.norm(seen)[0].numpy()
    (mean, last) = reader.read([said(*range(30, 40))])[0]
    assert alike(mean, states[1:].mean(axis=0)) > 0.999
    assert alike(last, states[-1]) > 0.999


def test_of_a_long_text_the_ends_count_and_the_middle_does_not(reader):
    head, tail = range(3, 40), range(60, 90)
    one = reader.read([said(*head, *[100] * 200, *tail)])
    other = reader.read([said(*head, *[200] * 300, *tail)])
    assert np.allclose(one, other, atol=1e-5)
    assert not np.allclose(one, reader.read([said(*head, *[100] * 200)]), atol=1e-2)


def test_of_a_large_checkpoint_only_the_files_of_the_first_layers_are_opened(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    whole.save_pretrained(tmp_path, max_shard_size="200KB")
    words().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {
        file for name, file in index.items()
        if "layers.1." not in name and "layers.2." not in name and "lm_head" not in name
    }  # fmt: skip
    others = set(index.values()) - needed
    assert others
    for file in others:
        (tmp_path / file).write_bytes(b"never to be read")
    expected = first_layers(folder, 1, torch.float32).state_dict()
    found = first_layers(tmp_path, 1, torch.float32).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_settings_name_it_by_a_base_model_a_folder_or_not_at_all(folder):
    models = [BaseModelSettings(id="tiny", path=str(folder))]
    by_id = Reader.of(RouterSettings(reader="tiny", reader_layers=2), models)
    by_folder = Reader.of(RouterSettings(reader=str(folder), reader_layers=2))
    assert by_id is not None
    assert by_folder is not None
    assert by_id.version == by_folder.version
    assert Reader.of(RouterSettings(), models) is None


def test_the_version_of_the_features_tells_readers_layers_and_windows_apart(folder, reader):
    encoder = SentenceEncoder.of(RouterSettings())
    others = [
        Reader(str(folder), layers=1, window_tokens=24),
        Reader(str(folder), layers=2, window_tokens=32),
        None,
    ]
    versions = {FeatureExtractor(encoder, r).version for r in (reader, *others)}
    assert len(versions) == 4


def test_what_cannot_be_read_with_is_named(folder):
    with pytest.raises(ConfigError, match=r"router\.reader.*no_such_package"):
        Reader("package:no_such_package/model", layers=2, window_tokens=24)
    with pytest.raises(ConfigError, match="3 layers, fewer than 6"):
        Reader(str(folder), layers=6, window_tokens=24)
