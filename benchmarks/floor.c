/* The floor: the least a relay can do on this machine. No proxy that reads what it forwards can be cheaper.
 *
 *   floor PORT UPSTREAM [READ_KIB] [splice]        UPSTREAM: a port on 127.0.0.1, or the path of a Unix socket
 *
 * Edge-triggered epoll, one thread. A downstream connection owns one upstream connection, taken from a pool when
 * it comes and given back when it goes. Of the bytes it only looks for the end of the head; nothing is rewritten.
 * A request costs four system calls besides its share of epoll_wait. With `splice`, what follows the first read of
 * an answer stays in the kernel. A short write parks the rest and stops reading the other side.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MAX_FD = 65536, EVENTS = 512, PIPE = 1 << 20 };

struct side {
    int peer;     /* descriptor of the other side, 0 without one */
    char up;      /* upstream side */
    char open;
    char spoke;   /* upstream side: its last bytes came after the last request: free to be pooled */
    char blocked; /* the other side took less than we read: parked or piped below */
    char *parked;
    size_t parked_length, parked_sent;
    int pipe[2];
    size_t piped;
};

static struct side sides[MAX_FD];
static int pool[MAX_FD], pooled;
static char *scratch;
static size_t scratch_size = 64 * 1024;
static int use_splice, ep, unix_upstream;
static struct sockaddr_in upstream_in = {.sin_family = AF_INET};
static struct sockaddr_un upstream_un = {.sun_family = AF_UNIX};
static uint64_t heads; /* ends of heads seen: the result of looking */

static void add(int fd) {
    struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = fd};
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
}

static int dial(void) {
    struct sockaddr *to = unix_upstream ? (struct sockaddr *)&upstream_un : (struct sockaddr *)&upstream_in;
    socklen_t length = unix_upstream ? sizeof upstream_un : sizeof upstream_in;
    int fd = socket(to->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* connected while blocking: on loopback this is immediate, and happens once per pooled connection */
    if (fd < 0 || fd >= MAX_FD || connect(fd, to, length)) {
        if (fd >= 0) close(fd);
        return -1;
    }
    if (!unix_upstream) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    memset(&sides[fd], 0, sizeof sides[fd]);
    sides[fd].open = sides[fd].up = 1;
    add(fd);
    return fd;
}

static void discard(int fd) {
    struct side *s = &sides[fd];
    if (!s->open) return;
    free(s->parked);
    if (s->pipe[0]) close(s->pipe[0]), close(s->pipe[1]);
    memset(s, 0, sizeof *s);
    close(fd);
}

/* One side ended: its pair ends too, except an upstream connection that owes nothing. */
static void end(int fd) {
    struct side *s = &sides[fd];
    if (!s->open) return;
    int peer = s->peer;
    if (s->up && !peer) { /* closed in the pool */
        for (int i = 0; i < pooled; i++)
            if (pool[i] == fd) pool[i] = pool[--pooled];
        return discard(fd);
    }
    int reuse = !s->up && sides[peer].spoke && !s->blocked && !sides[peer].blocked;
    discard(fd);
    if (!peer) return;
    if (reuse) {
        sides[peer].peer = 0;
        pool[pooled++] = peer;
    } else {
        discard(peer);
    }
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        int up = fd >= MAX_FD ? -1 : pooled ? pool[--pooled] : dial();
        if (up < 0) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        memset(&sides[fd], 0, sizeof sides[fd]);
        sides[fd].open = 1;
        sides[fd].peer = up;
        sides[up].peer = fd;
        add(fd);
    }
}

/* Write what fd has read but its peer did not take. 1: all gone, 0: still full, -1: ended. */
static int unblock(int fd, struct side *s) {
    while (s->piped) {
        ssize_t n = splice(s->pipe[0], NULL, s->peer, NULL, s->piped, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (n < 0 && errno == EAGAIN) return 0;
        if (n <= 0) return end(fd), -1;
        s->piped -= n;
    }
    while (s->parked) {
        size_t left = s->parked_length - s->parked_sent;
        ssize_t n = send(s->peer, s->parked + s->parked_sent, left, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) return 0;
        if (n < 0) return end(fd), -1;
        s->parked_sent += n;
        if ((size_t)n == left) free(s->parked), s->parked = NULL;
    }
    s->blocked = 0;
    return 1;
}

/* The rest of an answer through a pipe. 1: nothing left to read, 0: the reader is full, -1: ended. */
static int pour(int fd, struct side *s) {
    if (!s->pipe[0]) {
        if (pipe2(s->pipe, O_NONBLOCK | O_CLOEXEC)) return 1;
        fcntl(s->pipe[1], F_SETPIPE_SZ, PIPE);
    }
    for (;;) {
        ssize_t n = splice(fd, NULL, s->pipe[1], NULL, PIPE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (n < 0 && errno == EAGAIN) return 1;
        if (n <= 0) return end(fd), -1;
        s->piped = n;
        s->blocked = 1;
        int r = unblock(fd, s);
        if (r <= 0) return r;
    }
}

static void relay(int fd, struct side *s) {
    while (!s->blocked) {
        ssize_t n = recv(fd, scratch, scratch_size, 0);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0 || !s->peer) return end(fd);
        heads += memmem(scratch, n < 8192 ? n : 8192, "\r\n\r\n", 4) != NULL;
        sides[s->up ? fd : s->peer].spoke = s->up;
        ssize_t m = send(s->peer, scratch, n, MSG_NOSIGNAL);
        if (m < 0 && errno != EAGAIN) return end(fd);
        if (m < n) {
            if (m < 0) m = 0;
            s->parked = malloc(n - m);
            memcpy(s->parked, scratch + m, n - m);
            s->parked_length = n - m;
            s->parked_sent = 0;
            s->blocked = 1;
            return;
        }
        if ((size_t)n < scratch_size) return; /* a short read drained it */
        if (use_splice && s->up && pour(fd, s) <= 0) return;
    }
}

int main(int argc, char **argv) {
    if (argc < 3) return fprintf(stderr, "usage: floor PORT UPSTREAM [READ_KIB] [splice]\n"), 2;
    unix_upstream = argv[2][0] == '/';
    if (unix_upstream)
        strncpy(upstream_un.sun_path, argv[2], sizeof upstream_un.sun_path - 1);
    else
        upstream_in.sin_port = htons(atoi(argv[2]));
    upstream_in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (argc > 3) scratch_size = (size_t)atoi(argv[3]) * 1024;
    use_splice = argc > 4;
    scratch = malloc(scratch_size);
    signal(SIGPIPE, SIG_IGN); /* splice has no MSG_NOSIGNAL */

    ep = epoll_create1(EPOLL_CLOEXEC);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&in, sizeof in) || listen(listener, 4096))
        return perror("floor: listen"), 1;
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &ev);

    struct epoll_event events[EVENTS];
    for (;;) {
        int n = epoll_wait(ep, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            uint32_t what = events[i].events;
            if (fd == listener) {
                accept_all(fd);
                continue;
            }
            struct side *s = &sides[fd];
            if (!s->open) continue; /* ended earlier in this round */
            if (what & EPOLLOUT && s->peer && sides[s->peer].blocked) {
                int from = s->peer;
                if (unblock(from, &sides[from]) == 1) {
                    if (use_splice && sides[from].up && sides[from].pipe[0]) {
                        if (pour(from, &sides[from]) == 1) relay(from, &sides[from]);
                    } else {
                        relay(from, &sides[from]);
                    }
                }
                if (!s->open) continue;
            }
            if (what & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP)) relay(fd, s);
        }
    }
}
