"""Reading a folder that TFDS has prepared, without TensorFlow."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from data.base.errors import UserError
from data.base.progress import counted
from data.images import tfrecord
from data.images.cache import SPLITS, Arrays
from data.images.specs import Spec

_MODES = {1: "L", 3: "RGB"}  # Pillow's name for 8-bit pixels, by number of channels
_FORMATS = ("array_record", "tfrecord")
_PNG = b"\x89PNG"
_STARTS = {"JPEG": b"\xff\xd8", "GIF": b"GIF8", "BMP": b"BM", "WebP": b"RIFF"}


def decode(spec: Spec, folder: Path) -> Arrays:
    """Decode both splits of `folder` (array_record or tfrecord) into uint8 and int32 arrays.

    Splits other than train and test are not looked at. Raises UserError for a shard that is
    missing or damaged, and for images or labels that do not fit `spec`.
    """
    builder = opened(spec, folder)
    arrays: dict[str, np.ndarray] = {}
    for split in SPLITS:
        stored = records(builder, spec, folder, split)
        images = np.empty((len(stored), *spec.image_shape), np.uint8)
        labels = np.empty(len(stored), np.int32)
        shown = counted(f"decoding {spec.name}, {split}", stored, len(stored))
        for i, record in enumerate(shown):
            try:
                images[i], labels[i] = _example(record, spec)
            except _OtherFormat as error:
                raise _other(spec, folder, f"its images are {error}, not PNG") from None
            except Exception as error:  # whatever damage makes protobuf and Pillow raise
                problem = f"record {i} of split {split!r} is unusable ({_first_line(error)})"
                raise _refusal(spec, folder, problem) from None
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    return arrays


def opened(spec: Spec, folder: Path) -> tfds.core.DatasetBuilder:
    """TFDS's builder of a prepared folder, which reads it.

    UserError for a folder that is damaged or has other classes, for a format that is not read,
    and for a shard that is missing. The shards themselves are not read.
    """
    builder = builder_of(spec, folder)
    try:
        label_names = builder.info.features["label"].names
        for split in SPLITS:
            builder.info.splits[split]
    except Exception as error:
        raise _refusal(spec, folder, f"TFDS cannot read it ({_first_line(error)})") from None
    numbered = [str(i) for i in range(len(spec.class_names))]  # TFDS's names where it has none
    if list(label_names) not in (numbered, list(spec.class_names)):
        raise _other(spec, folder, "its classes are not this dataset's")
    need_shards(builder, spec, folder, SPLITS)
    return builder


def builder_of(spec: Spec, folder: Path) -> tfds.core.DatasetBuilder:
    """TFDS's builder of a folder. UserError if it cannot make sense of it."""
    try:
        builder = tfds.builder_from_directory(str(folder))
        _ = builder.info.features, builder.info.splits
        return builder
    except Exception as error:  # TFDS has no one error for a folder that it cannot make sense of
        raise _refusal(spec, folder, f"TFDS cannot read it ({_first_line(error)})") from None


def need_shards(
    builder: tfds.core.DatasetBuilder, spec: Spec, folder: Path, splits: Sequence[str]
) -> None:
    """UserError for a format that is not read, and for a shard of these splits that is missing."""
    if builder.info.file_format.value not in _FORMATS:
        problem = f"file format {builder.info.file_format.value}, not {' or '.join(_FORMATS)}"
        raise _other(spec, folder, problem)
    for split in splits:
        info = builder.info.splits[split]
        try:
            shards = info.filepaths
        except Exception as error:
            raise _refusal(spec, folder, f"TFDS cannot read it ({_first_line(error)})") from None
        for shard in shards:
            if Path(shard).parent != folder:
                raise _refusal(spec, folder, f"a shard of split {split!r} lies elsewhere")
            if not Path(shard).is_file():
                raise _refusal(spec, folder, f"shard {shard.name} is missing")
        room = sum(Path(shard).stat().st_size for shard in shards)
        if not 0 < info.num_examples <= room:  # a record takes a byte at least
            raise _refusal(spec, folder, f"split {split!r} cannot have {info.num_examples} records")


