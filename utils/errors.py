"""What can go wrong, by who must act; `parse_config.command` prints it and sets the exit code."""


class UserError(Exception):
    """The user must correct a config, a path, a file. Shown without a traceback, exit code 2."""


class ConfigError(UserError):
    """All errors of a configuration at once."""

    def __init__(self, origin: str, errors: list[str]):
        super().__init__(origin, errors)  # a copy in another process is made from these
        self.origin, self.errors = origin, errors

    def __str__(self) -> str:
        count = "an error" if len(self.errors) == 1 else f"{len(self.errors)} errors"
        return "\n  ".join([f"{self.origin} has {count}:", *self.errors])


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or does not fit the network."""


class RunError(Exception):
    """The run failed although the user made no mistake (the loss is NaN). Exit code 1."""


class Interrupted(Exception):  # noqa: N818 (not an error)
    """A signal to stop arrived and the state was saved. Exit code 128 + the signal's number."""

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(f"stopped by signal {signum}")


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not empty; without one, the name of its type."""
    lines = (line for line in str(error).splitlines() if line.strip())
    return next(lines, type(error).__name__)
