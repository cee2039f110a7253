"""Tells what ended the program: in one line what its user can mend, with a traceback our bugs."""

import errno
import io
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tune.flags import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, command, program

OURS = frozenset({"run_search", "__main__", "tune", "alrq_core", "search_spaces"})
SAID_LENGTH = 300
# Where a library that fails was reading what this flag names.
READERS = {
    "alrq_core.models": "--model",
    "alrq_core.data": "--data",
    "tune.report.exporting": "--export",
}
# What a file or a folder must be, and what to do where it is not.
RULES = {
    errno.ENOSPC: ("have space left", "Free some where --output-dir, HF_HOME and TMPDIR point"),
    errno.EDQUOT: ("have quota left", "Free some where --output-dir, HF_HOME and TMPDIR point"),
    errno.EFBIG: ("be allowed to grow", "Raise ulimit -f"),
    errno.EMFILE: ("be opened beside others", "Raise ulimit -n"),
    errno.ENFILE: ("be opened beside others", "End programs that keep many files open"),
    errno.EACCES: ("be open to this user", "Change its permissions, or choose another place"),
    errno.EPERM: ("be open to this user", "Change its permissions, or choose another place"),
    errno.EROFS: ("lie where one can write", "Choose another place"),
    errno.ENAMETOOLONG: ("have a shorter name", "Shorten it"),
    errno.ENOTDIR: ("lie in a folder, not below a file", "Choose another place"),
    errno.EISDIR: ("be a file, not a folder", "Check the path"),
    errno.ENOENT: ("exist", "Check the path"),
    errno.EEXIST: ("not exist yet", "Remove it, or choose another name"),
    errno.EIO: ("be readable and writable", "Check the disk, or the terminal"),
}


@dataclass
class Attempt:
    """How far a run of the program has come.

    Attributes:
        debug: Whether mistakes are shown with their traceback.
        study: Folder of the study, once its trials may have begun.
        budget: The study's trials, from then on.
    """

    debug: bool = False
    study: Path | None = None
    budget: int = 0

    @property
    def way_on(self) -> str:
        """The command that goes on with the study."""
        return f"{command()} --resume {shlex.quote(str(self.study))} --budget {self.budget}"


def print_anything() -> None:
    """Let the output show what its encoding lacks as escapes, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def tell(error: BaseException, attempt: Attempt) -> int:
    """Print what ended the program to the error output; return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        began = f"Go on with: {attempt.way_on}" if attempt.study else "No study was begun."
        print(f"Interrupted. {began}", file=sys.stderr)
        return EXIT_INTERRUPTED
    cause = _unwrapped(error)
    checked = _is_check(cause)
    line = str(cause) if checked else _environment(cause, attempt)
    if line is None or attempt.debug:
        traceback.print_exception(error)
    code = EXIT_BAD_INPUT if checked or attempt.study is None else EXIT_FAILED
    if line is None:
        code = EXIT_FAILED
        line = (
            "this is a bug, not a mistake of yours. Report it in the project's issue tracker, "
            f"with the traceback above and {'study.json' if attempt.study else 'your flags'}."
        )
    if attempt.study is not None and not checked:
        line += f" What was reported is kept. Go on with: {attempt.way_on}"
    print(f"{program()}: {line}", file=sys.stderr)
    return code


def _unwrapped(error: BaseException) -> BaseException:
    """Return what Ray Tune met, where all that it raises is that it met something."""
    while type(error).__name__ == "TuneError" and error.__context__ is not None:
        error = error.__context__
    return error


def _is_check(error: BaseException) -> bool:
    """Whether one of our own checks raised it: their messages begin with what is wrong."""
    modules = list(_modules(error))
    raised_here = bool(modules) and _top(modules[-1]) in OURS
    return isinstance(error, ValueError) and raised_here and str(error).startswith("`")


def _environment(error: BaseException, attempt: Attempt) -> str | None:
    """Return what files, packages, Ray or a library's reader lack; None for a bug."""
    if isinstance(error, OSError) and error.errno in RULES:
        rule, step = RULES[error.errno]
        what = error.filename or attempt.study or "disk"
        return f"`{os.fsdecode(what)}` must {rule}, got {said(error)}. {step}."
    flag = _flag_read(error)
    if flag is not None and attempt.study is None and _is_foreign(error):
        return (
            f"`{flag}` must be something that can be read, got {said(error)}. "
            "Check its files; --debug shows where it failed."
        )
    if isinstance(error, ImportError) and _top(package := _missing(error)) not in OURS:
        return (
            f"`{package}` must be installed in a version that fits the others, got "
            f"{said(error)}. Install requirements.txt in a fresh environment."
        )
    if isinstance(error, OSError) or type(error).__module__ == "ray.exceptions":
        return (
            f"`run_search` must reach its files and processes, got {said(error)}. "
            "Look for what ended them; --debug shows where it failed."
        )
    return None


def _missing(error: ImportError) -> str:
    """Return the module that an import lacks, or that raised it without saying which."""
    *_, last = ("", *_modules(error))
    return error.name or last


def _flag_read(error: BaseException) -> str | None:
    """Return the flag whose value was being read, the innermost reader first."""
    for module in reversed(list(_modules(error))):
        for reader, flag in READERS.items():
            if module == reader or module.startswith(reader + "."):
                return flag
    return None


def _is_foreign(error: BaseException) -> bool:
    """Whether a library raised it: from its own code, or from C with a class of its own."""
    *_, last = _modules(error)
    own_class = _top(type(error).__module__) not in OURS | {"builtins"}
    return _top(last) not in OURS or own_class or type(error) is Exception


def _modules(error: BaseException) -> Iterator[str]:
    """Yield the module of each frame that the error passed, the one that raised it last."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield str(frame.f_globals.get("__name__", ""))


def _top(module: str) -> str:
    return module.partition(".")[0]


def said(error: BaseException) -> str:
    """Return what an error says, with its class, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = f"{type(error).__name__}: {' '.join(text.split())}"
    return text if len(text) <= SAID_LENGTH else f"{text[:SAID_LENGTH]}..."
