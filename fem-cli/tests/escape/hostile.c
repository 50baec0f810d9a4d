/* Programs that want out. `hostile NAME DIR VICTIM TCP4 TCP6 UDP` tries one thing: it exits 0 where that
 * worked, and otherwise prints the error and exits 1. Compiled without PIE, so that the victim's
 * memory has the addresses of the attacker's own. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <mqueue.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static char memory[32] = "nothing";
static const char *dir, *self;
static int victim, tcp4, tcp6, udp;
static char path[4096];

static const char *at(const char *name) {
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}
static const char *proc(const char *name) {
    snprintf(path, sizeof path, "/proc/%d/%s", victim, name);
    return path;
}
static int denied(void) {
    printf("%s\n", strerrorname_np(errno));
    return 1;
}
static int got(long result) { return result >= 0 ? 0 : denied(); }
static int holds(int fd, const char *word) {
    static char text[65536];
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n < 0) return denied();
    if (memmem(text, n, word, strlen(word))) return 0;
    printf("ABSENT\n");
    return 1;
}
static int reads(const char *file, const char *word) { return holds(open(file, O_RDONLY), word); }

static int inet(int family, int type, int protocol, int port) {
    int s = socket(family, type, protocol);
    if (s < 0) return denied();
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    if (family == AF_INET) return got(connect(s, (void *)&four, sizeof four) ? -1 : send(s, "x", 1, 0));
    return got(connect(s, (void *)&six, sizeof six) ? -1 : send(s, "x", 1, 0));
}
static int un(int type, const char *name, int abstract) {
    int s = socket(AF_UNIX, type, 0);
    if (s < 0) return denied();
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strcpy(to.sun_path + abstract, name);
    return got(connect(s, (void *)&to, offsetof(struct sockaddr_un, sun_path) + abstract + strlen(name)));
}
static void *forever(void *unused) { for (;;) pause(); return unused; }
static long fill(size_t mib) {
    for (size_t n = 0; n < mib; n++) {
        char *block = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block == MAP_FAILED) return -1;
        memset(block, 1, 1 << 20);
    }
    return 0;
}
static void *fill_and_end(void *unused) {
    long result = fill(200);
    if (!result) sleep(2);
    _exit(result != 0);
    return unused;
}
/* Five processes, each with less than one may have, all with more than they may together. */
static int together(void (*each)(void)) {
    int failed = 0, status;
    for (int n = 0; n < 5; n++) if (!fork()) each();
    while (wait(&status) > 0) failed |= status;
    errno = ENOMEM;
    return failed ? -1 : 0;
}
static void unnamed(void) { prctl(PR_SET_NAME, "\xff"); fill_and_end(0); }
static void leaderless(void) { pthread_t one; pthread_create(&one, 0, fill_and_end, 0); syscall(SYS_exit, 0); }
/* Each lives as long as it takes to make the next, for half a minute at most. */
static int chain(int leave) {
    time_t end = time(0) + 30;
    for (int n = 0; n < 24; n++) {
        if (fork()) continue;
        for (int made = 0; time(0) < end; made++) {
            if (leave) setsid(), setpgid(0, 0);
            if (fork() > 0) _exit(0);
        }
        _exit(0);
    }
    return usleep(100000);
}
/* In the queues of sockets, which no process has in its memory: more than 400 MiB. */
static void queued(void) {
    static char block[4096];
    int pair[2];
    for (int n = 0; n < 60 && !socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair); n++)
        for (int side = 0; side < 2; side++) while (write(pair[side], block, sizeof block) > 0);
    sleep(2);
    _exit(0);
}
static int write_mib(const char *name, int mib) {
    static char block[1 << 20];
    memset(block, 1, sizeof block);
    int fd = open(name, O_CREAT | O_WRONLY, 0600);
    if (fd < 0) return -1;
    for (int n = 0; n < mib; n++)
        if (write(fd, block, sizeof block) != sizeof block) { close(fd); if (!errno) errno = ENOSPC; return -1; }
    return close(fd);
}
/* Sends itself descriptors that it never takes: more than 128, which count for its user. */
static int in_flight(void) {
    int pair[2], fds[100];
    char room[CMSG_SPACE(sizeof fds)] = {0};
    struct iovec one = {"x", 1};
    struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return -1;
    for (int n = 0; n < 100; n++) fds[n] = pair[0];
    head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(sizeof fds);
    memcpy(CMSG_DATA(head), fds, sizeof fds);
    for (int n = 0; n < 3; n++) if (sendmsg(pair[1], &message, 0) < 0) return -1;
    return 0;
}
static void mark(int signal) {
    char name[4096];
    snprintf(name, sizeof name, "%s/signal-%d", dir, signal);
    close(open(name, O_CREAT | O_WRONLY, 0600));
}
static int listening(int family, int *port) {
    int s = socket(family, SOCK_STREAM, 0);
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t four_size = sizeof four, six_size = sizeof six;
    if (family == AF_INET) bind(s, (void *)&four, sizeof four), getsockname(s, (void *)&four, &four_size), *port = ntohs(four.sin_port);
    else bind(s, (void *)&six, sizeof six), getsockname(s, (void *)&six, &six_size), *port = ntohs(six.sin6_port);
    listen(s, 64);
    return s;
}
/* Everything that an attacker could want, in one process of the same user. */
static int be_victim(void) {
    strcpy(memory, "the victim's secret");
    signal(SIGUSR1, mark), signal(SIGIO, mark);
    dup2(open(at("secret"), O_RDONLY), 9);
    listening(AF_INET, &tcp4), listening(AF_INET6, &tcp6);
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof four;
    bind(s, (void *)&four, size), getsockname(s, (void *)&four, &size), udp = ntohs(four.sin_port);
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int plain = socket(AF_UNIX, SOCK_STREAM, 0);
    strcpy(to.sun_path, at("socket")), bind(plain, (void *)&to, sizeof to), listen(plain, 64);
    for (int type = SOCK_STREAM; type <= SOCK_DGRAM; type++) {
        memset(&to, 0, sizeof to), to.sun_family = AF_UNIX;
        int n = sprintf(to.sun_path + 1, "fem-%d-%d", type, getpid());
        s = socket(AF_UNIX, type, 0);
        bind(s, (void *)&to, offsetof(struct sockaddr_un, sun_path) + 1 + n), listen(s, 64);
    }
    printf("%d %d %d %d\n", getpid(), tcp4, tcp6, udp), fflush(stdout);
    forever(0);
    return 0;
}

