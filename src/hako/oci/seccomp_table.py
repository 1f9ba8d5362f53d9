"""The system calls that a container may make, by topic. seccomp.py makes the filter from this table.

What is refused fails with EPERM. What is in no list, because it is newer than the list, fails with ENOSYS: libc then
takes an older call instead, where EPERM would be the end of it. The line is drawn where docker draws it: everything
that acts on the caller's own processes, files, memory and sockets is allowed; what acts on the whole kernel (modules,
clock, reboot, swap, mounts, keyrings, tracing of the kernel, io_uring) is not, or only with the capability that
guards it. Names that the processor at hand does not have are passed over by libseccomp.
"""

from __future__ import annotations

ALWAYS: dict[str, str] = {
    "files: open, close, read, write": """
        open openat openat2 creat close close_range read write readv writev pread64 pwrite64 preadv pwritev preadv2
        pwritev2 lseek _llseek sendfile sendfile64 splice tee vmsplice copy_file_range readahead fadvise64 fadvise64_64
        arm_fadvise64_64 sync_file_range sync_file_range2 arm_sync_file_range dup dup2 dup3 fcntl fcntl64 flock ioctl
        fsync fdatasync sync syncfs truncate truncate64 ftruncate ftruncate64 fallocate name_to_handle_at
    """,
    "files: names and attributes": """
        stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx statfs statfs64 fstatfs fstatfs64 oldstat
        access faccessat faccessat2 chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown
        lchown32 umask utime utimes utimensat utimensat_time64 futimesat link linkat symlink symlinkat readlink
        readlinkat unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir mknod mknodat getdents getdents64
        getcwd chdir fchdir getxattr lgetxattr fgetxattr setxattr lsetxattr fsetxattr listxattr llistxattr flistxattr
        removexattr lremovexattr fremovexattr setxattrat getxattrat listxattrat removexattrat inotify_init inotify_init1
        inotify_add_watch inotify_rm_watch fanotify_mark memfd_create memfd_secret
    """,
    "waiting for files": """
        select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64 epoll_create epoll_create1 epoll_ctl
        epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4
        timerfd_create timerfd_settime timerfd_settime64 timerfd_gettime timerfd_gettime64 io_setup io_destroy
        io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64
    """,
    "sockets and pipes": """
        socketcall socketpair bind listen accept accept4 connect getsockname getpeername getsockopt setsockopt
        shutdown send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64 pipe pipe2
    """,
    "memory": """
        brk mmap mmap2 munmap mremap mprotect madvise mincore msync mlock mlock2 munlock mlockall munlockall membarrier
        remap_file_pages pkey_alloc pkey_free pkey_mprotect map_shadow_stack mseal process_mrelease
    """,
    "processes: start, end, wait": """
        fork vfork execve execveat exit exit_group wait4 waitid waitpid kill tkill tgkill pidfd_open
        pidfd_send_signal getpid getppid gettid getpgid getpgrp setpgid getsid setsid set_tid_address get_robust_list
        set_robust_list rseq restart_syscall pause prctl arch_prctl getcpu getrusage times
        ptrace process_vm_readv process_vm_writev
    """,
    "processes: identity and rights": """
        getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 getresgid
        getresgid32 getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 setregid setregid32
        setresuid setresuid32 setresgid setresgid32 setgroups setgroups32 setfsuid setfsuid32 setfsgid setfsgid32
        capget capset seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
    """,
    "scheduling and limits": """
        sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam
        sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval
        sched_rr_get_interval_time64 getpriority setpriority nice ioprio_get ioprio_set getrlimit ugetrlimit
        setrlimit prlimit64
    """,
    "signals": """
        rt_sigaction rt_sigprocmask rt_sigpending rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
        rt_sigqueueinfo rt_tgsigqueueinfo rt_sigreturn sigaction sigprocmask sigpending sigsuspend sigreturn signal
        sigaltstack
    """,
    "time": """
        time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 clock_nanosleep
        clock_nanosleep_time64 nanosleep alarm getitimer setitimer timer_create timer_delete timer_settime
        timer_settime64 timer_gettime timer_gettime64 timer_getoverrun adjtimex
    """,
    "between processes": """
        futex futex_time64 futex_waitv futex_wait futex_wake futex_requeue ipc semget semop semctl semtimedop
        semtimedop_time64 msgget msgsnd msgrcv msgctl shmget shmat shmdt shmctl mq_open mq_unlink mq_timedsend
        mq_timedsend_time64 mq_timedreceive mq_timedreceive_time64 mq_notify mq_getsetattr
    """,
    "the machine": """
        uname sysinfo getrandom get_thread_area set_thread_area modify_ldt
    """,
}

#: What a capability adds; without it these fail with EPERM, whatever the kernel would say.
WITH_CAPABILITY: dict[str, str] = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount
        open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare
    """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64 clock_adjtime clock_adjtime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

#: Refused to everybody: superseded by safer calls, of no use in a container, or too large a surface of the kernel.
NEVER = """
    _sysctl add_key create_module get_kernel_syms io_uring_enter io_uring_register io_uring_setup
    kexec_file_load kexec_load keyctl migrate_pages move_pages nfsservctl pivot_root query_module request_key
    swapoff swapon sysfs uselib userfaultfd ustat vm86 vm86old
"""

#: The execution domains that a process may set: Linux's own and the 32-bit and old-uname variants; all ones asks.
PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
