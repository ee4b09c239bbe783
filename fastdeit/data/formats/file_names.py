"""Names of files: those of images, and those of litter, which a system or a program writes beside
the user's files."""

import os
import re

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""The extensions of images that are read, in lower case."""
_UNREAD_EXTENSIONS = (
    *(".jfif", ".jpe", ".jp2", ".jxl", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico"),
)
_IMAGE_EXTENSIONS = (*EXTENSIONS, *_UNREAD_EXTENSIONS)
_LITTER = frozenset(
    (
        *("__macosx", ".ds_store", ".appledouble"),  # macOS
        *("thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),  # Windows
        *("@eadir", "#recycle"),  # Synology
        *(".ipynb_checkpoints", ".directory", "lost+found"),  # Jupyter, KDE, ext4
    )
)
_APPLE_DOUBLE = "._"  # the start of ._NAME, in which macOS stores the attributes of NAME


def is_image(name: str) -> bool:
    """Return True if a name ends in an extension of images, also one that is not read."""
    return name.lower().endswith(_IMAGE_EXTENSIONS)


def extension_fault(name: str) -> str:
    """Return why an image is not read because of its extension, or ""."""
    extension = os.path.splitext(name)[1].lower()
    if extension not in _UNREAD_EXTENSIONS:
        return ""
    return f"has the extension {extension}; those that are read are {', '.join(EXTENSIONS)}"


def has_word(name: str, word: str) -> bool:
    """Return True if a name has a word, set apart by hyphens, underscores or dots:
    `set-train-0.tar` has `train`, `retrain.tar` has not."""
    return re.search(rf"(^|[-_.]){re.escape(word)}[-_.]", name) is not None


def is_litter(name: str) -> bool:
    """Return True if a path below the data set, or a folder in it, is litter; all formats ignore
    litter."""
    return any(
        part.startswith(_APPLE_DOUBLE) or part.lower() in _LITTER for part in name.split("/")
    )
