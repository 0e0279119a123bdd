"""A pickle that leaves a mark when it is loaded."""

import os
import pickle
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trap:
    """Whoever unpickles this makes the folder `mark`."""

    mark: Path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)

    @property
    def pickled(self) -> bytes:
        return pickle.dumps(self)

    @property
    def is_sprung(self) -> bool:
        return self.mark.exists()
