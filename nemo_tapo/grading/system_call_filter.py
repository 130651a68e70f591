"""Write the seccomp filter of a program that a model wrote: one process, no sockets, no other process touched.

bubblewrap loads the filter in the sandbox, and code_host.py where there is none. What is refused gives EPERM, so that a
harmless program that asks for it reads an ordinary error. A thread is allowed, a process is not: limits of memory and
processor time are a process's own, and with one process they are the whole answer's.
"""

from __future__ import annotations

import struct

# number of each refused call on (x86_64, aarch64), from Linux's system call tables; None: the machine does not have it
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # processes
    "fork": (57, None), "vfork": (58, None),
    # the network, and sockets of other programs; socketpair stays, asyncio wants it
    "socket": (41, 198),
    # other processes: signals, their memory, their priority
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "sched_setaffinity": (203, 122),
    # memory that the limit of a process's address space does not count
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsmount": (432, 432), "mount_setattr": (442, 442), "open_by_handle_at": (304, 265),
    # parts of the kernel that no answer needs and that have had holes
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
    "fanotify_init": (300, 262), "inotify_init1": (294, 26), "personality": (135, 92),
}  # fmt: skip
CLONE, CLONE3, PRLIMIT, PRCTL = (56, 220), (435, 435), (302, 261), (157, 167)
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE_THREAD = 0x10000
PR_SET_PDEATHSIG = 1
X32_CALLS = 0x40000000  # numbers from here on are x86-64's other table
EPERM, ENOSYS = 1, 38

# classic BPF, as linux/filter.h has it
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the argument's low half comes first
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def make_filter(machine: str) -> bytes | None:
    """Return the filter as an array of `struct sock_filter`; None for a machine whose numbers are not known here.

    `machine` is as `platform.machine()` has it.

    >>> len(make_filter("x86_64")) % 8, make_filter("riscv64")
    (0, None)
    """
    if machine not in AUDIT_ARCH:
        return None
    column = list(AUDIT_ARCH).index(machine)
    refused = sorted(number for numbers in REFUSED.values() if (number := numbers[column]) is not None)
    steps = [_step(_LOAD, _ARCH), _step(_EQUAL, AUDIT_ARCH[machine], then=1), _give(_ERRNO | EPERM)]
    steps.append(_step(_LOAD, _NUMBER))
    steps += [_step(_AT_LEAST, X32_CALLS, otherwise=1), _give(_ERRNO | EPERM)]
    for number in refused:
        steps += [_step(_EQUAL, number, otherwise=1), _give(_ERRNO | EPERM)]
    # clone3 hides its flags from a filter; the C library falls back on clone
    steps += [_step(_EQUAL, CLONE3[column], otherwise=1), _give(_ERRNO | ENOSYS)]
    steps += [_step(_EQUAL, CLONE[column], otherwise=4), _step(_LOAD, _FIRST_ARGUMENT)]
    steps += [_step(_ANY_BIT, CLONE_THREAD, otherwise=1), _give(_ALLOW), _give(_ERRNO | EPERM)]
    # limits of the process itself (0), not of another
    steps += [_step(_EQUAL, PRLIMIT[column], otherwise=4), _step(_LOAD, _FIRST_ARGUMENT)]
    steps += [_step(_EQUAL, 0, then=1), _give(_ERRNO | EPERM), _give(_ALLOW)]
    # it ends with its parent, and cannot change that
    steps += [_step(_EQUAL, PRCTL[column], otherwise=3), _step(_LOAD, _FIRST_ARGUMENT)]
    steps += [_step(_EQUAL, PR_SET_PDEATHSIG, otherwise=1), _give(_ERRNO | EPERM), _give(_ALLOW)]
    return b"".join(steps)


def _step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """Return one instruction; `then` and `otherwise` are how many it jumps over."""
    return struct.pack("=HBBI", code, then, otherwise, value)


def _give(result: int) -> bytes:
    """Return the instruction that ends the filter with a result."""
    return _step(_RETURN, result)
