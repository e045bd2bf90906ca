"""The system-call filter, executed for real: a box of bubblewrap makes each forbidden call, also with upper bits set."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from dojo_kernel.kernel import sandbox, seccomp

PROBE = r"""
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    done = libc.syscall(ctypes.c_long(number), *[ctypes.c_uint64(a) for a in arguments])
    return "ok" if done >= 0 else errno.errorcode[ctypes.get_errno()]
HIGH = 1 << 32
found = {}
for family in (1, 2, 10, 16, 17, 38, 40, 0, 31, 45):
    found[f"socket {family}"] = call(41, family, 1 if family != 16 else 3, 0)
    found[f"socket {family} high"] = call(41, family | HIGH, 1 if family != 16 else 3, 0)
found["socketpair vsock"] = call(53, 40, 1, 0, 0)
for name, number in json.loads(os.environ["NUMBERS"]).items():
    found[name] = call(number, 0, 0, 0, 0)
found["clone3"] = call(435, 0, 0)
found["clone newuser"] = call(56, 0x10000000 | HIGH, 0, 0, 0, 0)
found["ioctl tiocsti"] = call(16, 0, 0x5412 | HIGH, 0)
found["x32 getpid"] = call(39 | 0x40000000)
found["getpid"] = call(39)
import threading, subprocess
thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
found["fork"] = subprocess.run(["/bin/true"]).returncode
print(json.dumps(found))
"""


@pytest.mark.sandbox
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the probe has the numbers of x86-64")
def test_the_filter_refuses_each_call_and_lets_ordinary_ones_through():
    numbers = {name: pair[0] for name, pair in seccomp._DENIED.items()}
    filter_fd = os.memfd_create("filter")
    os.write(filter_fd, seccomp.bpf())
    os.lseek(filter_fd, 0, os.SEEK_SET)
    python = [part for path in sandbox.python_folders() for part in ("--ro-bind", str(path), str(path))]
    system = [*sandbox.system_binds(), *python, "--dev", "/dev"]
    done = subprocess.run(
        ["bwrap", *system, "--seccomp", str(filter_fd), "--", sys.executable, "-I", "-S", "-c", PROBE],
        env={"NUMBERS": json.dumps(numbers)},
        pass_fds=[filter_fd],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    os.close(filter_fd)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for family in (1, 2, 10, 16):
        assert found[f"socket {family}"] == "ok"
    for family in (17, 38, 40, 0, 31, 45):
        assert found[f"socket {family}"] == found[f"socket {family} high"] == "EAFNOSUPPORT"
    assert found["socketpair vsock"] == "EAFNOSUPPORT"
    assert {name: found[name] for name in numbers} == dict.fromkeys(numbers, "EPERM")
    assert found["clone3"] == "ENOSYS"
    assert found["clone newuser"] == "EPERM"
    assert found["ioctl tiocsti"] == "EPERM"
    assert found["x32 getpid"] == "ENOSYS"
    assert found["getpid"] == "ok"
    assert found["fork"] == 0


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "amd64", "arm64"])
def test_a_program_is_whole_instructions_and_every_jump_lands_inside(machine):
    program = seccomp.bpf(machine)
    assert len(program) % 8 == 0
    count = len(program) // 8
    for index in range(count):
        code, yes, no = (
            int.from_bytes(program[index * 8 : index * 8 + 2], sys.byteorder),
            program[index * 8 + 2],
            program[index * 8 + 3],
        )
        if code & 7 == 5:
            assert max(yes, no) + index + 1 < count
    assert program[-8:-6] == (6).to_bytes(2, sys.byteorder)


def test_another_machine_is_refused_rather_than_left_without_a_filter():
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.bpf("riscv64")


def test_the_docker_profile_masks_the_upper_half_and_denies_by_name():
    profile = seccomp.docker_profile("x86_64")
    rules = profile["syscalls"]
    by_name = {name for rule in rules if not rule["args"] for name in rule["names"]}
    assert {"ptrace", "io_uring_setup", "unshare", "mount", "bpf", "clone3", "socketcall"} <= by_name
    families = {rule["args"][0]["valueTwo"] for rule in rules if "socket" in rule["names"]}
    assert families.isdisjoint(seccomp.FAMILIES)
    assert {17, 38, 40} <= families
    assert all(rule["args"][0]["value"] == 0xFFFFFFFF for rule in rules if "socket" in rule["names"])
    json.dumps(profile)
