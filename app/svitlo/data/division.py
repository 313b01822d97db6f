"""Between training and validation, where hashes alone do not divide the data as asked.

Documents are divided by a hash of each, and conversations by a hash of what they have in common (an instruction, an
article). That needs many documents and small groups. Where it holds back far too little or too much, the data is
divided once more: the conversations of large groups one by one, and the text of a few documents in parts. Ordinary data
is never divided a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NEAR = 2.0
"""A share is near the one asked for if it is not more than this many times larger or smaller."""
_LARGE = 0.25
"""A group of this part of the share, or more, can be why the share is not near."""
_SMALLEST = 4
"""Groups of fewer conversations are never divided."""
_PARTS = 8
"""Few documents are cut into so many parts that about this many are held back."""
_SHORTEST_PART, _LONGEST_PART = 400, 1 << 14
_CHARACTERS_IN_TOKEN = 4
_MOST_COUNTED = 4_096


@dataclass(frozen=True)
class Division:
    """How data is divided the second time."""

    by_record: frozenset[int] = frozenset()
    """The groups whose conversations are divided one by one."""
    conversations: int = 0
    """How many conversations these groups have."""
    longest_document: int | None = None
    """Documents with more characters are cut into parts."""

    def as_dict(self) -> dict[str, Any]:
        """For the journal."""
        return {
            "by_record": sorted(self.by_record),
            "conversations": self.conversations,
            "longest_document": self.longest_document,
        }

    @staticmethod
    def from_dict(saved: dict[str, Any]) -> Division:
        return Division(frozenset(saved["by_record"]), saved["conversations"], saved["longest_document"])

    def summary(self) -> dict[str, int]:
        """For the manifest."""
        found = {
            "groups_by_record": len(self.by_record),
            "conversations_by_record": self.conversations,
            "longest_document": self.longest_document or 0,
        }
        return {name: number for name, number in found.items() if number}


class DividedBadly(Exception):  # noqa: N818 — caught inside this package
    """The data has to be divided in another way."""

    def __init__(self, division: Division) -> None:
        super().__init__(division)
        self.division = division


def count_group(counts: dict[int, int], group: int) -> None:
    """Count one more conversation of a group in bounded memory: exact for few groups, a little low for many.

    Misra and Gries, "Finding repeated elements" (1982): no group with a share over 1/4,096 is ever missed.
    """
    if group in counts or len(counts) < _MOST_COUNTED:
        counts[group] = counts.get(group, 0) + 1
        return
    for other in list(counts):
        counts[other] -= 1
        if not counts[other]:
            del counts[other]


def is_near(held_back: int, total: int, fraction: float) -> bool:
    """Whether the share that is held back is near the fraction that was asked for."""
    return total * fraction / NEAR <= held_back <= total * fraction * NEAR


def better_division(
    documents: dict[str, int], tokens: int, groups: dict[int, int], fraction: float, *, is_text: bool
) -> Division | None:
    """How to divide the data instead, where that can help. `documents`: how many each split has."""
    total = sum(documents.values())
    if not total or is_near(documents["validation"], total, fraction):
        return None
    if is_text:
        share = tokens * _CHARACTERS_IN_TOKEN * fraction
        if all(documents.values()) or share < _SHORTEST_PART:
            return None
        return Division(longest_document=min(max(int(share / _PARTS), _SHORTEST_PART), _LONGEST_PART))
    large = {group: count for group, count in groups.items() if count >= max(_SMALLEST, _LARGE * fraction * total)}
    return Division(by_record=frozenset(large), conversations=sum(large.values())) if large else None


def explained(manifest_entry: dict[str, int]) -> str:
    """What was done, in one sentence."""
    if part := manifest_entry.get("longest_document"):
        return f"too few documents to divide: those longer than {part:,} characters are cut at the ends of sentences"
    groups, conversations = manifest_entry["groups_by_record"], manifest_entry["conversations_by_record"]
    return (
        f"conversations that belong together (one instruction, one article) form {groups:,} "
        f"{'group' if groups == 1 else 'groups'} too large to be held back whole, so these {conversations:,} "
        f"conversations are divided one by one"
    )
