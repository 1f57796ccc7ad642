"""What users can do wrong, said in one line with its remedy. The command line turns these into exit code 2."""

from __future__ import annotations

import re


class UserError(Exception):
    """A mistake in what was given to ip2p; the message names file, row or field and says what to do."""


class ParamsError(UserError):
    """params.yaml cannot be read or holds a value that makes no sense."""


class DataError(UserError):
    """A data file is missing, truncated or holds a bad row."""


class ModelError(UserError):
    """A model folder is missing, incomplete or of the wrong shape."""


class ValidationFailedError(UserError):
    """The dataset breaks its expectations; the message names the offending rows."""


def first_line(error: BaseException) -> str:
    """What another's error says, in one line, without the name and password of an address."""
    return re.sub(r"://[^/@\s]*@", "://***@", (str(error).splitlines() or [type(error).__name__])[0])[:300]
