"""Loading a whole cache, side by side with what else one could use: ``python -m tests.bench.cache``.

Three modalities of 9 views (2304, 2048 and 512 values, float16) for 10,000 clips, 875 MB, made in a temporary folder
and read from the page cache. Every way of loading is a process of its own, so that peak memory is its own; the ways
take turns, and the figures are medians. ``--clips 1000`` is a quick look.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

DIMS = {"video": 2304, "flow": 2048, "audio": 512}
VIEWS = ("clean0", *(f"weak{i}" for i in range(4)), *(f"strong{i}" for i in range(4)))
UNIT = 32


def make(root: Path, clips: int) -> None:
    """The groups, and the same values as .npy, HDF5 and safetensors."""
    import h5py
    import numpy as np
    from safetensors.numpy import save_file

    from cache.layout import ClipRecord, Identity, Status
    from cache.packed import pack
    from cache.store import FeatureGroup

    rng = np.random.default_rng(0)
    ids = [f"clip-{i:06d}" for i in range(clips)]
    facts = {"decoder": "pyav", "codec": "h264", "width": 456, "height": 256, "rate_hz": 59.94}
    for modality, dim in DIMS.items():
        table = rng.gamma(1.0, 1.0, (2 * UNIT, len(VIEWS), dim)).astype(np.float16)
        identity = Identity("bench", modality, "bench", "random:0", "pool", VIEWS, 0, {})
        start = time.perf_counter()
        group = FeatureGroup.open_or_create(root / "cache", identity, ids, dim, UNIT, {})
        whole = np.lib.format.open_memmap(root / f"{modality}.npy", "w+", np.float16, (clips, len(VIEWS), dim))
        for unit in range(group.num_units):
            names = group.unit_clips(unit)
            values = np.roll(table, unit, axis=0)[: len(names)]
            whole[unit * UNIT : unit * UNIT + len(names)] = values
            group.write_unit(unit, values, [ClipRecord(c, Status.PRESENT, fingerprint=c, facts=facts) for c in names])
        seconds = time.perf_counter() - start
        print(f"{modality}: {whole.nbytes / 1e6:.0f} MB written in {seconds:.1f} s, as .npy too", file=sys.stderr)
        save_file({"features": np.asarray(whole)}, root / f"{modality}.safetensors")
        with h5py.File(root / f"{modality}.h5", "w") as file:
            file.create_dataset("features", data=whole)
        with h5py.File(root / f"{modality}.fletcher32.h5", "w") as file:
            chunks = (min(512, clips), 1, dim)
            file.create_dataset("features", data=whole, chunks=chunks, fletcher32=True)
        pack(group)
        del whole


def groups(root: Path) -> dict[str, Path]:
    """Folder of each modality's group."""
    return {path.name.partition("-")[0]: path for path in sorted((root / "cache" / "bench").glob("*.zarr"))}


def by_memmap(root: Path) -> list[object]:
    """.npy mapped, and copied."""
    import numpy as np

    return [np.array(np.load(root / f"{m}.npy", mmap_mode="r")) for m in DIMS]


def by_hdf5(root: Path) -> list[object]:
    """One contiguous data set."""
    import h5py

    return [h5py.File(root / f"{m}.h5")["features"][:] for m in DIMS]


def by_hdf5_checked(root: Path) -> list[object]:
    """Chunks of 512 clips with fletcher32."""
    import h5py

    return [h5py.File(root / f"{m}.fletcher32.h5")["features"][:] for m in DIMS]


def by_safetensors(root: Path) -> list[object]:
    """Every tensor copied out of the file."""
    from safetensors.numpy import load_file

    return [load_file(root / f"{m}.safetensors")["features"] for m in DIMS]


def by_zarr(root: Path) -> list[object]:
    """zarr-python, which checks crc32c."""
    import zarr

    return [zarr.open_group(str(path), mode="r")["features"][:] for path in groups(root).values()]


def by_group(root: Path) -> list[object]:
    """``FeatureGroup.load``: features, every record, the digest."""
    from cache.store import FeatureGroup

    return [FeatureGroup(path).load() for path in groups(root).values()]


def by_reader(root: Path, threads: int = 2) -> list[object]:
    """``read_group``: features and every record."""
    from cache.readers import read_group
    from cache.store import FeatureGroup

    return [read_group(FeatureGroup(path), threads=threads) for path in groups(root).values()]


def by_reader_alone(root: Path) -> list[object]:
    """The same with one thread."""
    return by_reader(root, 1)