static int try(const char *name) {
    char text[64];
    int fd, two[2];
    struct stat seen;
#define IS(this) (!strcmp(name, this))
    if (IS("victim")) return be_victim();
    if (IS("read")) return reads(at("secret"), "secret");
    if (IS("read-dots")) { char up[8192]; snprintf(up, sizeof up, "../../../../../../../../../../../..%s", at("secret")); return reads(up, "secret"); }
    if (IS("read-symlink")) return symlink(at("secret"), "link-s") ? denied() : reads("link-s", "secret");
    if (IS("hardlink")) return got(link(at("secret"), "hard"));
    if (IS("passwd")) return reads("/etc/passwd", "root");
    if (IS("create")) return got(open(at("new"), O_CREAT | O_WRONLY, 0600));
    if (IS("rename")) { char to[4096]; strcpy(to, at("moved")); return got(rename(at("a"), to)); }
    if (IS("unlink")) return got(unlink(at("b")));
    if (IS("truncate")) return got(truncate(at("c"), 0));
    if (IS("chmod")) return got(chmod(at("c"), 0644));
    if (IS("utime")) return got(utimes(at("c"), 0));
    if (IS("xattr")) return got(setxattr(at("c"), "user.fem", "x", 1, 0));
    if (IS("stat")) return got(stat(at("secret"), &seen));
    if (IS("inotify")) { fd = inotify_init1(0); return got(fd < 0 ? -1 : inotify_add_watch(fd, dir, IN_ACCESS)); }
    if (IS("bashrc")) { fd = open(at(".bashrc"), O_WRONLY | O_APPEND); return got(fd < 0 ? -1 : write(fd, "x", 1)); }
    if (IS("run-script")) {
        fd = open("script", O_CREAT | O_WRONLY, 0700);
        if (fd < 0 || write(fd, "#!/bin/true\n", 12) < 0) return denied();
        close(fd);
        execl("./script", "script", NULL);
        return denied();
    }
    if (IS("map-own-code")) { int in = open(self, O_RDONLY); static char code[1 << 20]; ssize_t n = read(in, code, sizeof code); fd = open("code", O_CREAT | O_RDWR, 0700); write(fd, code, n); return got(mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) == MAP_FAILED ? -1 : 0); }
    if (IS("close-one")) { write_mib("open", 1); close(open("closed", O_CREAT | O_WRONLY, 0)); return 0; }
    if (IS("memfd")) {
        fd = memfd_create("x", 0);
        if (fd < 0 || write(fd, "#!/bin/true\n", 12) < 0) return denied();
        fchmod(fd, 0700);
        syscall(SYS_execveat, fd, "", (char *[]){"x", NULL}, (char *[]){NULL}, AT_EMPTY_PATH);
        return denied();
    }
    if (IS("am-root")) { if (geteuid() == 0) return 0; printf("USER\n"); return 1; }
    if (IS("set-user-id")) { char suid[4096]; snprintf(suid, sizeof suid, "%.*s/set-user-id", (int)(strrchr(self, '/') - self), self); execl(suid, suid, "am-root", NULL); return denied(); }
    if (IS("handle")) { struct { struct file_handle h; char rest[128]; } handle = {.h.handle_bytes = 8}; return got(syscall(SYS_open_by_handle_at, AT_FDCWD, &handle, O_RDONLY)); }
    if (IS("mknod")) return got(mknod("disk", S_IFBLK | 0600, makedev(254, 0)));
    if (IS("devices")) { const char *all[] = {"/dev/vda", "/dev/sda", "/dev/kmsg", "/dev/kvm", "/dev/fuse", "/dev/mem"}; for (int n = 0; n < 6; n++) if (open(all[n], O_RDONLY) >= 0) return 0; return denied(); }
    if (IS("kernel-files")) { const char *all[] = {"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/fs/cgroup/release_agent", "/sys/kernel/uevent_helper"}; for (int n = 0; n < 4; n++) if (open(all[n], O_WRONLY) >= 0) return 0; return denied(); }
    if (IS("chroot")) return got(chroot("/"));
    if (IS("inherited")) return holds(7, "secret");
    if (IS("inherited-dir")) return holds(openat(8, "secret", O_RDONLY), "secret");
    if (IS("inherited-chdir")) return got(fchdir(8));
    if (IS("environment")) { if (getenv("FEM_SECRET")) return 0; printf("ABSENT\n"); return 1; }
    if (IS("proc-environ")) return reads(proc("environ"), "FEM_SECRET");
    if (IS("proc-root")) { char all[8192]; snprintf(all, sizeof all, "/proc/%d/root%s/secret", victim, dir); return reads(all, "secret"); }
    if (IS("proc-fd")) return reads(proc("fd/9"), "secret");
    if (IS("proc-mem")) { fd = open(proc("mem"), O_RDONLY); return got(fd < 0 ? -1 : pread(fd, text, 8, (off_t)memory)); }
    if (IS("proc-cmdline")) return reads(proc("cmdline"), "victim");
    if (IS("proc-list")) {
        DIR *all = opendir("/proc"); int other = 0;
        if (!all) return denied();
        for (struct dirent *one; (one = readdir(all));) other += atoi(one->d_name) > 0 && atoi(one->d_name) != getpid();
        if (other > 0) return 0;
        printf("ABSENT\n");
        return 1;
    }
    if (IS("proc-oom")) { fd = open(proc("oom_score_adj"), O_WRONLY); return got(fd < 0 ? -1 : write(fd, "500", 3)); }
    if (IS("kill")) return got(kill(victim, 0));
    if (IS("pidfd-kill")) { fd = syscall(SYS_pidfd_open, victim, 0); return got(fd < 0 ? -1 : syscall(SYS_pidfd_send_signal, fd, 0, 0, 0)); }
    if (IS("kill-all")) { signal(SIGUSR1, SIG_IGN); kill(-1, SIGUSR1); return 0; }
    if (IS("sigio")) { pipe(two); fcntl(two[0], F_SETOWN, victim); fcntl(two[0], F_SETFL, O_ASYNC); write(two[1], "x", 1); return 0; }
    if (IS("ptrace")) return got(ptrace(PTRACE_SEIZE, victim, 0, 0));
    if (IS("vm-read")) { struct iovec mine = {text, 8}, theirs = {memory, 8}; return got(process_vm_readv(victim, &mine, 1, &theirs, 1, 0)); }
    if (IS("pidfd-getfd")) { fd = syscall(SYS_pidfd_open, victim, 0); return got(fd < 0 ? -1 : syscall(SYS_pidfd_getfd, fd, 9, 0)); }
    if (IS("kcmp")) return got(syscall(SYS_kcmp, getpid(), victim, 0, 0, 0));
    if (IS("prlimit")) { struct rlimit was; return got(prlimit(victim, RLIMIT_CORE, 0, &was)); }
    if (IS("setpriority")) return got(setpriority(PRIO_PROCESS, victim, 1));
    if (IS("affinity")) { cpu_set_t set; sched_getaffinity(0, sizeof set, &set); return got(sched_setaffinity(victim, sizeof set, &set)); }
    if (IS("tiocsti")) { fd = open("/dev/tty", O_RDWR); return got(fd < 0 ? ioctl(0, TIOCSTI, "x") : ioctl(fd, TIOCSTI, "x")); }
    if (IS("forks")) { for (int n = 0; n < 600; n++) { int pid = fork(); if (pid < 0) { int why = errno; signal(SIGTERM, SIG_IGN); kill(0, SIGTERM); errno = why; return denied(); } if (!pid) { signal(SIGTERM, SIG_DFL); forever(0); } } signal(SIGTERM, SIG_IGN); kill(0, SIGTERM); return 0; }
    if (IS("threads")) { pthread_attr_t small; pthread_attr_init(&small); pthread_attr_setstacksize(&small, 16384); for (int n = 0; n < 600; n++) { pthread_t one; int why = pthread_create(&one, &small, forever, 0); if (why) { errno = why; return denied(); } } return 0; }
    if (IS("memory")) return got(fill(768));
    if (IS("memory-five")) {
        int failed = 0, status;
        for (int n = 0; n < 5; n++) if (!fork()) { long result = fill(350); if (!result) sleep(2); _exit(result != 0); }
        while (wait(&status) > 0) failed |= status;
        errno = ENOMEM;
        return got(failed ? -1 : 0);
    }
    if (IS("memory-unnamed")) return got(together(unnamed));
    if (IS("memory-leaderless")) return got(together(leaderless));
    if (IS("memory-in-sockets")) { for (int n = 0; n < 19; n++) if (!fork()) queued(); queued(); }
    if (IS("shm-fill")) { int all = write_mib("/dev/shm/fem-fill", 512); int why = errno; unlink("/dev/shm/fem-fill"); errno = why; return got(all); }
    if (IS("disk")) { for (int n = 0; n < 40; n++) { sprintf(text, "big-%d", n); if (write_mib(text, 15)) return denied(); } return 0; }
    if (IS("inodes")) { for (int n = 0; n < 20000; n++) { sprintf(text, "f-%d", n); fd = open(text, O_CREAT | O_WRONLY, 0600); if (fd < 0) return denied(); close(fd); } return 0; }
    if (IS("descriptors")) { for (int n = 0; n < 3000; n++) if (dup(0) < 0) return denied(); return 0; }
    if (IS("timers")) { for (int n = 0; n < 3000; n++) { timer_t one; struct sigevent none = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1}; if (timer_create(CLOCK_MONOTONIC, &none, &one)) return denied(); } return 0; }
    if (IS("pipes")) { for (int n = 0; n < 1000; n++) if (pipe(two) || fcntl(two[0], F_SETPIPE_SZ, 1 << 20) < 0) return denied(); return 0; }
    if (IS("spin")) for (;;);
    if (IS("sleep")) forever(0);
    if (IS("stubborn")) { for (int n = 1; n < 65; n++) signal(n, SIG_IGN); for (;;); }
    if (IS("daemon")) { if (fork()) return 0; setsid(); if (fork()) _exit(0); forever(0); }
    if (IS("chain")) return chain(0);
    if (IS("chain-of-groups")) return chain(1);
    if (IS("pair")) { fork(); forever(0); }
    if (IS("flood")) for (;;) puts("all work and no play");
    if (IS("tcp4")) return inet(AF_INET, SOCK_STREAM, 0, tcp4);
    if (IS("tcp6")) return inet(AF_INET6, SOCK_STREAM, 0, tcp6);
    if (IS("listen")) { fd = socket(AF_INET, SOCK_STREAM, 0); return got(fd < 0 ? -1 : listen(fd, 1)); }
    if (IS("udp")) return inet(AF_INET, SOCK_DGRAM, 0, udp);
    if (IS("mptcp")) return inet(AF_INET, SOCK_STREAM, 262, tcp4);
    if (IS("raw")) { const int all[][3] = {{AF_INET, SOCK_RAW, 1}, {AF_INET, SOCK_DGRAM, 1}, {AF_PACKET, SOCK_RAW, 0}}; for (int n = 0; n < 3; n++) if (socket(all[n][0], all[n][1], all[n][2]) >= 0) return 0; return denied(); }
    if (IS("netlink")) return got(socket(AF_NETLINK, SOCK_RAW, 0));
    if (IS("vsock")) return got(socket(AF_VSOCK, SOCK_STREAM, 0));
    if (IS("abstract-stream")) { sprintf(text, "fem-%d-%d", SOCK_STREAM, victim); return un(SOCK_STREAM, text, 1); }
    if (IS("abstract-dgram")) { sprintf(text, "fem-%d-%d", SOCK_DGRAM, victim); return un(SOCK_DGRAM, text, 1); }
    if (IS("unix-datagrams")) return got(socketpair(AF_UNIX, SOCK_DGRAM, 0, two));
    if (IS("unix-path")) return un(SOCK_STREAM, at("socket"), 0);
    if (IS("in-flight")) return got(in_flight());
    if (IS("keep-in-flight")) { if (in_flight()) return denied(); sprintf(text, "ready-%d", getpid()); close(open(at(text), O_CREAT | O_WRONLY, 0600)); forever(0); }
    if (IS("keep-sockets")) {
        for (int n = 0; n < 250 && !socketpair(AF_UNIX, SOCK_STREAM, 0, two); n++) {}
        sprintf(text, "ready-%d", getpid()); close(open(at(text), O_CREAT | O_WRONLY, 0600)); forever(0);
    }
    if (IS("idle")) return usleep(200000);
    if (IS("sysv-shm")) { int id = shmget(IPC_PRIVATE, 4096, 0600); if (id >= 0) shmctl(id, IPC_RMID, 0); return got(id); }
    if (IS("posix-shm")) { fd = open("/dev/shm/fem-x", O_CREAT | O_RDWR, 0600); int why = errno; unlink("/dev/shm/fem-x"); errno = why; return got(fd); }
    if (IS("mqueue")) { fd = mq_open("/fem-x", O_CREAT | O_RDWR, 0600, 0); int why = errno; mq_unlink("/fem-x"); errno = why; return got(fd); }
    if (IS("io-uring")) { static char params[120]; return got(syscall(SYS_io_uring_setup, 1, params)); }
    if (IS("unshare")) return got(unshare(CLONE_NEWUSER));
    if (IS("clone3")) { struct clone_args args = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD}; long pid = syscall(SYS_clone3, &args, sizeof args); if (!pid) _exit(0); return got(pid); }
    if (IS("mount")) return got(mount("x", "/work", "tmpfs", 0, 0));
    if (IS("remount")) return got(mount(0, "/usr", 0, MS_REMOUNT | MS_BIND, 0));
    if (IS("setns")) { fd = open("/proc/self/ns/net", O_RDONLY); return got(fd < 0 ? -1 : setns(fd, 0)); }
    if (IS("perf")) { static struct { unsigned type, size; uint64_t rest[14]; } event = {1, 64}; event.rest[4] = 0x60; return got(syscall(SYS_perf_event_open, &event, 0, -1, -1, 0)); }
    if (IS("userfaultfd")) return got(syscall(SYS_userfaultfd, 1));
    if (IS("keyctl")) return got(syscall(SYS_add_key, "user", "fem", "x", 1, -2));
    if (IS("bpf")) { static char attr[120]; return got(syscall(SYS_bpf, 0, attr, sizeof attr)); }
    if (IS("dmesg")) return got(syscall(SYS_syslog, 3, path, sizeof path));
    if (IS("personality")) return got(personality(ADDR_NO_RANDOMIZE));
