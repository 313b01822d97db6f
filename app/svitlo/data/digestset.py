"""A set of 64-bit digests in 8 bytes each, to detect repeated documents in a corpus of any size."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

RECENT = 65_536


class DigestSet:
    """Holds a sorted array of digests and a small set of the newest ones. Lists new digests in order of arrival."""

    def __init__(self, digests: npt.NDArray[np.uint64] | None = None) -> None:
        import numpy as np

        self._sorted: npt.NDArray[np.uint64] = (
            np.zeros(0, dtype=np.uint64) if digests is None else np.sort(digests).astype(np.uint64)
        )
        self._recent: set[int] = set()
        self._new = array("Q")

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def add(self, digest: int) -> bool:
        """Add a digest. Returns whether it is new."""
        import numpy as np

        if digest in self._recent:
            return False
        key = np.uint64(digest)
        position = int(self._sorted.searchsorted(key))
        if position < len(self._sorted) and self._sorted[position] == key:
            return False
        self._recent.add(digest)
        self._new.append(digest)
        if len(self._recent) >= RECENT:
            recent = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent.clear()
        return True

    def take_new(self) -> npt.NDArray[np.uint64]:
        """The digests added since the last call, in order."""
        import numpy as np

        new = np.array(self._new, dtype=np.uint64)
        self._new = array("Q")
        return new
