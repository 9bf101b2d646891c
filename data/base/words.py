"""Words for numbers."""


def plural(number: float, word: str, form: str = ",") -> str:
    """The number, in the given format, and the word for so many.

    Example:
      >>> plural(1, "run"), plural(1200, "run"), plural(1.0, "point", "g")
      ('1 run', '1,200 runs', '1 point')

    """
    return f"{number:{form}} {word}{'' if number == 1 else 's'}"
