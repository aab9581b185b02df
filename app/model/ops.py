"""One change of the kernel: an item before and after. Everything that is done can be undone by its inverse."""

from __future__ import annotations

from dataclasses import dataclass

from app.model.state import Item


@dataclass(frozen=True, slots=True)
class Op:
    """`before` None makes the item, `after` None removes it, both changes it in place."""

    before: Item | None
    after: Item | None

    def __post_init__(self) -> None:
        if self.before is None and self.after is None:
            raise ValueError("an operation without an item")

    @property
    def item(self) -> Item:
        """The item in question, as it will be where it will be."""
        item = self.after if self.after is not None else self.before
        if item is None:  # __post_init__ excludes it; this tells the type checker
            raise ValueError("an operation without an item")
        return item

    @property
    def inverse(self) -> Op:
        """The operation that takes this one back."""
        return Op(self.after, self.before)
