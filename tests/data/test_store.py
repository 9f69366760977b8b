"""The store: what is written comes back, what is stale, mixed or unfinished is refused."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from avgen.data.store import NUMBERS, Store, StoreError
from avgen.data.store_source import Part, StoreSource, held_out, mixed
from avgen.data.store_write import Digest, Notes, StoreWriter, content_of
from avgen.data.stream import At
from avgen.tasks import I2AV, assign, lengths
from avgen.train.step import drop_captions
from tests.data.store_factory import AUDIO, BLIND, BOTH, MUTE, VIDEO, WIDE, batches, header, row, write_store

SHAPES = (BOTH, WIDE, MUTE, BLIND)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    head = header(SHAPES)
    rows = [row(head, i, bucket=i % 4) for i in range(40)]
    return write_store(tmp_path_factory.mktemp("store") / "latents", head, rows)


def mean(store: Store, number: int, stream: str) -> torch.Tensor:
    shape = store.header.shapes[number % 4]
    size = store.header.video_shape(shape) if stream == "video" else store.header.audio_shape(shape)
    made = row(store.header, number, number % 4)[f"{stream}_mean"]
    return torch.from_numpy(np.frombuffer(made, NUMBERS).astype(np.float32)).view(1, *size)


def test_rows_come_back_as_tokens_in_the_order_they_were_asked_for(store):
    source = StoreSource((store,))
    batch = source.batch([8, 4, 32, 4])  # one bucket, one of them twice
    expected = torch.cat([mean(store, i, "video") for i in (8, 4, 32, 4)])
    assert torch.equal(batch.video.x, VIDEO.stream(expected, 8.0).x)
    assert torch.equal(batch.video.time, VIDEO.stream(expected, 8.0).time)
    assert torch.equal(batch.audio.x, AUDIO.stream(torch.cat([mean(store, i, "audio") for i in (8, 4, 32, 4)])).x)
    assert batch.video.valid is None
    assert batch.video_text is batch.audio_text


def test_buckets_in_one_batch_keep_their_places_and_lack_what_they_lack(store):
    batch = StoreSource((store,)).batch([3, 0, 2, 1])
    assert batch.video.present.tolist() == [False, True, True, True]
    assert batch.audio.present.tolist() == [True, True, False, True]
    for place, number in enumerate([3, 0, 2, 1]):
        alone = StoreSource((store,)).batch([number])
        for m, stream in alone.streams.items():
            together = getattr(batch, m)
            count = stream.x.shape[1]
            assert torch.equal(together.x[place, :count], stream.x[0])
            assert together.mask()[place].sum() == count
    assert batch.video_text is batch.audio_text


def test_posteriors_are_sampled_by_step_and_place_alone(store):
    source = StoreSource((store,), seed=3)
    still = source.batch([0, 4])
    both = source.batch([0, 4], At(7, [10, 11]))
    one = source.batch([4], At(7, [11]))
    assert torch.equal(both.video.x[1:], one.video.x)  # whoever reads it, beside whatever
    assert not torch.equal(both.video.x, source.batch([0, 4], At(8, [10, 11])).video.x)
    assert not torch.equal(both.video.x, source.batch([0, 4], At(7, [11, 10])).video.x)
    assert not torch.equal(both.video.x, replace(source, seed=4).batch([0, 4], At(7, [10, 11])).video.x)
    noise = torch.cat([source.batch([0], At(s, [0])).audio.x - still.audio.x[:1] for s in range(200)])
    count = noise.numel()
    assert noise.std().item() == pytest.approx(0.1, rel=5 / (2 * count) ** 0.5 + 1e-3)
    assert abs(noise.mean().item()) < 5 * 0.1 / count**0.5
    apart = (both.video.x - still.video.x).flatten()[:60] @ (both.audio.x - still.audio.x).flatten()[:60]
    assert abs(apart.item()) < 6 * 0.1**2 * 60**0.5  # picture and sound are drawn apart


def test_a_codec_without_a_distribution_gives_its_mean(tmp_path):
    head = header()
    source = StoreSource((write_store(tmp_path / "s", head, [row(head, i, std=None) for i in range(3)]),))
    assert torch.equal(source.batch([2], At(1, [0])).video.x, source.batch([2]).video.x)


def test_what_the_file_does_not_hold_is_masked(tmp_path):
    head = header()
    half = json.dumps({"audio": [[0.0, 0.5]], "video": [[0.25, 1.0]]})
    store = write_store(tmp_path / "s", head, [row(head, 0, real=half), row(head, 1)])
    batch = StoreSource((store,)).batch([0, 1])
    middle = batch.audio.time.mean(-1)
    assert torch.equal(batch.audio.mask()[0], middle[0] < 0.5)
    assert torch.equal(batch.video.mask()[0], batch.video.time[0].mean(-1) >= 0.25)
    assert batch.audio.mask()[1].all()
    assert torch.equal(batch.audio.weight, batch.audio.mask().float())


def test_a_clip_whose_sound_begins_late_begins_with_its_window(tmp_path):
    """The first frame is given, not that on screen when the sound begins."""
    head = header()
    late = json.dumps({"audio": [[0.6, 1.0]]})
    store = write_store(tmp_path / "s", head, [row(head, 0, real=late), row(head, 1)])
    batch = StoreSource((store,)).batch([0, 1])
    assert not batch.audio.mask()[0, 0]
    given = assign(batch, [I2AV, I2AV]).video
    assert torch.equal(given.level[0], given.level[1])
    assert torch.equal(lengths(batch)[0], lengths(batch)[1])


def test_an_empty_caption_is_none_as_in_sampling(tmp_path):
    head = header()
    rows = [row(head, i, captions=json.dumps(said)) for i, said in enumerate((["a"], [" "], []))]
    source = StoreSource((write_store(tmp_path / "s", head, rows),))
    assert source.batch([0, 1, 2]).video_text.dropped.tolist() == [False, True, True]
    drawn = drop_captions(source.batch([0, 1, 2]), 0.0, torch.full((2, 3), 0.5))
    assert drawn.video_text.dropped.tolist() == [False, True, True]


def test_one_of_several_captions_is_drawn_and_the_first_is_held_out(tmp_path):
    from avgen.models.text import captions_of

    head = header()
    store = write_store(tmp_path / "s", head, [row(head, 0, captions=json.dumps(["a", "b", "c"]))])
    source = StoreSource((store,))
    assert captions_of(source.batch([0]).video_text) == ["a"]
    drawn = [captions_of(source.batch([0], At(step, [0])).video_text)[0] for step in range(60)]
    assert set(drawn) == {"a", "b", "c"}
    assert drawn == [captions_of(source.batch([0], At(step, [0])).video_text)[0] for step in range(60)]


def test_features_of_captions_are_padded_and_marked(tmp_path):
    head = header(text_width=4)
    features = np.arange(5 * 4, dtype=NUMBERS).reshape(5, 4)
    rows = [
        row(head, 0, captions='["a", "b"]', text=features.tobytes(), text_tokens="[2, 3]"),
        row(head, 1, text=features[:1].tobytes(), text_tokens="[1]"),
    ]
    source = StoreSource((write_store(tmp_path / "s", head, rows),))
    text = source.batch([0, 1]).video_text
    assert text.valid.sum(1).tolist() == [2, 1]
    assert torch.equal(text.x[0, :2], torch.from_numpy(features[:2].astype(np.float32)))
    lengths = {int(source.batch([0], At(step, [0])).video_text.valid.sum()) for step in range(30)}
    assert lengths == {2, 3}


def test_a_store_pickles_as_its_address(store):
    source = StoreSource((store,))
    source.batch([0])
    raw = pickle.dumps(source)
    assert len(raw) < 4000
    assert torch.equal(pickle.loads(raw).batch([5]).video.x, source.batch([5]).video.x)


def test_the_content_hash_is_of_the_rows_however_they_were_written(tmp_path):
    head = header(SHAPES)
    rows = [row(head, i, bucket=i % 4) for i in range(10)]
    one = write_store(tmp_path / "one", head, rows, per_shard=5)
    writer = StoreWriter.begin(tmp_path / "other", head, 2)
    for shard in (1, 0):
        writer.write(shard, batches(head, rows[5 * shard : 5 * shard + 5], size=1), Notes())
    assert writer.commit() == one.totals
    digests = []
    for first in (0, 5):  # from what is read back, not from what the writer noted
        digest = Digest()
        digest.add(one.take(range(first, first + 5), writer_columns(one)).to_batches()[0])
        digests.append(digest.hex)
    assert content_of(digests) == one.totals.content
    changed = write_store(tmp_path / "changed", head, [*rows[:9], rows[9] | {"start_s": 1.0}], per_shard=5)
    assert changed.totals.content != one.totals.content


def writer_columns(store: Store) -> list[str]:
    return store.dataset.schema.names


def test_an_unfinished_store_says_how_far_it_is(tmp_path):
    head = header()
    writer = StoreWriter.begin(tmp_path, head, 3)
    writer.write(1, batches(head, [row(head, 1)]), Notes())
    assert writer.missing() == [0, 2]
    with pytest.raises(StoreError, match="not finished \\(1 of 3 shards"):
        Store.open(tmp_path)


def test_another_codec_or_rule_is_refused_by_name(tmp_path):
    StoreWriter.begin(tmp_path, header(), 3)
    StoreWriter.begin(tmp_path, header(), 3)
    with pytest.raises(StoreError, match=r"video \(v, now other\); windows \(w, now x\) changed"):
        StoreWriter.begin(tmp_path, header(made_by={"video": "other", "windows": "x"}), 3)
    with pytest.raises(StoreError, match="3 shards, not 4"):
        StoreWriter.begin(tmp_path, header(), 4)


def test_what_else_of_the_codecs_changed_is_named_by_its_key(tmp_path):
    codec = {"video": {"path": "a", "tile_px": None}, "audio": None}
    StoreWriter.begin(tmp_path, header(codec=codec), 3)
    with pytest.raises(StoreError, match=r"settings: codec\.video\.tile_px \(None, now 256\) changed"):
        StoreWriter.begin(tmp_path, header(codec=codec | {"video": {"path": "a", "tile_px": 256}}), 3)
    with pytest.raises(StoreError, match=r"settings: text\.path \(none, now t5\) changed"):
        StoreWriter.begin(tmp_path, header(codec=codec, text={"path": "t5"}), 3)


def test_without_the_extra_a_store_says_what_to_install(tmp_path, monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lance" else original(name))
    with pytest.raises(StoreError, match=r"a store needs lance, not installed: pip install -e '\.\[data\]'"):
        Store.open(tmp_path)


def test_a_stale_store_is_refused(tmp_path, monkeypatch):
    from avgen.data import store as module

    head = header()
    write_store(tmp_path, head, [row(head, 0)])
    monkeypatch.setattr(module, "PREPARED", module.PREPARED + 1)
    with pytest.raises(StoreError, match="is stale: rule 1 prepared it"):
        Store.open(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    with pytest.raises(StoreError, match="has format 1, this avgen reads format 2"):
        Store.open(tmp_path)


def test_a_mixed_store_is_refused(tmp_path):
    import lance

    head, other = header(), header(made_by={"audio": "another"})
    write_store(tmp_path / "other", other, [row(other, i) for i in range(4)], per_shard=2)
    writer = StoreWriter.begin(tmp_path / "one", head, 2)
    for shard in range(2):
        writer.write(shard, batches(head, [row(head, shard)]), Notes())
    for folder in ("data/shard_000001.lance", "shards/000001.json"):
        shutil.copy(tmp_path / "other" / folder, tmp_path / "one" / folder)
    with pytest.raises(StoreError, match="is of another store"):
        writer.commit()
    # its record made to look right, the file itself still says whose it is
    path = tmp_path / "one/shards/000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"store": head.fingerprint}))
    with pytest.raises(StoreError, match=r"shard_000001\.lance is of another store"):
        writer.commit()
    # rows that another program added
    store = Store.open(tmp_path / "other")
    lance.write_dataset(store.take([0, 1], writer_columns(store)), str(tmp_path / "other"), mode="append")
    with pytest.raises(StoreError, match="6 rows, but was finished with 4"):
        Store.open(tmp_path / "other")


def test_a_damaged_shard_is_noticed(tmp_path):
    head = header()
    writer = StoreWriter.begin(tmp_path, head, 1)
    writer.write(0, batches(head, [row(head, 0)]), Notes())
    with (tmp_path / "data/shard_000000.lance").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(StoreError, match=r"not as .*000000\.json says"):
        writer.missing()


def test_of_two_that_write_one_shard_the_first_ones_stays(tmp_path):
    """Codecs on two machines need not agree to the last bit; file and record must be of one of them."""
    head = header()
    writer, other = (StoreWriter.begin(tmp_path, head, 1) for _ in range(2))

    def overtaken():
        yield from batches(head, [row(head, 0)])
        first.append(other.write(0, batches(head, [row(head, 1), row(head, 2)]), Notes()))

    first = []
    assert writer.write(0, overtaken(), Notes()) == first[0]
    assert writer.commit().rows == 2
    assert Store.open(tmp_path).files()[0] == ["clips/1.mp4", "clips/2.mp4"]
    assert not list(tmp_path.rglob("*.part"))


def test_what_is_no_store_says_so(tmp_path):
    import lance
    import pyarrow as pa

    with pytest.raises(StoreError, match="there is none; `avgen prepare"):
        Store.open(tmp_path / "nothing")
    lance.write_dataset(pa.table({"a": [1]}), str(tmp_path / "foreign"))
    with pytest.raises(StoreError, match="not a store of avgen"):
        Store.open(tmp_path / "foreign")
    with pytest.raises(StoreError, match="ftp:// is none of"):
        Store.open("ftp://somewhere/latents")


def test_a_store_is_read_by_url(store):
    other = Store.open(f"file://{store.path}")
    assert torch.equal(StoreSource((other,)).batch([1]).video.x, StoreSource((store,)).batch([1]).video.x)


def test_stores_are_mixed_by_weight_and_every_row_comes(tmp_path):
    head = header((BOTH, WIDE))
    small = write_store(tmp_path / "small", head, [row(head, i, i % 2) for i in range(8)])
    large = write_store(tmp_path / "large", head, [row(head, i) for i in range(24)])
    source, order, away = mixed([Part(small, 1.0), Part(large, 3.0)], batch=4, seed=1)
    assert away == []
    assert source.batch([0, 31]).size == 2
    read = np.concatenate([order.clips(step) for step in range(400)])
    assert abs((read < 8).mean() - 0.25) < 0.02
    assert set(read.tolist()) == set(range(32))
    for step in range(50):  # a step reads one bucket of one store
        indices = order.clips(step)
        assert len({(i < 8, i % 2 if i < 8 else 0) for i in indices}) == 1
    strange = header((BOTH,), made_by={"video": "other"})
    with pytest.raises(StoreError, match="cannot be mixed: their video codes are v and other"):
        mixed([Part(small, 1.0), Part(write_store(tmp_path / "x", strange, [row(strange, 0)]), 1.0)], 1)


def test_held_out_files_follow_from_their_paths_and_are_as_many_as_asked():
    files = [f"/clips/{i}.mp4" for i in range(20000)]
    kept = held_out(files, 0.1)
    assert kept.mean() == pytest.approx(0.1, abs=5 * (0.09 / 20000) ** 0.5)
    assert (held_out(files[::-7], 0.1) == kept[::-7]).all()
    assert not held_out(files, 0.0).any()


def test_no_file_is_trained_on_and_held_out_whatever_rows_and_stores_hold_it(tmp_path):
    """Cuts and captions of one file are several rows, of several clips; a mix may hold the file again."""
    head = header((BOTH, WIDE))
    rows = [row(head, i, i % 2, path=f"/clips/{i // 3}.mp4") for i in range(60)]
    one = write_store(tmp_path / "one", head, rows)
    other = header((WIDE,), made_by={"clips": "listed otherwise"})
    two = write_store(tmp_path / "two", other, [row(other, i, path=f"/clips/{30 - i}.mp4") for i in range(30)])
    _, order, away = mixed([Part(one, 1.0, 0.3), Part(two, 2.0, 0.3)], batch=2)
    paths = [files[i] for files, of_file in (one.files(), two.files()) for i in of_file]
    read = {index for step in range(400) for index in order.clips(step)}
    assert read | set(away) == set(range(90))
    assert {i < 60 for i in away} == {True, False}
    assert {paths[i] for i in read}.isdisjoint(paths[i] for i in away)


def test_files_of_a_store_that_judges_are_not_read(store):
    judged = {f"clips/{i}.mp4" for i in range(7, 40, 11)}
    _, order, away = mixed([Part(store, 1.0)], batch=2, without=judged)
    assert away == [7, 18, 29]
    assert {index for step in range(200) for index in order.clips(step)} == set(range(40)) - {7, 18, 29}
    with pytest.raises(StoreError, match=r"nothing of .* is left to train on: .*a data\.held_out of other files"):
        mixed([Part(store, 1.0)], batch=2, without={f"clips/{i}.mp4" for i in range(40)})


def test_training_never_reads_what_is_held_out(store):
    _, order, away = mixed([Part(store, 1.0, held_out=0.3)], batch=2)
    read = {index for step in range(200) for index in order.clips(step)}
    assert away
    assert read.isdisjoint(away)
    assert read | set(away) == set(range(40))
