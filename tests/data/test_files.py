"""Reading by offset, from many threads and more files than are kept open."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from etude.data import files
from etude.data.files import read_at

THREADS = 8


def test_threads_that_open_a_file_at_the_same_time_all_read_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    together = Barrier(THREADS)

    def read(round_: int) -> bytes:
        together.wait()
        return read_at(path, 10, 5, version=str(round_))

    with ThreadPoolExecutor(THREADS) as pool:
        for round_ in range(200):
            assert set(pool.map(read, [round_] * THREADS)) == {bytes(range(10, 15))}


def test_more_files_than_are_kept_open_are_read_and_closed(tmp_path: Path) -> None:
    count = 2 * files._OPEN_FILES
    for number in range(count):
        (tmp_path / str(number)).write_bytes(f"{number:4}".encode())
    for _ in range(2):
        for number in range(count):
            assert int(read_at(tmp_path / str(number), 0, 4, version="")) == number
    opened = [link for link in Path("/proc/self/fd").iterdir() if _target(link).parent == tmp_path]
    assert len(opened) <= files._OPEN_FILES


def _target(link: Path) -> Path:
    return link.readlink() if link.is_symlink() else Path()
