"""One fact about this machine, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

State = Literal["ok", "warning", "missing", "broken"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Check:
    """One fact about this machine."""

    section: str  # heading it stands under
    name: str
    state: State  # missing: not here and not needed for what works; broken: it should work and does not
    detail: str  # what was seen
    advice: str = ""  # what to do; of a sound thing, where to read on, or nothing

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"state {self.state!r} of {self.name}; allowed: {', '.join(STATES)}")

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        plain: dict[str, str] = asdict(self)
        return plain
