/* The origin of every row: answers HTTP/1.1 as cheaply as a process can, so that the proxy is what is measured.
 *
 *   origin PORT UNIX_PATH STATS_FILE
 *
 * The path picks the answer (/16k, /64k, /1m, anything else 128 bytes); requests other than GET carry
 * Content-Length bytes, which are counted and thrown away before the answer. Nothing else is checked.
 * The counters are in STATS_FILE, mapped by the program that reports: requests, upload bytes, connections.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { SCRATCH = 256 * 1024, MAX_HEAD = 64 * 1024, MAX_FD = 65536, EVENTS = 512 };

struct answer {
    const char *path;
    size_t body;
    char *bytes; /* head and body in one piece: one send */
    size_t length;
};

struct conn {
    int open, tcp;
    uint64_t body;            /* upload bytes still to come */
    const struct answer *due; /* answered when they are all there */
    const struct answer *out; /* answer that did not fit the socket yet */
    size_t sent;
    char *parked; /* bytes of a head that is not whole */
    size_t parked_length;
};

static struct answer answers[] = {
    {"/16k", 16384, 0, 0}, {"/64k", 65536, 0, 0}, {"/1m", 1048576, 0, 0}, {"", 128, 0, 0}};
static const struct answer refused = {"", 0, "HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n", 53};
static struct conn conns[MAX_FD];
static char scratch[MAX_HEAD + SCRATCH];
static volatile uint64_t *stats;
static int ep;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void prepare(struct answer *a) {
    char date[64];
    time_t now = time(NULL);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime(&now));
    a->bytes = malloc(a->body + 512);
    int head = sprintf(a->bytes,
                       "HTTP/1.1 200 OK\r\nServer: origin\r\nDate: %s\r\nContent-Type: text/plain\r\n"
                       "Content-Length: %zu\r\n\r\n",
                       date, a->body);
    memset(a->bytes + head, 'x', a->body);
    a->length = head + a->body;
}

static void drop(int fd) {
    free(conns[fd].parked);
    memset(&conns[fd], 0, sizeof conns[fd]);
    close(fd);
}

/* 1: all written, 0: the socket is full (EPOLLOUT continues), -1: the connection is gone. */
static int flush(int fd, struct conn *c) {
    while (c->out) {
        ssize_t n = send(fd, c->out->bytes + c->sent, c->out->length - c->sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) return 0;
            drop(fd);
            return -1;
        }
        c->sent += n;
        if (c->sent == c->out->length) c->out = NULL;
    }
    return 1;
}

static int answer(int fd, struct conn *c, const struct answer *a) {
    stats[0]++;
    c->out = a;
    c->sent = 0;
    return flush(fd, c);
}

static void park(struct conn *c, const char *p, size_t n) {
    char *copy = n ? malloc(n) : NULL;
    if (n) memcpy(copy, p, n);
    free(c->parked);
    c->parked = copy;
    c->parked_length = n;
}

static const struct answer *pick(const char *head, size_t n) {
    const char *path = memchr(head, ' ', n);
    if (!path) return &answers[3];
    path++;
    for (size_t i = 0; i < 3; i++) {
        size_t len = strlen(answers[i].path);
        if (path + len < head + n && memcmp(path, answers[i].path, len) == 0) return &answers[i];
    }
    return &answers[3];
}

/* Take whole requests out of p[0..n). 1: go on reading, 0: wait for room to write, -1: gone. */
static int consume(int fd, struct conn *c, char *p, size_t n) {
    while (n) {
        if (c->body) {
            size_t take = n < c->body ? n : c->body;
            c->body -= take;
            stats[1] += take;
            p += take;
            n -= take;
        } else {
            char *end = memmem(p, n, "\r\n\r\n", 4);
            if (!end) {
                if (n > MAX_HEAD) return drop(fd), -1;
                park(c, p, n);
                return 1;
            }
            size_t head = end + 4 - p;
            c->due = pick(p, head);
            if (*p != 'G') { /* not GET: there may be a body */
                end[2] = 0;
                char *length = strcasestr(p, "\ncontent-length:");
                if (length) c->body = strtoull(length + 16, NULL, 10);
                if (strcasestr(p, "\ntransfer-encoding:")) c->due = &refused; /* no row sends this */
            }
            p += head;
            n -= head;
        }
        if (!c->body) {
            int r = answer(fd, c, c->due);
            if (r <= 0) {
                if (r == 0) park(c, p, n);
                return r;
            }
        }
    }
    park(c, p, 0);
    return 1;
}

static void on_readable(int fd, struct conn *c) {
    for (;;) {
        if (c->body && c->tcp && !c->parked) { /* thrown away in the kernel: no copy */
            ssize_t n = recv(fd, NULL, c->body < (1 << 22) ? c->body : (1 << 22), MSG_TRUNC);
            if (n < 0 && errno == EAGAIN) return;
            if (n <= 0) return drop(fd);
            c->body -= n;
            stats[1] += n;
            if (!c->body && answer(fd, c, c->due) <= 0) return;
            continue;
        }
        size_t have = c->parked_length;
        if (have) memcpy(scratch, c->parked, have);
        ssize_t n = recv(fd, scratch + have, SCRATCH, 0);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) return drop(fd);
        if (consume(fd, c, scratch, have + n) <= 0) return;
        if (n < SCRATCH && !c->body) return; /* a short read drained it */
    }
}

static void on_writable(int fd, struct conn *c) {
    if (flush(fd, c) <= 0) return;
    if (c->parked) {
        size_t n = c->parked_length;
        memcpy(scratch, c->parked, n);
        if (consume(fd, c, scratch, n) <= 0) return;
    }
    on_readable(fd, c);
}

static void accept_all(int listener, int tcp) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= MAX_FD) {
            close(fd);
            continue;
        }
        if (tcp) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        stats[2]++;
        conns[fd].open = 1;
        conns[fd].tcp = tcp;
        struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = fd};
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    }
}

static int listen_on(struct sockaddr *address, socklen_t length) {
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(fd, address, length) || listen(fd, 4096)) die("origin: listen");
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    return fd;
}

int main(int argc, char **argv) {
    if (argc != 4) return fprintf(stderr, "usage: origin PORT UNIX_PATH STATS_FILE\n"), 2;
    int file = open(argv[3], O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, 4096)) die("origin: stats");
    stats = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (stats == MAP_FAILED) die("origin: stats");
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) prepare(&answers[i]);

    ep = epoll_create1(EPOLL_CLOEXEC);
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int tcp = listen_on((struct sockaddr *)&in, sizeof in);
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    strncpy(un.sun_path, argv[2], sizeof un.sun_path - 1);
    unlink(argv[2]);
    int local = listen_on((struct sockaddr *)&un, sizeof un);

    struct epoll_event events[EVENTS];
    for (;;) {
        int n = epoll_wait(ep, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            uint32_t what = events[i].events;
            if (fd == tcp || fd == local) {
                accept_all(fd, fd == tcp);
                continue;
            }
            struct conn *c = &conns[fd];
            if (c->out) {
                if (what & (EPOLLOUT | EPOLLERR | EPOLLHUP)) on_writable(fd, c);
            } else if (what & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP)) {
                on_readable(fd, c);
            }
        }
    }
}
