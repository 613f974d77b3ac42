"""Results on disk: one JSON file per run, named by its identity, written atomically."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

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
        text = json.dumps(result.to_json(), allow_nan=False, sort_keys=True, indent=1)
        write_atomically(self.path(result.spec.run_id), text)

    def read(self, spec: RunSpec) -> RunResult:
        """Read a finished run."""
        return self._load(self.path(spec.run_id))

    def read_all(self) -> list[RunResult]:
        """All finished runs, by file name."""
        return [self._load(path) for path in sorted(self.folder.glob("*.json"))]

    def _load(self, path: Path) -> RunResult:
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            result = RunResult.from_json(plain)
            if result.spec.run_id != plain["run_id"]:
                raise ValueError("its settings are not those of this version, so its id is another")
            return result
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} is not a result of this version ({error}); move it away and run again") from error
