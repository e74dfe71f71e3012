"""Every failure MetaMoE raises on purpose.

    MetaMoEError
    ├── UserError             a person can mend it: shown as one sentence, exit status 2, no traceback
    │   ├── InputError        a file, a row or a field that cannot be used
    │   ├── ConfigError       a setting outside its bounds, or settings that contradict each other
    │   │   ├── DivergedError     settings under which the loss became NaN
    │   │   └── MemoryShortError  settings that need more memory than the device has
    │   ├── NotFoundError     a name (task, skill, plan, run, system …) that does not exist
    │   ├── ConflictError     a name already taken, an edit that lost a race
    │   ├── BusyError         the workspace is held by another process
    │   ├── UnavailableError  something outside is missing: hub, package, device, sandbox, server
    │   │   └── TeamBrokenError   a process of several that train together ended before its time
    │   ├── DiskFullError     no room is left on the disk, or the quota is used up
    │   └── QueryError        an SQL statement that may not run, failed, or ran past its limits
    ├── StorageError          what lies on disk is damaged: the message names the file and the repair
    └── StopRequested         a person asked a running job to stop or to cancel; never shown as an error

Messages say what, where and what to do, in one sentence. Anything else that escapes is a bug and keeps its traceback.
"""


class MetaMoEError(Exception):
    """Root of every error raised on purpose."""


class UserError(MetaMoEError):
    """A person can mend it."""


class InputError(UserError):
    """A file, a row or a field that cannot be used."""


class ConfigError(UserError):
    """A setting outside its bounds, or settings that contradict each other."""


class DivergedError(ConfigError):
    """Settings under which the loss became NaN."""


class MemoryShortError(ConfigError):
    """Settings that need more memory than the device has."""


class NotFoundError(UserError):
    """A name that does not exist in this workspace."""


class ConflictError(UserError):
    """A name already taken, or an edit that lost a race."""


class BusyError(UserError):
    """The workspace is held by another process."""


class UnavailableError(UserError):
    """A hub, package, device, sandbox or server that is needed is not there."""


class TeamBrokenError(UnavailableError):
    """A process of several that train together ended before its time."""


class DiskFullError(UserError):
    """No room is left on the disk, or the quota is used up; nothing half-written stays."""


class QueryError(UserError):
    """An SQL statement that may not run, failed, or ran past its limits."""


class StorageError(MetaMoEError):
    """What lies on disk is damaged."""


class StopRequested(MetaMoEError):
    """A person asked a running job to stop (`save` true) or to cancel (`save` false)."""

    def __init__(self, save: bool) -> None:
        super().__init__("stop and save" if save else "cancel")
        self.save = save
