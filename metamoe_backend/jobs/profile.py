"""Profiles: what Slurm is asked for, one TOML file a profile, WORKSPACE/profiles/NAME.toml."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from metamoe_backend.config import NAME_PATTERN, StageConfig, read_config_file
from metamoe_backend.errors import NotFoundError
from metamoe_backend.workspace import Workspace


def _check_word(text: str) -> str:
    if not text or re.search(r"\s", text):
        raise ValueError("write one word without spaces, as sbatch takes it")
    return text


def _check_line(text: str) -> str:
    if "\n" in text:
        raise ValueError("write each line of the shell as a text of its own: setup = ['…', '…']")
    return text


Word = Annotated[str, AfterValidator(_check_word)]
Line = Annotated[str, AfterValidator(_check_line)]


class Profile(StageConfig):
    """Where on the cluster a run works, with what, and for how long at a time."""

    partition: Word | None = Field(None, description="Partition; by default the cluster's own")
    time_min: int = Field(60, ge=2, le=60 * 24 * 30, description="Time limit of a job, in minutes")
    nodes: int = Field(1, ge=1, le=1024, description="Nodes; a training spreads its processes over them")
    gpus: int = Field(0, ge=0, le=64, description="GPUs on each node")
    cpus: int | None = Field(None, ge=1, le=1024, description="Cores on each node")
    memory_gb: int | None = Field(None, ge=1, le=16_384, description="Memory on each node, in GB")
    constraint: Word | None = Field(None, description="Features the node must have, as sbatch --constraint takes them")
    account: Word | None = Field(None, description="Account that pays")
    setup: list[Line] = Field(default_factory=list, description="Lines of the shell before the worker starts")
    save_s: int = Field(120, ge=1, le=3600, description="So many seconds before the time limit the run saves")
    requeues: int = Field(20, ge=0, le=1000, description="A run that was cut short goes on by itself at most so often")

    @model_validator(mode="after")
    def _has_time_to_work(self) -> Self:
        # Slurm may send its signal up to a minute early.
        if self.save_s + 60 >= 60 * self.time_min:
            raise ValueError("time_min: raise it, or lower save_s; more than a minute must be left to work in")
        return self


def list_profiles(workspace: Workspace) -> list[str]:
    """Names of the profiles there are, whether or not they can be read."""
    return sorted(path.stem for path in workspace.profiles.glob("*.toml"))


def read_profile(workspace: Workspace, name: str) -> Profile:
    """One profile; raises `NotFoundError`, or `ConfigError` naming the file and what is wrong in it."""
    path = workspace.profiles / f"{name}.toml"
    if not re.match(NAME_PATTERN, name) or not path.is_file():
        there = ", ".join(list_profiles(workspace)) or "none"
        raise NotFoundError(f"There is no profile {name!r} (there are: {there}); write {workspace.profiles}/NAME.toml.")
    return read_config_file(Profile, path)
