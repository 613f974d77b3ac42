"""What writing a unit safely costs: ``python -m tests.bench.cache_writing [--folder DIR]``.

The same bytes are written as raw files with fsync (the floor), through Zarr with fsync, as a unit of the cache, and as
a unit under a lease that is claimed and released for it; then the parts by themselves: a lease, a check, a heartbeat, a
look at what is todo. Ways take turns in every round, so that a busy machine hits all alike; medians and ratios count.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from cache.layout import ClipRecord, Identity, Status
from cache.leases import Leases
from cache.store import FeatureGroup

DIMS = {"video": 2304, "flow": 2048, "audio": 512}
VIEWS = tuple(f"view{i}" for i in range(9))
UNIT = 32


def raw(folder: Path, chunks: dict[str, bytes]) -> None:
    """The floor: the files of a unit, each written once and flushed."""
    for name, data in chunks.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, data)
        os.fsync(descriptor)
        os.close(descriptor)


def plain_zarr(array: zarr.Array, folder: Path, unit: int, values: np.ndarray) -> None:
    """The same chunks through Zarr, flushed; no status, no commit."""
    array[unit * UNIT : (unit + 1) * UNIT] = values
    for view in range(len(VIEWS)):
        descriptor = os.open(folder / "c" / str(unit) / str(view) / "0", os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def timed(act: Callable[[], object], seconds: list[float]) -> None:
    """Wall time of one call."""
    start = time.perf_counter()
    act()
    seconds.append(time.perf_counter() - start)


def measure(folder: Path, dim: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per unit and way."""
    rng = np.random.default_rng(0)
    clips = [f"clip{i:06d}" for i in range(rounds * UNIT)]
    facts = {"decoder": "torchcodec", "codec": "h264", "rate_hz": 29.97, "width": 456, "height": 256}
    groups = {}
    for way in ("unit", "leased"):
        identity = Identity("bench", way, "none", "none", "pool", VIEWS, 0, {})
        groups[way] = FeatureGroup.open_or_create(folder, identity, clips, dim, UNIT, {})
    array = zarr.create_array(
        str(folder / "zarr"),
        shape=(len(clips), len(VIEWS), dim),
        chunks=(UNIT, 1, dim),
        dtype="float16",
        compressors=[Crc32cCodec()],
    )
    found: dict[str, list[float]] = {
        way: []
        for way in ("raw files", "zarr", "write_unit", "write_unit + lease", "lease", "check", "beat", "todo_units")
    }
    with Leases(groups["leased"].place, beats=False) as leases:
        for unit in range(rounds):
            values = rng.gamma(1.0, size=(UNIT, len(VIEWS), dim)).astype(np.float16)
            records = [ClipRecord(c, Status.PRESENT, facts=facts) for c in groups["unit"].unit_clips(unit)]
            chunks, commit = groups["unit"]._encode(unit, values, records)
            chunks[f"commits/{unit}"] = repr(commit).encode()

            def with_lease(unit: int = unit, values: np.ndarray = values, records: list[ClipRecord] = records) -> None:
                lease = leases.claim(f"{unit:06d}")
                assert lease is not None
                with lease:
                    groups["leased"].write_unit(unit, values, records, lease=lease)

            def only_lease() -> None:
                lease = leases.claim("other")
                assert lease is not None
                lease.release()

            timed(lambda c=chunks: raw(folder / "raw", c), found["raw files"])
            timed(lambda u=unit, v=values: plain_zarr(array, folder / "zarr", u, v), found["zarr"])
            timed(lambda u=unit, v=values, r=records: groups["unit"].write_unit(u, v, r), found["write_unit"])
            timed(with_lease, found["write_unit + lease"])
            timed(only_lease, found["lease"])
            held = leases.claim("held")
            assert held is not None
            timed(held.check, found["check"])
            timed(leases.beat, found["beat"])
            held.release()
            timed(groups["leased"].todo_units, found["todo_units"])
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    for modality, dim in DIMS.items():
        folder = Path(tempfile.mkdtemp(dir=arguments.folder))
        try:
            found = measure(folder, dim, arguments.rounds)
        finally:
            shutil.rmtree(folder)
        size = UNIT * len(VIEWS) * dim * 2
        floor = statistics.median(found["raw files"])
        print(f"\n{modality}: a unit is {UNIT} clips x {len(VIEWS)} views x {dim} = {size / 1e6:.2f} MB\n")
        print("| way | ms per unit, median | quartiles | of raw files |\n| --- | --- | --- | --- |")
        for way, seconds in found.items():
            low, middle, high = (q * 1e3 for q in statistics.quantiles(seconds, n=4))
            print(f"| {way} | {middle:.3f} | {low:.3f} to {high:.3f} | {middle / 1e3 / floor:.3f} |")


if __name__ == "__main__":
    main()
