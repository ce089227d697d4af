"""What can be wrong with a run: a symptom, and a finding where one was seen."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A symptom that a run shows.

    Attributes:
        name: of the symptom.
        where: the phase, or what else shows it.
        evidence: the numbers.
        mend: which setting to move, and in which direction.
    """

    name: str
    where: str
    evidence: str
    mend: str

    def __str__(self) -> str:
        """Write it as one line."""
        return f"{self.where}: {self.name}: {self.evidence}. {self.mend}"


@dataclass(frozen=True)
class Symptom:
    """A way for a run to be ill, as docs/doctor.md lists it.

    Attributes:
        name: what is wrong, in a few words.
        rule: when that is said.
        mend: which setting to move, and in which direction.
    """

    name: str
    rule: str
    mend: str

    def seen(self, where: str, evidence: str) -> Finding:
        """Make the finding that a phase shows this symptom, by these numbers."""
        return Finding(self.name, where, evidence, self.mend)