#ifdef __x86_64__
    if (IS("int80")) { long result; __asm__ volatile("int $0x80" : "=a"(result) : "a"(359), "b"(AF_INET), "c"(SOCK_STREAM), "d"(0) : "memory"); errno = -result; return got(result < 0 ? -1 : 0); }
    if (IS("x32")) return got(syscall(0x40000000 | SYS_getpid));
#endif
    if (IS("write-execute")) return got(mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0);
    if (IS("hostname")) return got(sethostname("owned", 5));
    if (IS("clock")) { struct timespec then = {0}; return got(clock_settime(CLOCK_REALTIME, &then)); }
    if (IS("plant")) { signal(SIGXFSZ, SIG_IGN); mkfifo("fifo", 0600); symlink("/etc/passwd", "link"); fd = open("sparse", O_CREAT | O_WRONLY, 0600); ftruncate(fd, 1L << 40); ftruncate(fd, 1 << 20); mkdir("closed", 0); write_mib("plain", 1); return 0; }
    if (IS("bury")) { for (int n = 0; n < 1500; n++) { int above = open(".", O_RDONLY); if (mkdir("d", 0700) || chdir("d")) return denied(); close(open("f", O_CREAT | O_WRONLY, 0)); fchmod(above, 0); close(above); } return 0; }
    if (IS("mountinfo")) return reads("/proc/self/mountinfo", dir);
    if (IS("kill-first")) { kill(1, SIGKILL); kill(getppid(), SIGKILL); usleep(50000); return got(open("left", O_CREAT | O_EXCL | O_WRONLY, 0600)); }
    if (IS("say")) { puts("\033]0;owned\007\r\n{\"level\":\"INFO\",\"message\":\"all is well\"}"); fputs("\033[2J", stderr); return 0; }
    printf("UNKNOWN\n");
    return 2;
}

int main(int count, char **words) {
    self = words[0];
    dir = count > 2 ? words[2] : "";
    victim = count > 3 ? atoi(words[3]) : 0;
    tcp4 = count > 4 ? atoi(words[4]) : 0, tcp6 = count > 5 ? atoi(words[5]) : 0;
    udp = count > 6 ? atoi(words[6]) : 0;
    setvbuf(stdout, 0, _IONBF, 0);
    return try(words[1]);
}
