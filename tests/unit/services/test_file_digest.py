"""Parts of a file are as fine as its manifest can hold, and are read the same from a file that is open already."""

from pathlib import Path

import pytest

from services.file_digest import describe, describe_file, describe_one_of_many, few_part_bytes, part_bytes

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("size", "length"), [(0, 256), (65_536, 256), (65_537, 512), (2**28, 2**20), (10**12, 2**20)])
def test_parts_are_as_fine_as_a_manifest_can_hold(size: int, length: int) -> None:
    assert part_bytes(size) == length


@pytest.mark.parametrize("size", [0, 1, 5_000, 10**6, 17 * 10**6, 2**28, 2**28 + 1, 10**11])
def test_one_of_many_files_has_few_parts(size: int) -> None:
    parts = -(-size // few_part_bytes(size))
    assert parts <= (16 if size <= 2**24 else 256)


def test_open_file_is_described_from_its_start_wherever_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 30)
    with path.open("rb") as file:
        file.seek(100)
        described = describe_one_of_many(file)
        assert described == describe(file, 512)
    assert described == describe_file(str(path), 512)
    assert (described["bytes"], len(described["parts"])) == (7680, 15)
    assert described["sums"] == [2 * sum(range(256))] * 15


@pytest.mark.parametrize("size", [1, 1_023, 1_024, 5_000])
def test_sums_are_of_the_bytes_and_of_each_times_its_place(size: int, tmp_path: Path) -> None:
    content = bytes(255 - place % 7 for place in range(size))
    (tmp_path / "file").write_bytes(content)
    described = describe_file(str(tmp_path / "file"), 2**14)
    assert described["sums"] == [sum(content)]
    assert described["place_sums"] == [sum(place * byte for place, byte in enumerate(content))]
