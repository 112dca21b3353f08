"""The one exception that reaches a person."""


class UserError(Exception):
    """Bad input or a bad environment, said in one sentence that names the thing and the remedy.

    The command line prints the sentence and exits with code 2, without a traceback.
    """
