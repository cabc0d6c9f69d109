"""What a rule decides, and how decisions of several rules become one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Decision:
    """Whether to stop, why, and on what evidence.

    Attributes:
        stop: True when the run should end here.
        reason: one sentence with numbers, or the first words of why not yet; may be empty.
        evidence: the numbers behind the reason.
    """

    stop: bool = False
    reason: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` turns back into an equal decision."""
        return {"stop": self.stop, "reason": self.reason, "evidence": dict(self.evidence)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Decision":
        """Rebuild a decision from `to_dict`."""
        return cls(bool(data["stop"]), str(data["reason"]), dict(data["evidence"]))


@runtime_checkable
class Rule(Protocol):
    """Reads a forecaster and decides; it keeps no memory of its own.

    `decide` called twice at one step says the same, and before there is data it says "not yet".
    """

    def decide(self, forecaster: Any) -> Decision:
        """Say whether the run should stop now."""
        ...
