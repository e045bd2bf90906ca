"""The system calls that code in a box may not make: as a BPF program for bubblewrap, as a profile for Docker.

A deny-list: the ML stack works, what enlarges the kernel's attack surface or leaves the namespaces does not. Arguments
are compared by their low 32 bits, since the kernel cuts these ones to an int and an attacker may set the upper half.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import Any

# number on x86-64, number on aarch64 (None: does not exist there); from the kernel's syscall tables
_DENIED: dict[str, tuple[int, int | None]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "nfsservctl": (180, 42),
    "syslog": (103, 116),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "lookup_dcookie": (212, 18),
    "vhangup": (153, 58),
    "clock_settime": (227, 112),
    "settimeofday": (164, 170),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "memfd_secret": (447, 447),
    "fanotify_init": (300, 262),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
_SPECIAL = {"socket": (41, 198), "socketpair": (53, 199), "clone": (56, 220), "clone3": (435, 435), "ioctl": (16, 29)}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E, "SCMP_ARCH_X86_64"), "aarch64": (1, 0xC00000B7, "SCMP_ARCH_AARCH64")}
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_X32_BIT = 0x40000000

FAMILIES = (1, 2, 10, 16)
"""Socket families that are allowed: unix, inet, inet6, netlink."""
_ALL_FAMILIES = 64  # the kernel knows fewer and refuses the rest
_CLONE_NEWUSER, _TIOCSTI, _TIOCLINUX, _LOW32 = 0x10000000, 0x5412, 0x541C, 0xFFFFFFFF

# Denied by Docker's own default as well, which a profile of ours replaces; by name, since Docker takes names.
_DOCKER_ALSO = (
    *("_sysctl", "bdflush", "chroot", "create_module", "get_kernel_syms", "get_mempolicy", "lsm_set_self_attr"),
    *("map_shadow_stack", "mbind", "move_pages", "open_tree_attr", "pciconfig_iobase", "pciconfig_read", "pciconfig_write"),
    *("process_madvise", "query_module", "set_mempolicy", "set_mempolicy_home_node", "socketcall", "stime", "sysfs", "umount"),
    *("uselib", "ustat", "vm86", "vm86old"),
)

# --- classic BPF ---
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW = 0x7FFF0000
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data
Instruction = tuple[int, int, int, int]


def _refuse(number: int) -> Instruction:
    return (_RETURN, 0, 0, 0x00050000 | number)


def _low_half(argument: int) -> Instruction:
    return (_LOAD, 0, 0, 16 + 8 * argument)  # both architectures are little-endian


def _program(machine: str) -> list[Instruction]:
    column, arch, _ = _ARCHITECTURES[machine]
    special = {name: numbers[column] for name, numbers in _SPECIAL.items()}
    allow: Instruction = (_RETURN, 0, 0, _ALLOW)
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, arch),
        _refuse(errno.ENOSYS),  # a 32-bit call: its own numbers, and a multiplexer for sockets
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        program += [(_ANY_BIT, 0, 1, _X32_BIT), _refuse(errno.ENOSYS)]
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            program += [(_EQUAL, 0, 1, number), _refuse(errno.EPERM)]
    # its flags are behind a pointer; libc falls back to clone
    program += [(_EQUAL, 0, 1, special["clone3"]), _refuse(errno.ENOSYS)]
    program += [(_EQUAL, 0, 4, special["clone"]), _low_half(0), (_ANY_BIT, 0, 1, _CLONE_NEWUSER), _refuse(errno.EPERM), allow]
    for name in ("socket", "socketpair"):
        tests: list[Instruction] = [(_EQUAL, len(FAMILIES) - index, 0, family) for index, family in enumerate(FAMILIES)]
        program += [(_EQUAL, 0, len(FAMILIES) + 3, special[name]), _low_half(0), *tests, _refuse(errno.EAFNOSUPPORT), allow]
    program += [(_EQUAL, 0, 5, special["ioctl"]), _low_half(1), (_EQUAL, 1, 0, _TIOCSTI), (_EQUAL, 0, 1, _TIOCLINUX)]
    program += [_refuse(errno.EPERM), allow, allow]
    return program


def bpf(machine: str | None = None) -> bytes:
    """The program that `bwrap --seccomp FD` reads. Raises ValueError for a machine that it was not written for."""
    name = platform.machine() if machine is None else machine
    name = _MACHINES.get(name, name)
    if name not in _ARCHITECTURES:
        raise ValueError(f"no system-call filter for {name}; there are: {', '.join(_ARCHITECTURES)}")
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in _program(name))


def docker_profile(machine: str | None = None) -> dict[str, Any]:
    """For `--security-opt seccomp=`: replaces Docker's default, so it denies what matters of that as well."""
    name = platform.machine() if machine is None else machine
    architecture = _ARCHITECTURES[_MACHINES.get(name, name)][2]

    def deny(names: list[str], number: int, *arguments: dict[str, Any]) -> dict[str, Any]:
        return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": number, "args": list(arguments)}

    def masked(index: int, mask: int, value: int) -> dict[str, Any]:
        return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}

    refused = [family for family in range(_ALL_FAMILIES) if family not in FAMILIES]
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [architecture],  # other ones, 32-bit calls included, end the process
        "syscalls": [
            deny(sorted({*_DENIED, *_DOCKER_ALSO}), errno.EPERM),
            deny(["clone3"], errno.ENOSYS),
            deny(["clone"], errno.EPERM, masked(0, _CLONE_NEWUSER, _CLONE_NEWUSER)),
            *(deny(["socket", "socketpair"], errno.EAFNOSUPPORT, masked(0, _LOW32, family)) for family in refused),
            *(deny(["ioctl"], errno.EPERM, masked(1, _LOW32, request)) for request in (_TIOCSTI, _TIOCLINUX)),
        ],
    }
