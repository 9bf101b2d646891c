"""Stand-ins: other images under the name of a known dataset. What they are told by, and called.

A stand-in is told by the number of its images, or by a description that begins with `STAND-IN`.
That description (of TFDS's `dataset_info.json`) is also the only place where a prepared folder can
state what to call its results: `Report numbers on it as 'NAME'`. Nothing else reads it.
"""

import re

from data.images.specs import Spec

_MARK = "STAND-IN"
_NAME = re.compile(r"Report numbers on it as '([^'\n]{1,80})'")


def is_stand_in(spec: Spec, sizes: tuple[int, int], description: str) -> bool:
    """Whether images are not the official splits of `spec`.

    `sizes`: how many images train and test have; `description`: the source's own.
    """
    return spec.official_sizes not in (None, sizes) or description.startswith(_MARK)


def title_of(spec: Spec, sizes: tuple[int, int], description: str) -> str:
    """What results are reported under: the dataset's title, for its official splits alone."""
    if not is_stand_in(spec, sizes, description):
        return spec.title
    given = _NAME.search(description)
    return given[1] if given and given[1] != spec.title else f"{spec.title} stand-in"


def has_title_of_one(spec: Spec, title: str) -> bool:
    """Whether results under this title, which `title_of` gave, are of a stand-in."""
    return title != spec.title
