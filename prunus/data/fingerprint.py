"""The fingerprint of a data set: what it was when it was loaded, so that a change is noticed and named.

It holds for each image in order its name, class and a hash of its content, and for each split how many images it has
and a hash of which. The split itself goes by content (see `hold_out_by_content`).
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from prunus.data.examples import Examples
from prunus.data.preprocessing import Preprocessing
from prunus.files import Count, Record, check_json

SHOWN = 3  # names in a sentence
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A split: how many images it has, and a hash of their classes and of their positions among all, in their order."""

    images: Count
    digest: str


class DataFile(Record, frozen=True, kw_only=True):
    """data.json: the fields of a `Fingerprint`."""

    remedy: ClassVar[str] = "Copy the run again."
    hashed: str
    split_by: str
    classes: Count | None
    class_names: tuple[str, ...] | None
    preprocessing: dict[str, Any] | None
    skipped: dict[str, Count]
    splits: dict[str, Part]
    tokens: str | None = None  # runs that were begun before texts could be read have none
    items: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What a data set was.

    Args:
        hashed: How much of each image its hash covers, in words.
        split_by: How images were held out: by "content"; by "position", as versions up to 0.1.0 did; or "given".
        classes: The number of classes; None if the targets are not classes.
        class_names: The names of the classes in their order; None if the data set does not state them.
        preprocessing: How an image is read; None if a user has prepared tensors.
        skipped: How many of the files that were found are not used, by reason.
        splits: The splits, by name.
        tokens: How texts become tokens, in words; None for data that are no texts.
        items: For each image that is used its class and hash, "class:hash", by name; empty if the images are not known
            one by one.
    """

    hashed: str
    split_by: str
    classes: int | None
    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    splits: Mapping[str, Part]
    tokens: str | None = None
    items: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def used(self) -> int:
        """The number of images that are used."""
        return sum(part.images for part in self.splits.values())

    @property
    def found(self) -> int:
        """The number of files or rows that were found, used or not."""
        return self.used + sum(self.skipped.values())

    def summary(self) -> dict[str, Any]:
        """Return all but the single images, as plain JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("items", "splits")}
        values |= {"preprocessing": self.preprocessing and self.preprocessing.to_json()}
        values |= {"class_names": self.class_names and list(self.class_names), "skipped": dict(self.skipped)}
        splits = {name: asdict(part) for name, part in self.splits.items()}
        return {"found": self.found, "used": self.used} | values | {"splits": splits}

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        return {"format": DataFile.newest, **self.summary(), "items": dict(self.items)}

    @classmethod
    def from_json(cls, values: dict[str, Any], file: Path) -> Self:
        """Make it from what `file` stores; FileError if the file is damaged or of another format."""
        stored = check_json(values, DataFile, str(file))
        known: dict[str, Any] = {f.name: getattr(stored, f.name) for f in fields(cls)}
        known["preprocessing"] = stored.preprocessing and Preprocessing.from_json(stored.preprocessing, file)
        return cls(**known)

    def differences(self, now: "Fingerprint", splits: Collection[str] = SPLITS) -> list[str]:
        """Say what changed from this data set to another.

        Args:
            now: The fingerprint of the other.
            splits: The splits that should be the same.

        Returns:
            A sentence's part for each difference; empty if there is none.
        """
        found = [
            *_named("class", _minus(now.class_names, self.class_names), "new"),
            *_named("class", _minus(self.class_names, now.class_names), "gone"),
        ]
        if not found and (self.classes, self.class_names) != (now.classes, now.class_names):
            found.append(f"the classes were {_classes(self)}, are {_classes(now)}")
        sizes = [(name, _size(self, name), _size(now, name)) for name in splits]
        things = "images" if self.is_of_images else "examples"
        found += [f"{name} had {old} {things}, has {new}" for name, old, new in sizes if old != new]
        if self.hashed == now.hashed:
            found += self._changed_items(now)
        elif self.items.keys() != now.items.keys() or self.hashed not in now.hashed:
            found.append(f"images were compared by {self.hashed}, are by {now.hashed}")
        if self.preprocessing != now.preprocessing:
            found.append(_changed_reading(self.preprocessing, now.preprocessing))
        if self.tokens != now.tokens:
            found.append(f"texts were read as {self.tokens}, are as {now.tokens}")
        if not found and list(self.items.values()) != list(now.items.values()):
            found.append(f"the {things} are the same, but their names give them another order")
        if not found:
            others = [name for name in splits if self.splits.get(name) != now.splits.get(name)]
            found += [f"{name} holds other {things}, or in another order" for name in others]
        return found

    @property
    def is_of_images(self) -> bool:
        """Whether the examples are images with classes; others are called examples."""
        return self.classes is not None and self.tokens is None

    def _changed_items(self, now: "Fingerprint") -> list[str]:
        """Name the images that are new, gone or changed; an image that only has another name is none of these."""
        before, after = _without_common(self.items, now.items), _without_common(now.items, self.items)
        changed = [name for name in before if name in after]
        thing = "image" if self.tokens is None else "text"
        return [
            *_named(thing, [name for name in after if name not in before], "new"),
            *_named(thing, [name for name in before if name not in after], "gone"),
            *_named(thing, changed, "changed"),
        ]


def fingerprint_of_splits(classes: int | None, splits: Mapping[str, Examples]) -> Fingerprint:
    """Make the fingerprint of data that a user's own code has split: numbers of images, their targets and order."""
    return Fingerprint(hashed="not hashed", split_by="given", classes=classes, splits=parts_of(splits))


def parts_of(splits: Mapping[str, Examples]) -> dict[str, Part]:
    """Make the fingerprints of splits, with the digest of each."""
    return {
        name: Part(images=len(splits[name]), digest=splits[name].digest())
        for name in SPLITS
        if name in splits
    }


def _without_common(items: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """The names of images of which `others` has no copy left, after those of the same name are paired."""
    left = Counter(others.values())
    left.subtract(value for name, value in items.items() if others.get(name) == value)
    names = []
    for name, value in items.items():
        if others.get(name) == value:
            continue
        if left[value] > 0:
            left[value] -= 1
        else:
            names.append(name)
    return names


def _minus(names: tuple[str, ...] | None, others: tuple[str, ...] | None) -> list[str]:
    return [name for name in names or () if others is not None and name not in others]


def _named(kind: str, names: list[str], what: str) -> list[str]:
    """Say that things are new, gone or changed, the first few by name."""
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    kinds = kind if len(names) == 1 else {"class": "classes"}.get(kind, f"{kind}s")
    return [f"{len(names)} {kinds} {what}: {', '.join(names[:SHOWN])}{more}"]


def _classes(data: Fingerprint) -> str:
    return ", ".join(data.class_names) if data.class_names else str(data.classes)


def _size(data: Fingerprint, split: str) -> int:
    return data.splits[split].images if split in data.splits else 0


def _changed_reading(before: Preprocessing | None, now: Preprocessing | None) -> str:
    if before is None or now is None:
        return f"images were read by {before}, are by {now}"
    pairs = [(f.name, getattr(before, f.name), getattr(now, f.name)) for f in fields(before) if f.compare]
    return ", ".join(f"{name} of the images was {old}, is {new}" for name, old, new in pairs if old != new)
