# The system calls and structures the loop uses.

from libc.errno cimport (EAGAIN, ECONNABORTED, ECONNRESET, EINPROGRESS, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPIPE,
                         errno)
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset, strlen

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t
    ctypedef long off_t

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)
    ssize_t c_read "read"(int fd, void *buf, size_t n)
    ssize_t c_write "write"(int fd, const void *buf, size_t n)

cdef extern from "<fcntl.h>" nogil:
    int O_NONBLOCK, O_CLOEXEC
    enum: SPLICE_F_MOVE
    enum: SPLICE_F_NONBLOCK
    enum: F_SETPIPE_SZ
    ssize_t c_splice "splice"(int fd_in, void *off_in, int fd_out, void *off_out, size_t n, unsigned int flags)
    int c_pipe2 "pipe2"(int *fds, int flags)
    int c_fcntl "fcntl"(int fd, int cmd, ...)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    enum: AF_INET
    enum: AF_INET6
    enum: AF_UNIX
    enum: SOCK_STREAM
    enum: SOCK_NONBLOCK
    enum: SOCK_CLOEXEC
    enum: SOL_SOCKET
    enum: SO_ERROR
    enum: SO_LINGER
    enum: SHUT_WR
    enum: MSG_NOSIGNAL
    enum: MSG_PEEK
    ctypedef unsigned int socklen_t
    struct sockaddr:
        unsigned short sa_family
    struct linger_t "linger":
        int l_onoff
        int l_linger
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    int c_socket "socket"(int domain, int type, int protocol)
    int c_connect "connect"(int fd, const sockaddr *address, socklen_t length)
    int c_accept4 "accept4"(int fd, sockaddr *address, socklen_t *length, int flags)
    ssize_t c_recv "recv"(int fd, void *buf, size_t n, int flags)
    ssize_t c_send "send"(int fd, const void *buf, size_t n, int flags)
    ssize_t c_sendmsg "sendmsg"(int fd, const msghdr *message, int flags)
    int c_shutdown "shutdown"(int fd, int how)
    int getsockname(int fd, sockaddr *address, socklen_t *length)
    int c_getsockopt "getsockopt"(int fd, int level, int name, void *value, socklen_t *length)
    int c_setsockopt "setsockopt"(int fd, int level, int name, const void *value, socklen_t length)

cdef extern from "<netinet/in.h>" nogil:
    enum: IPPROTO_TCP
    struct in_addr:
        uint32_t s_addr
    struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
    struct sockaddr_storage:
        unsigned short ss_family
    uint16_t htons(uint16_t x)
    uint16_t ntohs(uint16_t x)

cdef extern from "<linux/tcp.h>" nogil:
    enum: TCP_NODELAY
    enum: TCP_INFO
    struct tcp_info:
        uint64_t tcpi_bytes_acked

cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        unsigned short sun_family
        char sun_path[108]

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *out)
    const char *inet_ntop(int family, const void *address, char *out, socklen_t size)

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLLRDHUP
    enum: EPOLLHUP
    enum: EPOLLERR
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_DEL
    enum: EPOLL_CTL_MOD
    enum: EPOLL_CLOEXEC
    ctypedef union epoll_data_t:
        void *ptr
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int c_epoll_wait "epoll_wait"(int epfd, epoll_event *events, int n, int timeout_ms)

cdef enum:
    EDGE = 0x80000000               # EPOLLET, unsigned

cdef extern from "<sys/timerfd.h>" nogil:
    enum: TFD_NONBLOCK
    enum: TFD_CLOEXEC
    enum: TFD_TIMER_ABSTIME
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *value, itimerspec *old)

cdef extern from "<time.h>" nogil:
    enum: CLOCK_MONOTONIC
    enum: CLOCK_REALTIME
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    struct itimerspec:
        timespec it_interval
        timespec it_value
    struct tm:
        int tm_sec
    int clock_gettime(int clock, timespec *ts)
    tm *gmtime_r(const time_t *t, tm *out)
    size_t strftime(char *out, size_t n, const char *format, const tm *t)

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_READ
    enum: PROT_WRITE
    enum: MAP_SHARED
    void *c_mmap "mmap"(void *address, size_t n, int prot, int flags, int fd, off_t offset)
    int c_munmap "munmap"(void *address, size_t n)

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *buf, size_t n, unsigned int flags)

cdef extern from *:
    """
    #define fp_likely(x) __builtin_expect(!!(x), 1)
    #define fp_unlikely(x) __builtin_expect(!!(x), 0)
    #ifdef FASTPROXY_DEBUG
    #include <stdio.h>
    #include <stdlib.h>
    #define fp_debug_fail(what) (fprintf(stderr, "fastproxy: invariant broken: %s\\n", what), abort())
    #else
    #define fp_debug_fail(what) ((void)0)
    #endif
    """
    bint likely "fp_likely"(bint x) noexcept nogil
    bint unlikely "fp_unlikely"(bint x) noexcept nogil
    void debug_fail "fp_debug_fail"(const char *what) noexcept nogil
