"""Results on disk: one JSON file per run, named by its identity, written atomically."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cache.layout import write_atomically
from pipeline.errors import UsageError
from pipeline.types import RunResult, RunSpec


class ResultStore:
    """Folder of finished runs. A file that exists is a finished run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, run_id: str) -> Path:
        """File of a run."""
        return self.folder / f"{run_id}.json"

    def weights_path(self, run_id: str) -> Path:
        """File of a run's weights."""
        return self.folder / "weights" / f"{run_id}.safetensors"

    def missing(self, specs: Iterable[RunSpec]) -> list[RunSpec]:
        """Specs without a finished run, in the given order."""
        return [spec for spec in specs if not self.path(spec.run_id).exists()]

    def write(self, result: RunResult) -> None:
        """Write a finished run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path(result.spec.run_id), _text(result.to_json()))

    def read(self, spec: RunSpec) -> RunResult:
        """Read a finished run."""
        return self._load(self.path(spec.run_id))

    def read_id(self, run_id: str) -> RunResult:
        """Read a finished run by its id."""
        return self._load(self.path(run_id))

    def scan(self, skipped: list[tuple[Path, str]]) -> Iterator[RunResult]:
        """Finished runs one after the other, by file name; a file that cannot be read is skipped, and added to a list.

        Args:
            skipped: takes (file, reason) of what is not a result of this version.
        """
        for path in sorted(self.folder.glob("*.json")):
            try:
                yield self._load(path)
            except UsageError as error:
                skipped.append((path, str(error.__cause__)))
            except OSError as error:
                skipped.append((path, error.strerror or str(error)))

    def read_known(self) -> tuple[list[RunResult], list[tuple[Path, str]]]:
        """All finished runs that this version can read, by file name, and (file, reason) of what was skipped."""
        skipped: list[tuple[Path, str]] = []
        return list(self.scan(skipped)), skipped

    def _load(self, path: Path) -> RunResult:
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            result = RunResult.from_json(plain)
            if result.spec.run_id != plain["run_id"]:
                raise ValueError("its settings are not those of this version, so its id is another")
            return result
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} is not a result of this version ({error}); move it away and run again") from error


def _text(plain: dict[str, Any]) -> str:
    """JSON that is small and can be looked at: a line per entry of the outer two levels, a curve in one line."""

    def written(value: object) -> str:
        return json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":"))

    lines = []
    for name, value in sorted(plain.items()):
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"  {written(key)}:{written(entry)}" for key, entry in sorted(value.items()))
            lines.append(f" {written(name)}:{{\n{inner}\n }}")
        else:
            lines.append(f" {written(name)}:{written(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