def by_chunks(root: Path) -> list[object]:
    """``read_parts``: the chunks alone, all crc32c checked, no records."""
    import numpy as np

    from cache.chunks import ChunkFiles, parts_of, read_parts

    found: list[object] = []
    for path in groups(root).values():
        files = ChunkFiles.of(path)
        clips = json.loads((path / "features" / "zarr.json").read_text())["shape"][0]
        if files is None:
            raise SystemExit(f"{path} is not read directly")
        out = np.empty((clips, len(VIEWS), files.dim), files.dtype)
        read_parts(files, parts_of(np.arange(clips), files.unit), range(len(VIEWS)), out)
        found.append(out)
    return found


def by_packed(root: Path) -> list[object]:
    """The packed copies opened (the source's state compared), and copied into memory."""
    import numpy as np

    from cache.packed import open_packed, packed_path
    from cache.store import FeatureGroup

    return [np.array(open_packed(packed_path(p), FeatureGroup(p)).features) for p in groups(root).values()]


def by_packed_open(root: Path) -> list[object]:
    """The packed copies opened and one row read."""
    from cache.packed import open_packed, packed_path

    found: list[object] = []
    for path in groups(root).values():
        packed = open_packed(packed_path(path))
        found += [packed, packed.features[len(packed.clip_ids) // 2, 3].sum()]
    return found


def by_safetensors_open(root: Path) -> list[object]:
    """safetensors opened and one row read."""
    from safetensors import safe_open

    found: list[object] = []
    for m in DIMS:
        with safe_open(root / f"{m}.safetensors", "numpy") as file:
            part = file.get_slice("features")
            row = part.get_shape()[0] // 2
            found.append(part[row : row + 1, 3:4].sum())
    return found


def by_view(root: Path) -> list[object]:
    """One view of nine, all clips."""
    from cache.readers import read_group
    from cache.store import FeatureGroup

    return [read_group(FeatureGroup(path), views=["clean0"]) for path in groups(root).values()]


WAYS: dict[str, Callable[[Path], list[object]]] = {
    "numpy.memmap + copy": by_memmap,
    "safetensors load_file": by_safetensors,
    "h5py contiguous": by_hdf5,
    "h5py fletcher32": by_hdf5_checked,
    "zarr-python, crc32c": by_zarr,
    "FeatureGroup.load": by_group,
    "read_group, 2 threads": by_reader,
    "read_group, 1 thread": by_reader_alone,
    "chunks alone, crc32c": by_chunks,
    "packed, opened and copied": by_packed,
    "packed, opened, one row": by_packed_open,
    "safetensors, opened, one row": by_safetensors_open,
    "read_group, 1 view of 9": by_view,
}


def once(way: str, root: Path) -> None:
    """Measure one way in this process: seconds on the clock and of the processor, and peak memory above the start."""
    import h5py
    import numpy
    import safetensors.numpy
    import zarr

    import cache.packed

    del h5py, numpy, safetensors, zarr, cache  # imports are not what is measured
    before = peak_bytes()
    start, busy = time.perf_counter(), time.process_time()
    kept = WAYS[way](root)
    figures = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - busy}
    print(json.dumps({**figures, "bytes": peak_bytes() - before, "kept": len(kept)}))


def peak_bytes() -> int:
    """Peak resident memory of this process that is its own (files that are mapped do not count)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="parent of the temporary folder, such as /dev/shm")
    parser.add_argument("--once", default="")
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    if options.once:
        once(options.once, options.root)
        return
    root = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        make(root, options.clips)
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for turn in range(options.turns + 1):
            for way in WAYS:
                command = [sys.executable, "-m", "tests.bench.cache", "--once", way, "--root", str(root)]
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ))
                if turn:  # the first fills the page cache
                    found[way].append(json.loads(done.stdout))
    finally:
        shutil.rmtree(root)
    size = options.clips * len(VIEWS) * sum(DIMS.values()) * 2
    print(f"{options.clips} clips, {size / 1e6:.0f} MB, medians of {options.turns} turns")
    print("| way | seconds | best | processor s | GB/s | against memmap + copy | memory / features |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    base = statistics.median(f["seconds"] for f in found["numpy.memmap + copy"])
    for way, figures in found.items():
        seconds, cpu, memory = (statistics.median(f[k] for f in figures) for k in ("seconds", "cpu", "bytes"))
        best = min(f["seconds"] for f in figures)
        print(
            f"| {way} | {seconds:.3f} | {best:.3f} | {cpu:.3f} | {size / seconds / 1e9:.1f} | {seconds / base:.2f} | "
            f"{memory / size:.2f} |"
        )


if __name__ == "__main__":
    main()
