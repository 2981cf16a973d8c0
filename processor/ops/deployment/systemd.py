"""Units of systemd for `taskflow worker` and `taskflow views`, confined as far as they can be."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from processor.contract.rights import Role
from processor.ops.deployment.plan import GRACE_S, VIEWS_MIB, memory_mib, passed_on
from processor.settings import SECRET_FILES, Settings, variable

FILES_MAX: Final = 65_536
"""Open files: a server takes connections for a quarter of them."""
CREDENTIALS: Final = (
    *SECRET_FILES,
    *map(variable, ("ssl_cafile", "ssl_certfile", "ssl_keyfile")),
)
"""Files that systemd reads as root and shows to the service alone."""
OF_VIEWS: Final = frozenset(name for name in CREDENTIALS if "_VIEWS_" in name)
OWN_FILES: Final = frozenset({"TASKFLOW_SASL_OAUTH_TOKEN_FILE", "TASKFLOW_SASL_USERNAME"})
"""Passed on as they are. A token changes while the service runs, which reads the file itself."""
ADDRESSES: Final = ("TASKFLOW_HTTP", "TASKFLOW_VIEWS_HTTP", "TASKFLOW_VIEWS_ADVERTISE")

_CONFINED: Final = """\
DynamicUser=yes
UMask=0077
CapabilityBoundingSet=
LockPersonality=yes
PrivateDevices=yes
ProcSubset=pid
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
"""
"""DynamicUser implies ProtectSystem=strict, PrivateTmp, RemoveIPC, NoNewPrivileges and
RestrictSUIDSGID."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is to run on one machine, and with which settings."""

    name: str
    settings: Settings
    environ: Mapping[str, str]
    program: PurePath
    processes: int = 1


def units(machine: Machine) -> dict[str, str]:
    """The text of each unit, by its file's name."""
    processes = machine.processes
    worker = ["worker"] if processes == 1 else ["worker", "--processes", str(processes)]
    return {
        f"{machine.name}-worker.service": _unit(
            machine, Role.WORKER, worker, memory_mib(machine.settings, processes)
        ),
        f"{machine.name}-views.service": _unit(machine, Role.VIEWS, ["views"], VIEWS_MIB),
    }


def _unit(machine: Machine, role: Role, arguments: list[str], max_mib: int) -> str:
    service = f"{machine.name}-{role}"
    lines = [
        "[Unit]",
        f"Description=taskflow {role} of the topics {_escaped(machine.settings.topic_prefix)}",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        " ".join([f"ExecStart={_quoted(str(machine.program))}", *arguments]),
        *(f"Environment={_quoted(line)}" for line in _environment(machine, role, service)),
        *(
            f"LoadCredential={name}:{_escaped(path)}"
            for name, path in _credentials(machine, role).items()
        ),
        f"StateDirectory={service}",
        "StateDirectoryMode=0700",
        "Restart=on-failure",
        "RestartSec=2",
        "# A setting that is wrong stays wrong.",
        "RestartPreventExitStatus=2",
        "KillMode=mixed",
        f"TimeoutStopSec={GRACE_S}",
        f"MemoryMax={max_mib}M",
        f"LimitNOFILE={FILES_MAX}",
        *_CONFINED.splitlines(),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _environment(machine: Machine, role: Role, service: str) -> list[str]:
    """Settings, with the specifiers %S (/var/lib), %d (credentials) and %H (host name)."""
    given = passed_on(machine.environ)
    given |= {
        name: machine.environ[name]
        for name in (*OWN_FILES, *ADDRESSES, "TASKFLOW_HTTP_HOSTS")
        if machine.environ.get(name)
    }
    found = {name: _escaped(value) for name, value in sorted(given.items())}
    found["TASKFLOW_STATE_DIR"] = f"%S/{service}"
    if role is Role.WORKER:
        found["TASKFLOW_INSTANCE_ID"] = "%H"
    else:
        # Where it keeps the secret that it would share with others of its user.
        found["XDG_STATE_HOME"] = f"%S/{service}"
    found |= {name: f"%d/{name}" for name in _credentials(machine, role)}
    return [f"{name}={value}" for name, value in found.items()]


def _credentials(machine: Machine, role: Role) -> dict[str, str]:
    """The files that a service of this role needs, by their variables."""
    return {
        name: machine.environ[name]
        for name in CREDENTIALS
        if machine.environ.get(name) and (role is Role.VIEWS or name not in OF_VIEWS)
    }


def _escaped(value: str) -> str:
    """What systemd would take for a specifier, as itself."""
    return value.replace("%", "%%")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
