"""Does a training result depend on the framework? Studies of whole trainings, with a verdict."""
