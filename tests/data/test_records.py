"""Records on disk: read back as written, by others too, and never wrong when they are damaged."""

import json
import pickle

import numpy as np
import pytest
from prepared import make_records

from nova_jax.data.fingerprints import same_probe
from nova_jax.data.records import METADATA, Records
from nova_jax.errors import NovaError

MUTATIONS = 2000
SHARDS = [((1, 4, 4), 3), ((2, 4, 4), 4), ((1, 4, 4), 2)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("records") / "data", SHARDS)


def test_records_come_back_as_written_in_any_order(directory):
    records = Records(directory)
    assert len(records) == 9
    np.testing.assert_array_equal(records.of_bucket(0), [0, 1, 2, 7, 8])
    np.testing.assert_array_equal(records.of_bucket(1), [3, 4, 5, 6])
    for n, record in zip(
        (8, 0, 4), pickle.loads(pickle.dumps(records)).read([8, 0, 4]), strict=True
    ):
        assert record["moments"].dtype == np.float16
        assert (record["moments"][..., :3] == n).all()
        assert record["text"].shape == (n % 5, 16) and (record["text"] == n).all()
        assert record["caption"] == f"record {n}" and record["short_caption"] == f"short {n}"
        assert record["flow"] == np.float32(n / 10) and record["label"] == n


def test_tensorflow_datasets_and_grain_read_them_too(directory):
    import grain
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(directory).as_data_source(split="train")
    assert len(source) == 9
    assert source[4]["moments"].shape == (2, 4, 4, 6) and source[4]["caption"] == b"record 4"
    files = [str(path) for path in sorted(directory.glob("*array_record*"))]
    assert len(grain.sources.ArrayRecordDataSource(files)) == 9


def test_probes_are_compared_with_the_tolerance_of_half_types():
    probe = np.linspace(-1, 1, 64)
    assert same_probe(probe, np.float16(probe)) and same_probe(probe, probe * 1.01)
    assert not same_probe(probe, -probe) and not same_probe(probe, probe[:5])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v.update(version=99), "schema version 99, this nova_jax reads 1"),
        (lambda v: v.update(format="other"), "is not of prepared data"),
        (lambda v: v.pop("shards"), "is damaged .metadata.shards is missing"),
        (lambda v: v.update(kind="other"), "is damaged .metadata.kind is 'other'"),
        (lambda v: v.update(kind="raw"), "is damaged .metadata.kind is 'raw'"),
        (lambda v: v.update(kind="raw", encoding=None), "array_record-00000 is damaged"),
        (lambda v: v["encoding"].update(moments=3), "array_record-00000 is damaged"),
        (lambda v: v["encoding"].update(text_dim=5), "array_record-00000 is damaged"),
        (lambda v: v["shards"][0].update(bucket=7), "is damaged"),
        (lambda v: v["shards"][0].update(file="../x"), "is damaged"),
        (lambda v: v["shards"][0].update(file="gone"), "gone is missing"),
        (lambda v: v["shards"][0].update(records=2), "3 records instead of 2"),
        (lambda v: v["encoding"].pop("scale"), "is damaged"),
        (lambda v: v["buckets"][0].update(latent=[1, 4, 5]), "in bucket 1x4x4"),
    ],
)
def test_metadata_that_cannot_be_is_named(tmp_path, change, named):
    directory = make_records(tmp_path / "data", SHARDS[:1])
    values = json.loads((directory / METADATA).read_text())
    change(values)
    (directory / METADATA).write_text(json.dumps(values))
    with pytest.raises(NovaError, match=named):
        Records(directory).read([0])


def test_other_directories_are_refused(tmp_path):
    with pytest.raises(NovaError, match="has no metadata.json"):
        Records(tmp_path)
    (tmp_path / METADATA).write_bytes(b"\xff{")
    with pytest.raises(NovaError, match="is damaged"):
        Records(tmp_path)


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Bytes changed, cut off, left out or put in, a few at a time."""
    data = bytearray(data)
    for _ in range(random.integers(1, 4)):
        # A small shard is mostly padding: half of the changes go where the records are.
        at = int(random.integers(len(data) if random.integers(2) else min(len(data), 3000)))
        kind = random.integers(8)
        if kind < 5:
            data[at] ^= 1 << random.integers(8)
        elif kind == 5:
            del data[max(at, 1) :]
        elif kind == 6:
            del data[at : at + int(random.integers(1, 9))]
        else:
            data[at:at] = random.bytes(int(random.integers(1, 9)))
    return bytes(data)


def content(record):
    return {n: v.tobytes() if isinstance(v, np.ndarray) else v for n, v in record.items()}


def test_mutated_shards_are_refused_or_read_as_written(tmp_path):
    directory = make_records(tmp_path / "data", [((1, 4, 4), 3)])
    (path,) = directory.glob("*array_record*")
    whole, random = path.read_bytes(), np.random.default_rng(0)
    records = Records(directory)
    expected = [content(record) for record in records.read(range(3))]
    refused = 0
    metadata = (directory / METADATA).read_text()
    for number in range(MUTATIONS):
        path.write_bytes(mutated(whole, random))
        if number % 2:  # so that the size does not give it away
            told = metadata.replace(f'"bytes": {len(whole)}', f'"bytes": {path.stat().st_size}')
            (directory / METADATA).write_text(told)
        else:
            (directory / METADATA).write_text(metadata)
        try:
            records = Records(directory)
        except NovaError as error:
            assert path.name in str(error)
            refused += 1
            continue
        for place in range(3):
            try:
                assert content(records.read([place])[0]) == expected[place]
            except NovaError as error:
                assert path.name in str(error)
                refused += 1
    assert refused > MUTATIONS
    with pytest.raises(NovaError, match="is damaged"):
        path.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
        (directory / METADATA).write_text(metadata)
        Records(directory).verify()
