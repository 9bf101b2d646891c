"""Words for numbers, and words that others have chosen."""

import unicodedata


def printable(text: str) -> str:
    r"""The text with control characters and line separators as escapes: it stays in its line.

    Example:
      >>> printable("x\\ny") == r"x\ny"
      True

    """
    controls = ("Cc", "Zl", "Zp")
    return "".join(
        each.encode("unicode_escape").decode() if unicodedata.category(each) in controls else each
        for each in text
    )


def plural(number: float, word: str, form: str = ",") -> str:
    """The number, in the given format, and the word for so many.

    Example:
      >>> plural(1, "run"), plural(1200, "run"), plural(1.0, "point", "g")
      ('1 run', '1,200 runs', '1 point')

    """
    return f"{number:{form}} {word}{'' if number == 1 else 's'}"
