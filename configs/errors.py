"""The one exception for what a user can mend: the CLI prints its sentence and exits non-zero, without a traceback."""


class UserError(Exception):
    """A mistake of the user or a limit of the machine; the message names the key, the rule, the value and the fix."""


class DeadlineExceeded(UserError):
    """A wait that took longer than its deadline; the message says what was waited for and who holds it."""


class BudgetReached(UserError):
    """The run has stopped because of `budget`; the same command goes on once the key is raised."""
