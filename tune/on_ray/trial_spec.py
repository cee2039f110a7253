"""What a trial shall do, as Ray carries it to a worker."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from tune.study.events import Role
from tune.study.state import SEARCHED

# The key of a trial's id.
TRIAL = "trial"


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """What one trial shall do: the flat configuration that Ray carries, in one place."""

    trial: str
    role: Role
    allocation: str
    seed: int
    reference: str | None = None
    labels: bool = False

    @property
    def confirm(self) -> bool:
        """Whether it trains to the end with packed weights."""
        return self.role not in SEARCHED

    @property
    def tested(self) -> bool:
        """Whether it is scored on the test split."""
        return self.confirm and self.role != "reference"

    def to_config(self) -> dict[str, Any]:
        """Return Ray's configuration of the trial."""
        return asdict(self)

    @staticmethod
    def from_config(config: dict[str, Any]) -> "TrialSpec":
        """Return what `to_config` wrote."""
        return TrialSpec(**{field.name: config[field.name] for field in fields(TrialSpec)})
