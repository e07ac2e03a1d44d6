"""The error that the data layer raises for what it was given."""


class DataError(Exception):
    """Audio, shards or labels that cannot be used.

    The message is one paragraph for the user: it names the file or member, says what was expected
    and what to do.
    """

    exit_status = 3


class InputError(Exception):
    """A request that cannot be carried out as asked: a missing path, an impossible option.

    Worded like :class:`DataError`; the user's command, not the data, has to change.
    """

    exit_status = 2