def need_whole(
    builder: tfds.core.DatasetBuilder, spec: Spec, folder: Path, splits: Sequence[str]
) -> None:
    """UserError for a shard that is cut short, as after a copy that broke off.

    Told by the number of its records (of an array_record file also by its first); what they hold
    is not looked at.
    """
    count = _stored if builder.info.file_format.value == "array_record" else tfrecord.count_records
    for split in splits:
        info = builder.info.splits[split]
        for shard, wanted in zip(info.filepaths, info.shard_lengths, strict=True):
            try:
                found = count(Path(shard))
            except Exception as error:  # the readers raise a different type for each damage
                problem = f"shard {shard.name} is damaged ({_first_line(error)})"
                raise _refusal(spec, folder, problem) from None
            if found != wanted:
                problem = f"shard {shard.name} is damaged: {found} records, not {wanted}"
                raise _refusal(spec, folder, problem)


def _stored(shard: Path) -> int:
    """How many records an array_record file has. Some exception if it is damaged."""
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(str(shard))
    try:
        count: int = reader.num_records()
        if count:
            reader.read([0])
        return count
    finally:
        reader.close()


def records(builder: tfds.core.DatasetBuilder, spec: Spec, folder: Path, split: str) -> list[bytes]:
    """The serialised examples of a split, in stored order. UserError for a damaged shard."""
    try:
        return _records(builder, split)
    except Exception as error:  # the readers raise a different type for each damage
        problem = f"a shard of split {split!r} is damaged ({_first_line(error)})"
        raise _refusal(spec, folder, problem) from None


def _records(builder: tfds.core.DatasetBuilder, split: str) -> list[bytes]:
    if builder.info.file_format.value == "array_record":
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        source = builder.as_data_source(split, deserialize_method=raw)
        return source.__getitems__(range(len(source)))
    info = builder.info.splits[split]
    shards = [tfrecord.read_records(Path(shard)) for shard in info.filepaths]
    if [len(shard) for shard in shards] != list(info.shard_lengths):
        raise ValueError("not as many records as dataset_info.json says")
    return [record for shard in shards for record in shard]


def _example(record: bytes, spec: Spec) -> tuple[np.ndarray, int]:
    """The image, uint8 [H, W, C], and the label of one serialised example."""
    features = tf_example_pb2.Example.FromString(record).features.feature
    (encoded,) = features["image"].bytes_list.value
    (label,) = features["label"].int64_list.value
    height, width, channels = spec.image_shape
    if not encoded.startswith(_PNG):
        other = next((name for name, start in _STARTS.items() if encoded.startswith(start)), None)
        if other:
            raise _OtherFormat(other)
        raise ValueError("its image is no PNG")
    image = Image.open(io.BytesIO(encoded), formats=["PNG"])
    if image.size != (width, height) or image.mode != _MODES[channels]:
        raise ValueError(
            f"a {image.size[1]}x{image.size[0]} image of mode {image.mode}, "
            f"not {height}x{width} {_MODES[channels]}"
        )
    if not 0 <= label < len(spec.class_names):
        raise ValueError(f"label {label}, not in 0 to {len(spec.class_names) - 1}")
    return np.asarray(image).reshape(spec.image_shape), label


class _OtherFormat(Exception):
    """Images in a format that is not read; the message is its name."""


def _other(spec: Spec, folder: Path, problem: str) -> UserError:
    """For a folder that may be whole, and is somebody's, but is not what is needed here."""
    return UserError(
        f"dataset {spec.name!r} in {folder}: {problem}; prepare it in another folder (python -m "
        f"data.prepare {spec.name} --data-dir DIR) and pass --data-dir DIR or set TFDS_DATA_DIR"
    )


def _refusal(spec: Spec, folder: Path, problem: str) -> UserError:
    """For a folder that is damaged."""
    return UserError(
        f"dataset {spec.name!r} in {folder}: {problem}; delete that folder and prepare it again "
        f"(python -m data.prepare {spec.name} --data-dir DIR)"
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
