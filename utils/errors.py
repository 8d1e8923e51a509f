"""What can go wrong, by who must act. `parse_config.command` turns each into a sentence and an exit code."""


class UserError(Exception):
    """What the user must correct: a config, a path, a file. Shown without a traceback, exit code 2."""


class ConfigError(UserError):
    """A configuration with faults, all of them at once."""

    def __init__(self, origin: str, faults: list[str]):
        self.faults = faults
        count = "a fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__("\n  ".join([f"{origin} has {count}:", *faults]))


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or does not fit the network."""


class RunError(Exception):
    """The run itself failed, though nothing was wrong with what the user wrote (NaN loss). Exit code 1."""


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """SIGINT or SIGTERM arrived and the state was saved. Exit code 128 + the signal's number."""

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(f"stopped by signal {signum}")
