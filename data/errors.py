"""What can go wrong, in the user's words.

Every class here is a mistake that a person can mend: it is shown as it is (a sentence in the page; standard error and
exit 2 on the command line), never with a traceback. Anything else is our fault and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend. The message says where, what was found, the rule and the remedy."""


class BadInput(UserError):
    """A file, a ranking or an argument that breaks a rule."""


class NotFound(UserError):
    """A project, prompt, folder or model that is not there."""


class Conflict(UserError):
    """The store moved on since the person looked (another tab, another submit)."""


class Forbidden(UserError):
    """The signed-in person's role does not allow this."""
