"""The one exception that is written for the person at the keyboard."""


class InputError(ValueError):
    """A fault in what the user gave: its message says what, where, what is expected and the next step.

    Recipes print the message without a traceback and exit with code 2; every other exception is a bug and keeps its
    traceback.
    """
