"""A Slurm cluster of two nodes on this machine: daemons on loopback with a configuration, key and ports of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from flows.processes import end
from tests.helpers.servers import free_port

NODES = ("node1", "node2")
PATH = f"{os.environ['PATH']}:/usr/sbin"  # where Debian has the daemons
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue")
SECONDS = 120  # for the nodes to be there, and for cancelled jobs to end

# Nodes have the size that deploy/slurm.sbatch asks for, and a device that stands for the GPU.
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
PartitionName=main Nodes=ALL Default=YES
"""
NODE = "NodeName={name} NodeHostname=localhost Port={port} CPUs=8 RealMemory=32768 Gres=gpu:1\n"
GPU = "Name=gpu File=/dev/null\n"


def missing() -> list[str]:
    """Return the programs of Slurm that this machine lacks."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Run a cluster with all its state in a folder, and yield the environment of its commands. Its jobs end with it."""
    configuration = CONFIGURATION.format(folder=folder, port=free_port(), user=getpass.getuser())
    configuration += "".join(NODE.format(name=name, port=free_port()) for name in NODES)
    (folder / "slurm.conf").write_text(configuration)
    (folder / "gres.conf").write_text(GPU)
    (folder / "munge.key").write_bytes(os.urandom(64))
    (folder / "munge.key").chmod(0o600)
    here = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    with contextlib.ExitStack() as daemons:

        def start(name: str, *command: str) -> None:
            with (folder / f"{name}.log").open("w") as log:
                environment = os.environ | here
                process = subprocess.Popen(
                    command, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
                )
            daemons.callback(end, [process], grace=20)

        start("munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge)
        start("slurmctld", "slurmctld", "-D")
        for name in NODES:
            (folder / name).mkdir()
            start(name, "slurmd", "-D", "-N", name)
        nodes = ["sinfo", "--noheader", "--format=%D %T"]
        _wait(folder, lambda: ask(here, *nodes, check=False) == f"{len(NODES)} idle")
        try:
            yield here
        finally:
            ask(here, "scancel", "--user", getpass.getuser())
            _wait(folder, lambda: ask(here, "squeue", "--noheader") == "")


def ask(here: Mapping[str, str], *command: str, check: bool = True) -> str:
    """Run a command of Slurm and return what it prints."""
    done = subprocess.run(command, env=os.environ | here, stdout=subprocess.PIPE, text=True, check=check)
    return done.stdout.strip()


def job_of(here: Mapping[str, str], stage: str) -> str | None:
    """Return the job, one of an array, in which DVC runs a stage now."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if {"repro", stage} <= set(process.cmdline()):
                there = process.environ()
                if there.get("SLURM_CONF") == here["SLURM_CONF"]:
                    return f"{there['SLURM_ARRAY_JOB_ID']}_{there['SLURM_ARRAY_TASK_ID']}"
    return None


def _wait(folder: Path, condition: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until, "\n".join(log.read_text()[-2000:] for log in folder.glob("*.log"))
        time.sleep(0.2)
