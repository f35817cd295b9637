"""A real Slurm with one node: munged, slurmctld and slurmd in a folder, on loopback, as root."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")

CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={daemon}
# without these the daemons listen on every address of the machine
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
# a request that is too large fails instead of waiting for ever
EnforcePartLimits=ALL
ReturnToService=2
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=5
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Return why there can be no Slurm here, or an empty string."""
    absent = [name for name in NEEDED if shutil.which(name, path=_path()) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install --no-install-recommends slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd starts jobs as their owners and needs root"


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where Debian puts the daemons


class OneNode:
    """Start the daemons in a folder, wait until the node is idle; end them and their jobs.

    Args:
        folder: absolute, with a short name: a socket's ends at 108 characters.
        cpus: that the node claims to have.
    """

    def __init__(self, folder: Path, cpus: int = 2) -> None:
        self.folder, self.cpus = folder, cpus
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}

    def __enter__(self) -> "OneNode":
        self.folder.chmod(0o755)  # munge refuses a socket that others cannot reach
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        ctld, daemon = _free_ports(2)
        values = {"folder": self.folder, "cpus": self.cpus, "ctld": ctld, "daemon": daemon}
        (self.folder / "slurm.conf").write_text(CONF.format(**values))
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        names = ("key-file=munge.key", "socket=munge.socket", "pid-file=munged.pid")
        names += ("log-file=munged.log", "seed-file=munged.seed")
        paths = [f"--{name.replace('=', f'={self.folder}/')}" for name in names]
        self.run("munged", *paths)
        self.run("slurmctld")
        self.run("slurmd")
        wait_for(lambda: self.run("sinfo", "-h", "-p", "main", "-o", "%T") == "idle", 30)

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands; return what it prints."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return the state of a job; empty once Slurm has forgotten it."""
        rows = self.run("squeue", "-h", "--states=all", "--array", "-o", "%i %T").splitlines()
        return dict(row.split() for row in rows).get(job, "")

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):  # jobs first: they would outlive slurmd
            self.run("scancel", "--user", "root")
            wait_for(lambda: not self.run("squeue", "-h"), 30)
        for name in ("slurmd", "slurmctld", "munged"):
            file = self.folder / f"{name}.pid"
            with contextlib.suppress(OSError, ValueError):
                pid = int(file.read_text())
                command = Path(f"/proc/{pid}/comm").read_text().strip()
                if command == name:
                    os.kill(pid, signal.SIGTERM)
                    wait_for(lambda pid=pid: _ended(pid), 10)


def _ended(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(condition, seconds: float = 180.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it does not happen within {seconds:.0f} s"
        time.sleep(0.2)
