"""Is the data on this machine what the book was measured on?  `python -m clair check emoji`."""

from collections import Counter

from clair import emoji
from clair.datasets import NAMES, did_you_mean
from clair.files import versions


def check(name: str, progress: bool = True) -> tuple[str, bool]:
    """A report on a data set, and whether all is as recorded.

    Raises ValueError for an unknown name.
    """
    if name not in NAMES:
        raise ValueError(did_you_mean("data set", name, NAMES))
    emojis, pictures = emoji.load(progress)
    return report(emojis, pictures, versions(emoji.PACKAGES))


def report(emojis: list[emoji.Emoji], pictures: dict, installed: dict[str, str]) -> tuple[str, bool]:
    """The lines of `check` for these pictures, drawn by these releases of the packages."""
    parts, vault = emoji.folds(emojis)
    size = Counter(item.label for item in emojis)
    lines = [
        f"emoji: {len(emojis)} concepts in {len(size)} classes, each drawn in {', '.join(emoji.DOMAINS)}",
        f"  class sizes {min(size.values())} to {max(size.values())}",
        "  folds       " + ", ".join(f"{sum(size[label] for label in part)} in {len(part)} classes" for part in parts),
        f"  vault       {sum(size[label] for label in vault)} in {len(vault)} classes",
        "",
        f"{'package':<20}{'installed':<12}recorded",
    ]
    lines += [f"{package:<20}{installed[package]:<12}{emoji.RECORDED_VERSIONS[package]}" for package in emoji.PACKAGES]
    lines += ["", f"{'part':<12}{'found':<18}{'recorded':<18}"]
    found = emoji.fingerprints(emojis, pictures)
    for part, key in found.items():
        same = key == emoji.RECORDED[part]
        lines.append(f"{part:<12}{key:<18}{emoji.RECORDED[part]:<18}{'as recorded' if same else 'DIFFERS'}")
    other = [part for part in found if found[part] != emoji.RECORDED[part]]
    moved = [f"{package} {installed[package]}" for package in emoji.PACKAGES
             if installed[package] != emoji.RECORDED_VERSIONS[package]]  # fmt: skip
    lines.append("")
    if not other:
        note = f" ({', '.join(moved)} draws the same bytes as the recorded release)" if moved else ""
        lines.append(f"All is as recorded{note}.")
    else:
        why = (
            f"{', '.join(moved)} differs from the recorded release" if moved else "the installed releases are the same"
        )
        lines.append(
            f"WARNING: other bytes than recorded in {', '.join(other)}; {why}. Numbers will differ from the book's. "
            "Install the versions of constraints.txt"
            + ("." if moved else ", and empty the cache: a file in it may be damaged.")
        )
    return "\n".join(lines), not other
